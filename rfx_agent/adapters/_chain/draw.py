"""One run of a wrapped chain: what came of it, what it used, and what a verifier may say of it."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.outputs import LLMResult

from rfx_agent._types import Rollout, Step, Usage, Verdict
from rfx_agent.adapters._chain.held import Held
from rfx_agent.ports import Verifier

__all__ = ["Draw", "Guard", "Reported", "total"]

Out = TypeVar("Out")


@dataclass(slots=True)
class Draw(Generic[Out]):
    """One run of the chain.

    Attributes:
        rollout: the run as the engine sees it.
        output: what the chain returned, or None where ``error`` is set.
        chunks: what it streamed, where it was asked to stream.
        held: what streaming handlers have not been shown yet.
        error: what the chain raised; one that is no failed answer means that the chain itself is out of order.
        broken: whether it is.
    """

    rollout: Rollout
    output: Out | None = None
    chunks: list[Out] | None = None
    held: list[Held] = field(default_factory=list)
    error: Exception | None = None
    broken: bool = False

    def shown(self) -> list[Out]:
        """The output as a stream: its chunks as they came, or one chunk."""
        return [self.output] if self.chunks is None else self.chunks  # type: ignore[list-item]  # shown when it has one

    def release(self) -> None:
        """The attempt is accepted: streaming handlers may see it."""
        for held in self.held:
            held.release()

    async def arelease(self) -> None:
        """The same on the running event loop."""
        for held in self.held:
            await held.arelease()


class Guard:
    """The verifier, except that a run which raised is no answer, whatever its text."""

    def __init__(self, verifier: Verifier, draws: Mapping[str, Draw[Any]]) -> None:
        self.name, self.needs_peers = verifier.name, verifier.needs_peers
        self.instant = getattr(verifier, "instant", False)
        if (bound := getattr(verifier, "bound", None)) is not None:
            self.bound = bound
        self._verifier, self._draws = verifier, draws

    def verify(self, step: Step, rollout: Rollout, *, peers: Sequence[Rollout] = ()) -> Verdict:
        """The verdict."""
        if (raised := self._raised(rollout)) is not None:
            return Verdict(False, reason=raised)
        return self._verifier.verify(step, rollout, peers=self._answers(peers))

    async def averify(self, step: Step, rollout: Rollout, *, peers: Sequence[Rollout] = ()) -> Verdict:
        """The same, without blocking the event loop."""
        if (raised := self._raised(rollout)) is not None:
            return Verdict(False, reason=raised)
        return await self._verifier.averify(step, rollout, peers=self._answers(peers))

    def _raised(self, rollout: Rollout) -> str | None:
        draw = self._draws.get(rollout.response_id or "")
        return None if draw is None or draw.error is None else f"{type(draw.error).__name__}: {draw.error}"

    def _answers(self, peers: Sequence[Rollout]) -> Sequence[Rollout]:
        return tuple(p for p in peers if self._raised(p) is None)


class Reported(BaseCallbackHandler):
    """Counts the tokens that the models inside one run of the chain report."""

    run_inline = True
    ignore_chain = ignore_agent = ignore_retriever = ignore_retry = ignore_chat_model = ignore_custom_event = True

    def __init__(self) -> None:
        self._usage = Usage()
        self._lock = threading.Lock()

    def usage(self) -> Usage:
        """What was reported; a run is at least one call."""
        return self._usage if self._usage.calls else Usage(calls=1)

    def on_llm_end(self, response: LLMResult, **_: Any) -> None:
        """One model call is over."""
        used = Usage(calls=1)
        for generation in (g for choices in response.generations for g in choices):
            told = getattr(getattr(generation, "message", None), "usage_metadata", None) or {}
            used += Usage(told.get("input_tokens", 0), told.get("output_tokens", 0))
        with self._lock:
            self._usage += used

    def on_llm_error(self, error: BaseException, **_: Any) -> None:
        """One model call failed."""
        with self._lock:
            self._usage += Usage(calls=1)


def total(chunks: Sequence[Any]) -> Any:
    """What chunks add up to, as LangChain adds them; where they do not add, the last one stands for all."""
    if not chunks:
        return None
    total, adds = chunks[0], True
    for chunk in chunks[1:]:
        if adds:
            try:
                total = total + chunk
                continue
            except TypeError:
                adds = False
        total = chunk
    return total
