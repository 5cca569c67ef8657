"""What ``with_recovery`` was given, and what it makes of a first output: accept it, or hand it to the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from langchain_core.callbacks.manager import AsyncCallbackManagerForChainRun, CallbackManagerForChainRun
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.runnables import Runnable, RunnableConfig

from rfx_agent._errors import Unresolved
from rfx_agent._records import Attempt
from rfx_agent._types import Rollout, Step
from rfx_agent.adapters._chain.draw import Draw, Guard
from rfx_agent.adapters._chain.runs import ChainDraws
from rfx_agent.adapters._texts import step_of
from rfx_agent.budgets import Ledger
from rfx_agent.case import Case
from rfx_agent.engine import Call, Flow, Recovery, Reply, drive, drive_async, recover
from rfx_agent.policies import DefaultPolicy, FixedPolicy, LearnedPolicy
from rfx_agent.ports import Sampler

__all__ = ["Plan", "Retracted", "passed", "retracted"]

T = TypeVar("T")


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

    def judged(self, draws: ChainDraws[Any, Any], first: Draw[Any]) -> Flow[Reply | None]:
        """The verdict on the first output, before there is a case; None where the engine has to see to it.

        A verifier that costs model calls is asked only if the budget can pay for it.
        """
        if first.error is not None:
            return None
        r = self.recovery
        bound = getattr(r.verifier, "bound", None)
        if bound is not None and Ledger(r.budget).shortfall(r.spend(bound(draws.step, first.rollout))):
            return None
        peers = {"peers": (first.rollout,)}
        (reply,) = yield (Call(r.verifier.verify, r.verifier.averify, (draws.step, first.rollout), peers),)
        return reply

    def finished(self, draws: ChainDraws[Any, Any], first: Draw[Any], verdict: Reply | None) -> Draw[Any]:
        """The draw to return: the first as it was, or what recovery came to."""
        if passed(verdict) and self._unwatched():
            return first
        return self._chosen(drive(self._recovered(draws, first, verdict)), draws)

    async def afinished(self, draws: ChainDraws[Any, Any], first: Draw[Any], verdict: Reply | None) -> Draw[Any]:
        """The same on the running event loop."""
        if passed(verdict) and self._unwatched():
            return first
        return self._chosen(await drive_async(self._recovered(draws, first, verdict)), draws)

    def _unwatched(self) -> bool:
        """Whether nobody would see the engine accept: no hook, no trace store, no policy of somebody else's."""
        r = self.recovery
        ours = type(r.policy) in (DefaultPolicy, FixedPolicy, LearnedPolicy)
        return ours and r.on_event is None and r.traces is None

    def _step(self, value: Any) -> Step:
        if self.prompt is None:
            return step_of(value)
        given = self.prompt(value)
        return given if isinstance(given, Step) else Step.of(given)

    def _recovered(self, draws: ChainDraws[Any, Any], first: Draw[Any], verdict: Reply | None) -> Flow[Case]:
        """The engine's own flow from the first output on; a verdict that is there is not asked for again."""
        r = self.recovery.with_parts(sampler=draws, verifier=Guard(self.recovery.verifier, draws.draws))
        if first.broken and first.error is not None:
            why = str(draws.failure(first.error))
            case = r.start(draws.step).add((), Attempt("retry", 1, 0, note=why))
            return recover(r, replace(case, blocked=why))
        return _told(recover(r, r.start(draws.step, first.rollout)), verdict)

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


def passed(verdict: Reply | None) -> bool:
    """Whether the first output was accepted."""
    return verdict is not None and verdict.error is None and bool(verdict.value.passed)


def retracted(first: Draw[Any]) -> Retracted | None:
    """What has to be taken back of a failed attempt that was streamed; None if nothing went out."""
    if not first.chunks:
        return None
    texts = [c if isinstance(c, str) else str(c.text) for c in first.chunks if isinstance(c, (str, BaseMessage))]
    return Retracted(1, len(first.chunks), sum(map(len, texts)))


def _told(flow: Flow[T], reply: Reply | None) -> Flow[T]:
    """``flow``, sent ``reply`` for its first call, which was made already."""
    try:
        calls = next(flow)
        if reply is not None:
            calls = flow.send((reply,))
        while True:
            calls = flow.send((yield calls))
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]  # a Flow[T] returns T
