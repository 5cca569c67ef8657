"""What recovery costs on a step that passes: one JSON object.

Each way runs the same work (a step whose candidate passes at once), in turn within one process and in a new order
every round, so that the ratios hold on a noisy machine. Each of ours stands beside the bare thing and beside
LangChain's or LangGraph's own retry of it. ``over`` and ``theirs_over`` are what they add to the bare thing, in
milliseconds, ``added_ratio`` is the one over the other (null where theirs adds less than a tenth, as LangGraph's
retry policy and LangChain's retry middleware do), and ``ratio`` is ours over theirs, the bare thing included.

    python benchmarks/overhead.py [--rounds 300]
"""

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda
from langgraph.graph import END, START, StateGraph
from langgraph.types import RetryPolicy

from rfx_agent import Recovery, Rollout, Step, recovery_graph, step_input, with_recovery
from rfx_agent.adapters.graph.recovery_graph import RecoveryInput, RecoveryState
from rfx_agent.codec import load
from rfx_agent.testing import ScriptedSampler, ScriptedVerifier

STEP = Step.of("What is 6 times 7?")
VERIFIER = ScriptedVerifier(["42"])

Ways = dict[str, Callable[[], Any]]
# (ours, LangChain's, what both stand on)
PAIRS = {
    "wrapper": ("with_recovery", "with_retry", "chain"),
    "wrapper_async": ("with_recovery_async", "with_retry_async", "chain_async"),
    "wrapper_with_hook": ("with_recovery_hook", "with_retry", "chain"),
    "graph": ("recovery_graph", "retry_policy_graph", "graph"),
    "middleware": ("recoverability_middleware", "model_retry_middleware", "agent"),
}


def chains() -> Ways:
    """A chain of one function that does the verifying itself, and one that has it behind."""

    def work(question: str) -> str:
        answer = "42"
        if not VERIFIER.verify(STEP, Rollout(answer)).passed:
            raise ValueError(question)
        return answer

    async def awork(question: str) -> str:
        return work(question)

    async def answer(_: str) -> str:
        return "42"

    chain = RunnableLambda(work, awork)
    retried = chain.with_retry(stop_after_attempt=3)
    passes = RunnableLambda(lambda _: "42", answer)
    wrapped = with_recovery(passes, verifier=VERIFIER)
    hooked = with_recovery(passes, verifier=VERIFIER, on_event=lambda _: None)
    loop = asyncio.new_event_loop()
    return {
        "chain": lambda: chain.invoke("6 times 7"),
        "with_retry": lambda: retried.invoke("6 times 7"),
        "with_recovery": lambda: wrapped.invoke("6 times 7"),
        "with_recovery_hook": lambda: hooked.invoke("6 times 7"),
        "chain_async": lambda: loop.run_until_complete(chain.ainvoke("6 times 7")),
        "with_retry_async": lambda: loop.run_until_complete(retried.ainvoke("6 times 7")),
        "with_recovery_async": lambda: loop.run_until_complete(wrapped.ainvoke("6 times 7")),
    }


def graphs() -> Ways:
    """A graph of one node that verifies, plain and with a retry policy, and the recovery graph."""

    def verify(state: Any) -> dict[str, Any]:
        verdict = VERIFIER.verify(load(Step, state["step"]), Rollout(state["candidate"]))
        if not verdict.passed:
            raise ValueError(state["candidate"])
        return {"outcome": {"status": "accepted"}}

    def compiled(**options: Any) -> Any:
        builder = StateGraph(RecoveryState, input_schema=RecoveryInput)
        builder.add_node("verify", verify, **options)
        builder.add_edge(START, "verify")
        builder.add_edge("verify", END)
        return builder.compile()

    bare, retried = compiled(), compiled(retry_policy=RetryPolicy(max_attempts=3))
    graph = recovery_graph(Recovery(sampler=ScriptedSampler([]), verifier=VERIFIER))
    given = step_input(STEP, "42")
    return {
        "graph": lambda: bare.invoke(given),
        "retry_policy_graph": lambda: retried.invoke(given),
        "recovery_graph": lambda: graph.invoke(given),
    }


def agents() -> Ways:
    """An agent whose model answers at once; only where LangChain's agents and our middleware are installed."""
    if find_spec("langchain") is None or find_spec("rfx_agent.adapters.agent.middleware") is None:
        return {}
    from langchain.agents import create_agent
    from langchain.agents.middleware import ModelRetryMiddleware

    from rfx_agent.adapters.agent.middleware import RecoverabilityMiddleware

    def agent(*middleware: Any) -> Any:
        answers = iter(lambda: AIMessage("42"), None)  # without end
        built = create_agent(GenericFakeChatModel(messages=answers), middleware=list(middleware))
        given = {"messages": [{"role": "user", "content": "6 times 7"}]}
        return lambda: built.invoke(given)

    return {
        "agent": agent(),
        "model_retry_middleware": agent(ModelRetryMiddleware()),
        "recoverability_middleware": agent(RecoverabilityMiddleware(verifier=VERIFIER)),
    }


def main() -> None:
    """Time every way in turn and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=300)
    rounds = parser.parse_args().rounds
    todo = chains() | graphs() | agents()
    times: dict[str, list[float]] = {name: [] for name in todo}
    names, rng = list(todo), np.random.default_rng(0)
    for i in range(rounds + 20):
        for at in rng.permutation(len(names)):  # or what runs before a way would always be the same
            name, run = names[at], todo[names[at]]
            started = time.perf_counter()
            run()
            if i >= 20:  # the first ones warm caches
                times[name].append(time.perf_counter() - started)
    median = {name: statistics.median(values) * 1e3 for name, values in times.items()}
    figures: dict[str, Any] = {}
    for name, (ours, theirs, bare) in PAIRS.items():
        if ours not in median:
            continue
        added, others = median[ours] - median[bare], median[theirs] - median[bare]
        figures[name] = {
            "over": round(added, 4),
            "theirs_over": round(others, 4),
            "added_ratio": round(added / others, 2) if others > 0.1 * median[bare] else None,
            "ratio": round(median[ours] / median[theirs], 2),
        }
    print(json.dumps({"rounds": rounds, "median_ms": {n: round(v, 4) for n, v in median.items()}, **figures}))


if __name__ == "__main__":
    main()
