"""Runs per second on steps that pass, with and without recovery: one JSON object.

Many async runs at once ask one model over loopback: an OpenAI-compatible server of 50 ms in a process of its own. In
every round each way does the same number of runs, in an order that changes from round to round; ``ratio`` is the median
over the rounds of a way's runs per second over those of its ``over`` in the same round, and ``low`` and ``high`` are
the quartiles of it. ``cpu_ms`` is the median of this process's CPU time for one run, the server's not included.

An answer that is looked at by a node behind the one that gave it costs at least a node, and a graph of its own costs a
graph: ``empty_node`` and ``empty_subgraph`` are what LangGraph asks for one that does nothing.

All ways share one ``AsyncOpenAI`` client with the SDK's own pool: 1,000 connections at most, 100 kept when idle.
Nothing is retried, and a run that fails ends the benchmark.

    python benchmarks/throughput.py [--runs 1000] [--concurrency 1000] [--rounds 9] [--verifier exact]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any, TypedDict

import numpy as np
import openai
from langchain_core.runnables import RunnableLambda
from langgraph.graph import END, START, StateGraph

from rfx_agent import (
    ExactVerifier,
    OpenAISampler,
    Recovery,
    RegexVerifier,
    add_recovery,
    recoverable,
    recovery_graph,
    with_recovery,
)

ANSWER = "Answer: 42"
VERIFIERS = {
    "exact": lambda: ExactVerifier("42"),
    "regex": lambda: RegexVerifier(r"Answer: (\d+)", group=1),
}
OVER = {
    "empty_node": "graph",
    "recoverable": "graph",
    "recoverable_hook": "graph",
    "add_recovery": "graph",
    "empty_subgraph": "graph",
    "recovery_graph": "graph",
    "with_recovery": "chain",
}


class State(TypedDict, total=False):
    """What the graphs share: the step under ``recovery_graph``'s own keys, so that it can be a node of them."""

    step: str
    candidate: str
    outcome: dict[str, Any]
    recovery: dict[str, Any]


class Server(asyncio.Protocol):
    """The model: one connection's requests, each answered after ``delay`` seconds."""

    def __init__(self, delay: float) -> None:
        said = {"role": "assistant", "content": ANSWER}
        usage = {"prompt_tokens": 12, "completion_tokens": 6, "total_tokens": 18}
        choices = [{"index": 0, "finish_reason": "stop", "message": said}]
        body = {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": choices, "usage": usage}
        raw = json.dumps(body).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
        self._reply, self._delay, self._read = head.encode() + raw, delay, b""

    def connection_made(self, transport: Any) -> None:
        """A client is there."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """A part of a request, or several."""
        self._read += data
        while (end := self._read.find(b"\r\n\r\n")) >= 0:
            head = self._read[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self._read) < end + 4 + length:
                return
            self._read = self._read[end + 4 + length :]
            asyncio.get_running_loop().call_later(self._delay, self._answer)

    def _answer(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(self._reply)


async def serve(delay: float) -> None:
    """Serve on a free port of loopback, which is printed, until standard input is closed."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Server(delay), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


def ways(url: str, client: openai.AsyncOpenAI, verifier: str) -> dict[str, tuple[Any, Any]]:
    """Per way what is run, and what it is given."""

    async def ask(prompt: str) -> str:
        said = [{"role": "user", "content": prompt}]
        reply = await client.chat.completions.create(model="m", messages=said)  # type: ignore[arg-type]
        return reply.choices[0].message.content or ""

    async def solve(state: State) -> dict[str, Any]:
        return {"candidate": await ask(state["step"])}

    async def nothing(_: State) -> dict[str, Any]:
        return {}

    def built(node: Any = solve, behind: Any = None) -> StateGraph[Any, Any, Any, Any]:
        builder: StateGraph[Any, Any, Any, Any] = StateGraph(State)
        builder.add_node("solve", node)
        builder.add_edge(START, "solve")
        if behind is not None:
            builder.add_node("behind", behind)
            builder.add_edge("behind", END)
        builder.add_edge("solve", "behind" if behind is not None else END)
        return builder

    def recovery(**more: Any) -> Recovery:
        sampler = OpenAISampler("m", base_url=url, api_key="none")
        return Recovery(sampler=sampler, verifier=VERIFIERS[verifier](), **more)

    plain = recovery()
    keys: Any = {"prompt": "step", "answer": "candidate"}
    behind = built()
    add_recovery(behind, "solve", recovery=plain, **keys)
    empty = StateGraph(State)
    empty.add_node("nothing", nothing)
    empty.add_edge(START, "nothing")
    empty.add_edge("nothing", END)
    graphs = {
        "graph": built(),
        "empty_node": built(behind=nothing),
        "recoverable": built(recoverable(solve, recovery=plain, **keys)),
        "recoverable_hook": built(recoverable(solve, recovery=recovery(on_event=lambda _: None), **keys)),
        "add_recovery": behind,
        "empty_subgraph": built(behind=empty.compile()),
        "recovery_graph": built(behind=recovery_graph(plain)),
    }

    async def said(prompt: str) -> str:
        return await ask(prompt)

    chain = RunnableLambda(said)
    chains = {"chain": chain, "with_recovery": with_recovery(chain, verifier=VERIFIERS[verifier]())}
    question = "What is 6 times 7?"
    return {name: (builder.compile(), {"step": question}) for name, builder in graphs.items()} | {
        name: (runnable, question) for name, runnable in chains.items()
    }


async def timed(runnable: Any, given: Any, runs: int, concurrency: int) -> tuple[float, float]:
    """(runs per second, CPU milliseconds per run)."""
    left = iter(range(runs))

    async def worker() -> None:
        for _ in left:
            output = await runnable.ainvoke(given)
            said = output if isinstance(output, str) else output["candidate"]
            if said != ANSWER:
                raise AssertionError(f"a run gave {said!r}")

    gc.collect()  # or one way pays for what another left behind
    started, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*[worker() for _ in range(min(concurrency, runs))])
    return runs / (time.perf_counter() - started), (time.process_time() - cpu) / runs * 1e3


