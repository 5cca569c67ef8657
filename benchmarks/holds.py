"""How long a step of ours holds an event loop: one JSON object.

A heartbeat on the loop wakes every 2 ms. How late it comes, less how late the same heartbeat comes in a process beside
it, is what the loop was held: by a callback, or by a thread that kept the interpreter's lock. ``hold_ms`` is the median
over the repetitions of the longest hold of each; ``cpu_ms`` the median of the most processor time that one callback on
the loop took, which a busy machine does not stretch as much. Each way runs once before, so that the figures are of a
process that is warm; ``first_...`` are new objects each time. ``within`` says whether every hold is at most 20 ms.

    python benchmarks/holds.py [--times 7] [--only WAY ...]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pydantic import BaseModel

from rfx_agent import (
    ExactVerifier,
    FunctionVerifier,
    JsonSchemaVerifier,
    JudgeVerifier,
    MathVerifier,
    OpenAISampler,
    PydanticVerifier,
    RecoverabilityMiddleware,
    Recovery,
    RegexVerifier,
    RetryBudget,
    SharedBudget,
    SQLStore,
    Step,
    TestsVerifier,
    Usage,
    Window,
    recovery_graph,
    step_input,
)
from rfx_agent.escalation import Webhook
from rfx_agent.policies import LearnedPolicy
from rfx_agent.ports import Verifier
from rfx_agent.records import Rollout
from rfx_agent.testing import ScriptedSampler
from rfx_agent.verifiers import AgreementVerifier

MOST = 20.0
LONG = "the sum of 3 and 4 is 7, so x = 7. " * 30_000
STEP = Step.of("What is 6 times 7?", expected="42")
Way = Callable[[], Awaitable[Any]]


class Row(BaseModel):
    id: int
    name: str


class Rows(BaseModel):
    items: list[Row]


def rows(n: int) -> str:
    """JSON of so many objects, the last of them wrong."""
    return json.dumps({"items": [*({"id": i, "name": f"n{i}"} for i in range(n)), {"id": "x"}]})


# The heartbeat of a process that does nothing else: it says when it came late, until its standard input ends.
CONTROL = """
import sys, threading, time
stopped = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), stopped.set()), daemon=True).start()
print("ready", flush=True)
last = time.monotonic()
while not stopped.is_set():
    time.sleep(0.002)
    now = time.monotonic()
    if now - last > 0.005:
        print(last, now, flush=True)
    last = now
