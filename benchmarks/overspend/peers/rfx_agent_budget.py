"""Ours: ``BudgetMiddleware`` on ``create_agent``, with a ``SharedBudget`` on the store that the plan names.

A call is one run of an agent without tools, of one model call. In the scenario ``agents`` a run is a whole agent: it
calls two tools in turn, and one of them asks a subagent, which has no budget of its own.
"""

from __future__ import annotations

from typing import Any

from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from rfx_shared import shared_budget
from worker import Peer, Refused, joined, main

from rfx_agent import BudgetMiddleware, Price
from rfx_agent.errors import BudgetExhausted


async def opened(plan: dict[str, Any]) -> Peer:
    """The agents, and what is asked of them."""
    shared, spent = shared_budget(plan)
    budget = BudgetMiddleware(shared=shared, at_cap="raise", prices=Price(prompt=1.0, completion=4.0))
    model = ChatOpenAI(
        model="m", base_url=plan["base_url"], api_key="none", max_tokens=plan["max_tokens"], stream_usage=True
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
    agent: Any = create_agent(model, tools, middleware=[budget])
    plain: Any = create_agent(model, tools)

    async def ask(agent: Any, prompt: str, leave: bool) -> str:
        text = f"{prompt} steps {plan['steps']}" if plan["steps"] else prompt
        given = {"messages": [{"role": "user", "content": text}]}
        if not plan["stream"]:
            return str((await agent.ainvoke(given))["messages"][-1].text)
        stream = agent.astream(given, stream_mode="messages")
        return await joined((chunk.text async for chunk, _ in stream), leave)

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

    return Peer(acall=acall, call=call, bare=bare, spent=spent)


if __name__ == "__main__":
    main(opened)