async def measured(args: argparse.Namespace, port: int) -> dict[str, Any]:
    """Every way in every round."""
    url = f"http://127.0.0.1:{port}/v1"
    client = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=60.0)
    todo = ways(url, client, args.verifier)
    rates: dict[str, list[float]] = {name: [] for name in todo}
    cpu: dict[str, list[float]] = {name: [] for name in todo}
    names, rng = list(todo), np.random.default_rng(0)
    for i in range(args.rounds + 1):
        for at in rng.permutation(len(names)):
            name = names[at]
            runs = args.runs if i else min(args.runs, 200)  # the first round warms caches
            rate, spent = await timed(*todo[name], runs, args.concurrency)
            if i:
                rates[name].append(rate)
                cpu[name].append(spent)
    figures: dict[str, Any] = {}
    for name in names:
        figures[name] = {
            "runs_per_s": round(statistics.median(rates[name]), 1),
            "cpu_ms": round(statistics.median(cpu[name]), 3),
        }
        if (over := OVER.get(name)) is not None:
            ratios = [ours / theirs for ours, theirs in zip(rates[name], rates[over], strict=True)]
            low, middle, high = np.percentile(ratios, [25, 50, 75])
            figures[name] |= {
                "over": over,
                "ratio": round(float(middle), 3),
                "low": round(float(low), 3),
                "high": round(float(high), 3),
                "cpu_ratio": round(statistics.median(cpu[over]) / statistics.median(cpu[name]), 3),
            }
    await client.close()
    return figures


def main() -> None:
    """Start the model, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000, help="of each way in each round")
    parser.add_argument("--concurrency", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--delay", type=float, default=0.05, help="seconds that the model takes")
    parser.add_argument("--verifier", choices=sorted(VERIFIERS), default="exact")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        asyncio.run(serve(args.delay))
        return
    command = [sys.executable, __file__, "--serve", "--delay", str(args.delay)]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603  # this file
    assert server.stdin is not None  # noqa: S101  # a pipe
    assert server.stdout is not None  # noqa: S101  # the same
    try:
        figures = asyncio.run(measured(args, int(server.stdout.readline())))
    finally:
        server.stdin.close()
        server.wait(10)
    told = {name: getattr(args, name) for name in ("runs", "concurrency", "rounds", "delay", "verifier")}
    print(json.dumps(told | {"cores": os.cpu_count(), **figures}))


if __name__ == "__main__":
    main()
