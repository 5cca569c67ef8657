"""What ``with_recovery`` was given, and what it makes of a first output: accept it, or recover it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

from langchain_core.callbacks.manager import AsyncCallbackManagerForChainRun, CallbackManagerForChainRun
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.runnables import Runnable, RunnableConfig
from pydantic import BaseModel

from rfx_agent.adapters.attempts import CALLS_TOOLS, Attempts, Made
from rfx_agent.adapters.chain.thing import Chain, Draw
from rfx_agent.adapters.marks import marks_of
from rfx_agent.adapters.shield import Shield
from rfx_agent.adapters.texts import Reading, as_text, read, spoken, step_of
from rfx_agent.case import Case
from rfx_agent.engine.drive import Flow
from rfx_agent.engine.nodes import First, judged, recover, start
from rfx_agent.engine.run import Run
from rfx_agent.errors import ConfigError, Unresolved
from rfx_agent.records import Step

__all__ = ["Plan", "Retracted", "retracted"]


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
    run: Run
    _: KW_ONLY
    prompt: Reading | None
    answer: Reading | None
    expected: Reading | None
    returns: bool
    restore: Callable[[str], Any] | None
    revise: Callable[[Any, str], Any] | None
    failures: tuple[type[Exception], ...]
    name: str | None
    speculative: bool
    on_retract: Callable[[Retracted], None] | None

    def thing(
        self,
        value: Any,
        config: RunnableConfig,
        run: CallbackManagerForChainRun | AsyncCallbackManagerForChainRun,
        kwargs: Mapping[str, Any],
        *,
        streaming: bool,
    ) -> Chain[Any, Any]:
        """The chain, to be run on ``value``."""
        return Chain(
            self.chain,
            value,
            kwargs,
            config=config,
            run=run,
            step=self._step(value),
            model=self.run.sampler,
            text=self._text,
            calls_pass=self.answer is None,
            failures=self.failures,
            streaming=streaming,
            revise=self.revise,
        )

    def seen(self, thing: Chain[Any, Any], made: Made) -> Flow[First | None]:
        """The verdict on the first output, before anything else is done about it; None on a failed answer that raised.

        Raises:
            Exception: the chain's own, as it was, where it is no failed answer.
        """
        if made.rollout is None:
            assert made.error is not None  # noqa: S101  # a chain's run gives an output or raises
            raise made.error
        return None if made.flaw else (yield from judged(self.run, thing.step, made.rollout))

    @staticmethod
    def stands(made: Made, seen: First | None) -> bool:
        """Whether the first output needs no recovery: it passed, or it calls tools and is no answer."""
        return made.flaw is CALLS_TOOLS or (seen is not None and seen.passed)

    def finished(self, thing: Chain[Any, Any], made: Made, seen: First | None) -> Flow[Draw[Any]]:
        """The draw to return: the first as it was, or what recovery came to."""
        if made.flaw is CALLS_TOOLS or (seen is not None and seen.let_through(self.run)):
            return made.output  # type: ignore[no-any-return]  # a Draw
        if self.prompt is None and not (seen is not None and seen.passed):
            thing.step = thing.prompted()
        attempts = Attempts(thing)
        attempts.first(made)
        run = replace(self.run, sampler=attempts, verifier=Shield(self.run.verifier, attempts))
        if seen is not None:
            case = yield from replace(seen, step=thing.step).opened(run)
        else:
            case = start(run, thing.step, made.rollout)
        return self._chosen((yield from recover(run, case)), attempts, streaming=thing.streaming)

    def _step(self, value: Any) -> Step:
        step = step_of(value if self.prompt is None else read(value, self.prompt, "with_recovery: prompt"))
        if self.expected is None:
            return step
        return replace(step, expected=read(value, self.expected, "with_recovery: expected"))

    def _text(self, output: Any) -> str:
        value = output if self.answer is None else read(output, self.answer, "with_recovery: answer")
        value = _last_message(value) or value
        if hasattr(value, "add_done_callback"):
            raise ConfigError(
                f"with_recovery: the chain gives a {type(value).__name__}, which is no answer yet; wrap a function "
                "that waits for it: lambda x: task(x).result()"
            )
        kind: Any = type(value)
        if kind.__str__ is object.__str__ and kind.__repr__ is object.__repr__ and not isinstance(value, BaseModel):
            raise ConfigError(
                f"with_recovery: there is no text to judge in a {kind.__name__}; give answer=, a key of the chain's "
                "output or a function from it to text"
            )
        return as_text(value)

    def _chosen(self, case: Case, attempts: Attempts, *, streaming: bool) -> Draw[Any]:
        outcome = case.outcome
        if outcome is None or not outcome.ok or outcome.text is None:
            best = None if outcome is None else outcome.best
            if self.returns and (draw := _drawn(case, attempts, best) or _drawn(case, attempts)) is not None:
                return draw.marked(marks_of(case, case.ledger.spent))
            raise Unresolved(outcome.sentence if outcome else "the step has no outcome", case=case) from _cause(
                attempts
            )
        if (draw := _drawn(case, attempts, outcome.text)) is not None:
            return draw
        return Draw(self._restored(case, outcome.text, attempts, streaming=streaming))

    def _restored(self, case: Case, text: str, attempts: Attempts, *, streaming: bool) -> Any:
        """An output made of a text that no run of the chain gave."""
        text = spoken(text)
        if self.restore is not None:
            return self.restore(text)
        kind = next((type(draw.output) for draw in attempts.outputs.values()), self.chain.OutputType)
        if isinstance(kind, type) and issubclass(kind, str):
            return text
        if isinstance(kind, type) and issubclass(kind, BaseMessage):
            return AIMessageChunk(content=text) if streaming else AIMessage(text)
        by = case.outcome.by if case.outcome else None
        raise Unresolved(
            f"the answer came by {by} as text, and the chain returns {getattr(kind, '__name__', kind)}; "
            "give with_recovery a restore function that makes one from the text",
            case=case,
        )


def _drawn(case: Case, attempts: Attempts, text: str | None = None) -> Draw[Any] | None:
    """The whole of a run that gave ``text``, or of the first that gave any; None where no run gave it."""
    runs = [x for x in case.rollouts if text is None or x.text == text]
    keys = (x.response_id or "" for x in sorted(runs, key=lambda x: not x.passed))
    return next((attempts.outputs[key] for key in keys if key in attempts.outputs), None)


def _cause(attempts: Attempts) -> Exception | None:
    """What the chain raised: that it is out of order, else why its first failed answer was none."""
    raised = [x for x in attempts.made if x.error is not None]
    return next((x.error for x in raised if x.rollout is None), raised[0].error if raised else None)


def _last_message(value: Any) -> AIMessage | None:
    """The answer of an agent's state or of a conversation: the AI message at the end of its messages."""
    messages = value.get("messages") if isinstance(value, Mapping) else value
    last = messages[-1] if isinstance(messages, list) and messages else None
    return last if isinstance(last, AIMessage) else None


def retracted(made: Made) -> Retracted | None:
    """What has to be taken back of a failed attempt that was streamed; None if nothing went out."""
    chunks = made.output.chunks if isinstance(made.output, Draw) else None
    if not chunks:
        return None
    texts = [c if isinstance(c, str) else str(c.text) for c in chunks if isinstance(c, (str, BaseMessage))]
    return Retracted(1, len(chunks), sum(map(len, texts)))
