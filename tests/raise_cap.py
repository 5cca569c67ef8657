"""A program for tests: an agent whose cap a person raises, in a process of its own, on a real checkpointer.

    python raise_cap.py SAVER begin | python raise_cap.py SAVER raise CAP INTERRUPT

It prints one JSON object: what the thread's state says of the budget, and the question that is open.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import tool
from langgraph.types import Command

from rfx_agent import BudgetMiddleware

THREAD: Any = {"configurable": {"thread_id": "one"}}


class Looping(BaseChatModel):
    """Calls the same tool again and again."""

    @property
    def _llm_type(self) -> str:
        return "looping"

    def bind_tools(self, tools: Any, **_: Any) -> Any:
        return self

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **_: Any) -> ChatResult:
        call: Any = {"name": "look", "args": {}, "id": f"call {len(messages)}"}
        return ChatResult(generations=[ChatGeneration(message=AIMessage("", tool_calls=[call]))])


@tool
def look() -> str:
    """Look."""
    return "nothing"


def saver_at(url: str) -> Any:
    """LangGraph's saver for SQLite or PostgreSQL."""
    if url.startswith("sqlite:///"):
        from langgraph.checkpoint.sqlite import SqliteSaver

        return SqliteSaver.from_conn_string(url.removeprefix("sqlite:///"))
    from langgraph.checkpoint.postgres import PostgresSaver

    return PostgresSaver.from_conn_string(url)


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    """Begin, or reply."""
    url, what, *rest = sys.argv[1:]
    with saver_at(url) as saver:
        if what == "begin":
            saver.setup()
        budget = BudgetMiddleware({"samples": 2}, interrupts=True)
        agent: Any = create_agent(Looping(), [look], middleware=[budget], checkpointer=saver)
        if what == "begin":
            agent.invoke({"messages": [("user", "What is 6 times 7?")]}, THREAD)
        else:
            cap, interrupt = rest
            edit = {"type": "edit", "edited_action": {"name": "raise_budget", "args": {"samples": int(cap)}}}
            say("ready")
            sys.stdin.readline()  # the others are ready too
            agent.invoke(Command(resume={interrupt: edit}), THREAD)
        state = agent.get_state(THREAD)
        history = [x.values.get("rfx_budget", {}).get("caps", {}) for x in agent.get_state_history(THREAD)]
        caps = sorted({x["samples"] for x in history if "samples" in x})
        asked = [x.id for x in state.interrupts]
        say(json.dumps({"budget": state.values["rfx_budget"], "open": asked, "caps": caps}))


if __name__ == "__main__":
    main()
