"""LiteLLM's proxy, asked with OpenAI's SDK: a key's budget, reserved before the call, in strict enforcement."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import redis
from asks import Asks
from worker import Abandoned, Peer, Refused, main


async def opened(plan: dict[str, Any]) -> Peer:
    """A call goes to the proxy, a bare one straight to the server."""
    key = f"{plan['key']}-{plan['cap']:.9f}"
    asks, direct = Asks(plan, plan["proxy"], key), Asks(plan)

    def refusal(error: openai.APIStatusError) -> Exception:
        return Refused() if "Budget has been exceeded" in str(error) else error

    async def acall(prompt: str, leave: bool) -> str:
        try:
            text, _ = await asks.aask(prompt, leave)
        except openai.APIStatusError as error:
            raise refusal(error) from error
        if leave and plan["stream"]:
            raise Abandoned
        return text

    def call(prompt: str, leave: bool) -> str:
        try:
            text, _ = asks.ask(prompt, leave)
        except openai.APIStatusError as error:
            raise refusal(error) from error
        if leave and plan["stream"]:
            raise Abandoned
        return text

    async def bare(prompt: str, leave: bool) -> str:
        return (await direct.aask(prompt, leave))[0]

    async def spent() -> float:
        await asyncio.sleep(1.0)  # a reservation is corrected after the answer has gone out
        return float(redis.Redis.from_url(plan["redis"]).get(f"spend:key:{key}") or 0)

    return Peer(acall=acall, call=call, bare=bare, spent=spent)


if __name__ == "__main__":
    main(opened)
