"""The overspending of the peers again, each in the few lines that its own documentation has: no worker, no log.

20 calls at once, a budget for about 5 of them; prints how many the server answered. Run it in the peer's environment,
with the URL of a running ``server.py``:

    python minimal.py spendlimits|router|langchain http://127.0.0.1:PORT
"""

from __future__ import annotations

import asyncio
import json
import sys
import urllib.request
from collections.abc import Awaitable, Callable

PROMPTS = [f"what do you think of number {i}" for i in range(20)]


async def spendlimits(url: str) -> None:
    """pydantic-ai-harness, as in https://pydantic.dev/docs/ai/harness/spend/"""
    from openai import AsyncOpenAI
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider
    from pydantic_ai_harness.spend import Budget, SpendLimits

    client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none")
    limits = SpendLimits(budgets=[Budget(tokens=400, window="day")])
    agent = Agent(OpenAIChatModel("m", provider=OpenAIProvider(openai_client=client)), capabilities=[limits])
    await asyncio.gather(*(agent.run(x) for x in PROMPTS), return_exceptions=True)


async def router(url: str) -> None:
    """LiteLLM's router, as in https://docs.litellm.ai/docs/proxy/provider_budget_routing"""
    import litellm

    price = {"input_cost_per_token": 1e-6, "output_cost_per_token": 4e-6}
    params = {"model": "openai/m", "api_base": f"{url}/v1", "api_key": "none", **price}
    budget = {"openai": {"budget_limit": 0.00125, "time_period": "1d"}}
    made = litellm.Router([{"model_name": "m", "litellm_params": params}], provider_budget_config=budget)
    calls = (made.acompletion(model="m", messages=[{"role": "user", "content": x}]) for x in PROMPTS)
    await asyncio.gather(*calls, return_exceptions=True)


async def langchain(url: str) -> None:
    """LangChain, as in https://docs.langchain.com/oss/python/langchain/middleware/built-in#model-call-limit"""
    from langchain.agents import create_agent
    from langchain.agents.middleware import ModelCallLimitMiddleware
    from langchain_openai import ChatOpenAI
    from langgraph.checkpoint.memory import InMemorySaver

    limit = ModelCallLimitMiddleware(thread_limit=5, exit_behavior="error")
    model = ChatOpenAI(model="m", base_url=f"{url}/v1", api_key="none")
    agent = create_agent(model, middleware=[limit], checkpointer=InMemorySaver())
    thread = {"configurable": {"thread_id": "all"}}
    calls = (agent.ainvoke({"messages": [{"role": "user", "content": x}]}, thread) for x in PROMPTS)
    await asyncio.gather(*calls, return_exceptions=True)


def main() -> None:
    """Make the calls."""
    ways: dict[str, Callable[[str], Awaitable[None]]] = {"spendlimits": spendlimits, "router": router}
    ways["langchain"] = langchain
    name, url = sys.argv[1:]
    settings = json.dumps({"latency": 0.3}).encode()
    urllib.request.urlopen(urllib.request.Request(f"{url}/set", settings, method="POST")).close()  # noqa: S310
    asyncio.run(ways[name](url))  # type: ignore[arg-type]
    with urllib.request.urlopen(f"{url}/count") as reply:  # noqa: S310  # loopback
        print(name, json.load(reply))


if __name__ == "__main__":
    main()
