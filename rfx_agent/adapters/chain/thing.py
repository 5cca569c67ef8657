"""A wrapped chain as a thing that can be run again: each run is a child of the call's own run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Generic, TypeVar

from langchain_core.callbacks.manager import AsyncCallbackManagerForChainRun, CallbackManagerForChainRun
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.prompts import BasePromptTemplate
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda, RunnableSequence, patch_config
from langchain_core.runnables.config import get_executor_for_config, set_config_context

from rfx_agent.adapters.attempts import CALLS_TOOLS, Again, Made, Thing, in_context, response_id, tag, together
from rfx_agent.adapters.chain.held import Held, hold
from rfx_agent.adapters.marks import marked
from rfx_agent.adapters.texts import flawed, step_of, text_of, told
from rfx_agent.adapters.total import total
from rfx_agent.errors import is_control_flow
from rfx_agent.ports import Sampler
from rfx_agent.records import Rollout, Step
from rfx_agent.samplers.chat import ended

__all__ = ["Chain", "Draw"]

In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(slots=True)
class Draw(Generic[Out]):
    """What a run of the chain gave.

    Attributes:
        output: what it returned.
        chunks: what it streamed, where it was asked to stream.
        held: what streaming handlers have not been shown yet.
    """

    output: Out
    chunks: list[Out] | None = None
    held: list[Held] = field(default_factory=list)

    def shown(self) -> list[Out]:
        """The output as a stream: its chunks as they came, or one chunk."""
        return [self.output] if self.chunks is None else self.chunks

    def marked(self, marks: Mapping[str, Any]) -> Draw[Out]:
        """The same with ``marks`` on its message and on the last chunk of it; what is no message stays as it is."""
        output, chunks = _marked(self.output, marks), self.chunks
        if chunks:
            chunks = [*chunks[:-1], _marked(chunks[-1], marks)]
        return Draw(output, chunks, self.held)

    def release(self) -> None:
        """The attempt is accepted: streaming handlers may see it."""
        for held in self.held:
            held.release()

    async def arelease(self) -> None:
        """Do what ``release`` does, without blocking the event loop."""
        for held in self.held:
            await held.arelease()


class Chain(Thing, Generic[In, Out]):
    """The user's chain during one call: it runs the chain again on the input of that call.

    Args:
        chain, value, kwargs: what is run, on what.
        config: of the runs; its callbacks are replaced by children of ``run``.
        run: the run that the attempts are children of.
        step: the step that the chain's runs answer.
        model: what drives the tool, or None.
        text: what a verifier reads of an output.
        calls_pass: whether a message that calls tools is no answer.
        failures: exceptions of the chain that are failed answers.
        streaming: whether runs are streamed and their chunks kept.
        revise: makes an input of the chain's own and of what is to be added to its prompt; by default ``texts.told``.
    """

    def __init__(
        self,
        chain: Runnable[In, Out],
        value: In,
        kwargs: Mapping[str, Any],
        *,
        config: RunnableConfig,
        run: CallbackManagerForChainRun | AsyncCallbackManagerForChainRun,
        step: Step,
        model: Sampler | None,
        text: Callable[[Out], str],
        calls_pass: bool,
        failures: tuple[type[Exception], ...],
        streaming: bool,
        revise: Callable[[In, str], In] | None = None,
    ) -> None:
        self.name = chain.get_name()
        self.step, self.streaming = step, streaming
        self._chain, self._value, self._kwargs = chain, value, kwargs
        self._config, self._run, self._model = config, run, model
        self._text, self._calls_pass, self._failures = text, calls_pass, failures
        self._revise = revise

    @property
    def _steps(self) -> list[Runnable[Any, Any]]:
        return self._chain.steps if isinstance(self._chain, RunnableSequence) else []

    @cached_property
    def _template(self) -> int | None:
        """Which step is a prompt template. What it makes is the prompt: a text in a variable of it may be anything."""
        return next((i for i, step in enumerate(self._steps) if isinstance(step, BasePromptTemplate)), None)

    @cached_property
    def takes_revision(self) -> bool:  # type: ignore[override]  # asked for failed answers alone
        """See ``Thing``."""
        return self._revise is not None or self._template is not None or self._told("") is not None

    def prompted(self) -> Step:
        """The step with the messages that the chain's template makes of its input, where it begins with one."""
        if self._template != 0:
            return self.step
        made: Any = self._steps[0].invoke(self._value, {"callbacks": []})  # no run of the user's
        return replace(self.step, messages=step_of(made).messages)

    def driver(self) -> Sampler | None:
        """The model that drives the tool."""
        return self._model

    def run(self, again: Again) -> Draw[Out]:
        """One run of the chain."""
        config, held = self._child(again)
        chain, value = self._input(again)
        with set_config_context(config) as context:
            if not self.streaming:
                return Draw(context.run(chain.invoke, value, config, **self._kwargs), held=held)
            chunks = context.run(lambda: list(chain.stream(value, config, **self._kwargs)))
        return Draw(total(chunks), chunks, held)

    async def arun(self, again: Again) -> Draw[Out]:
        """Do what ``run`` does, without blocking the event loop."""
        config, held = self._child(again)
        chain, value = self._input(again)

        async def collected() -> list[Out]:
            return [chunk async for chunk in chain.astream(value, config, **self._kwargs)]

        with set_config_context(config) as context:
            if not self.streaming:
                return Draw(await in_context(chain.ainvoke(value, config, **self._kwargs), context), held=held)
            chunks = await in_context(collected(), context)
        return Draw(total(chunks), chunks, held)

    def speculate(self, again: Again, into: list[Made]) -> Iterator[Out]:
        """The caller's own call, its chunks given out before they are judged; the run goes ``into`` the list."""
        config, _ = self._child(again, held=False)
        chunks: list[Out] = []
        error: Exception | None = None
        try:
            for chunk in self._chain.stream(self._value, config, **self._kwargs):
                chunks.append(chunk)
                yield chunk
        except Exception as raised:
            if is_control_flow(raised):
                raise
            error = raised
        into.append(self._speculated(chunks, error, again))

    async def aspeculate(self, again: Again, into: list[Made]) -> AsyncIterator[Out]:
        """Do what ``speculate`` does, without blocking the event loop."""
        config, _ = self._child(again, held=False)
        chunks: list[Out] = []
        error: Exception | None = None
        try:
            async for chunk in self._chain.astream(self._value, config, **self._kwargs):
                chunks.append(chunk)
                yield chunk
        except Exception as raised:
            if is_control_flow(raised):
                raise
            error = raised
        into.append(self._speculated(chunks, error, again))

    def made(self, output: Draw[Out], again: Again) -> Made:
        """A run that gave an output."""
        usage, made = again.reported.usage(), output.output
        if self._calls_pass and isinstance(made, AIMessage) and made.tool_calls:
            rollout = Rollout(text_of(made), "r0", response_id=response_id(again.number), usage=usage)
            return Made(rollout, output, flaw=CALLS_TOOLS, usage=usage)
        text = self._text(made)
        why = ended(made) if isinstance(made, AIMessage) else None
        rollout = Rollout(text, "r0", response_id=response_id(again.number), finish_reason=why, usage=usage)
        return Made(rollout, output, usage=usage)

    def failed(self, error: Exception, again: Again) -> Made:
        """A run that raised: a failed answer, where the exception is one of those that count as such."""
        if not isinstance(error, self._failures):
            return Made.broken(error, again)
        usage = again.reported.usage()
        text = getattr(error, "llm_output", None)
        rollout = Rollout(
            text if isinstance(text, str) else "", "r0", response_id=response_id(again.number), usage=usage
        )
        return Made(rollout, flaw=flawed(error), error=error, usage=usage)

    def run_all(self, runs: Sequence[Again]) -> list[Made]:
        """Several runs, as the chain itself does a batch."""
        if len(runs) == 1:
            return [self.tried(runs[0])]
        if self.streaming or any(x.request.revision is not None for x in runs):
            with get_executor_for_config(self._config) as executor:
                return list(executor.map(self.tried, runs))
        return _unsteered(self.batch([(self, again) for again in runs]))

    async def arun_all(self, runs: Sequence[Again]) -> list[Made]:
        """Do what ``run_all`` does, without blocking the event loop."""
        if len(runs) == 1 or self.streaming or any(x.request.revision is not None for x in runs):
            limit = self._config.get("max_concurrency")
            return await together([self.atried(again) for again in runs], limit)
        return _unsteered(await self.abatch([(self, again) for again in runs]))

    @staticmethod
    def batch(runs: Sequence[tuple[Chain[In, Out], Again]]) -> list[Made]:
        """Runs of one chain, each for its own call, as the chain itself does a batch.

        No callbacks are in their context: a binding adds those to the ones it is given, which may be held.
        """
        first, children = runs[0][0], [thing._child(again) for thing, again in runs]
        inputs, configs = [thing._value for thing, _ in runs], [config for config, _ in children]
        with set_config_context({**first._config, "callbacks": None}) as context:
            outputs = context.run(first._chain.batch, inputs, configs, return_exceptions=True, **first._kwargs)
        return [t._came(x, held, again) for x, (_, held), (t, again) in zip(outputs, children, runs, strict=True)]

    @staticmethod
    async def abatch(runs: Sequence[tuple[Chain[In, Out], Again]]) -> list[Made]:
        """Do what ``batch`` does, without blocking the event loop."""
        first, children = runs[0][0], [thing._child(again) for thing, again in runs]
        inputs, configs = [thing._value for thing, _ in runs], [config for config, _ in children]
        with set_config_context({**first._config, "callbacks": None}) as context:
            work = first._chain.abatch(inputs, configs, return_exceptions=True, **first._kwargs)
            outputs = await in_context(work, context)
        return [t._came(x, held, again) for x, (_, held), (t, again) in zip(outputs, children, runs, strict=True)]

    def _came(self, output: Any, held: list[Held], again: Again) -> Made:
        if isinstance(output, Exception):
            return Made(error=output) if is_control_flow(output) else self.failed(output, again)
        try:
            return self.made(Draw(output, held=held), again)
        except Exception as error:  # noqa: BLE001  # the user's reading of it: an error of this run, not of the batch
            return Made(error=error)

    def _input(self, again: Again) -> tuple[Runnable[Any, Out], Any]:
        """What is run, on what: the chain on its input; for a revision with more text behind its prompt."""
        addition = again.request.revision
        if addition is None:
            return self._chain, self._value
        if self._revise is not None:
            return self._chain, self._revise(self._value, addition)
        if self._template is None:
            return self._chain, self._told(addition)
        behind = self._template + 1
        more = RunnableLambda(lambda prompt: told(prompt, addition), name="revision")
        steps = [*self._steps[:behind], more, *self._steps[behind:]]
        return RunnableSequence(*steps, name=self._chain.name), self._value

    def _told(self, addition: str) -> Any:
        """The chain's input with ``addition`` behind its prompt; None where nothing tells where that is."""
        return told(self._value, addition, self.step.messages[-1].get("content"))

    def _child(self, again: Again, *, held: bool = True) -> tuple[RunnableConfig, list[Held]]:
        """The configuration of a run: a child of this call's run; from the second on it carries the run's tag."""
        child = self._run.get_child(tag(again.number) if again.number > 1 else None)
        kept = hold(child) if held else []
        child.add_handler(again.reported, inherit=True)
        return patch_config(self._config, callbacks=child), kept

    def _speculated(self, chunks: list[Out], error: Exception | None, again: Again) -> Made:
        made = self.made(Draw(total(chunks), chunks), again) if error is None else self.failed(error, again)
        made.output = made.output or Draw(None, chunks)  # what went out has to be taken back
        return made


def _marked(output: Any, marks: Mapping[str, Any]) -> Any:
    return marked(output, marks) if isinstance(output, BaseMessage) else output


def _unsteered(runs: list[Made]) -> list[Made]:
    for made in runs:
        if made.error is not None and is_control_flow(made.error):
            raise made.error
    return runs
