"""One call of OpenAI's SDK, as every peer makes it that has no client of its own."""

from __future__ import annotations

from typing import Any

import openai
from worker import usd_of


class Asks:
    """The SDK's clients, at their defaults. Amounts are tokens, or billionths of a dollar."""

    def __init__(self, plan: dict[str, Any], base_url: str | None = None, api_key: str = "none") -> None:
        url = base_url or plan["base_url"]
        self.stream, self.usd, self.most = plan["stream"], plan["unit"] == "usd", plan["max_tokens"]
        self._sync = openai.OpenAI(base_url=url, api_key=api_key)
        self._async = openai.AsyncOpenAI(base_url=url, api_key=api_key)

    def body(self, prompt: str) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": "m",
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": self.most,
        }
        return body | ({"stream": True, "stream_options": {"include_usage": True}} if self.stream else {})

    async def aask(self, prompt: str, leave: bool) -> tuple[str, Any]:
        """The text, and the usage; None where the stream was left half way."""
        reply = await self._async.chat.completions.create(**self.body(prompt))
        if not self.stream:
            return reply.choices[0].message.content, reply.usage
        text, usage, pieces = "", None, 0
        async for chunk in reply:
            text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
            usage, pieces = chunk.usage, pieces + 1
            if leave and pieces == 2:
                await reply.close()
                return text, None
        return text, usage

    def ask(self, prompt: str, leave: bool) -> tuple[str, Any]:
        """The same, sync."""
        reply = self._sync.chat.completions.create(**self.body(prompt))
        if not self.stream:
            return reply.choices[0].message.content, reply.usage
        text, usage, pieces = "", None, 0
        for chunk in reply:
            text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
            usage, pieces = chunk.usage, pieces + 1
            if leave and pieces == 2:
                reply.close()
                return text, None
        return text, usage

    def cost(self, usage: Any) -> int:
        """What a call cost, in whole units."""
        read, written = usage.prompt_tokens, usage.completion_tokens
        return round(usd_of(read, written) * 1e9) if self.usd else read + written

    def units(self, amount: float) -> int:
        """A cap in whole units."""
        return round(amount * 1e9) if self.usd else round(amount)

    def amount(self, units: int) -> float:
        """The other way."""
        return units / 1e9 if self.usd else units
