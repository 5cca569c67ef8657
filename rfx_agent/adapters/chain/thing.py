"""A wrapped chain as a thing that can be run again: each run is a child of the call's own run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Generic, TypeVar

from langchain_core.callbacks.manager import AsyncCallbackManagerForChainRun, CallbackManagerForChainRun
from langchain_core.messages import AIMessage
from langchain_core.prompts import BasePromptTemplate
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda, RunnableSequence, patch_config
from langchain_core.runnables.config import get_executor_for_config

from rfx_agent.adapters.attempts import Again, Made, Thing, response_id, tag, together
from rfx_agent.adapters.chain.held import Held, hold
from rfx_agent.adapters.texts import flawed, step_of, told
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

    def release(self) -> None:
        """The attempt is accepted: streaming handlers may see it."""
        for held in self.held:
            held.release()

    async def arelease(self) -> None:
        """The same on the running event loop."""
        for held in self.held:
            await held.arelease()


class Chain(Thing, Generic[In, Out]):
    """The chain of one call, on the call's own input.

    Args:
        chain, value, kwargs: what is run, on what.
        config: of the runs; its callbacks are replaced by children of ``run``.
        run: the run that the attempts are children of.
        step: the step that the chain's runs answer.
        model: what drives the tool, or None.
        text: what a verifier reads of an output.
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
        failures: tuple[type[Exception], ...],
        streaming: bool,
        revise: Callable[[In, str], In] | None = None,
    ) -> None:
        self.name = chain.get_name()
        self.step, self.streaming = step, streaming
        self._chain, self._value, self._kwargs = chain, value, kwargs
        self._config, self._run, self._model = config, run, model
        self._text, self._failures = text, failures
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
        made: Any = self._steps[0].invoke(self._value)
        return replace(self.step, messages=step_of(made).messages)

    def driver(self) -> Sampler | None:
        """The model that drives the tool."""
        return self._model

    def run(self, again: Again) -> Draw[Out]:
        """One run of the chain."""
        config, held = self._child(again)
        chain, value = self._input(again)
        if not self.streaming:
            return Draw(chain.invoke(value, config, **self._kwargs), held=held)
        chunks = list(chain.stream(value, config, **self._kwargs))
        return Draw(_total(chunks), chunks, held)

    async def arun(self, again: Again) -> Draw[Out]:
        """The same on the running event loop."""
        config, held = self._child(again)
        chain, value = self._input(again)
        if not self.streaming:
            return Draw(await chain.ainvoke(value, config, **self._kwargs), held=held)
        chunks = [chunk async for chunk in chain.astream(value, config, **self._kwargs)]
        return Draw(_total(chunks), chunks, held)

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
        """The same on the running event loop."""
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
        usage = again.reported.usage()
        text, made = self._text(output.output), output.output
        why = ended(made) if isinstance(made, AIMessage) else None
        rollout = Rollout(text, "r0", response_id=response_id(again.number), finish_reason=why, usage=usage)
        return Made(rollout, output, usage=usage)

    def failed(self, error: Exception, again: Again) -> Made:
        """A run that raised: a failed answer, where the exception is one of those that count as such."""
        usage = again.reported.usage()
        if not isinstance(error, self._failures):
            return Made(error=error, usage=usage)
        text = getattr(error, "llm_output", None)
        rollout = Rollout(
            text if isinstance(text, str) else "", "r0", response_id=response_id(again.number), usage=usage
        )
        return Made(rollout, flaw=flawed(error), usage=usage)

    def run_all(self, runs: Sequence[Again]) -> list[Made]:
        """Several runs, as the chain itself does a batch."""
        if len(runs) == 1:
            return [self.tried(runs[0])]
        if self.streaming or any(x.request.revision is not None for x in runs):
            with get_executor_for_config(self._config) as executor:
                return list(executor.map(self.tried, runs))
        children = [self._child(again) for again in runs]
        inputs, configs = [self._value] * len(runs), [config for config, _ in children]
        outputs = self._chain.batch(inputs, configs, return_exceptions=True, **self._kwargs)
        return self._batched(outputs, children, runs)

    async def arun_all(self, runs: Sequence[Again]) -> list[Made]:
        """The same on the running event loop."""
        if len(runs) == 1 or self.streaming or any(x.request.revision is not None for x in runs):
            limit = self._config.get("max_concurrency")
            return await together([self.atried(again) for again in runs], limit)
        children = [self._child(again) for again in runs]
        inputs, configs = [self._value] * len(runs), [config for config, _ in children]
        outputs = await self._chain.abatch(inputs, configs, return_exceptions=True, **self._kwargs)
        return self._batched(outputs, children, runs)

    def _batched(
        self, outputs: Sequence[Any], children: Sequence[tuple[RunnableConfig, list[Held]]], runs: Sequence[Again]
    ) -> list[Made]:
        made = []
        for output, (_, held), again in zip(outputs, children, runs, strict=True):
            if not isinstance(output, Exception):
                made.append(self.made(Draw(output, held=held), again))
            elif is_control_flow(output):
                raise output
            else:
                made.append(self.failed(output, again))
        return made

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
        made = self.made(Draw(_total(chunks), chunks), again) if error is None else self.failed(error, again)
        made.output = made.output or Draw(None, chunks)  # what went out has to be taken back
        return made


def _total(chunks: Sequence[Any]) -> Any:
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
