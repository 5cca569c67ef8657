"""What ``with_recovery`` was given, and what it makes of a first output: accept it, or hand it to the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from langchain_core.callbacks.manager import AsyncCallbackManagerForChainRun, CallbackManagerForChainRun
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.runnables import Runnable, RunnableConfig

from rfx_agent._errors import Unresolved
from rfx_agent._records import Attempt
from rfx_agent._types import Rollout, Step
from rfx_agent.adapters._chain.draw import Draw, Guard
from rfx_agent.adapters._chain.runs import ChainDraws
from rfx_agent.adapters._passing import asked, free, passed, unseen
from rfx_agent.adapters._texts import step_of
from rfx_agent.case import Case
from rfx_agent.engine import Flow, Recovery, Reply, drive, drive_async, recover, resumed
from rfx_agent.engine.calls import examine
from rfx_agent.ports import Sampler

__all__ = ["Plan", "Retracted", "Seen", "retracted"]


@dataclass(frozen=True, slots=True)
class Retracted:
    """What was streamed so far is void: it was a speculative attempt, and it failed.

    Attributes:
        attempt: number of the attempt, from 1.
        chunks: how many of its chunks went out.
        characters: how much text was in them; chunks that are neither strings nor messages have none.
    """

    attempt: int
    chunks: int
    characters: int


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of a first output.

    Attributes:
        passed: whether the verifier accepted it.
        replies: the verifier's, where it was asked before there was a case.
        case: the case, where the verdict had to be paid for out of a shared budget.
    """

    passed: bool = False
    replies: tuple[Reply, ...] | None = None
    case: Case | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """The parameters of ``with_recovery``, checked; the same for every call."""

    chain: Runnable[Any, Any]
    recovery: Recovery
    model: Sampler | None
    restore: Callable[[str], Any] | None
    prompt: Callable[[Any], str | Step] | None
    text: Callable[[Any], str]
    failures: tuple[type[Exception], ...]
    run_name: str
    speculative: bool
    on_retract: Callable[[Retracted], None] | None

    def draws(
        self,
        value: Any,
        config: RunnableConfig,
        run: CallbackManagerForChainRun | AsyncCallbackManagerForChainRun,
        kwargs: Mapping[str, Any],
        *,
        streaming: bool,
    ) -> ChainDraws[Any, Any]:
        """One call's own sampler."""
        return ChainDraws(
            self.chain,
            value,
            kwargs,
            config=config,
            run=run,
            step=self._step(value),
            model=self.model,
            text=self.text,
            failures=self.failures,
            streaming=streaming,
        )

    def seen(self, draws: ChainDraws[Any, Any], first: Draw[Any]) -> Flow[Seen]:
        """The verdict on the first output, before anything else is done about it."""
        if first.error is not None:
            return Seen()
        r = self.recovery
        if r.shared is not None and not free(r):
            r = self._parts(draws)
            case = yield from examine(r, r.start(draws.step, first.rollout))
            return Seen(case.rollouts[0].passed, case=case)
        replies = yield from asked(r, draws.step, first.rollout)
        return Seen(passed(replies), replies)

    def finished(self, draws: ChainDraws[Any, Any], first: Draw[Any], seen: Seen) -> Draw[Any]:
        """The draw to return: the first as it was, or what recovery came to."""
        if seen.passed and unseen(self.recovery):
            return first
        return self._chosen(drive(self._recovered(draws, first, seen)), draws)

    async def afinished(self, draws: ChainDraws[Any, Any], first: Draw[Any], seen: Seen) -> Draw[Any]:
        """The same on the running event loop."""
        if seen.passed and unseen(self.recovery):
            return first
        return self._chosen(await drive_async(self._recovered(draws, first, seen)), draws)

    def _step(self, value: Any) -> Step:
        if self.prompt is None:
            return step_of(value)
        given = self.prompt(value)
        return given if isinstance(given, Step) else Step.of(given)

    def _parts(self, draws: ChainDraws[Any, Any]) -> Recovery:
        return self.recovery.with_parts(sampler=draws, verifier=Guard(self.recovery.verifier, draws.draws))

    def _recovered(self, draws: ChainDraws[Any, Any], first: Draw[Any], seen: Seen) -> Flow[Case]:
        """The engine's own flow from the first output on; a verdict that is there is not asked for again."""
        r = self._parts(draws)
        if first.broken and first.error is not None:
            why = str(draws.failure(first.error))
            case = r.start(draws.step).add((), Attempt("retry", 1, 0, note=why))
            return recover(r, replace(case, blocked=why))
        return resumed(recover(r, seen.case or r.start(draws.step, first.rollout)), seen.replies)

    def _chosen(self, case: Case, draws: ChainDraws[Any, Any]) -> Draw[Any]:
        outcome = case.outcome
        if outcome is None or not outcome.ok or outcome.text is None:
            cause = next((d.error for d in draws.runs if d.broken), None)
            raise Unresolved(outcome.sentence if outcome else "the step has no outcome", case=case) from cause
        runs = [x for x in case.rollouts if x.text == outcome.text]
        for rollout in sorted(runs, key=lambda x: not x.passed):
            draw = draws.draws.get(rollout.response_id or "")
            if draw is not None and draw.error is None:
                return draw
        return Draw(Rollout(outcome.text), self._restored(case, outcome.text, draws))

    def _restored(self, case: Case, text: str, draws: ChainDraws[Any, Any]) -> Any:
        """An output made of a text that no run of the chain gave."""
        if self.restore is not None:
            return self.restore(text)
        kind = next((type(d.output) for d in draws.draws.values() if d.error is None), self.chain.OutputType)
        if isinstance(kind, type) and issubclass(kind, str):
            return text
        if isinstance(kind, type) and issubclass(kind, BaseMessage):
            return AIMessageChunk(content=text) if draws.streaming else AIMessage(text)
        by = case.outcome.by if case.outcome else None
        raise Unresolved(
            f"the answer came by {by} as text, and the chain returns {getattr(kind, '__name__', kind)}; "
            "give with_recovery a restore function that makes one from the text",
            case=case,
        )


def retracted(first: Draw[Any]) -> Retracted | None:
    """What has to be taken back of a failed attempt that was streamed; None if nothing went out."""
    if not first.chunks:
        return None
    texts = [c if isinstance(c, str) else str(c.text) for c in first.chunks if isinstance(c, (str, BaseMessage))]
    return Retracted(1, len(first.chunks), sum(map(len, texts)))
