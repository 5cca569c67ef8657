"""Any LangChain chat model as a sampler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, convert_to_messages
from langchain_core.runnables import RunnableConfig

from rfx_agent._errors import ConfigError, RfxError, SamplerError, is_control_flow
from rfx_agent._types import Rollout, SampleRequest, SampleResult, Usage
from rfx_agent.features import TopLogprobs

__all__ = ["ChatModelSampler"]


class ChatModelSampler:
    """Any LangChain chat model as a sampler: ``n`` concurrent calls, with the tokens that its messages report.

    Args:
        model: the chat model. Temperature, ``max_tokens``, ``seed`` and ``logprobs`` go to it as call arguments.
        arguments: names of the call arguments that the model understands; the others are left out.

    Raises:
        ConfigError: when ``model`` is no chat model, or an argument is unknown.
    """

    continues_prefix = False

    def __init__(self, model: BaseChatModel, *, arguments: Sequence[str] = ("temperature", "max_tokens")) -> None:
        if not isinstance(model, BaseChatModel):
            raise ConfigError(f"chat model sampler: model is {model!r}; give a LangChain chat model")
        known = ("temperature", "max_tokens", "seed", "logprobs", "top_logprobs")
        if unknown := [name for name in arguments if name not in known]:
            raise ConfigError(f"chat model sampler: arguments names {unknown[0]!r}; give some of {', '.join(known)}")
        self._model = model
        self._arguments = tuple(arguments)
        self.name = str(getattr(model, "model_name", None) or getattr(model, "model", None) or type(model).__name__)

    def sample(self, request: SampleRequest) -> SampleResult:
        """Draw ``request.n`` completions."""
        messages = self._messages(request)
        configs = [_tagged(i) for i in range(request.n)]
        return self._result(
            request,
            self._model.batch([messages] * request.n, configs, return_exceptions=True, **self._kwargs(request)),
        )

    async def asample(self, request: SampleRequest) -> SampleResult:
        """The same, without blocking the event loop."""
        messages = self._messages(request)
        configs = [_tagged(i) for i in range(request.n)]
        return self._result(
            request,
            await self._model.abatch([messages] * request.n, configs, return_exceptions=True, **self._kwargs(request)),
        )

    def _messages(self, request: SampleRequest) -> list[BaseMessage]:
        if request.prefix is not None:
            raise ConfigError("chat model sampler: prefix is set, but a LangChain chat model continues none")
        return convert_to_messages([dict(m) for m in request.messages])

    def _kwargs(self, request: SampleRequest) -> dict[str, Any]:
        values = {
            "temperature": request.temperature,
            "max_tokens": request.max_tokens,
            "seed": request.seed,
            "logprobs": True if request.want_logprobs else None,
            "top_logprobs": 20 if request.want_logprobs else None,
        }
        return {name: values[name] for name in self._arguments if values[name] is not None}

    def _result(self, request: SampleRequest, messages: Sequence[Any]) -> SampleResult:
        errors = [m for m in messages if isinstance(m, BaseException)]
        for error in errors:
            if is_control_flow(error) or not isinstance(error, Exception):
                raise error
        rollouts = tuple(_rollout(m, request) for m in messages if isinstance(m, AIMessage))
        notes = tuple(dict.fromkeys(f"{self.name}: {type(e).__name__}: {e}" for e in errors))
        if errors and not rollouts:
            raise SamplerError(notes[0], calls=len(messages)) from errors[0]
        if request.want_logprobs and rollouts and all(x.logprobs is None for x in rollouts):
            notes += (f"{self.name} gave no log-probabilities",)
        usage = sum((x.usage for x in rollouts), Usage(calls=len(errors)))
        return SampleResult(rollouts, usage, notes)


def _tagged(draw: int) -> RunnableConfig:
    return {"tags": [f"retry:attempt:{draw + 1}"]}


def _rollout(message: AIMessage, request: SampleRequest) -> Rollout:
    used: Mapping[str, Any] = message.usage_metadata or {}
    usage = Usage(used.get("input_tokens", 0), used.get("output_tokens", 0), 1)
    table = tokens = None
    content = (message.response_metadata.get("logprobs") or {}).get("content") or []
    if content:
        tokens = tuple(str(entry["token"]) for entry in content)
        rows = [[(x["token"], x["logprob"]) for x in entry.get("top_logprobs") or []] for entry in content]
        try:
            table = TopLogprobs.from_rows(rows, tokens)
        except RfxError:
            table = None  # a table that breaks its contract is no evidence; the rollout stays
    return Rollout(
        text=str(message.text),
        response_id=message.id,
        temperature=request.temperature,
        finish_reason=message.response_metadata.get("finish_reason"),
        usage=usage,
        tokens=tokens,
        logprobs=table,
    )
