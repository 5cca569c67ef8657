"""Whether one process that makes many runs grows: one JSON object.

Each way in makes its runs in a process of its own, one after the other: every third run passes at once, the others
fail, buy one draw and end unresolved. After each 1,000 runs stand the resident memory (MB), the open descriptors, the
threads and the child processes. ``grown`` is the last sample less the first; ``flat`` says whether that is at most 3
MB, 3 descriptors, 3 threads and no child. A store in memory remembers 1,000 ended reservations here, and not its
10,000, so that it is full when the first sample is taken; its 500 tenants come in turn. ``tasks`` and ``learned`` give
every run a task of its own name.

    python benchmarks/growth.py [--runs 20000] [--only WAY ...]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rfx_agent import (
    FunctionVerifier,
    InFlight,
    MemoryStore,
    Ratio,
    Recovery,
    RetryBudget,
    SampleRequest,
    SampleResult,
    SharedBudget,
    Step,
    Usage,
    Window,
    recoverable,
    with_recovery,
)
from rfx_agent.policies import LearnedPolicy
from rfx_agent.ports import Sampler
from rfx_agent.records import Rollout

EVERY = 1000
MOST = {"mb": 3.0, "descriptors": 3, "threads": 3, "children": 0}
USAGE = Usage(10, 3, 1)


class Model(Sampler):
    """Says one wrong thing for ever, and remembers nothing."""

    name = "model"

    def sample(self, request: SampleRequest) -> SampleResult:
        """As many as are asked for."""
        return SampleResult(tuple(Rollout("It is 41", usage=USAGE) for _ in range(request.n)), USAGE)

    async def asample(self, request: SampleRequest) -> SampleResult:
        """The same."""
        return self.sample(request)


def answer(i: int) -> str:
    """What the step says before recovery: right in every third run."""
    return f"It is {40 if i % 3 else 42}"


def options(**more: Any) -> dict[str, Any]:
    """Of every recovery here."""
    given = {"verifier": FunctionVerifier(lambda text: "42" in text), "budget": RetryBudget(samples=1, attempts=1)}
    return {**given, **more}


def runs(**more: Any) -> tuple[Callable[[int], Any], Callable[[int], Any]]:
    """``Recovery.run`` and ``arun``."""
    named = more.pop("named", False)
    recovery = Recovery(Model(), **options(**more))

    def step(i: int) -> Step:
        return Step.of(f"question {i}", task=f"task {i}" if named else "")

    return (
        lambda i: recovery.run(step(i), candidate=answer(i)),
        lambda i: recovery.arun(step(i), candidate=answer(i)),
    )


def shared() -> tuple[Callable[[int], Any], Callable[[int], Any]]:
    """Runs of 500 tenants on one store in memory."""
    limits = (
        Window("tenant", "tokens", 10**9, per="hour"),
        Ratio("tenant", "tokens", 0.5, 10**9),
        InFlight("global", 1000),
    )
    budget = SharedBudget(store=MemoryStore(most=EVERY), limits=limits)
    tenants = [Recovery(Model(), **options(shared=budget.scoped(tenant=f"tenant {i}"))) for i in range(500)]
    return (
        lambda i: tenants[i % 500].run(f"question {i}", candidate=answer(i)),
        lambda i: tenants[i % 500].arun(f"question {i}", candidate=answer(i)),
    )


def learned() -> Callable[[int], Any]:
    """Runs from whose cases a policy learns."""
    now = [LearnedPolicy()]

    def one(i: int) -> None:
        recovery = Recovery(Model(), **options(policy=now[0]))
        now[0] = now[0].learn(recovery.run(Step.of(f"question {i}", task=f"task {i}"), candidate=answer(i)))

    return one


def chain() -> tuple[Callable[[int], Any], Callable[[int], Any]]:
    """``with_recovery`` around a function."""
    wrapped = with_recovery(lambda question: answer(int(question.split()[1])), on_unresolved="return", **options())
    return lambda i: wrapped.invoke(f"question {i}"), lambda i: wrapped.ainvoke(f"question {i}")


def node() -> tuple[Callable[[int], Any], Callable[[int], Any]]:
    """A recoverable node of a graph."""
    from langgraph.graph import END, START, StateGraph
    from typing_extensions import TypedDict

    class State(TypedDict):
        question: str
        answer: str

    def solve(state: State) -> dict[str, str]:
        return {"answer": answer(int(state["question"].split()[1]))}

    builder = StateGraph(State)
    builder.add_node(
        "solve", recoverable(solve, prompt="question", answer="answer", on_unresolved="return", **options())
    )
    builder.add_edge(START, "solve")
    builder.add_edge("solve", END)
    graph: Any = builder.compile()
    return lambda i: graph.invoke({"question": f"question {i}"}), lambda i: graph.ainvoke({"question": f"question {i}"})


def agent() -> tuple[Callable[[int], Any], Callable[[int], Any]]:
    """The middleware in an agent."""
    from langchain.agents import create_agent
    from langchain_core.language_models import GenericFakeChatModel
    from langchain_core.messages import AIMessage

    from rfx_agent import RecoverabilityMiddleware

    said = iter(lambda: AIMessage(answer(int(time.perf_counter() * 1e6))), None)  # without end
    middleware = RecoverabilityMiddleware(on_unresolved="return", **options())
    made: Any = create_agent(GenericFakeChatModel(messages=said), middleware=[middleware])

    def given(i: int) -> dict[str, Any]:
        return {"messages": [("user", f"question {i}")]}

    return lambda i: made.invoke(given(i)), lambda i: made.ainvoke(given(i))


def threads() -> Callable[[int], Any]:
    """Each run in a thread that ends with it."""
    run, _ = runs()

    def one(i: int) -> None:
        thread = threading.Thread(target=run, args=(i,))
        thread.start()
        thread.join()

    return one


def loops() -> Callable[[int], Any]:
    """Each run on an event loop of its own."""
    _, arun = runs()

    async def whole(i: int) -> None:
        await arun(i)

    return lambda i: asyncio.run(whole(i))


def opinion() -> dict[str, Any]:
    """A verifier whose pass is an opinion."""
    return {"verifier": FunctionVerifier(lambda text: "42" in text, weak=True, rates=(0.9, 0.1))}


# (makes the way, which of its two sides; None where it has one)
WAYS: dict[str, tuple[Callable[[], Any], int | None]] = {
    "run": (runs, 0),
    "arun": (runs, 1),
    "chain": (chain, 0),
    "chain_async": (chain, 1),
    "node": (node, 0),
    "node_async": (node, 1),
    "agent": (agent, 0),
    "agent_async": (agent, 1),
    "memory_store": (shared, 0),
    "memory_store_async": (shared, 1),
    "tasks": (lambda: runs(named=True, **opinion()), 0),
    "tasks_async": (lambda: runs(named=True, **opinion()), 1),
    "learned": (learned, None),
    "threads": (threads, None),
    "loops": (loops, None),
}


def sample() -> dict[str, float]:
    """What this process holds now."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    return {
        "mb": round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 2),
        "descriptors": sum(1 for _ in Path("/proc/self/fd").iterdir()),
        "threads": threading.active_count(),
        "children": len(children.read_text().split()),
    }


