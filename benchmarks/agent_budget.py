"""What a budget for a whole agent costs per model call: one JSON object.

One agent of ``create_agent`` with one tool makes ten model calls and ten tool calls a run, with a fake model that
answers at once. Ways of the same run take turns in a new order every round: without a middleware, with LangChain's own
``ModelCallLimitMiddleware``, and with ``BudgetMiddleware``: with caps of the run alone (``caps``), and with limits in a
shared store besides. All caps are so high that nothing is refused.

``run_ms`` is the median of a run, and ``over_limit_ms`` what a model call (with its tool call) takes more than under
``ModelCallLimitMiddleware``. ``over_limit_cpu_ms`` is the same of the CPU time of the process, which holds on a busy
machine. For the stores on disk ``bare_ms`` is the median of two bare transactions on the same database
(``benchmarks/budget.py``), which is what a reservation and its settlement cannot do without, and ``ratio`` is what the
store adds to a call (over ``caps``) by that. ``async`` is the same with ``ainvoke``.

    python benchmarks/agent_budget.py [--rounds 40] [--postgres URL] [--only STORE ...]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

from budget import Bare, BareRedis, embedded, redis_at
from langchain.agents import create_agent
from langchain.agents.middleware import ModelCallLimitMiddleware
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import tool

from rfx_agent import BudgetMiddleware, InFlight, MemoryStore, SharedBudget, Window
from rfx_agent.budgets.at import store_at

CALLS = 10
STORES = ("memory", "sqlite", "postgres", "redis")
GIVEN: Any = {"messages": [HumanMessage("What is 6 times 7?")]}
CAPS = {"calls": 10**6, "samples": 10**6, "tokens": 10**9, "seconds": 10**6}
LIMITS = (Window("global", "tokens", 10**12, per="minute"), InFlight("global", 10**6))


class Quick(BaseChatModel):
    """Calls the tool until it has ``CALLS`` answers less one, and counts its tokens."""

    max_tokens: int = 50

    @property
    def _llm_type(self) -> str:
        return "quick"

    def bind_tools(self, tools: Any, **_: Any) -> Any:  # LangChain's word
        return self

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **_: Any) -> ChatResult:
        done = sum(isinstance(m, ToolMessage) for m in messages)
        calls: Any = [{"name": "look", "args": {}, "id": f"c{done}"}] if done < CALLS - 1 else []
        usage: Any = {"input_tokens": 20, "output_tokens": 10, "total_tokens": 30}
        return ChatResult(generations=[ChatGeneration(message=AIMessage("42", tool_calls=calls, usage_metadata=usage))])

    async def _agenerate(self, messages: Any, stop: Any = None, run_manager: Any = None, **_: Any) -> ChatResult:
        return self._generate(messages)


@tool
def look() -> str:
    """Look."""
    return "nothing"


def agent(*middleware: Any) -> Any:
    """The agent, with what is measured."""
    return create_agent(Quick(), [look], middleware=middleware)


def main() -> None:
    """Time every way, in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--postgres", help="URL of a PostgreSQL to use")
    parser.add_argument("--only", nargs="+", default=STORES, choices=STORES)
    options = parser.parse_args()
    agents = {
        "bare": agent(),
        "call_limit": agent(ModelCallLimitMiddleware(run_limit=10**6)),
        "caps": agent(BudgetMiddleware(CAPS)),
    }
    bare: dict[str, Callable[[], None]] = {}
    with tempfile.TemporaryDirectory(prefix="rfx-agent-budget-") as folder, contextlib.ExitStack() as servers:
        urls: dict[str, str | None] = {"sqlite": f"sqlite:///{folder}/budgets.db"}
        if "postgres" in options.only:
            urls["postgres"] = options.postgres or servers.enter_context(embedded())
        if "redis" in options.only:
            urls["redis"] = servers.enter_context(redis_at(folder, "always"))
        for name in options.only:
            url = urls.get(name)
            if name != "memory" and url is None:
                continue
            store: Any = MemoryStore() if url is None else store_at(url)
            agents[name] = agent(BudgetMiddleware(CAPS, shared=SharedBudget(store=store, limits=LIMITS)))
            if url is not None:
                bare[name] = (BareRedis(url) if url.startswith("unix:") else Bare(url)).twice
        print(json.dumps({"rounds": options.rounds, "calls": CALLS} | measured(agents, bare, options.rounds)))


def measured(agents: dict[str, Any], bare: dict[str, Callable[[], None]], rounds: int) -> dict[str, Any]:
    """The figures of every agent, sync and async."""
    ways: dict[str, Callable[[], Any]] = {f"{name} bare": run for name, run in bare.items()}
    loop = asyncio.new_event_loop()

    def sync(made: Any) -> Callable[[], Any]:
        return lambda: made.invoke(GIVEN)

    def later(made: Any) -> Callable[[], Any]:
        return lambda: loop.run_until_complete(made.ainvoke(GIVEN))

    for name, made in agents.items():
        ways |= {f"{name} sync": sync(made), f"{name} async": later(made)}
    took: dict[str, list[float]] = {name: [] for name in ways}
    worked: dict[str, list[float]] = {name: [] for name in ways}
    rng = random.Random(0)  # noqa: S311  # an order
    for i in range(rounds + 2):
        for name in rng.sample(list(ways), len(ways)):
            begun, cpu = time.perf_counter(), time.process_time()
            ways[name]()
            if i > 1:  # the first rounds warm up
                took[name].append((time.perf_counter() - begun) * 1e3)
                worked[name].append((time.process_time() - cpu) * 1e3)
    busy = {name: statistics.median(x) for name, x in worked.items()}
    median = {name: statistics.median(x) for name, x in took.items()}
    figures: dict[str, Any] = {}
    for name in agents:
        figures[name] = {}
        for how in ("sync", "async"):
            run, limit = median[f"{name} {how}"], median[f"call_limit {how}"]
            cpu = busy[f"{name} {how}"] - busy[f"call_limit {how}"]
            one = {"run_ms": round(run, 2), "over_limit_ms": round((run - limit) / CALLS, 3)}
            one["over_limit_cpu_ms"] = round(cpu / CALLS, 3)
            if name in bare:
                added = (run - median[f"caps {how}"]) / CALLS
                transactions = median[f"{name} bare"]
                one |= {"bare_ms": round(transactions, 3), "ratio": round(added / transactions, 2)}
            figures[name][how] = one
    return figures


if __name__ == "__main__":
    main()
