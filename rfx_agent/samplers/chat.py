"""Any LangChain chat model as a sampler."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, convert_to_messages
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ContextThreadPoolExecutor

from rfx_agent.checks import among
from rfx_agent.errors import ConfigError, RfxError, SamplerError, is_control_flow
from rfx_agent.evidence.tables import TopLogprobs
from rfx_agent.ports import Sampler
from rfx_agent.records import Rollout, SampleRequest, SampleResult, Usage

__all__ = ["ChatModelSampler", "ended", "rollout_of"]

_MOST_THREADS = 16
_REASONS = ("finish_reason", "stop_reason", "stopReason", "done_reason")  # OpenAI, Anthropic, Bedrock, Ollama
_ARGUMENTS = ("temperature", "max_tokens", "seed", "logprobs", "top_logprobs")


def ended(message: AIMessage) -> str | None:
    """Why the model stopped, as its provider says it; ``refusal`` where it refused, None where nobody says."""
    told = message.response_metadata
    if message.additional_kwargs.get("refusal"):
        return "refusal"
    if told.get("status") == "incomplete":  # OpenAI's Responses API
        details = told.get("incomplete_details")
        return str((details.get("reason") if isinstance(details, Mapping) else None) or "incomplete")
    return next((told[key] for key in _REASONS if isinstance(told.get(key), str)), None)


def rollout_of(
    message: AIMessage, temperature: float | None = None, response_id: str | None = None, *, name: str = ""
) -> Rollout:
    """What a chat model answered, as a rollout: the tokens it reports, and its top-K table where it gives one.

    ``response_id`` is the message's own by default, ``name`` the rollout's id, which the engine gives otherwise.
    """
    used: Mapping[str, Any] = message.usage_metadata or {}
    usage = Usage(used.get("input_tokens", 0), used.get("output_tokens", 0), 1)
    told = message.response_metadata
    table = tokens = None
    content = (told.get("logprobs") or {}).get("content") or []
    if content:
        tokens = tuple(str(entry["token"]) for entry in content)
        rows = [[(x["token"], x["logprob"]) for x in entry.get("top_logprobs") or []] for entry in content]
        try:
            table = TopLogprobs.from_rows(rows, tokens)
        except RfxError:
            table = None  # a table that breaks its contract is no evidence; the rollout stays
    refused = message.additional_kwargs.get("refusal")
    return Rollout(
        text=str(message.text) or (refused if isinstance(refused, str) else ""),
        id=name,
        response_id=response_id or message.id,
        temperature=temperature,
        finish_reason=ended(message),
        usage=usage,
        tokens=tokens,
        logprobs=table,
    )


class ChatModelSampler(Sampler):
    """Any LangChain chat model as a sampler: ``n`` concurrent calls, with the tokens that its messages report.

    Args:
        model: the chat model. Temperature, ``max_tokens``, ``seed`` and ``logprobs`` go to it as call arguments.
        arguments: names of the call arguments that the model understands; the others are left out.

    Raises:
        ConfigError: when ``model`` is no chat model, or an argument is unknown.

    Example:
        >>> from langchain_core.language_models import FakeListChatModel
        >>> from rfx_agent.records import SampleRequest
        >>> sampler = ChatModelSampler(FakeListChatModel(responses=["7"]))
        >>> sampler.sample(SampleRequest(({"role": "user", "content": "3 + 4?"},))).rollouts[0].text
        '7'
    """

    def __init__(self, model: BaseChatModel, *, arguments: Sequence[str] = ("temperature", "max_tokens")) -> None:
        if not isinstance(model, BaseChatModel):
            raise ConfigError(f"ChatModelSampler: model is {model!r}; give a LangChain chat model")
        for name in arguments:
            among("ChatModelSampler: arguments", name, _ARGUMENTS)
        self.model = model
        self.arguments = tuple(arguments)
        self.takes_temperature = "temperature" in self.arguments
        self.takes_max_tokens = "max_tokens" in self.arguments
        self.name = str(getattr(model, "model_name", None) or getattr(model, "model", None) or type(model).__name__)

    def __repr__(self) -> str:
        return f"ChatModelSampler({self.name!r})"  # the model's own may hold its key

    def sample(self, request: SampleRequest) -> SampleResult:
        """Draw ``request.n`` completions."""
        messages = self._messages(request)

        def one(draw: int) -> BaseMessage | Exception:
            try:
                return self.model.invoke(messages, _tagged(draw), **self._kwargs(request, draw))
            except Exception as error:  # noqa: BLE001  # one failed call of several; sorted out in _result
                return error

        if request.n == 1:
            return self._result(request, [one(0)])
        with ContextThreadPoolExecutor(max_workers=min(request.n, _MOST_THREADS)) as pool:
            return self._result(request, list(pool.map(one, range(request.n))))

    async def asample(self, request: SampleRequest) -> SampleResult:
        """The same, without blocking the event loop."""
        messages = self._messages(request)
        calls = [self.model.ainvoke(messages, _tagged(i), **self._kwargs(request, i)) for i in range(request.n)]
        return self._result(request, await asyncio.gather(*calls, return_exceptions=True))

    def _messages(self, request: SampleRequest) -> list[BaseMessage]:
        if request.prefix is not None:
            raise ConfigError("ChatModelSampler: prefix is set, but a LangChain chat model continues none")
        return convert_to_messages([dict(m) for m in request.messages])

    def _kwargs(self, request: SampleRequest, draw: int) -> dict[str, Any]:
        values = {
            "temperature": request.temperature,
            "max_tokens": request.max_tokens,
            # A server that honours seeds would give equal calls one and the same draw.
            "seed": None if request.seed is None else request.seed + draw,
            "logprobs": True if request.want_logprobs else None,
            "top_logprobs": 20 if request.want_logprobs else None,
        }
        return {name: values[name] for name in self.arguments if values[name] is not None}

    def _result(self, request: SampleRequest, messages: Sequence[Any]) -> SampleResult:
        errors = [m for m in messages if isinstance(m, BaseException)]
        for error in errors:
            if is_control_flow(error) or not isinstance(error, Exception):
                raise error
        temperature = request.temperature if self.takes_temperature else None
        rollouts = tuple(rollout_of(m, temperature) for m in messages if isinstance(m, AIMessage))
        notes = tuple(dict.fromkeys(f"{self.name}: {type(e).__name__}: {e}" for e in errors))
        if errors and not rollouts:
            raise SamplerError(notes[0], calls=len(messages)) from errors[0]
        without = sum(x.logprobs is None for x in rollouts)
        if request.want_logprobs and without:
            some = "" if without == len(rollouts) else f" that can be used for {without} of {len(rollouts)} draws"
            notes += (f"{self.name} gave no log-probabilities{some}",)
        usage = sum((x.usage for x in rollouts), Usage(calls=len(errors)))
        return SampleResult(rollouts, usage, notes)


def _tagged(draw: int) -> RunnableConfig:
    return {"tags": [f"retry:attempt:{draw + 1}"]}
