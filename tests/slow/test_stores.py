"""The stores of shared budgets, each held against one conformance suite."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import json
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import states
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from store_conformance import (
    Clock,
    Driven,
    Literal,
    LiteralReservation,
    StoreConformance,
    flight,
    ratio,
    survives_broken_connections,
    window,
)

from rfx_agent import ConfigError
from rfx_agent.budgets.at import store_at
from rfx_agent.budgets.limits import Claim, Refused, Replayed, Reservation
from rfx_agent.budgets.memory import MemoryStore
from rfx_agent.budgets.sql.database import Database
from rfx_agent.budgets.sql.store import SQLStore
from rfx_agent.budgets.sql.tables import METADATA
from rfx_agent.budgets.writer import Writer
from rfx_agent.budgets.written import WrittenStore
from rfx_agent.errors import StoreError
from rfx_agent.policies import Belief, PolicyStore
from rfx_agent.policies.sql_store import SQLPolicyStore

pytest_plugins = ("postgres", "redis_server")  # their fixtures


class TestMemoryStore(StoreConformance):
    @pytest.fixture
    def open_store(self) -> Callable[..., Any]:
        return MemoryStore


class TestSQLiteStore(StoreConformance):
    @pytest.fixture
    def open_store(self, tmp_path: Path) -> Iterator[Callable[..., Any]]:
        yield from closing(f"sqlite:///{tmp_path}/budgets.db")


class TestPostgresStore(StoreConformance):
    @pytest.fixture
    def open_store(self, postgres_url: str) -> Iterator[Callable[..., Any]]:
        yield from closing(postgres_url)


class TestRedisStore(StoreConformance):
    @pytest.fixture
    def open_store(self, redis_url: str) -> Iterator[Callable[..., Any]]:
        yield from closing(redis_url)


def closing(url: str) -> Iterator[Callable[..., Any]]:
    opened: list[WrittenStore] = []

    def open_store(**options: Any) -> WrittenStore:
        opened.append(store_at(url, **options))
        return opened[-1]

    yield open_store
    for store in opened:
        store.close()


# --- every store against the definition, whatever is done in whatever order ---

ACCOUNTS = (
    window(0, 10, seconds=7.0, name="short"),
    window(0, 25, seconds=100.0, name="long"),
    ratio(0, 3, share=0.3, seconds=9.0, name="ratio"),
    Claim("flight", "in_flight", "recoveries", 0, 2),
)
deterministic = settings(derandomize=True, deadline=None, max_examples=30, stateful_step_count=40)


class Accounting(RuleBasedStateMachine):
    """Drives stores that share their accounts; subclasses say which."""

    clock = Clock()
    runs = itertools.count()
    stores: Sequence[Any] = ()

    def __init__(self) -> None:
        super().__init__()
        self.run = f"run{next(self.runs)}"
        self.literal = Literal()
        self.given: list[Reservation] = []
        self.over = False  # whether anything cost more than was reserved

    def claims(self, amounts: Sequence[int]) -> tuple[Claim, ...]:
        """What is asked of each account; of those that nothing is asked of, no claim."""
        named = (replace(x, account=f"{self.run} {x.account}") for x in ACCOUNTS)
        return tuple(replace(x, amount=n) for x, n in zip(named, amounts, strict=True) if n)

    def driven(self, store: int, how: bool) -> Driven:
        self.literal.expire(self.clock.now)
        return Driven(self.stores[store % len(self.stores)], "async" if how else "sync")

    @rule(
        store=st.integers(0, 1),
        how=st.booleans(),
        name=st.integers(0, 7),
        amounts=st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(0, 3), st.integers(0, 1)),
        seconds=st.sampled_from([0.5, 3.0, 30.0]),
    )
    def reserve(self, store: int, how: bool, name: int, amounts: tuple[int, ...], seconds: float) -> None:
        s, claims, now, literal = self.driven(store, how), self.claims(amounts), self.clock.now, self.literal
        id = f"{self.run}/{name}"  # noqa: A001
        grant = s.reserve(id, *claims, seconds=seconds)
        before = literal.reservations.get(id)
        if before is not None and before.record is not None:
            assert grant == Replayed(before.record)
            return
        literal.take_over(id, now)
        if isinstance(grant, Reservation):
            assert (grant.id, grant.claims) == (id, claims)
            for claim in claims:
                assert claim.amount <= literal.room(claim, now), f"granted beyond {claim}"
            literal.grant(grant, now, seconds)
            literal.mark(claims, now)
            self.given.append(grant)
            return
        assert isinstance(grant, Refused)
        assert grant.accounts
        for claim in claims:
            if claim.account in grant.accounts:
                bucket = claim.seconds / 60 + 1e-5
                assert claim.amount > literal.room(claim, now, bucket), f"refused without need: {claim}"
                literal.refused[claim.account] = literal.refused.get(claim.account, 0) + 1
            else:
                assert claim.amount <= literal.room(claim, now), f"not named: {claim}"

    @precondition(lambda self: self.given)
    @rule(
        store=st.integers(0, 1),
        how=st.booleans(),
        which=st.integers(0, 99),
        share=st.sampled_from([0, 0, 1, 2, 4, 4, 4, 6]),
        record=st.booleans(),
    )
    def settle(self, store: int, how: bool, which: int, share: int, record: bool) -> None:
        s, hold = self.driven(store, how), self.given[which % len(self.given)]
        mine = self.literal.reservations[hold.id]
        reserved = min((x.amount for x in hold.claims if x.unit == "tokens"), default=0)
        actual = {"tokens": reserved * share // 4, "attempts": 3}
        live = mine.token == hold.token and mine.state != "settled"
        self.over |= live and (share > 4 or (mine.state == "released" and share > 0))
        text = f"{hold.token} {share}" if record else None
        s.settle(hold, actual, text)
        self.literal.settle(hold, actual, text, self.clock.now)
        self.literal.mark(hold.claims, self.clock.now)

    @precondition(lambda self: self.given)
    @rule(store=st.integers(0, 1), how=st.booleans(), which=st.integers(0, 99))
    def release(self, store: int, how: bool, which: int) -> None:
        s, hold = self.driven(store, how), self.given[which % len(self.given)]
        s.release(hold)
        self.literal.release(hold)

    @rule(store=st.integers(0, 1), how=st.booleans(), name=st.integers(6, 9), record=st.sampled_from(["a", "b"]))
    def keep(self, store: int, how: bool, name: int, record: str) -> None:
        s, id = self.driven(store, how), f"{self.run}/{name}"  # noqa: A001
        mine = self.literal.reservations.get(id)
        first = record if mine is None or mine.record is None else mine.record
        assert s.keep(id, record) == first
        if mine is None:
            self.literal.reservations[id] = LiteralReservation("", (), 0, "settled", record=record)
        else:
            mine.record = first

    @rule(store=st.integers(0, 1), amount=st.integers(1, 20))
    def deposit(self, store: int, amount: int) -> None:
        claims = self.claims((0, 0, amount, 0))
        s = self.driven(store, False)
        s.store.deposit(claims)
        s.keep(f"{self.run}/flush", "")  # a store may write a deposit with what it is asked next
        self.literal.credits.append((claims[0].account, self.clock.now, amount))

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.0, 3.0, 7.0, 60.0]))
    def pass_time(self, seconds: float) -> None:
        self.clock.now = round(self.clock.now + seconds, 3)

    @invariant()
    def never_beyond_a_limit(self) -> None:
        literal, now = self.literal, self.clock.now
        literal.expire(now)
        for claim in self.claims((1, 1, 0, 1)):
            if claim.kind == "in_flight" or not self.over:
                assert literal.room(claim, now) >= 0

    def teardown(self) -> None:
        for hold in self.given[::2]:
            self.driven(0, False).release(hold)
            self.literal.release(hold)
        self.clock.now = round(self.clock.now + 31, 3)  # the other half expires
        self.literal.expire(self.clock.now)
        seen = {x.name: x for store in self.stores for x in store.accounts(f"{self.run} ")}
        for claim in self.claims((1, 1, 1, 1)):
            if (account := seen.get(claim.account)) is None:
                assert claim.account not in {**self.literal.granted, **self.literal.refused}
                continue
            name, literal = claim.account, self.literal
            assert account.reserved == 0
            assert (account.granted, account.refused) == (literal.granted.get(name, 0), literal.refused.get(name, 0))
            assert (account.spent, account.lost) == (literal.spent(name), literal.lost(name))
            assert account.peak >= literal.peak.get(name, 0)
            if claim.kind == "window" and not self.over:
                assert account.peak <= claim.most


def drive(stores: Sequence[Any], clock: Clock) -> None:
    machine = type("Machine", (Accounting,), {"clock": clock, "stores": stores, "runs": itertools.count()})
    run_state_machine_as_test(machine, settings=deterministic)


class TestAccounting:
    def test_in_memory(self) -> None:
        clock = Clock()
        drive([MemoryStore(clock=clock)], clock)

    def test_in_a_file_of_two_processes(self, tmp_path: Path) -> None:
        clock, url = Clock(), f"sqlite:///{tmp_path}/budgets.db"
        with SQLStore(url, clock=clock) as one, SQLStore(url, clock=clock) as other:
            drive([one, other], clock)

    @pytest.mark.parametrize("kind", ["postgres", "redis"])
    def test_in_a_database_of_two_machines(self, kind: str, request: pytest.FixtureRequest) -> None:
        clock, url = Clock(), str(request.getfixturevalue(f"{kind}_url"))
        with store_at(url, clock=clock) as one, store_at(url, clock=clock) as other:
            drive([one, other], clock)


# --- several processes ---


def hammer(url: str, number: int, pipe: Any) -> None:
    """A worker: reserves what it can, settles three of four, and says what it was granted, spent and kept."""
    granted, spent, kept = 0, 0, {}
    with store_at(url) as store:
        pipe.recv()
        for i in range(40):
            grant = store.reserve(f"{number}/{i}", (window(2, 60, seconds=3600), flight(3)), seconds=600)
            kept[i] = store.keep(f"once/{i}", f"{number}")
            if isinstance(grant, Reservation):
                granted += 2
                if i % 4:
                    store.settle(grant, {"tokens": 1}, f"{number}")
                    spent += 1
                else:
                    store.release(grant)
    pipe.send((granted, spent, kept))


def together(target: Callable[..., None], url: str, processes: int) -> list[Any]:
    """What each of several processes says that begin at once."""
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe() for _ in range(processes)]
    workers = [context.Process(target=target, args=(url, i, theirs)) for i, (_, theirs) in enumerate(pipes)]
    for worker in workers:
        worker.start()
    for mine, _ in pipes:
        mine.send("go")
    said = [mine.recv() for mine, _ in pipes]
    for worker in workers:
        worker.join()
    return said


def place(request: pytest.FixtureRequest) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{request.getfixturevalue('tmp_path')}/budgets.db"
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture(params=["sqlite", "postgres", "redis"])
def url(request: pytest.FixtureRequest) -> str:
    """Of a place where nothing is yet."""
    return place(request)


@pytest.fixture(params=["sqlite", "postgres"])
def sql_url(request: pytest.FixtureRequest) -> str:
    """Of a place where no table is yet."""
    return place(request)


def test_processes_share_one_limit_to_the_last_token(url: str) -> None:
    said = together(hammer, url, 4)
    with store_at(url) as store:
        (flights, tokens) = store.accounts()
    assert (tokens.granted, tokens.spent) == (sum(x[0] for x in said), sum(x[1] for x in said))
    assert (tokens.reserved, flights.reserved) == (0, 0)
    assert 55 <= tokens.peak <= 60  # the limit was reached, and never crossed
    assert flights.peak <= 3
    assert tokens.refused > 0
    kept = [x[2] for x in said]
    assert kept == [kept[0]] * 4  # of each record the first stands, for everybody


def test_a_store_goes_on_in_a_forked_child(url: str) -> None:
    with store_at(url) as store:
        store.settle(store.reserve("parent", (), seconds=60), {}, "of the parent")  # type: ignore[arg-type]
        asyncio.run(store.areserve("thread", (), seconds=60))  # the parent has a thread that the child has not

        def child(_: str, number: int, pipe: Any) -> None:
            pipe.recv()
            found = store.reserve("parent", (), seconds=60)
            store.settle(store.reserve(f"child{number}", (), seconds=60), {}, "of the child")  # type: ignore[arg-type]
            pipe.send((found, asyncio.run(store.akeep("kept", "x"))))

        assert together(child, url, 2) == [(Replayed("of the parent"), "x")] * 2
        assert store.reserve("child0", (), seconds=60) == Replayed("of the child")


def test_a_fork_in_the_middle_of_traffic_leaves_the_child_free(url: str) -> None:
    """A child that inherits an SQLite connection in mid-transaction thinks for ever that it holds the lock."""
    ended = threading.Event()

    def traffic() -> None:
        for i in itertools.count():
            store.keep(f"{i}", "x" * 10_000)
            if ended.is_set():
                return

    def child(_: str, number: int, pipe: Any) -> None:
        pipe.recv()
        pipe.send(store.keep(f"child {number}", "y"))

    with store_at(url, timeout=10.0) as store:
        busy = threading.Thread(target=traffic)
        busy.start()
        try:
            for _ in range(5):
                time.sleep(0.01)
                assert together(child, url, 2) == ["y", "y"]
        finally:
            ended.set()
            busy.join()


def endless(url: str, number: int, pipe: Any) -> None:
    """A worker that is killed: says what it has settled, when it is settled."""
    store = store_at(url)
    pipe.recv()
    for i in itertools.count():
        hold = store.reserve(f"{number}/{i}", (window(1, 10**6, seconds=3600), flight(1000)), seconds=0.2)
        assert isinstance(hold, Reservation)
        store.settle(hold, {"tokens": 1}, f"{i}")
        pipe.send(i)


def test_killed_at_any_moment_nothing_settled_is_lost_and_nothing_stays_reserved(url: str) -> None:
    context = multiprocessing.get_context("fork")
    settled: list[set[str]] = []
    for number in range(6):
        mine, theirs = context.Pipe()
        worker = context.Process(target=endless, args=(url, number, theirs))
        worker.start()
        mine.send("go")
        said = {f"{number}/{mine.recv()}" for _ in range(3 + 7 * number)}
        os.kill(worker.pid or 0, signal.SIGKILL)
        worker.join()
        while mine.poll():
            said.add(f"{number}/{mine.recv()}")
        settled.append(said)
    with store_at(url) as store:
        for id in set().union(*settled):  # noqa: A001
            assert store.reserve(id, (window(1),), seconds=60) == Replayed(id.partition("/")[2])
        time.sleep(0.25)  # the reservations of the dead have expired then
        (flights, tokens) = store.accounts()
    told = sum(len(x) for x in settled)
    assert (flights.reserved, tokens.reserved) == (0, 0)
    # Each of the dead may have settled one more than it could say, or have left one that expired.
    assert told <= tokens.spent <= told + 6
    assert tokens.granted == tokens.spent


# --- faults ---


def test_connections_that_break_between_two_calls_are_made_again(postgres: Any, postgres_url: str) -> None:
    with SQLStore(postgres_url) as store:
        survives_broken_connections(store, postgres.kill_connections)


def test_a_database_that_stops_is_an_error_and_goes_on_when_it_is_back(postgres: Any, postgres_url: str) -> None:
    with SQLStore(postgres_url) as store:
        hold = store.reserve("a", (window(3),), seconds=60)
        assert isinstance(hold, Reservation)
        postgres.stop()
        try:
            with pytest.raises(StoreError, match="postgresql://postgres@") as caught:
                store.settle(hold, {"tokens": 2}, "done")
            with pytest.raises(StoreError):
                asyncio.run(store.areserve("b", (window(3),), seconds=60))
            with pytest.raises(StoreError):
                store.accounts()
        finally:
            postgres.start()
        assert caught.value.__cause__ is not None
        store.settle(hold, {"tokens": 2}, "done")
        (seen,) = store.accounts()
        assert (seen.spent, seen.reserved, seen.granted) == (2, 0, 3)


class Broken(sqlite3.OperationalError):
    """What a driver raises when its connection breaks; it has no code and no SQL state."""


def breaks_at_commit(connection: sa.Connection, *, done: bool) -> None:
    """Make the next commit of ``connection`` break, after it was ``done`` or before."""
    real = connection.commit

    def commit() -> None:
        if done:
            real()
        connection.invalidate()
        raise sa.exc.OperationalError("COMMIT", {}, Broken("the connection is lost"))

    connection.commit = commit  # type: ignore[method-assign]


@pytest.mark.parametrize("done", [True, False], ids=["committed", "not committed"])
def test_a_commit_of_which_nobody_knows_is_not_done_twice(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, done: bool
) -> None:
    real, calls = Database._attempt, itertools.count()

    def attempt(self: Database, connection: Any, *args: Any) -> Any:
        if next(calls) % 2 == 0:
            breaks_at_commit(connection, done=done)
        return real(self, connection, *args)

    with SQLStore(postgres_url, clock=Clock()) as store:
        s = Driven(store)
        for name in ("w", "f", "r"):  # their accounts are there
            s.release(s.hold(name, window(1), flight(), ratio(0)))
        monkeypatch.setattr(Database, "_attempt", attempt)
        hold = s.hold("a", window(3), flight())
        s.settle(hold, {"tokens": 2}, "first")
        s.release(s.hold("b", window(3), flight()))
        assert s.keep("k", "one") == "one"
        assert s.reserve("a", window(3)) == Replayed("first")
        store.deposit([ratio(10, 0)])
        assert isinstance(s.reserve("r", ratio(6, 0)), Refused)  # credit is never counted twice: 10 are worth 5
        monkeypatch.undo()
        seen = s.account("w")
        assert (seen.granted, seen.spent, seen.reserved, seen.lost) == (9, 2, 0, 0)
        assert (s.account("f").granted, s.account("f").reserved) == (5, 0)
        assert s.account("r").refused <= 1
    assert next(calls) > 10


def test_a_reservation_that_may_stand_with_nobody_to_settle_it_is_given_back(
    sql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Database._attempt
    with SQLStore(sql_url) as store:
        store.settle(store.reserve("a", (window(1),), seconds=60), {"tokens": 1})  # type: ignore[arg-type]

        def attempt(self: Database, connection: Any, *args: Any) -> Any:
            breaks_at_commit(connection, done=True)
            return real(self, connection, *args)

        monkeypatch.setattr(Database, "_attempt", attempt)
        with pytest.raises(StoreError, match="it may have been done"):
            store.reserve("b", (window(3),), seconds=60)
        monkeypatch.undo()
        assert isinstance(store.reserve("c", (window(9),), seconds=60), Reservation)  # no room for both
        seen = store.accounts()[0]
        assert (seen.reserved, seen.lost) == (9, 0)


def test_a_full_disk_is_an_error_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    with SQLStore(f"sqlite:///{tmp_path}/budgets.db") as store:
        hold = store.reserve("a", (window(3),), seconds=600)
        assert isinstance(hold, Reservation)

        def full(raw: Any, *_: object) -> None:
            (pages,) = raw.execute("PRAGMA page_count").fetchone()
            raw.execute(f"PRAGMA max_page_count = {pages}")

        engine = store._database._engine
        sa.event.listen(engine, "checkout", full)
        with pytest.raises(StoreError, match="full; free space on its disk"):
            store.settle(hold, {"tokens": 2}, "x" * 100_000)
        sa.event.remove(engine, "checkout", full)
        seen = store.accounts()[0]
        assert (seen.spent, seen.reserved) == (0, 3)
        store.settle(hold, {"tokens": 2}, "x" * 100_000)  # on a new connection, which knows no such limit
        assert store.accounts()[0].spent == 2


def test_a_file_that_cannot_be_written_or_read_is_an_error(tmp_path: Path) -> None:
    with SQLStore(f"sqlite:///{tmp_path}/budgets.db") as store:
        store.keep("a", "x")
    with (
        SQLStore(f"sqlite:///file:{tmp_path}/budgets.db?mode=ro&uri=true") as store,
        pytest.raises(StoreError, match="readonly database; make the file and its folder writable"),
    ):
        store.keep("b", "x")
    with (
        SQLStore(f"sqlite:///{tmp_path}/no/folder/budgets.db") as store,
        pytest.raises(StoreError, match="unable to open database file; make the folder"),
    ):
        store.keep("b", "x")
    (tmp_path / "text.db").write_text("this is no database, whatever its name says " * 100)
    with (
        SQLStore(f"sqlite:///{tmp_path}/text.db") as store,
        pytest.raises(StoreError, match="not a database; give another path"),
    ):
        store.keep("b", "x")


def test_tables_of_a_later_schema_are_left_alone(sql_url: str) -> None:
    with SQLStore(sql_url) as store:
        store.keep("a", "x")
        SQLPolicyStore(sql_url).add(Belief())
        with store._database._engine.begin() as connection:
            connection.exec_driver_sql("UPDATE rfx_schema SET version = 2")
    said = r"the tables of {} have schema 2, .* knows schema 1; use the version that wrote them, or give another"
    with SQLStore(sql_url) as store:
        for call in (lambda: store.keep("a", "x"), store.accounts):
            with pytest.raises(StoreError, match=said.format("budgets")):
                call()
    with pytest.raises(StoreError, match=said.format("beliefs")):
        SQLPolicyStore(sql_url).load()


def test_tables_without_a_number_are_given_one(sql_url: str) -> None:
    with SQLStore(sql_url) as store:
        store.settle(store.reserve("a", (window(3),), seconds=60), {"tokens": 2}, "x")  # type: ignore[arg-type]
        with store._database._engine.begin() as connection:
            connection.exec_driver_sql("DROP TABLE rfx_schema")
    with SQLStore(sql_url) as store:
        assert store.reserve("a", (window(3),), seconds=60) == Replayed("x")
        assert store.accounts()[0].spent == 2
        with store._database._engine.connect() as connection:
            found = connection.exec_driver_sql("SELECT name, version FROM rfx_schema ORDER BY name").all()
    assert found[0] == ("budgets", 1)
    assert [(name.split(" ")[0], version) for name, version in found[1:]] == [("mark", 1)]


def test_a_database_of_version_0_1_is_read_and_goes_on(tmp_path: Path) -> None:
    path, clock = states.unpacked("budget.sqlite.gz", tmp_path), Clock(states.manifest()["clock"] + 60)
    with contextlib.closing(sqlite3.connect(path)) as raw:
        kept = raw.execute("SELECT id, record FROM rfx_holds WHERE record IS NOT NULL").fetchall()
        ((name, token, claims),) = raw.execute(
            "SELECT id, token, claims FROM rfx_holds WHERE state = 3 AND claims != '[]'"
        ).fetchall()
        (other,) = raw.execute("SELECT id FROM rfx_holds WHERE state = 0 AND claims LIKE '%tokens%'").fetchone()
    assert len(kept) > 50
    with SQLStore(f"sqlite:///{path}", clock=clock) as store:
        before = {x.name: x for x in store.accounts()}
        for each, record in kept:
            assert store.reserve(each, (), seconds=60) == Replayed(record.decode())
        assert {x.name: x for x in store.accounts()} == before  # what was paid for costs nothing again
        # One has expired: its owner comes back late, and the cost is corrected.
        asked = tuple(Claim(x, "window", unit, n, 10**12, 3600.0) for x, unit, n in json.loads(claims))
        store.settle(Reservation(name, token, asked), {"tokens": 300, "usd": 200_000}, "late")
        # One is open: it is asked for again, so its owner has died.
        tokens = before["global tokens/3600s"]
        again = store.reserve(other, (Claim(tokens.name, "window", "tokens", 42, tokens.most, 3600.0),), seconds=60)
        assert isinstance(again, Reservation)
        after = {x.name: x for x in store.accounts()}
        assert after[tokens.name].spent == tokens.spent - 342 + 300 + 342
        assert (after[tokens.name].lost, after[tokens.name].reserved) == (342, 42)
    with SQLStore(f"sqlite:///{path}", clock=clock) as store:
        assert store.reserve(name, (), seconds=60) == Replayed("late")
    assert SQLPolicyStore(f"sqlite:///{path}", name="kiosk").load().attempts() == {"retry": 1, "tool": 1}
    with contextlib.closing(sqlite3.connect(path)) as raw:
        rows = raw.execute("SELECT name, version FROM rfx_schema WHERE name NOT LIKE 'mark %'").fetchall()
        assert rows == [("budgets", 1), ("beliefs", 1)]


@pytest.mark.parametrize("then", ["dropped", "made again", "emptied"])
def test_tables_that_vanish_are_noticed_once(then: str, sql_url: str) -> None:
    with SQLStore(sql_url) as store, SQLStore(sql_url) as idle:
        hold = store.reserve("a", (window(3),), seconds=60)
        assert isinstance(hold, Reservation)
        idle.keep("b", "x")
        tables = [f"rfx_{x}" for x in ("accounts", "beliefs", "holds", "schema")]
        with store._database._engine.begin() as connection:
            for table in tables:
                connection.exec_driver_sql(f"{'DELETE FROM' if then == 'emptied' else 'DROP TABLE'} {table}")
        if then == "made again":
            with SQLStore(sql_url) as other:
                other.keep("c", "y")
        with pytest.raises(StoreError, match="tables were deleted or replaced while in use"):
            store.settle(hold, {"tokens": 2}, "x")
        with pytest.raises(StoreError, match="tables were deleted or replaced"):
            idle.reserve("b", (window(3),), seconds=60)
        store.settle(hold, {"tokens": 2}, "x")  # of a reservation that is not there
        assert store.accounts() == []


@pytest.mark.parametrize("table", ["accounts", "holds", "schema"])
def test_one_table_that_vanishes_is_noticed_once_and_made_anew(table: str, sql_url: str) -> None:
    with SQLStore(sql_url) as store, SQLStore(sql_url) as idle:
        for each, name in ((store, "a"), (idle, "b")):
            assert isinstance(each.reserve(name, (window(1),), seconds=60), Reservation)
        with store._database._engine.begin() as connection:
            connection.exec_driver_sql(f"DROP TABLE rfx_{table}")
        for each, name in ((store, "d"), (idle, "e")):
            with pytest.raises(StoreError, match="tables were deleted or replaced while in use"):
                each.reserve(name, (window(1),), seconds=60)
            assert isinstance(each.reserve(name, (window(1),), seconds=60), Reservation)
        with SQLStore(sql_url) as later:
            assert isinstance(later.reserve("f", (window(1),), seconds=60), Reservation)


def test_a_table_that_vanished_while_nobody_used_it_is_made_anew(sql_url: str) -> None:
    with SQLStore(sql_url) as store:
        store.keep("a", "x")
    beliefs = SQLPolicyStore(sql_url)
    beliefs.load()
    for table in ("holds", "beliefs"):
        with contextlib.closing(SQLStore(sql_url)) as store:
            with store._database._engine.begin() as connection:
                connection.exec_driver_sql(f"DROP TABLE rfx_{table}")
            store.keep("a", "x")
    with beliefs._engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE rfx_beliefs")
    with pytest.raises(StoreError, match=r"rfx_beliefs.*; somebody deleted it, and what it had is gone"):
        beliefs.load()
    assert beliefs.load() == Belief()


@pytest.mark.parametrize(
    ("table", "spent"), [("accounts", True), ("accounts", False), ("holds", False)], ids=["spent", "reserved", "holds"]
)
@pytest.mark.parametrize("how", ["deleted", "made again"])
def test_rows_that_vanish_are_noticed_once(table: str, spent: bool, how: str, sql_url: str) -> None:
    with SQLStore(sql_url) as store:
        hold = store.reserve("a", (window(3),), seconds=60)
        assert isinstance(hold, Reservation)
        if spent:
            store.settle(hold, {"tokens": 3}, "x")
        with store._database._engine.begin() as connection:
            if how == "deleted":
                connection.execute(sa.delete(METADATA.tables[f"rfx_{table}"]))
            else:
                made = METADATA.tables[f"rfx_{table}"]
                made.drop(connection)
                made.create(connection)

        def call() -> Any:
            return store.reserve("b", (window(9),), seconds=60) if spent else store.settle(hold, {"tokens": 2}, "x")

        with pytest.raises(StoreError, match="rows of the tables were deleted or replaced while in use"):
            call()
        call()


def test_rows_that_the_store_itself_deletes_are_no_loss(sql_url: str) -> None:
    clock = Clock()
    with SQLStore(sql_url, clock=clock) as store:
        for name in ("a", "b", "c"):
            hold = store.reserve(name, (window(3), flight(1)), seconds=60)
            assert isinstance(hold, Reservation)
            if name == "b":
                clock.now += 61  # it expires
            store.settle(hold, {"tokens": 0 if name == "c" else 2}, "x")
            clock.now += 0 if name == "c" else 7200
            assert store.prune(0).accounts == 2
        assert isinstance(store.reserve("c", (window(3), flight(1)), seconds=60), Reservation)


@pytest.mark.parametrize("end", ["-wal", "-shm"])
def test_a_file_beside_an_sqlite_file_that_vanishes_is_noticed_once(end: str, tmp_path: Path) -> None:
    with SQLStore(f"sqlite:///{tmp_path}/budgets.db") as store:
        store.keep("a", "x")
        Path(f"{tmp_path}/budgets.db{end}").unlink()
        with pytest.raises(StoreError, match="file, its -wal or its -shm was deleted or replaced while in use"):
            store.keep("b", "x")
        assert store.keep("b", "x") == "x"


def test_looking_makes_no_tables(sql_url: str, tmp_path: Path) -> None:
    with SQLStore(sql_url) as store:
        assert store.accounts() == []
        assert list(tmp_path.iterdir()) == []
        with store._database._engine.connect() as connection:
            assert sa.inspect(connection).get_table_names() == []


def test_a_password_is_in_no_message() -> None:
    url = "postgresql://agent:hun%40ter2@127.0.0.1:1/budgets?sslpassword=s3cret"
    store = SQLStore(url, timeout=1.0)
    said = [repr(store), repr(store._place)]
    for call in (lambda: store.keep("a", "x"), store.accounts):
        with pytest.raises(StoreError, match=r"postgresql://agent@127\.0\.0\.1:1/budgets") as caught:
            call()
        error: BaseException | None = caught.value
        while error is not None:
            said += [str(error), repr(error)]
            error = error.__cause__ or error.__context__
    store.close()
    for wrong in (
        "postgresql://agent:hun@ter2:port/x",
        "agent:hunter2@host/budgets",
        "postgresql+asyncpg://a:hunter2@h/x",
        "postgresql://u:p@ss@hunter2@127.0.0.1:1/db",
        "postgresql://u:12/hunter2@h/db",
        "postgresql://u:12?hunter2=x@h/db",
        "postgresql://u:12#hunter2@h/db",
        "postgresql://u:p/hunter2@h/db",
        "postgres://h/db?password=a@hunter2",
    ):
        with pytest.raises(ConfigError) as refused:
            SQLStore(wrong)
        said += traceback.format_exception(refused.value)
    shown = "\n".join(said)
    assert "hun@ter2" not in shown
    assert "hun%40ter2" not in shown
    assert "hunter2" not in shown
    assert "s3cret" not in shown


@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        ("budgets.db", "url is a text without '://', and not a URL; give sqlite:///relative.db"),
        ("sqlite://", "in memory is shared with nobody; give a file, or MemoryStore"),
        ("sqlite:///:memory:", "in memory is shared with nobody"),
        ("sqlite://var/budgets.db", "a file takes three slashes"),
        ("mysql://host/x", "the URL is for 'mysql'; give sqlite:///"),
        ("postgresql+psycopg2://host/x", r"is for 'postgresql\+psycopg2'; give"),
        ("postgresql://host:port/x", "the postgresql URL cannot be read; give"),
        (None, "url is of type NoneType; it is a text"),
    ],
)
def test_a_url_that_is_none_is_refused_at_once(url: Any, remedy: str) -> None:
    with pytest.raises(ConfigError, match=remedy):
        SQLStore(url)


@pytest.mark.parametrize("url", ["postgres://u:p@h/x", "postgresql://u:p@h/x", "postgresql+psycopg://u:p@h/x"])
def test_every_way_to_write_postgresql_is_psycopg(url: str) -> None:
    assert repr(SQLStore(url)) == "SQLStore('postgresql://u@h/x')"
    assert SQLStore(url)._place.url.drivername == "postgresql+psycopg"


@pytest.mark.parametrize(
    ("store", "options", "message"),
    [
        (MemoryStore, {"clock": 3}, "clock is 3; give a function"),
        (MemoryStore, {"keep": 0}, "keep is 0; give seconds above 0"),
        (MemoryStore, {"most": 0}, "most is 0; give a whole number"),
        (SQLStore, {"clock": 3}, "clock is 3; give a function"),
        (SQLStore, {"keep": float("inf")}, "keep is inf; give seconds above 0"),
        (SQLStore, {"timeout": True}, "timeout is True; give seconds above 0"),
    ],
)
def test_a_parameter_that_cannot_work(store: Any, options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        store(*(("sqlite:///x.db",) if store is SQLStore else ()), **options)


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = SQLStore(f"sqlite:///{tmp_path}/budgets.db")
    store.keep("a", "x")
    store.close()
    store.close()
    for call in (
        lambda: store.reserve("a", (), seconds=1),
        lambda: asyncio.run(store.areserve("a", (), seconds=1)),
        lambda: store.deposit([ratio(1)]),
        store.accounts,
    ):
        with pytest.raises(StoreError, match="this store is closed; make another"):
            call()


def test_closing_writes_what_waits(url: str) -> None:
    async def deposit() -> None:
        async with store_at(url) as store:
            store.deposit([ratio(20, 0)])

    asyncio.run(deposit())
    with store_at(url) as store:
        assert isinstance(store.reserve("a", (ratio(10, 0),), seconds=60), Reservation)


def test_deposits_are_written_by_themselves(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/budgets.db"
    with SQLStore(url) as one, SQLStore(url) as other:
        one.deposit([ratio(5, 0), ratio(10, 0)])
        one.deposit([ratio(5, 0)])
        for i in range(500):
            if isinstance(other.reserve(f"{i}", (ratio(10, 0),), seconds=60), Reservation):
                break
            time.sleep(0.02)
        else:
            pytest.fail("no credit came")


def test_a_store_that_nobody_has_any_more_lets_go(tmp_path: Path) -> None:
    store = SQLStore(f"sqlite:///{tmp_path}/budgets.db")
    asyncio.run(store.akeep("a", "x"))
    thread = store._writer._thread
    assert thread is not None
    del store
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


# --- callers that go away, and company in a batch ---


class Locked:
    """The file of a store, locked as by another process in mid-transaction."""

    def __init__(self, path: Path) -> None:
        self._raw = sqlite3.connect(path, isolation_level=None)

    def __enter__(self) -> None:
        self._raw.execute("BEGIN IMMEDIATE")

    def __exit__(self, *_: object) -> None:
        self._raw.execute("ROLLBACK")


def test_a_locked_file_does_not_block_the_event_loop(tmp_path: Path) -> None:
    path = tmp_path / "budgets.db"

    async def main(store: SQLStore) -> None:
        await store.akeep("there", "x")
        with Locked(path):
            going = asyncio.create_task(store.areserve("a", (window(1),), seconds=60))
            started = time.monotonic()
            for _ in range(20):
                await asyncio.sleep(0.01)
            assert time.monotonic() - started < 5
            assert not going.done()
        assert isinstance(await going, Reservation)

    with SQLStore(f"sqlite:///{path}") as store:
        asyncio.run(main(store))


def test_a_cancelled_caller_gives_back_what_it_is_granted_and_settles_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "budgets.db"
    store = SQLStore(f"sqlite:///{path}")

    async def cancelled() -> None:
        hold = await store.areserve("settled", (window(3),), seconds=60)
        assert isinstance(hold, Reservation)
        with Locked(path):
            going = [
                asyncio.create_task(store.areserve("a", (window(1),), seconds=60)),
                asyncio.create_task(store.asettle(hold, {"tokens": 2}, "done")),
                asyncio.create_task(store.areserve("b", (window(1),), seconds=60)),
            ]
            await asyncio.sleep(0.01)
            for task in going:
                task.cancel()
            assert [type(x) for x in await asyncio.gather(*going, return_exceptions=True)] == [
                asyncio.CancelledError
            ] * 3

    asyncio.run(cancelled())
    store.keep("after", "x")
    store.close()  # writes what waits
    with SQLStore(f"sqlite:///{path}") as store:
        (seen,) = store.accounts()
        assert (seen.spent, seen.reserved, seen.lost) == (2, 0, 0)
        assert store.reserve("settled", (), seconds=60) == Replayed("done")


def test_a_caller_that_is_interrupted_leaves_nothing_behind(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Future.result

    def interrupted(future: Any, timeout: float | None = None) -> None:
        monkeypatch.undo()
        real(future, timeout)
        raise KeyboardInterrupt

    with store_at(url) as store:
        hold = store.reserve("settled", (window(3),), seconds=60)
        assert isinstance(hold, Reservation)
        for call in (
            lambda: store.settle(hold, {"tokens": 2}, "done"),
            lambda: store.reserve("a", (window(5),), seconds=60),
        ):
            monkeypatch.setattr(Future, "result", interrupted)
            with pytest.raises(KeyboardInterrupt):
                call()
        assert store.reserve("settled", (), seconds=60) == Replayed("done")
    with store_at(url) as store:
        (seen,) = store.accounts()
        assert (seen.granted, seen.spent, seen.reserved, seen.lost) == (8, 2, 0, 0)


def test_one_bad_request_does_not_take_others_with_it(url: str) -> None:
    with store_at(url) as store:

        async def mixed() -> list[Any]:
            holds = [await store.areserve(f"{i}", (), seconds=60) for i in range(3)]
            records: list[Any] = ["fine", object(), "fine too"]  # no text: it cannot be written
            going = (store.asettle(x, {}, y) for x, y in zip(holds, records, strict=True))
            return await asyncio.gather(*going, return_exceptions=True)

        first, second, third = asyncio.run(mixed())
        assert (first, third) == (None, None)
        assert isinstance(second, StoreError)
        assert store.reserve("2", (), seconds=60) == Replayed("fine too")


def test_a_process_that_stopped_in_a_transaction_is_waited_for_and_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "budgets.db"
    with SQLStore(f"sqlite:///{path}") as store:
        assert store.keep("there", "x") == "x"
        with Locked(path):
            monkeypatch.setattr(Writer, "longest", 0.05)
            for call in (
                lambda: store.reserve("a", (window(1),), seconds=60),
                lambda: asyncio.run(store.areserve("b", (window(1),), seconds=60)),
            ):
                with pytest.raises(StoreError, match=r"no answer within 0\.05 s; look for a process that stopped"):
                    call()
        monkeypatch.setattr(Writer, "longest", 30.0)
        assert store.keep("c", "x") == "x"
    with SQLStore(f"sqlite:///{path}", timeout=0.1) as store:
        assert all(x.reserved == 0 for x in store.accounts())
        with Locked(path), pytest.raises(StoreError, match="database is locked; another process holds the file"):
            store.keep("d", "x")


def test_what_has_ended_is_deleted_in_the_end(sql_url: str) -> None:
    clock = Clock()
    with SQLStore(sql_url, clock=clock, keep=10.0) as store:
        store.keep("a", "x")
        store.settle(store.reserve("b", (window(1),), seconds=60), {}, "x")  # type: ignore[arg-type]
        store.reserve("open", (window(1),), seconds=600)
        clock.now += 60
        store._database._forgot = float("-inf")  # a minute has passed
        store.keep("c", "x")
        store.keep("c", "x")  # forgetting comes after an answer, and before the next one
        with store._database._engine.connect() as connection:
            ids = connection.exec_driver_sql("SELECT id FROM rfx_holds ORDER BY id").scalars().all()
        assert ids == ["c", "open"]


def test_memory_stays_bounded() -> None:
    clock = Clock()
    store = MemoryStore(clock=clock, most=50)
    for i in range(1000):
        hold = store.reserve(f"{i}", (flight(1),), seconds=600)
        assert isinstance(hold, Reservation)
        store.settle(hold, {}, "x")
    assert len(store._book.reservations) == len(store._ended) == 50
    assert len(store._open) < 100
    assert store.reserve("999", (), seconds=1) == Replayed("x")
    clock.now += 8 * 86_400
    store.keep("new", "x")
    assert list(store._book.reservations) == ["new"]


# --- beliefs ---


def learn(url: str, number: int, pipe: Any) -> None:
    store = SQLPolicyStore(url, name="ours")
    pipe.recv()
    for i in range(10):
        store.add(Belief().seen({"retry": i % 3}, "tool"))
    pipe.send("done")


def test_what_workers_have_seen_adds_up(sql_url: str) -> None:
    assert together(learn, sql_url, 3) == ["done"] * 3
    store = SQLPolicyStore(sql_url, name="ours")
    assert isinstance(store, PolicyStore)
    assert store.load().attempts() == {"retry": 27, "tool": 30}
    assert store.add(Belief()) == store.load()
    assert SQLPolicyStore(sql_url).load() == Belief()
    with SQLStore(sql_url) as budgets:  # beside it
        assert budgets.keep("a", "x") == "x"


def test_a_belief_that_cannot_be_reached_or_read_is_an_error(sql_url: str) -> None:
    store = SQLPolicyStore(sql_url)
    store.add(Belief())
    with store._engine.begin() as connection:
        connection.exec_driver_sql("UPDATE rfx_beliefs SET belief = 'torn'")
    with pytest.raises(StoreError, match="not what to_json writes"):
        store.load()
    with pytest.raises(StoreError, match="unable to open database file; make the folder"):
        SQLPolicyStore("sqlite:////no/such/folder/x.db").add(Belief())
    for name, timeout in (("", 1), ("a", 0)):
        with pytest.raises(ConfigError, match="sql policy store"):
            SQLPolicyStore(sql_url, name=name, timeout=timeout)


def test_the_stores_load_no_database_library_before_one_is_opened() -> None:
    code = "import sys, rfx_agent.budgets.sql; print([x for x in ('sqlalchemy', 'psycopg') if x in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
