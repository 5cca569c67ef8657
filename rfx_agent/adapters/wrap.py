"""Any chain with recovery behind it: the same input and output types, and a failed step is recovered on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Generic, TypeVar

from langchain_core.messages import AIMessage, BaseMessage, convert_to_openai_messages
from langchain_core.prompt_values import PromptValue
from langchain_core.runnables import Runnable, RunnableConfig, ensure_config, patch_config
from langchain_core.runnables.base import coerce_to_runnable
from pydantic import BaseModel
from pydantic_core import to_json

from rfx_agent._errors import ConfigError, RfxError, SamplerError, Unresolved, is_control_flow
from rfx_agent._types import Rollout, SampleRequest, SampleResult, Step, Usage
from rfx_agent.case import Case
from rfx_agent.engine import Recovery
from rfx_agent.ports import Sampler, Verifier

__all__ = ["RecoveredRunnable", "with_recovery"]

In = TypeVar("In")
Out = TypeVar("Out")


def with_recovery(
    runnable: Runnable[In, Out] | Callable[[In], Out],
    *,
    verifier: Verifier,
    sampler: Sampler | None = None,
    restore: Callable[[str], Out] | None = None,
    prompt: Callable[[In], str] | None = None,
    **options: Any,
) -> RecoveredRunnable[In, Out]:
    """``runnable`` with recovery behind it.

    A call whose output passes ``verifier`` costs nothing more. One that fails is run again, diagnosed and routed;
    what comes back in the end is an output that passed, or ``Unresolved`` with the whole case.

    Args:
        runnable: a chain, or a plain callable.
        verifier: judges the output as text: a string as it is, a message's text, anything else as JSON.
        sampler: the model that drives ``tool``; the chain itself is what is sampled again.
        restore: makes an output from a text that no run of the chain produced (a tool's result, a person's
            answer). By default strings and messages are made; other types need it.
        prompt: the step's prompt from the chain's input; by default the input as text or messages.
        options: further parameters of ``Recovery``, such as ``tool``, ``budget`` or ``policy``.
    """
    chain: Runnable[In, Out] = coerce_to_runnable(runnable)
    if options.get("tool") is not None and sampler is None:
        raise ConfigError("with_recovery: tool is set but sampler is None; give the model that is to drive it")
    probe = _ChainSampler(chain, None, {}, Step.of("-"), sampler)
    return RecoveredRunnable(chain, Recovery(sampler=probe, verifier=verifier, **options), sampler, restore, prompt)


class RecoveredRunnable(Runnable[In, Out]):
    """What ``with_recovery`` returns. ``batch`` and ``stream`` come from ``Runnable``: a stream yields one output."""

    def __init__(
        self,
        chain: Runnable[In, Out],
        recovery: Recovery,
        sampler: Sampler | None,
        restore: Callable[[str], Out] | None,
        prompt: Callable[[In], str] | None,
    ) -> None:
        self._chain, self._recovery, self._sampler = chain, recovery, sampler
        self._restore, self._prompt = restore, prompt

    def invoke(self, input: In, config: RunnableConfig | None = None, **kwargs: Any) -> Out:  # noqa: A002  # LangChain's name
        """The chain's output for ``input``, recovered where it failed."""
        recovery, draws, step = self._bound(input, config, kwargs)
        return self._output(recovery.run(step), draws)

    async def ainvoke(self, input: In, config: RunnableConfig | None = None, **kwargs: Any) -> Out:  # noqa: A002  # LangChain's name
        """The same on the running event loop."""
        recovery, draws, step = self._bound(input, config, kwargs)
        return self._output(await recovery.arun(step), draws)

    def _bound(
        self, value: In, config: RunnableConfig | None, kwargs: Mapping[str, Any]
    ) -> tuple[Recovery, _ChainSampler[In, Out], Step]:
        step = self._step(value)
        chain = self._chain.bind(**kwargs) if kwargs else self._chain
        draws = _ChainSampler(chain, value, ensure_config(config), step, self._sampler)
        return replace(self._recovery, sampler=draws), draws, step

    def _step(self, value: In) -> Step:
        if self._prompt is not None:
            return Step.of(self._prompt(value))
        if isinstance(value, PromptValue):
            messages: list[BaseMessage] = value.to_messages()
        elif isinstance(value, list) and value and all(isinstance(m, BaseMessage) for m in value):
            messages = value
        else:
            return Step.of(as_text(value))
        return Step.of([dict(m) for m in convert_to_openai_messages(messages)])

    def _output(self, case: Case, draws: _ChainSampler[In, Out]) -> Out:
        outcome = case.outcome
        if outcome is None or not outcome.ok or outcome.text is None:
            raise Unresolved(outcome.sentence if outcome else "the step has no outcome", case=case)
        winner = next((x for x in case.rollouts if x.text == outcome.text and x.response_id in draws.outputs), None)
        if winner is not None and winner.response_id is not None:
            return draws.outputs[winner.response_id]
        if self._restore is not None:
            return self._restore(outcome.text)
        sample = next(iter(draws.outputs.values()), None)
        if isinstance(sample, str):
            return outcome.text  # type: ignore[return-value]  # Out is str here
        if isinstance(sample, BaseMessage):
            return AIMessage(outcome.text)  # type: ignore[return-value]  # Out is a message here
        raise Unresolved(
            f"the answer came by {outcome.by} as text, and the chain returns {type(sample).__name__}; "
            "give with_recovery a restore function that makes one from the text",
            case=case,
        )


