"""What recovery costs on a step that passes: one JSON object.

Each way runs the same work (a step whose candidate passes at once), in turn within one process, so that the ratios
hold on a noisy machine. ``bare_graph`` is a graph of one node that verifies; ``with_retry`` is LangChain's own.

    python benchmarks/overhead.py [--rounds 300]
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

from langchain_core.runnables import RunnableLambda
from langgraph.graph import END, START, StateGraph

from rfx_agent import Recovery, Rollout, Step, recovery_graph, step_input, with_recovery
from rfx_agent.adapters.langgraph import RecoveryInput, RecoveryState
from rfx_agent.case import decode
from rfx_agent.testing import ScriptedSampler, ScriptedVerifier

STEP = Step.of("What is 6 times 7?")


def ways() -> dict[str, Callable[[], Any]]:
    verifier = ScriptedVerifier(["42"])
    recovery = Recovery(sampler=ScriptedSampler([]), verifier=verifier)

    def verify(state: Any) -> dict[str, Any]:
        verdict = verifier.verify(decode(Step, state["step"]), Rollout(state["candidate"]))
        return {"outcome": {"status": "accepted" if verdict.passed else "unresolved"}}

    builder = StateGraph(RecoveryState, input_schema=RecoveryInput)
    builder.add_node("verify", verify)
    builder.add_edge(START, "verify")
    builder.add_edge("verify", END)
    bare = builder.compile()
    graph = recovery_graph(recovery)
    given = step_input(STEP, "42")

    def work(question: str) -> str:
        answer = "42"
        if not verifier.verify(STEP, Rollout(answer)).passed:
            raise ValueError(question)
        return answer

    chain = RunnableLambda(work)
    retried = chain.with_retry(stop_after_attempt=3)
    wrapped = with_recovery(RunnableLambda(lambda _: "42"), verifier=verifier)
    return {
        "bare_graph": lambda: bare.invoke(given),
        "recovery_graph": lambda: graph.invoke(given),
        "bare_chain": lambda: chain.invoke("6 times 7"),
        "with_retry": lambda: retried.invoke("6 times 7"),
        "with_recovery": lambda: wrapped.invoke("6 times 7"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=300)
    rounds = parser.parse_args().rounds
    todo = ways()
    times: dict[str, list[float]] = {name: [] for name in todo}
    for i in range(rounds + 20):
        for name, run in todo.items():
            started = time.perf_counter()
            run()
            if i >= 20:  # the first ones warm caches
                times[name].append(time.perf_counter() - started)
    median = {name: statistics.median(values) * 1e3 for name, values in times.items()}
    print(
        json.dumps(
            {
                "rounds": rounds,
                "median_ms": {name: round(value, 4) for name, value in median.items()},
                "graph_overhead_ms": round(median["recovery_graph"] - median["bare_graph"], 4),
                "retry_overhead_ms": round(median["with_retry"] - median["bare_chain"], 4),
                "wrapper_overhead_ms": round(median["with_recovery"] - median["bare_chain"], 4),
                "wrapper_over_retry": round(median["with_recovery"] / median["with_retry"], 2),
            }
        )
    )


if __name__ == "__main__":
    main()
