"""The peers: where each is found, what it promises, and which ways it has."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Entry:
    """One row of the table.

    Attributes:
        name: of the row.
        file: of ``peers/``.
        python: whose environment.
        variant: what the file is told.
        units: of a cap that it knows. A cap on calls is made of the other where it knows calls only.
        sync: whether it can be used from threads.
        local: whether it holds within one process; shared: between processes.
        streams: whether it has a way to stream.
        agents: whether it is measured on agents with tools and subagents.
        only: the scenarios that it is measured in, where not in all.
        wait: seconds that a call waits for room, where the peer can.
        promise: what its documentation says of the cap, in short, and where.
    """

    name: str
    file: str
    python: str
    variant: str = ""
    units: tuple[str, ...] = ("tokens", "usd")
    sync: bool = True
    local: bool = True
    shared: bool = True
    streams: bool = True
    agents: bool = False
    only: tuple[str, ...] = ()
    wait: float = 0.0
    promise: tuple[str, str] = field(default=("", ""))


_LANGCHAIN = (
    "counts model calls of one run or one thread; says nothing of runs at once",
    "https://docs.langchain.com/oss/python/langchain/middleware/built-in#model-call-limit",
)
_OURS = ("reserved before each call, settled after: all four stores count the same, to the unit", "docs/operations.md")

ENTRIES = (
    Entry("bare counter: check, call, add", "baseline", "langchain", "check"),
    Entry("bare counter: reserve, call, correct", "baseline", "langchain", "reserve"),
    Entry(
        "LiteLLM Router(provider_budget_config)",
        "litellm_router",
        "litellm",
        units=("usd",),
        sync=False,
        promise=(
            "skips a provider that is over its budget; Redis is read and written once a second",
            "https://docs.litellm.ai/docs/proxy/provider_budget_routing",
        ),
    ),
    Entry(
        "LiteLLM proxy, key budget, fail_closed_budget_enforcement",
        "litellm_proxy",
        "litellm",
        units=("usd",),
        promise=(
            "reserves a request's estimated most before it goes out; strict enforcement refuses what does not fit",
            "https://docs.litellm.ai/docs/proxy/users",
        ),
    ),
    Entry(
        "pydantic-ai-harness SpendLimits",
        "harness",
        "harness",
        promise=(
            "not that spend stays under the ceiling: concurrent runs can each pass the check before any is recorded",
            "https://pydantic.dev/docs/ai/harness/spend/",
        ),
    ),
    Entry(
        "LangChain ModelCallLimitMiddleware, the cap split over the runs",
        "langchain_limits",
        "langchain",
        "split",
        sync=False,
        promise=_LANGCHAIN,
    ),
    Entry(
        "LangChain ModelCallLimitMiddleware, all runs on one thread",
        "langchain_limits",
        "langchain",
        "thread",
        sync=False,
        promise=_LANGCHAIN,
    ),
    *(
        Entry(f"rfx {face}, {store}", file, "langchain", variant, promise=_OURS, **more)  # type: ignore[arg-type]
        for face, file, ways in (
            ("BudgetMiddleware", "rfx_agent_budget", {"agents": True}),
            ("Recovery", "rfx", {"streams": False, "only": ("lost", "processes", "kills")}),
        )
        for store, variant, kept in (
            ("MemoryStore", "memory", {"shared": False}),
            ("SQLStore on SQLite", "sqlite", {}),
            ("SQLStore on PostgreSQL", "postgres", {}),
            ("RedisStore", "redis", {}),
            ("RedisStore, wait=5", "redis", {"wait": 5.0, "only": ("asyncio", "processes")}),
        )
        for more in (ways | kept,)
        if not (face == "Recovery" and "wait" in kept)
    ),
)
