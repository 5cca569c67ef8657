"""LiteLLM's library: ``Router(provider_budget_config=...)``, with its Redis where the budget is shared.

``litellm.BudgetManager`` keeps a dictionary in one process and asks the caller to check and to add; it is the baseline
``check`` by another name. ``litellm.max_budget`` counts in one process too.
"""

from __future__ import annotations

import asyncio
from typing import Any

import litellm
import redis
from worker import Abandoned, Peer, Refused, joined, main


async def opened(plan: dict[str, Any]) -> Peer:
    """A call is one of the router's."""
    price = {"input_cost_per_token": 1e-6, "output_cost_per_token": 4e-6}
    deployment: Any = {
        "model_name": "m",
        "litellm_params": {"model": "openai/m", "api_base": plan["base_url"], "api_key": "none", **price},
        "model_info": {"id": "m1", **price},
    }
    more: dict[str, Any] = {}
    if plan["shared"]:
        more = {"redis_host": "127.0.0.1", "redis_port": int(plan["redis"].rpartition(":")[2].partition("/")[0])}
    budget: Any = {"openai": {"budget_limit": plan["cap"], "time_period": "1d"}}
    router = litellm.Router([deployment], provider_budget_config=budget, **more)
    plain = litellm.Router([deployment])
    body: dict[str, Any] = {"model": "m", "max_tokens": plan["max_tokens"]}
    if plan["stream"]:
        body |= {"stream": True, "stream_options": {"include_usage": True}}

    async def ask(router: Any, prompt: str, leave: bool) -> str:
        reply = await router.acompletion(messages=[{"role": "user", "content": prompt}], **body)
        if not plan["stream"]:
            return str(reply.choices[0].message.content)
        pieces = ((chunk.choices[0].delta.content or "") if chunk.choices else "" async for chunk in reply)
        try:
            return await joined(pieces, leave)
        except Abandoned:
            await reply.aclose()
            raise

    async def acall(prompt: str, leave: bool) -> str:
        try:
            return await ask(router, prompt, leave)
        except Exception as error:
            if "budget" in str(error).lower():
                raise Refused from error
            raise

    async def bare(prompt: str, leave: bool) -> str:
        return await ask(plain, prompt, leave)

    async def spent() -> float:
        if plan["shared"]:
            return float(redis.Redis.from_url(plan["redis"]).get("provider_spend:openai:1d") or 0)
        return 0.0

    async def close() -> None:
        await asyncio.sleep(2.5)  # its spend goes to Redis once a second

    return Peer(acall=acall, bare=bare, spent=spent if plan["shared"] else None, close=close)


if __name__ == "__main__":
    main(opened)
