"""A LangChain chat model over OpenAI's SDK, with connections of its own, as integrations are written."""

from __future__ import annotations

from typing import Any

import openai
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, convert_to_openai_messages
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import Field, PrivateAttr, SecretStr

__all__ = ["CAP", "PlainChat"]

CAP = 96  # most tokens of a completion


class PlainChat(BaseChatModel):
    """A chat model over OpenAI's SDK, as integrations write one: without retries, and without doubts of a reply."""

    model: str = "plain"
    base_url: str
    api_key: SecretStr
    timeout: float = 1.0
    temperature: float | None = None
    max_tokens: int | None = CAP
    default_headers: dict[str, str] = Field(default_factory=dict)
    _clients: dict[str, Any] = PrivateAttr(default_factory=dict)

    @property
    def _llm_type(self) -> str:
        return "plain"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        if "sync" not in self._clients:
            self._clients["sync"] = openai.OpenAI(**self._settings())
        return _result(self._clients["sync"].chat.completions.create(**self._body(messages, kwargs)))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        if "async" not in self._clients:
            self._clients["async"] = openai.AsyncOpenAI(**self._settings())
        return _result(await self._clients["async"].chat.completions.create(**self._body(messages, kwargs)))

    def _settings(self) -> dict[str, Any]:
        key = self.api_key.get_secret_value()
        more = {"max_retries": 0, "default_headers": self.default_headers}
        return {"base_url": self.base_url, "api_key": key, "timeout": self.timeout, **more}

    def _body(self, messages: list[BaseMessage], kwargs: dict[str, Any]) -> dict[str, Any]:
        given = {"temperature": self.temperature, "max_tokens": self.max_tokens}
        given |= {name: value for name, value in kwargs.items() if name in given}
        body = {"model": self.model, "messages": convert_to_openai_messages(messages)}
        return body | {name: value for name, value in given.items() if value is not None}


def _result(said: Any) -> ChatResult:
    usage = said.usage
    counted: Any = None
    if usage is not None:
        counted = {
            "input_tokens": usage.prompt_tokens,
            "output_tokens": usage.completion_tokens,
            "total_tokens": usage.total_tokens,
        }
    made = []
    for choice in said.choices:
        told = {"finish_reason": choice.finish_reason, "model_name": said.model}
        thought = getattr(choice.message, "reasoning_content", None)
        more = {"reasoning_content": thought} if thought else {}
        message = AIMessage(
            choice.message.content or "",
            id=said.id,
            usage_metadata=counted,
            response_metadata=told,
            additional_kwargs=more,
        )
        made.append(ChatGeneration(message=message))
    return ChatResult(generations=made)
