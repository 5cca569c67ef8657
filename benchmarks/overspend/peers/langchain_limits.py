"""LangChain's ``ModelCallLimitMiddleware`` on ``create_agent``. It counts calls of a run or of a thread, not tokens.

A cap is made of it in two ways. ``split``: every run is a thread, whose limit is its share of the calls that fit into
the cap. ``thread``: all runs are on one thread, whose limit is all the calls that fit. The calls that fit are the cap
over the most that a call can cost. A thread's count lives in its checkpointer: ``InMemorySaver`` in one process, the
Postgres one between several.
"""

from __future__ import annotations

import re
from typing import Any

from langchain.agents import create_agent
from langchain.agents.middleware import ModelCallLimitMiddleware, wrap_model_call
from langchain.agents.middleware.model_call_limit import ModelCallLimitExceededError
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool
from worker import Peer, Refused, joined, main


async def opened(plan: dict[str, Any]) -> Peer:
    """A call is one run of an agent without tools, of one model call."""
    model = ChatOpenAI(
        model="m", base_url=plan["base_url"], api_key="none", max_tokens=plan["max_tokens"], stream_usage=True
    )
    fit, split = int(plan["cap"] / plan["most"] + 1e-9), plan["variant"] == "split"
    limit: Any = ModelCallLimitMiddleware(thread_limit=fit // plan["of_runs"] if split else fit, exit_behavior="error")

    @wrap_model_call
    async def last_only(request: Any, handler: Any) -> Any:
        """The same request as every peer's: a thread's earlier messages are left out."""
        return await handler(request.override(messages=request.messages[-1:]))

    saver: Any = InMemorySaver()
    if plan["shared"]:
        kwargs = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
        pool: Any = AsyncConnectionPool(plan["postgres"], open=False, min_size=1, max_size=8, kwargs=kwargs)
        await pool.open()
        saver = AsyncPostgresSaver(pool)
    agent: Any = create_agent(model, middleware=[limit, last_only], checkpointer=saver)
    plain: Any = create_agent(model, middleware=[last_only], checkpointer=saver)

    async def ask(agent: Any, prompt: str, leave: bool) -> str:
        run = re.match(r"run (\S+)", prompt)
        thread = run[1] if split and run else "all"
        config: Any = {"configurable": {"thread_id": f"{plan['key']}-{thread}"}}
        given = {"messages": [{"role": "user", "content": prompt}]}
        if not plan["stream"]:
            return str((await agent.ainvoke(given, config))["messages"][-1].text)
        stream = agent.astream(given, config, stream_mode="messages")
        return await joined((chunk.text async for chunk, _ in stream), leave)

    async def acall(prompt: str, leave: bool) -> str:
        try:
            return await ask(agent, prompt, leave)
        except ModelCallLimitExceededError as error:
            raise Refused from error

    async def bare(prompt: str, leave: bool) -> str:
        return await ask(plain, prompt, leave)

    return Peer(acall=acall, bare=bare)


if __name__ == "__main__":
    main(opened)
