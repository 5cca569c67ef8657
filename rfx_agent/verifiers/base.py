"""What the verifiers share."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

from rfx_agent.checks import shown
from rfx_agent.errors import ConfigError
from rfx_agent.ports import Verifier
from rfx_agent.records import Rollout, Step, Verdict
from rfx_agent.thinking import LONG

__all__ = [
    "HOW_TO_ANSWER",
    "NONE_FOUND",
    "SEVERAL",
    "NamedVerifier",
    "PureVerifier",
    "aside",
    "clip",
    "comparable",
    "expected_of",
    "shorten",
]
P = ParamSpec("P")
T = TypeVar("T")

NONE_FOUND = "no answer was found in the text"
HOW_TO_ANSWER = "No final answer was found in the text. State it on the last line, as in: Answer: ..."
"""What a model may be told where its text has no answer."""
SEVERAL = (list, tuple, set, frozenset)
"""What is taken as several accepted answers."""


def clip(text: str, limit: int = 200) -> str:
    """``text`` for a reason: cut, because it may quote a megabyte of model output."""
    return text if len(text) <= limit else text[:limit] + "…"


def shorten(answer: str | None, limit: int = 1000) -> str | None:
    """A rejected answer as it is kept: verdicts live in checkpoints, and equal answers must stay equal."""
    if answer is None or len(answer) <= limit:
        return answer
    return f"{answer[:limit]}… [sha256 {hashlib.sha256(answer.encode(errors='replace')).hexdigest()[:16]}]"


async def aside(characters: int, run: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """``run(...)``, which reads so many characters: in place where they are few, else on a thread."""
    if characters < LONG:
        return run(*args, **kwargs)
    return await asyncio.to_thread(run, *args, **kwargs)


def comparable(who: str, expected: Any) -> Any:
    """``expected``, which an answer is compared with as text: itself, or each of several.

    Raises:
        ConfigError: one that has no text of its own; the message does not show it.

    Example:
        >>> comparable("exact", [42, "42.0"])
        [42, '42.0']
    """
    several = isinstance(expected, SEVERAL)
    if several and not expected:
        raise ConfigError(f"{who}: expected is {expected!r}; give at least one accepted answer")
    for one in expected if several else (expected,):
        kind: Any = type(one)
        wordless = kind.__str__ is object.__str__ and kind.__repr__ is object.__repr__
        if wordless or callable(one) or isinstance(one, (bytes, bytearray, Mapping, re.Pattern, type(None))):
            raise ConfigError(f"{who}: expected is a {kind.__name__}; give a text, a number, or a list of these")
    return expected


def expected_of(verifier: Any, step: Step) -> Any:
    """What ``verifier`` compares with: its own ``expected``, else the step's.

    Raises:
        ConfigError: neither has one.
    """
    expected = verifier.expected if verifier.expected is not None else step.expected
    if expected is None:
        raise ConfigError(
            f"{verifier.name}: step {step.id} has nothing to compare with; give the verifier or the step expected="
        )
    return expected


class NamedVerifier(Verifier):
    """A verifier that its user may name."""

    def __init__(self, name: str) -> None:
        if not isinstance(name, str) or not name:
            raise ConfigError(f"{type(self).__name__}: name is {shown(name)}; give a name for records and messages")
        self.name = name

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={self.name!r})"  # never what is compared with


class PureVerifier(NamedVerifier):
    """A verifier that only computes, and quickly: both sides run the same code, in place where the text is short."""

    instant = True

    async def averify(self, step: Step, rollout: Rollout, *, peers: Sequence[Rollout] = ()) -> Verdict:
        """Do what ``verify`` does; an event loop does not wait while it reads a long text, or many."""
        read = len(rollout.text) + (sum(len(x.text) for x in peers) if self.needs_peers else 0)
        return await aside(read, self.verify, step, rollout, peers=peers)
