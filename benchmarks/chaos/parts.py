"""The parts of the recoveries that the harness runs: steps, a verifier and a tool that may hang, the sampler."""

from __future__ import annotations

import asyncio
import hashlib
import re
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.chaos.server import ERROR_TEXT
from rfx_agent import Recovery, RetryBudget, Rollout, Step, Verdict
from rfx_agent.errors import ToolInputError
from rfx_agent.ports import Tool, Verifier
from rfx_agent.records import Message, Spend, ToolResult
from rfx_agent.samplers.openai.sampler import OpenAISampler

__all__ = ["Adder", "SumVerifier", "chance", "recovery", "sampler", "step_of", "wrong"]

_LAST = re.compile(r"(\d+)\D*$")
_HANG = 30.0  # seconds; far more than anything waits for it

woken = threading.Event()
"""Set when the harness ends, so that no thread that hangs outlives it."""


def chance(*names: object) -> float:
    """A number in [0, 1) that is the same for the same names, in every process."""
    return int(hashlib.sha256("/".join(map(str, names)).encode()).hexdigest()[:8], 16) / 2**32


def step_of(run: str) -> Step:
    """A sum to be done; the prompt names the run, so that the server can keep its counts apart."""
    a, b = 100 + int(800 * chance("a", run)), 100 + int(800 * chance("b", run))
    return Step.of(f"run {run}: What is {a} plus {b}? Reply with the sum.", expected=str(a + b), id=run)


def wrong(step: Step) -> str:
    """A candidate that fails."""
    return f"The answer is {int(step.expected) - 1}"


class SumVerifier(Verifier):
    """Compares the last number in the text with the expected answer. It hangs on some rollouts.

    Args:
        hangs: share of rollouts on which it does not come back.
    """

    name = "sum"

    def __init__(self, hangs: float = 0.0) -> None:
        self._hangs = hangs

    def verify(self, step: Step, rollout: Rollout, *, peers: Sequence[Rollout] = ()) -> Verdict:
        """A verdict, or none for ``_HANG`` seconds."""
        if chance("verify", step.id, rollout.id, rollout.response_id) < self._hangs:
            woken.wait(_HANG)
        return self._verdict(step, rollout)

    async def averify(self, step: Step, rollout: Rollout, *, peers: Sequence[Rollout] = ()) -> Verdict:
        """The same."""
        if chance("verify", step.id, rollout.id, rollout.response_id) < self._hangs:
            await asyncio.sleep(_HANG)
        return self._verdict(step, rollout)

    @staticmethod
    def _verdict(step: Step, rollout: Rollout) -> Verdict:
        if rollout.text.startswith(ERROR_TEXT):
            return Verdict(False, reason="an error's text is no answer")
        found = _LAST.search(rollout.text)
        return Verdict(bool(found and found[1] == step.expected), answer=found[1] if found else None)


class Adder(Tool):
    """A tool that runs ``add A B``. It hangs on some inputs.

    Args:
        hangs: share of inputs on which it does not come back.
    """

    name = "adder"
    bound = Spend(tool_seconds=0.2)

    def __init__(self, hangs: float = 0.0) -> None:
        self._hangs = hangs

    def prompt(self, step: Step, *, prefix: str | None = None) -> tuple[Message, ...]:
        """The step's prompt, and what a program is."""
        return (*step.messages, {"role": "user", "content": "Reply with a program: add A B"})

    def repair(self, step: Step, source: str, result: ToolResult) -> tuple[Message, ...]:
        """The same, with the error."""
        return (*step.messages, {"role": "user", "content": f"{source!r}: {result.error}. Reply with a program."})

    def parse(self, text: str) -> str:
        """A line that begins with ``a``; an error's text does not."""
        if not text.startswith("a"):
            raise ToolInputError("this is no program")
        return text

    def run(self, source: str) -> ToolResult:
        """The sum, or nothing for ``_HANG`` seconds."""
        if chance("tool", source) < self._hangs:
            woken.wait(_HANG)
        return self._run(source)

    async def arun(self, source: str) -> ToolResult:
        """The same."""
        if chance("tool", source) < self._hangs:
            await asyncio.sleep(_HANG)
        return self._run(source)

    @staticmethod
    def _run(source: str) -> ToolResult:
        word, *numbers = source.split()
        if word != "add" or len(numbers) != 2:
            return ToolResult(None, error=f"unknown instruction {word!r}")
        return ToolResult(str(sum(map(int, numbers))))


def sampler(base_url: str, *, timeout: float = 5.0, **more: Any) -> OpenAISampler:
    """The real backend, pointed at the chaos server."""
    return OpenAISampler("chaos", base_url=base_url, api_key="none", top_logprobs=None, timeout=timeout, **more)


def recovery(model: Any, *, hangs: Mapping[str, float] | None = None, **more: Any) -> Recovery:
    """A recovery of ``model`` as the harness runs it; ``hangs`` by ``verifier`` and ``tool``."""
    hangs = hangs or {}
    parts: dict[str, Any] = {
        "sampler": model,
        "verifier": SumVerifier(hangs.get("verifier", 0.0)),
        "tool": Adder(hangs.get("tool", 0.0)),
        "budget": RetryBudget(samples=12, calls=60),
        "max_tokens": 32,
        "seed": 1,
        "extra_samples": 3,  # several at once, so that a server can give fewer than it was asked for
        "concurrency": 4,
    }
    return Recovery(**(parts | more))