"""
SCHEMA = {"properties": {"items": {"items": {"required": ["id", "name"]}}}}


def judging(verifier: Callable[[], Verifier], text: str) -> Callable[[], Way]:
    """A failing candidate and one failing draw, both ``text``."""

    def make() -> Way:
        judge = verifier()

        async def way() -> None:
            sampler = ScriptedSampler([Rollout(text + " ", usage=Usage(10, 10, 1))])
            budget = RetryBudget(samples=1, attempts=1, tokens=None)
            await Recovery(sampler, judge, budget=budget).arun(STEP, candidate=text)

        return way

    return make


def wrong() -> FunctionVerifier:
    """Passes nothing here."""
    return FunctionVerifier(lambda text: "42" in text)


def run(recovery: Recovery) -> Way:
    """One failing run."""
    return lambda: recovery.arun(STEP, candidate="It is 40")


def said() -> ScriptedSampler:
    """A model that is always wrong."""
    return ScriptedSampler([], last="It is 41")


def drawing(path: str) -> Callable[[], Way]:
    """Three draws at once from the server beside this process."""

    def make() -> Way:
        sampler = OpenAISampler("m", base_url=f"{SERVER}/{path}", api_key="unused", max_retries=0)
        budget = RetryBudget(samples=3, attempts=3, tokens=None)
        return run(Recovery(sampler, wrong(), budget=budget, extra_samples=3, concurrency=3))

    return make


def first_client() -> Way:
    """A sampler that is new each time."""
    return lambda: drawing("short")()()


def first_store() -> Way:
    """A store that is new each time: its file and tables are made."""

    async def way() -> None:
        with tempfile.TemporaryDirectory() as folder:
            store = SQLStore(f"sqlite:///{folder}/budgets.db")
            shared = SharedBudget(store=store, limits=(Window("global", "tokens", 10**6, per="day"),))
            await run(Recovery(said(), wrong(), shared=shared, budget=RetryBudget(samples=2)))()
            await asyncio.to_thread(store.close)

    return way


def webhook() -> Way:
    """A call of a webhook, which makes a client for it."""
    hook = Webhook(f"{SERVER}/short")
    return lambda: hook.anotify({"case": "x" * 100_000}, key="k")


def agreement() -> Way:
    """Sixty draws of 2 kB, none of which agree."""
    texts = [f"Answer: {i} " + "word " * 400 for i in range(60)]
    budget = RetryBudget(samples=59, attempts=59, tokens=None, calls=None)

    async def way() -> None:
        await Recovery(ScriptedSampler(texts[1:]), AgreementVerifier(), budget=budget).arun(STEP, candidate=texts[0])

    return way


def checkpoints() -> Way:
    """A graph whose cases hold fourteen draws of 20 kB."""
    from langgraph.checkpoint.memory import InMemorySaver

    budget = RetryBudget(samples=14, attempts=14, tokens=None, calls=None)
    recovery = Recovery(ScriptedSampler([], last="It is 41 " * 2200), wrong(), budget=budget)
    graph = recovery_graph(recovery, interrupts=True, checkpointer=InMemorySaver())
    given = step_input(STEP, candidate="It is 40")
    return lambda: graph.ainvoke(given, {"configurable": {"thread_id": str(time.monotonic_ns())}})


def agent() -> Way:
    """An agent that fails three times."""
    from langchain.agents import create_agent
    from langchain_core.language_models import GenericFakeChatModel
    from langchain_core.messages import AIMessage

    model = GenericFakeChatModel(messages=iter(lambda: AIMessage("It is 41"), None))
    budget = RetryBudget(samples=3, attempts=3)
    middleware = RecoverabilityMiddleware(verifier=wrong(), on_unresolved="return", budget=budget)
    made: Any = create_agent(model, middleware=[middleware])
    return lambda: made.ainvoke({"messages": [("user", "6 times 7?")]})


WAYS: dict[str, Callable[[], Way]] = {
    "exact_1mb": judging(lambda: ExactVerifier("7"), LONG),
    "math_1mb": judging(lambda: MathVerifier("8"), LONG),
    "regex_1mb": judging(lambda: RegexVerifier(r"answer: (\d+)\s*$"), LONG),
    "function_1mb": judging(wrong, LONG),
    "tests_1mb": judging(lambda: TestsVerifier("assert f(2) == 5", sandbox="monty"), LONG),
    "judge_1mb": judging(lambda: JudgeVerifier(ScriptedSampler([], last="no"), rubric="right"), LONG),
    "schema_1mb": judging(lambda: JsonSchemaVerifier(SCHEMA), rows(30_000)),
    "schema_190kb": judging(lambda: JsonSchemaVerifier(SCHEMA), rows(6000)),
    "pydantic_1mb": judging(lambda: PydanticVerifier(Rows), rows(30_000)),
    "pydantic_190kb": judging(lambda: PydanticVerifier(Rows), rows(6000)),
    "agreement_60_draws": agreement,
    "table_3_draws_512_tokens": drawing("table"),
    "refusal_5mb": drawing("error"),
    "first_client": first_client,
    "first_store": first_store,
    "learned": lambda: run(Recovery(said(), wrong(), policy=LearnedPolicy(), budget=RetryBudget(samples=3))),
    "webhook": webhook,
    "checkpoints_14_draws_20kb": checkpoints,
    "agent": agent,
}


class Server(BaseHTTPRequestHandler):
    """What the model's server says, by the first part of the path."""

    def do_POST(self) -> None:
        """A short answer, one of 512 tokens with the top 20 of each, or a refusal."""
        self.rfile.read(int(self.headers["content-length"]))
        kind = self.path.split("/")[1]
        words = [f" w{i}" for i in range(512)] if kind == "table" else [" no"]
        others = [{"token": f" x{i}", "logprob": -2.0 - i, "bytes": None} for i in range(19)]
        table = [{"token": x, "logprob": -0.5, "bytes": None} for x in words]
        content = [{**x, "top_logprobs": [x, *others]} for x in table]
        choice = {"index": 0, "message": {"role": "assistant", "content": "".join(words)}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 10, "completion_tokens": len(words), "total_tokens": 10 + len(words)}
        body: dict[str, Any] = {"choices": [{**choice, "logprobs": {"content": content}}], "usage": usage}
        if kind == "error":
            body = {"error": {"message": "x" * 5_000_000}}
        data = json.dumps(body).encode()
        self.send_response(400 if kind == "error" else 200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


def serve() -> None:
    """A server, until its standard input ends; it says where it is."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # nobody reads all of a refusal
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    sys.stdin.read()


def beside(*command: str) -> subprocess.Popen[str]:
    """Another Python, which says a line when it is there."""
    return subprocess.Popen([sys.executable, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603  # our own


async def held(way: Way) -> float:
    """Milliseconds that the loop was held at most while ``way`` ran."""
    control = await asyncio.to_thread(beside, "-c", CONTROL)
    assert control.stdout is not None  # noqa: S101  # both are pipes
    await asyncio.to_thread(control.stdout.readline)
    gaps: list[tuple[float, float]] = []

    async def beats() -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.002)
            now = time.monotonic()
            if now - last > 0.005:
                gaps.append((last, now))
            last = now

    beating = asyncio.create_task(beats())
    await asyncio.sleep(0.02)
    await way()
    await asyncio.sleep(0.02)
    beating.cancel()
    told, _ = await asyncio.to_thread(control.communicate)
    late = [tuple(map(float, line.split())) for line in told.splitlines()]
    longest = 0.0
    for begin, end in gaps:
        shared = max((min(end, b) - max(begin, a) for a, b in late), default=0.0)
        longest = max(longest, end - begin - max(0.0, shared) - 0.002)
    return 1000 * longest


async def measured(make: Callable[[], Way], times: int, took: list[float]) -> dict[str, float]:
    """The figures of one way."""
    way = make()
    await way()
    holds, cpu = [], []
    for _ in range(times):
        took.clear()
        holds.append(await held(way))
        cpu.append(1000 * max(took))
    return {"hold_ms": round(statistics.median(holds), 1), "cpu_ms": round(statistics.median(cpu), 1)}


def main() -> None:
    """Measure every way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=7)
    parser.add_argument("--only", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY", help=", ".join(WAYS))
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return
    took: list[float] = []
    handle: Any = asyncio.events.Handle
    plain = handle._run

    def timed(self: Any) -> None:
        begun = time.thread_time()
        plain(self)
        if threading.current_thread() is threading.main_thread():
            took.append(time.thread_time() - begun)

    handle._run = timed
    global SERVER
    with beside(__file__, "--serve") as server:
        assert server.stdout is not None  # noqa: S101  # a pipe
        SERVER = server.stdout.readline().strip()
        ways = {way: asyncio.run(measured(WAYS[way], options.times, took)) for way in options.only}
        server.kill()
    within = all(x["hold_ms"] <= MOST for x in ways.values())
    print(json.dumps({"times": options.times, "most_ms": MOST, "within": within, "ways": ways}))


SERVER = ""
if __name__ == "__main__":
    main()