class _ChainSampler(Generic[In, Out]):
    """Draws by running the chain again on its own input; other prompts go to the model that drives the tool.

    A chain does not say what its models spent, so its draws count as attempts and samples, not as tokens.
    """

    continues_prefix = False
    takes_temperature = False

    def __init__(
        self, chain: Runnable[In, Out], value: Any, config: RunnableConfig, step: Step, asked: Sampler | None
    ) -> None:
        self.name = chain.get_name()
        self._chain, self._value, self._config, self._step, self._asked = chain, value, config, step, asked
        self.outputs: dict[str, Out] = {}

    def sample(self, request: SampleRequest) -> SampleResult:
        if request.messages is not self._step.messages and self._asked is not None:
            return self._asked.sample(request)
        if request.n == 1:  # as the caller would have called it
            try:
                return self._result([self._chain.invoke(self._value, self._tagged(1)[0])])
            except Exception as error:  # noqa: BLE001  # sorted out below
                return self._result([error])
        made = self._chain.batch([self._value] * request.n, self._tagged(request.n), return_exceptions=True)
        return self._result(made)

    async def asample(self, request: SampleRequest) -> SampleResult:
        if request.messages is not self._step.messages and self._asked is not None:
            return await self._asked.asample(request)
        if request.n == 1:
            try:
                return self._result([await self._chain.ainvoke(self._value, self._tagged(1)[0])])
            except Exception as error:  # noqa: BLE001  # sorted out below
                return self._result([error])
        made = await self._chain.abatch([self._value] * request.n, self._tagged(request.n), return_exceptions=True)
        return self._result(made)

    def _tagged(self, n: int) -> list[RunnableConfig]:
        first = len(self.outputs)
        return [
            patch_config(self._config)
            | {"tags": [*(self._config.get("tags") or []), *([f"retry:attempt:{first + i}"] if first + i else [])]}
            for i in range(n)
        ]

    def _result(self, made: list[Any]) -> SampleResult:
        errors = [m for m in made if isinstance(m, BaseException)]
        for error in errors:
            if is_control_flow(error) or not isinstance(error, Exception):
                raise error
        rollouts = []
        for output in made:
            if isinstance(output, BaseException):
                continue
            key = f"run:{len(self.outputs)}"
            self.outputs[key] = output
            rollouts.append(Rollout(as_text(output), response_id=key, usage=Usage(calls=1)))
        if errors and not rollouts:
            raise (
                errors[0]
                if isinstance(errors[0], RfxError)
                else SamplerError(f"{self.name}: {type(errors[0]).__name__}: {errors[0]}", calls=len(errors))
            ) from errors[0]
        notes = tuple(f"{self.name}: {type(e).__name__}" for e in errors)
        return SampleResult(tuple(rollouts), Usage(calls=len(made)), notes)


def as_text(value: Any) -> str:
    """What a verifier reads of a chain's input or output."""
    if isinstance(value, str):
        return value
    if isinstance(value, BaseMessage):
        return str(value.text)
    if isinstance(value, BaseModel):
        return value.model_dump_json()
    return to_json(value, fallback=str).decode()