def work(way: str, count: int) -> list[dict[str, float]]:
    """The samples of one way, taken in this process."""
    make, side = WAYS[way]
    made = make()
    one = made if side is None else made[side]
    samples: list[dict[str, float]] = []

    async def all_of_them() -> None:
        for i in range(1, count + 1):
            await one(i)
            if i % EVERY == 0:
                samples.append(sample())

    if side == 1:
        asyncio.run(all_of_them())
        return samples
    for i in range(1, count + 1):
        one(i)
        if i % EVERY == 0:
            samples.append(sample())
    return samples


def measured(way: str, count: int) -> dict[str, Any]:
    """The samples of one way, taken in a process of its own, and what they say."""
    begun = time.perf_counter()
    command = [sys.executable, __file__, "--work", way, "--runs", str(count)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)  # noqa: S603  # this file
    samples: list[dict[str, float]] = json.loads(done.stdout)
    grown = {name: round(samples[-1][name] - samples[0][name], 2) for name in MOST}
    return {
        "flat": all(grown[name] <= most for name, most in MOST.items()),
        "grown": grown,
        "seconds": round(time.perf_counter() - begun, 1),
        "samples": {name: [x[name] for x in samples] for name in MOST},
    }


def main() -> None:
    """Measure every way in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20_000)
    parser.add_argument("--only", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY", help=", ".join(WAYS))
    parser.add_argument("--work", choices=WAYS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.runs < 2 * EVERY:
        parser.error(f"--runs is {given.runs}; give at least {2 * EVERY:,}")
    if given.work:
        print(json.dumps(work(given.work, given.runs)))
        return
    ways = {way: measured(way, given.runs) for way in given.only}
    flat = all(x["flat"] for x in ways.values())
    print(json.dumps({"runs": given.runs, "every": EVERY, "most": MOST, "flat": flat, "ways": ways}))


if __name__ == "__main__":
    main()
