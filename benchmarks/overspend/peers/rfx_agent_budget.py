"""Ours: ``BudgetMiddleware`` on ``create_agent``, with a ``SharedBudget`` on the store that the plan names.

A call is one run of an agent without tools, of one model call. In the scenario ``agents`` a run is a whole agent: it
calls two tools in turn, and one of them asks a subagent, which has no budget of its own.
"""

from __future__ import annotations

from typing import Any

from langchain.agents import create_agent
from langchain.agents.middleware import ModelRetryMiddleware
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from openai import APIConnectionError
from worker import Abandoned, Peer, Refused, main

from rfx_agent import BudgetMiddleware, MemoryStore, Price, SharedBudget, Window
from rfx_agent.budgets import store_at
from rfx_agent.errors import BudgetExhausted


async def opened(plan: dict[str, Any]) -> Peer:
    """The agents, and what is asked of them."""
    url = plan.get(plan["variant"])
    store: Any = store_at(url) if url else MemoryStore()
    limit = Window("global", plan["unit"], plan["cap"], per="day")
    shared = SharedBudget(store=store, limits=(limit,), seconds=plan["expires"], wait=plan["wait"])
    budget = BudgetMiddleware(shared=shared, at_cap="raise", prices=Price(prompt=1.0, completion=4.0))
    more: dict[str, Any] = {"max_retries": 0} if plan["seen"] else {}
    retries = [ModelRetryMiddleware(max_retries=2, retry_on=(APIConnectionError,))] if plan["seen"] else []
    model = ChatOpenAI(
        model="m", base_url=plan["base_url"], api_key="none", max_tokens=plan["max_tokens"], stream_usage=True, **more
    )
    below: Any = create_agent(model)

    @tool
    async def look_up(question: str) -> str:
        """Look up the numbers of a year."""
        return f"the numbers for {question}"

    @tool
    async def ask_expert(question: str) -> str:
        """Ask an expert, who is an agent."""
        said = await below.ainvoke({"messages": [{"role": "user", "content": question}]})
        return str(said["messages"][-1].text)

    tools = [look_up, ask_expert] if plan["steps"] else []
    agent: Any = create_agent(model, tools, middleware=[budget, *retries])
    plain: Any = create_agent(model, tools)

    async def ask(agent: Any, prompt: str, leave: bool) -> str:
        text = f"{prompt} steps {plan['steps']}" if plan["steps"] else prompt
        given = {"messages": [{"role": "user", "content": text}]}
        if not plan["stream"]:
            return str((await agent.ainvoke(given))["messages"][-1].text)
        text, pieces = "", 0
        async for chunk, _ in agent.astream(given, stream_mode="messages"):
            text, pieces = text + chunk.text, pieces + 1
            if leave and pieces == 2:
                raise Abandoned
        return text

    async def acall(prompt: str, leave: bool) -> str:
        try:
            return await ask(agent, prompt, leave)
        except BudgetExhausted as error:
            raise Refused from error

    def call(prompt: str, _: bool) -> str:
        try:
            return str(agent.invoke({"messages": [{"role": "user", "content": prompt}]})["messages"][-1].text)
        except BudgetExhausted as error:
            raise Refused from error

    async def bare(prompt: str, leave: bool) -> str:
        return await ask(plain, prompt, leave)

    async def spent() -> float:
        (account,) = store.accounts()
        return (account.spent + account.reserved) / (1e9 if plan["unit"] == "usd" else 1)

    return Peer(acall=acall, call=call, bare=bare, spent=spent)


if __name__ == "__main__":
    main(opened)
