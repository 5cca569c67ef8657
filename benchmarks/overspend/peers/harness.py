"""pydantic-ai-harness's ``SpendLimits`` on a pydantic-ai ``Agent``: one budget, its Redis store where it is shared.

pydantic-ai's own ``UsageLimits`` caps one run, so it is no cap for many runs. The model's price is told with
``price=``, as its docs say for a model that its registry does not know.
"""

from __future__ import annotations

import threading
from decimal import Decimal
from typing import Any

from openai import AsyncOpenAI
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai_harness.spend import Budget, RedisSpendStore, SpendLimitExceeded, SpendLimits
from redis.asyncio import Redis
from worker import Peer, Refused, joined, main, usd_of


async def opened(plan: dict[str, Any]) -> Peer:
    """A call is one run of an agent, of one request."""

    def price(response: Any) -> Decimal:
        return Decimal(repr(usd_of(response.usage.input_tokens, response.usage.output_tokens)))

    cap: dict[str, Any] = {"usd": Decimal(repr(plan["cap"]))} if plan["unit"] == "usd" else {"tokens": int(plan["cap"])}
    more: dict[str, Any] = {}
    if plan["shared"]:
        more["store"] = RedisSpendStore(Redis.from_url(plan["redis"]))
    limits: Any = SpendLimits(budgets=[Budget(window="total", name="all", **cap)], price=price, **more)
    settings: Any = {"max_tokens": plan["max_tokens"]}

    def made(*capabilities: Any) -> Any:
        client = AsyncOpenAI(base_url=plan["base_url"], api_key="none")
        model = OpenAIChatModel("m", provider=OpenAIProvider(openai_client=client))
        return Agent(model, capabilities=list(capabilities), model_settings=settings)

    agent, plain, own = made(limits), made(), threading.local()

    async def ask(agent: Any, prompt: str, leave: bool) -> str:
        if not plan["stream"]:
            return str((await agent.run(prompt)).output)
        async with agent.run_stream(prompt) as reply:
            return await joined(reply.stream_text(delta=True, debounce_by=None), leave)

    async def acall(prompt: str, leave: bool) -> str:
        try:
            return await ask(agent, prompt, leave)
        except SpendLimitExceeded as error:
            raise Refused from error

    async def bare(prompt: str, leave: bool) -> str:
        return await ask(plain, prompt, leave)

    async def spent() -> float:
        (status,) = await limits.status()
        return float(status.spent.usd if plan["unit"] == "usd" else status.spent.tokens)

    def call(prompt: str, _: bool) -> str:
        if not hasattr(own, "agent"):
            own.agent = made(limits)  # run_sync has a loop per thread, and a client belongs to one; the limits are one
        try:
            return str(own.agent.run_sync(prompt).output)
        except SpendLimitExceeded as error:
            raise Refused from error

    return Peer(acall=acall, call=call, bare=bare, spent=spent)


if __name__ == "__main__":
    main(opened)
