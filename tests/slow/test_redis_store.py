"""What only a Redis does: its script against the book of ``accounting.py``, its settings, its faults.

What it does as every store does is in ``test_stores.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from store_conformance import Clock, flight, ratio, survives_broken_connections, window

from rfx_agent import ConfigError
from rfx_agent.budgets.accounting import OPEN, AccountRow, Book, micros
from rfx_agent.budgets.at import store_at
from rfx_agent.budgets.backend import Credit
from rfx_agent.budgets.limits import Account, Claim, Refused, Replayed, Reservation
from rfx_agent.budgets.operations import Keep, Operation, Release, Reserve, Settle
from rfx_agent.errors import StoreError

if TYPE_CHECKING:
    from redis_server import RedisServer

pytest.importorskip("redis")

from rfx_agent.budgets.redis.calls import SCRIPT, account_of
from rfx_agent.budgets.redis.database import Database
from rfx_agent.budgets.redis.store import RedisStore
from rfx_agent.budgets.redis.url import place_of

pytest_plugins = ("redis_server",)

# --- the script against the book ---


class Books:
    """The same requests to the book and to the script."""

    def __init__(self, url: str, keep: float, rng: random.Random) -> None:
        self.clock, self.rng, self.keep = Clock(1_700_000_000.0 + rng.random()), rng, micros(keep)
        self.book = Book(keep_for=self.keep)
        self.database = Database(place_of(url), prefix="rfx:", clock=self.clock, keep=self.keep, timeout=10.0)
        self.given: list[Reservation] = []

    @property
    def now(self) -> int:
        return micros(self.clock())

    def due(self) -> None:
        """What happens by itself: due reservations expire, and old ones are forgotten."""
        book = self.book
        for row in sorted(book.reservations.values(), key=lambda x: x.due):
            book.expire(row.id, self.now)
        for row in list(book.reservations.values()):
            if row.state != OPEN and row.due <= self.now:
                del book.reservations[row.id]

    def both(self, operation: Operation) -> Any:
        self.due()
        expected = operation.on(self.book, self.now)
        (found,) = self.database.run([operation], [])
        assert found == expected, operation
        if isinstance(found, Reservation):
            self.given.append(found)
        return found

    def deposit(self, claim: Claim, age: float) -> None:
        self.due()
        self.book.deposit(claim, self.now - micros(age))
        self.database.run([], [Credit(claim, self.clock() - age)])

    def same(self) -> None:
        """Every figure of every account, the buckets too, and what is known of every reservation."""
        book = copy.deepcopy(self.book)
        for row in list(book.reservations.values()):
            book.expire(row.id, self.now)
        expected = [x.seen(self.now) for _, x in sorted(book.accounts.items())]
        assert self.database.seen("") == expected
        rows = {row.name: row for row in self.rows()}
        for name, mine in self.book.accounts.items():
            assert counting(rows[name], self.now) == counting(mine, self.now)

    def rows(self) -> list[AccountRow]:
        with self.database._reading() as ask:
            return [account_of(*x) for x in self.database._rows(ask, self.database._keys[1])]


def counting(row: AccountRow, now: int) -> tuple[dict[int, int], dict[int, int]]:
    """What counts of what was spent and deposited."""
    oldest = row._begin(now)
    buckets = {x: n for x, n in row.buckets.items() if n and row.span and x >= oldest}
    return buckets, {x: n for x, n in row.credits.items() if n and x > oldest}


def amounts(rng: random.Random, size: int) -> int:
    """Small ones, and those beside which a double is wrong."""
    if size == 0:
        return rng.choice([0, 1, 2, 3, 5, 8])
    return rng.choice(
        [0, 1, 10**9 - 1, 10**9, 2**53 - 1, 2**53, 2**53 + 1, 2**61 + 12345, 2**62 - 1, rng.getrandbits(62)]
    )


@pytest.mark.parametrize("size", [0, 1], ids=["small", "large"])
@pytest.mark.parametrize("seed", range(25))
def test_the_script_reckons_as_the_book(redis_url: str, seed: int, size: int) -> None:
    rng = random.Random(f"{seed} {size}")  # noqa: S311  # a trace
    big = 1 if size == 0 else 2**60
    share = rng.choice([0.1, 0.3, 0.5, 1.0, 1 / 3, 2.7, 1e-9])
    kinds = [
        Claim("short", "window", "tokens", 0, 12 * big, rng.choice([7.0, 1.0, 1e-6, 0.02, 61.7])),
        Claim("long", "window", "usd", 0, 30 * big, rng.choice([3600.0, 86_400.0, 100.0, 1 / 3, 4.5e9])),
        Claim("ratio", "ratio", "tokens", 0, 3 * big, rng.choice([9.0, 60.0, 0.5]), share),
        Claim("flight", "in_flight", "recoveries", 0, 2),
        Claim("free", "window", "attempts", 0, 10**23, 60.0),
    ]
    books = Books(redis_url, keep=rng.choice([20.0, 3600.0]), rng=rng)
    with contextlib.ExitStack() as ends:
        ends.callback(books.database.disconnect)
        for step in range(250):
            match rng.choice("rrrrrssskldttp" if step % 50 else "p"):
                case "r":
                    claims = []
                    for kind in rng.sample(kinds, rng.randint(0, 4)):
                        amount = rng.randint(0, 1) if kind.kind == "in_flight" else amounts(rng, size)
                        most = kind.most if rng.random() < 0.9 else kind.most + rng.choice([-1, 1, 7]) * big
                        claims.append(replace(kind, amount=amount, most=most))
                    if claims and rng.random() < 0.1:
                        claims.append(replace(claims[0], amount=amounts(rng, size), most=claims[0].most + 1))
                    token = rng.choice([f"{step}", *(x.token for x in books.given[-1:])])
                    wanted = Reservation(f"id{rng.randint(0, 9)}", token, tuple(claims))
                    books.both(Reserve(wanted, micros(rng.choice([1e-6, 0.5, 3.0, 30.0, 900.0]))))
                case "s" if books.given:
                    hold = rng.choice(books.given[-6:])
                    actual = {unit: amounts(rng, size) for unit in rng.sample(["tokens", "usd", "attempts"], 2)}
                    if rng.random() < 0.5:
                        actual = {x.unit: x.amount for x in hold.claims}
                    books.both(Settle(hold, actual, rng.choice([None, None, f"record {step}", ""])))
                case "l" if books.given:
                    books.both(Release(rng.choice(books.given[-6:])))
                case "k":
                    books.both(Keep(f"id{rng.randint(7, 12)}", f"kept {step}"))
                case "d":
                    books.deposit(replace(kinds[2], amount=amounts(rng, size)), rng.choice([0.0, 0.25, 30.0]))
                case "t":
                    books.clock.now += rng.choice([1e-6, 0.01, 0.1, 1.0, 3.0, 9.0, 65.0, 4000.0])
                case "p":
                    books.same()
        books.same()


def test_credit_goes_with_the_bucket_that_the_window_begins_in(redis_url: str) -> None:
    books = Books(redis_url, keep=3600.0, rng=random.Random(0))  # noqa: S311  # a trace
    books.clock.now = 1_700_000_000.5
    claim = ratio(5, 5, share=1.0)
    books.both(Settle(books.both(Reserve(Reservation("a", "t", (claim,)), 10**6)), {"tokens": 5}, None))
    books.clock.now += 1
    books.deposit(replace(claim, amount=10), 0.0)
    asked = replace(claim, amount=11)
    assert books.both(Reserve(Reservation("b", "t", (asked,)), 10**6)) == Refused(("r",))  # the credit slides out too
    books.database.disconnect()


def test_a_share_of_more_than_a_double_holds_is_rounded_as_python_does(redis_url: str) -> None:
    rng, tried = random.Random(1), 0  # noqa: S311  # a trace
    books = Books(redis_url, keep=3600.0, rng=rng)
    while tried < 40:
        parts = [2**61 + rng.getrandbits(61) for _ in range(2)]
        credit = sum(parts)
        if float(credit // 10**9 * 10**9) + float(credit % 10**9) == float(credit):
            continue  # adding up two doubles would do
        tried += 1
        share = rng.choice([0.5, 0.3, 0.1])
        claim = ratio(0, 0, share=share, name=f"r{tried}")
        for amount in parts:
            books.deposit(replace(claim, amount=amount), 0.0)
        most = min(int(share * credit), 2**62 - 2)
        for amount in (most + 1, most):
            grant = books.both(Reserve(Reservation(f"{tried}", "t", (replace(claim, amount=amount),)), 10**6))
            assert isinstance(grant, Reservation) == (amount <= int(share * credit))
    books.database.disconnect()


def test_an_account_with_many_late_corrections_stays_short(redis_server: RedisServer, redis_url: str) -> None:
    books = Books(redis_url, keep=3600.0, rng=random.Random(0))  # noqa: S311  # a trace
    claim = window(5, 10**6, seconds=600.0)
    longest = 0
    for i in range(600):
        books.both(Reserve(Reservation(f"{i}", "t", (claim,)), micros(0.5 + i % 7 * 10)))
    books.clock.now += 100
    with redis_server.client(redis_url) as client:
        for hold in books.given:
            books.both(Settle(hold, {"tokens": 3}, None))
            longest = max(longest, client.hstrlen("{rfx:}accounts", "w"))
    books.same()
    assert 3000 < longest < 8000
    books.database.disconnect()


def test_what_is_forgotten_is_forgotten_to_the_microsecond(redis_url: str) -> None:
    clock = Clock(1_700_000_000.0)
    with RedisStore(redis_url, clock=clock, keep=10.0) as store:
        assert store.keep("a", "one") == "one"
        clock.now += 9.999999
        assert store.keep("a", "two") == "one"
        clock.now += 0.000001
        assert store.keep("a", "three") == "three"
        assert store.reserve("a", (), seconds=1) == Replayed("three")


def test_thousands_that_expire_at_once_are_ended_before_anything_is_granted(redis_url: str) -> None:
    clock = Clock()
    with RedisStore(redis_url, clock=clock) as store:

        async def many() -> None:
            await asyncio.gather(
                *(store.areserve(f"{i}", (flight(1200), window(1, 10**6)), seconds=5) for i in range(1200))
            )

        asyncio.run(many())
        assert not isinstance(store.reserve("more", (flight(1200),), seconds=5), Reservation)
        clock.now += 5
        assert {x.name: (x.reserved, x.lost) for x in store.accounts()} == {"f": (0, 1200), "w": (0, 1200)}
        assert isinstance(store.reserve("more", (flight(1),), seconds=5), Reservation)


def test_the_clock_is_the_servers(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 5.0)  # a machine whose clock is wrong
    with RedisStore(redis_url) as one, RedisStore(redis_url) as other:
        hold = one.reserve("a", (window(3),), seconds=0.2)
        assert isinstance(hold, Reservation)
        time.sleep(0.25)
        other.keep("b", "x")
        assert [(x.lost, x.in_window) for x in one.accounts()] == [(3, 3)]


def test_credit_is_as_old_as_the_traffic(redis_url: str) -> None:
    clock = Clock()
    with RedisStore(redis_url, clock=clock) as store:
        store.deposit([ratio(20, 0)])
        store.keep("flush", "")
        clock.now += 59
        assert isinstance(store.reserve("a", (ratio(10, 0),), seconds=1), Reservation)
        clock.now += 2
        store.release(Reservation("a", "nobody's", ()))
        assert not isinstance(store.reserve("b", (ratio(1, 0),), seconds=1), Reservation)


# --- keys ---


def test_budgets_of_two_prefixes_know_nothing_of_each_other(redis_server: RedisServer, redis_url: str) -> None:
    with RedisStore(redis_url, prefix="one:") as one, RedisStore(redis_url, prefix="two:") as two:
        one.keep("a", "x")
        one.reserve("b", (window(3),), seconds=60)
        assert two.keep("a", "y") == "y"
        assert two.accounts() == []
    with redis_server.client(redis_url) as client:
        names = {x.decode() for x in client.scan_iter()}
        assert all(client.ttl(x) == -1 for x in names)  # nothing to evict, whatever the policy of volatile keys
    assert {x.partition("}")[0] for x in names} == {"{one:", "{two:"}


@pytest.mark.parametrize("prefix", ["", "a{b}", "a\0", "\ud800", 3, None])
def test_a_prefix_that_is_none(prefix: Any) -> None:
    with pytest.raises(ConfigError, match=r"prefix is .*; give a text without braces"):
        RedisStore("redis://localhost", prefix=prefix)


def test_looking_makes_no_key(redis_server: RedisServer, redis_url: str) -> None:
    with RedisStore(redis_url) as store:
        assert store.accounts() == []
    with redis_server.client(redis_url) as client:
        assert client.keys() == []


def test_keys_of_a_later_schema_are_left_alone(redis_server: RedisServer, redis_url: str) -> None:
    with redis_server.client(redis_url) as client:
        client.set("{rfx:}mark", "2 later")
        with RedisStore(redis_url) as store:
            for call in (lambda: store.keep("a", "x"), store.accounts, store.prune):
                with pytest.raises(StoreError, match="have schema 2, and this version knows schema 1"):
                    call()
        assert client.keys() == [b"{rfx:}mark"]


def test_budgets_that_vanish_are_noticed_once(redis_server: RedisServer, redis_url: str) -> None:
    with RedisStore(redis_url) as store, redis_server.client(redis_url) as client:
        hold = store.reserve("a", (window(3),), seconds=60)
        assert isinstance(hold, Reservation)
        client.flushdb()
        with pytest.raises(StoreError, match="deleted or replaced while they were in use"):
            store.settle(hold, {"tokens": 2}, "x")
        store.settle(hold, {"tokens": 2}, "x")  # of a reservation that is not there
        assert store.accounts() == []


@pytest.mark.parametrize("key", ["accounts", "holds", "records", "ended"])
def test_one_key_that_vanishes_is_noticed_once_by_everybody(
    key: str, redis_server: RedisServer, redis_url: str
) -> None:
    with RedisStore(redis_url) as store, RedisStore(redis_url) as idle, redis_server.client(redis_url) as client:
        done = store.reserve("a", (window(5),), seconds=60)
        assert isinstance(done, Reservation)
        store.settle(done, {"tokens": 2}, "x")
        hold = store.reserve("b", (window(1),), seconds=60)
        assert isinstance(hold, Reservation)
        idle.keep("c", "y")
        assert client.delete(f"{{rfx:}}{key}") == 1
        for each, name in ((store, "d"), (idle, "e")):
            with pytest.raises(StoreError, match="one of their keys, were deleted or replaced while they were in use"):
                each.reserve(name, (window(1),), seconds=60)
            assert isinstance(each.reserve(name, (window(1),), seconds=60), Reservation)
        store.settle(hold, {"tokens": 1}, "z")


def test_keys_that_the_store_itself_empties_are_no_loss(redis_url: str) -> None:
    clock = Clock()
    with RedisStore(redis_url, clock=clock) as store:
        for name in ("a", "b"):
            hold = store.reserve(name, (window(3),), seconds=60)
            assert isinstance(hold, Reservation)
            store.settle(hold, {"tokens": 2}, "x")
            clock.now += 7200
            pruned = store.prune(0)
            assert (pruned.accounts, pruned.reservations) == (1, 1)
            assert store.accounts() == []


def test_a_key_that_somebody_else_has_is_named_and_left_alone(redis_server: RedisServer, redis_url: str) -> None:
    with RedisStore(redis_url) as store, redis_server.client(redis_url) as client:
        client.set("{rfx:}accounts", "mine")
        with pytest.raises(StoreError, match=r"WRONGTYPE.*give another prefix"):
            store.reserve("a", (window(3),), seconds=60)
        assert client.hlen("{rfx:}holds") == 0
        assert store.keep("b", "x") == "x"


def test_pruning_deletes_what_ended_and_leaves_what_counts(redis_url: str) -> None:
    clock = Clock()
    with RedisStore(redis_url, clock=clock) as store:
        for i in range(1203):
            store.keep(f"r{i}", "x")
        for i in range(30):
            hold = store.reserve(f"{i}", (window(1, name=f"w{i}"),), seconds=60)
            assert isinstance(hold, Reservation)
            store.settle(hold, {"tokens": 1}, "x")
        clock.now += 3600
        store.reserve("open", (window(1, name="open"),), seconds=60)
        store.keep("new", "x")
        pruned = store.prune(600, shrink=True)
        assert (pruned.accounts, pruned.reservations) == (30, 1233)
        assert [x.name for x in store.accounts()] == ["open"]
        assert (store.keep("new", "y"), store.keep("r1", "y")) == ("x", "y")


# --- settings of the server ---


@pytest.fixture
def another() -> Iterator[Any]:
    """Makes a Redis with other settings."""
    import redis_server as servers

    if missing := servers.why_not():
        pytest.skip(missing)
    with contextlib.ExitStack() as made:

        def make(**options: str) -> RedisServer:
            server = servers.RedisServer(**options)
            made.callback(server.close)
            return server

        yield make


def test_a_server_that_deletes_what_was_not_used_is_refused(another: Any) -> None:
    server = another(maxmemory="50mb", maxmemory_policy="allkeys-lru")
    with RedisStore(server.url) as store:
        with pytest.raises(StoreError, match=r"maxmemory-policy is allkeys-lru: .* Set it to noeviction"):
            store.keep("a", "x")
        with server.client() as client:
            assert client.keys() == []
            client.config_set("maxmemory-policy", "volatile-lru")
        assert store.keep("a", "x") == "x"


def test_a_server_without_a_log_is_warned_of(another: Any, caplog: pytest.LogCaptureFixture) -> None:
    server = another(appendonly="no")
    with RedisStore(server.url) as store:
        store.keep("a", "x")
        server.kill_connections()
        store.keep("b", "x")
        assert [x.message.count("appendonly is off") for x in caplog.records] == [1]
        server.stop()
        server.start()
        with pytest.raises(StoreError, match="deleted or replaced"):
            store.keep("a", "y")
        assert store.keep("a", "y") == "y"


def test_a_full_server_refuses_and_nothing_is_half_written(another: Any) -> None:
    server = another()
    with RedisStore(server.url) as store, server.client() as client:
        hold = store.reserve("a", (window(3),), seconds=600)
        assert isinstance(hold, Reservation)
        client.config_set("maxmemory", "500kb")
        with pytest.raises(StoreError, match=r"OOM .*raise its maxmemory, or delete what is old") as caught:
            store.settle(hold, {"tokens": 2}, "done")
        assert caught.value.__cause__ is not None
        assert [(x.spent, x.reserved) for x in store.accounts()] == [(0, 3)]
        client.config_set("maxmemory", "0")
        store.settle(hold, {"tokens": 2}, "done")
        assert [(x.spent, x.reserved) for x in store.accounts()] == [(2, 0)]


def test_a_node_of_a_cluster_has_all_keys_or_says_who_has_them(another: Any) -> None:
    server = another(cluster_enabled="yes", databases="1", port="0")
    with server.client() as client:
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        ends = time.monotonic() + 20
        while b"cluster_state:ok" not in client.execute_command("CLUSTER", "INFO") and time.monotonic() < ends:
            time.sleep(0.05)
        with RedisStore(server.url) as store:
            hold = store.reserve("a", (window(3), flight()), seconds=60)
            store.settle(hold, {"tokens": 2}, "x")
            assert store.prune(0).reservations == 1
            slot = client.execute_command("CLUSTER", "KEYSLOT", "{rfx:}mark")
            client.execute_command("CLUSTER", "DELSLOTS", slot)
            with pytest.raises(StoreError, match=r"CLUSTERDOWN|MOVED"):
                store.keep("b", "x")


def test_a_user_without_rights_is_told_which_are_needed(another: Any) -> None:
    server = another()
    with server.client() as client:
        client.acl_setuser("agent", enabled=True, passwords=["+pw"], keys=["{rfx:}*"], commands=["+@all", "-info"])
        client.acl_setuser("none", enabled=True, passwords=["+pw"], keys=["other*"], commands=["+@all"])
    at = server.url.removeprefix("unix://")
    with RedisStore(f"unix://agent:pw@{at}") as store:
        assert store.keep("a", "x") == "x"  # it cannot look at the settings, and says so in the log
    with RedisStore(f"unix://none:pw@{at}") as store, pytest.raises(StoreError, match="let this user run SCRIPT"):
        store.keep("a", "x")
    with RedisStore(f"unix://agent:wrong@{at}") as store:
        started = time.monotonic()
        with pytest.raises(StoreError, match=r"give a URL with a password|invalid username-password") as caught:
            store.keep("a", "x")
        assert time.monotonic() - started < 1  # no use to try again
        assert "wrong@" not in str(caught.value)


# --- faults ---


def test_connections_that_break_between_two_calls_are_made_again(redis_server: RedisServer, redis_url: str) -> None:
    with RedisStore(redis_url) as store:
        survives_broken_connections(store, redis_server.kill_connections)


def test_a_script_that_the_server_forgot_is_sent_again(redis_server: RedisServer, redis_url: str) -> None:
    with RedisStore(redis_url) as store, redis_server.client() as client:
        for i in range(3):
            client.script_flush()
            assert store.keep(f"{i}", "x") == "x"


def test_a_server_that_dies_is_an_error_and_goes_on_with_all_it_answered(another: Any) -> None:
    server = another()
    with RedisStore(server.url) as store:
        hold = store.reserve("a", (window(3),), seconds=60)
        assert isinstance(hold, Reservation)
        server.stop()
        with pytest.raises(StoreError, match="unix://") as caught:
            store.settle(hold, {"tokens": 2}, "done")
        with pytest.raises(StoreError):
            asyncio.run(store.areserve("b", (window(3),), seconds=60))
        with pytest.raises(StoreError):
            store.accounts()
        assert caught.value.__cause__ is not None
        server.start()
        store.settle(hold, {"tokens": 2}, "done")
        (seen,) = store.accounts()
        assert (seen.spent, seen.reserved, seen.granted) == (2, 0, 3)


def test_a_server_that_is_no_primary_for_a_moment_is_waited_for(another: Any) -> None:
    server = another()
    with RedisStore(server.url) as store, server.client() as client:
        hold = store.reserve("a", (window(3),), seconds=60)
        assert isinstance(hold, Reservation)
        client.replicaof("127.0.0.1", 1)
        with pytest.raises(StoreError, match="READONLY"):
            store.settle(hold, {"tokens": 2}, "done")
        back = threading.Timer(0.3, client.replicaof, ("NO", "ONE"))
        back.start()
        store.settle(hold, {"tokens": 2}, "done")
        back.join()
        assert [(x.spent, x.reserved) for x in store.accounts()] == [(2, 0)]


class Cut:
    """A connection that breaks at each of its first answers, after the server has done what it was asked or before."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, done: bool, times: int = 1) -> None:
        real = Database._exchange

        def exchange(database: Database, commands: Any) -> list[Any]:
            if self.left == 0 or commands[0][0] != b"EVALSHA":
                self.left += self.left < 0
                return real(database, commands)
            self.left -= 1
            if done:
                real(database, commands)
            database._connection._sock.close()
            return real(database, commands)

        self.left = times
        monkeypatch.setattr(Database, "_exchange", exchange)


@pytest.mark.parametrize("done", [True, False], ids=["done", "not done"])
def test_an_answer_that_got_lost_is_asked_for_again_and_nothing_is_done_twice(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, done: bool
) -> None:
    with RedisStore(redis_url, clock=Clock()) as store:
        Cut(monkeypatch, done=done)
        hold = store.reserve("a", (window(3), flight()), seconds=60)
        assert isinstance(hold, Reservation)
        for call in (
            lambda: store.settle(hold, {"tokens": 2}, "first"),
            lambda: store.release(store.reserve("b", (window(3), flight()), seconds=60)),  # type: ignore[arg-type]
        ):
            Cut(monkeypatch, done=done)
            call()
        Cut(monkeypatch, done=done)
        assert store.keep("k", "one") == "one"
        Cut(monkeypatch, done=done)
        assert not isinstance(store.reserve("c", (window(9),), seconds=60), Reservation)
        Cut(monkeypatch, done=done)
        store.deposit([ratio(10, 0)])
        store.reserve("r", (ratio(6, 0),), seconds=60)  # credit is never counted twice: 10 are worth 5
        monkeypatch.undo()
        seen = {x.name: x for x in store.accounts()}
        assert (seen["w"].granted, seen["w"].spent, seen["w"].reserved, seen["w"].lost) == (6, 2, 0, 0)
        assert (seen["f"].granted, seen["f"].reserved, seen["f"].peak) == (2, 0, 1)
        assert (seen["w"].refused, seen["r"].granted) == (1 if done else 0, 0)


def test_a_reservation_that_may_stand_with_nobody_to_settle_it_is_given_back(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RedisStore(redis_url) as store:
        Cut(monkeypatch, done=True, times=4)
        with pytest.raises(StoreError, match="it may have been done"):
            store.reserve("b", (window(3),), seconds=60)
        monkeypatch.undo()
        assert isinstance(store.reserve("c", (window(9),), seconds=60), Reservation)  # no room for both
        (seen,) = store.accounts()
        assert (seen.reserved, seen.lost) == (9, 0)


def test_a_server_that_answers_nothing_is_waited_for_and_not_for_ever(another: Any) -> None:
    server = another()
    with RedisStore(server.url, timeout=0.5) as store:
        hold = store.reserve("a", (window(3),), seconds=60)
        assert isinstance(hold, Reservation)
        server.freeze()
        for call in (
            lambda: store.reserve("b", (window(1),), seconds=60),
            lambda: asyncio.run(store.areserve("c", (window(1),), seconds=60)),
            store.accounts,
        ):
            started = time.monotonic()
            with pytest.raises(StoreError):
                call()
            assert time.monotonic() - started < 4
        server.thaw()
        ends = time.monotonic() + 10
        while [x.reserved for x in store.accounts()] != [3] and time.monotonic() < ends:
            time.sleep(0.05)
            store.keep("x", "x")  # what nobody got is given back with the next request
        store.settle(hold, {"tokens": 2})
        (seen,) = store.accounts()
        assert (seen.spent, seen.reserved, seen.lost) == (2, 0, 0)


def test_a_cancelled_caller_gives_back_what_it_is_granted_and_settles_all_the_same(another: Any) -> None:
    server = another()
    with RedisStore(server.url) as store:

        async def cancelled() -> None:
            hold = await store.areserve("settled", (window(3),), seconds=60)
            server.freeze()
            going = [
                asyncio.create_task(store.areserve("a", (window(1),), seconds=60)),
                asyncio.create_task(store.asettle(hold, {"tokens": 2}, "done")),  # type: ignore[arg-type]
                asyncio.create_task(store.areserve("b", (window(1),), seconds=60)),
            ]
            started = time.monotonic()
            await asyncio.sleep(0.1)
            assert time.monotonic() - started < 5  # the loop is not blocked
            for task in going:
                task.cancel()
            ends = await asyncio.gather(*going, return_exceptions=True)
            assert [type(x) for x in ends] == [asyncio.CancelledError] * 3
            server.thaw()

        asyncio.run(cancelled())
        assert store.reserve("settled", (), seconds=60) == Replayed("done")
        store.keep("x", "x")
        (seen,) = store.accounts()
        assert (seen.spent, seen.reserved, seen.lost) == (2, 0, 0)


def test_many_threads_and_event_loops_share_a_store(redis_url: str) -> None:
    with RedisStore(redis_url) as store:
        granted: list[bool] = []

        async def some(n: int) -> None:
            ids = [f"{n}/{i}" for i in range(20)]
            grants = await asyncio.gather(*(store.areserve(x, (window(1, 100),), seconds=60) for x in ids))
            granted.extend(isinstance(x, Reservation) for x in grants)

        threads = [threading.Thread(target=lambda n=n: asyncio.run(some(n))) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(granted), sum(granted)) == (160, 100)
        assert isinstance(store.accounts()[0], Account)


# --- URLs ---


UNESCAPED = (
    *("u:p@ss@hunter2@127.0.0.1:1/3", ":p@hunter2@h/3", "u:12/hunter2@h/3", "u:12?hunter2=x@h/3", "u:12#hunter2@h/3"),
    *("u:p/hunter2@h/3", "u:p#hunter2@h/3", "h/3?password=a@hunter2"),
)
"""Passwords with what ends a part of a URL."""


def test_a_password_is_in_no_message() -> None:
    url = "redis://agent:hun%40ter2@127.0.0.1:1/3"
    store = RedisStore(url, timeout=1.0)
    said = [repr(store), repr(store._place)]
    for call in (lambda: store.keep("a", "x"), store.accounts, store.prune):
        with pytest.raises(StoreError, match=r"redis://agent@127\.0\.0\.1:1/3: ") as caught:
            call()
        error: BaseException | None = caught.value
        while error is not None:
            said += [str(error), repr(error)]
            error = error.__cause__ or error.__context__
    store.close()
    for wrong in (
        "redis://agent:hunter2:port/x",
        "agent:hunter2@host:6379",
        "redis://a:hunter2@h/x?hunter=1",
        "redis://a:hunter2@h/x",
        *(f"{scheme}://{rest}" for scheme in ("redis", "rediss") for rest in UNESCAPED),
    ):
        with pytest.raises(ConfigError) as refused:
            RedisStore(wrong)
        said += [str(refused.value), repr(refused.value.__cause__)]
    assert not [x for x in said if "hun@ter2" in x or "hun%40ter2" in x or "hunter2" in x]


@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        ("localhost", "url is a text without '://', and not a URL; give redis://"),
        ("http://localhost", "the URL is for 'http'; give redis://"),
        ("redis://localhost:port", "the redis URL cannot be read"),
        ("redis://localhost/budgets", "what follows the host is not the number of a database"),
        ("redis://localhost?decode_responses=yes", "the URL sets decode_responses, which is the store's"),
        ("redis://localhost?timeout=3", "the URL sets timeout, which is the store's"),
        ("redis://localhost?nothing=3", r"redis-py does not take what the URL has after the '\?'"),
        ("unix://", "names no socket"),
        (3, "url is of type int"),
    ],
)
def test_a_url_that_is_none_is_refused_at_once(url: Any, remedy: str) -> None:
    with pytest.raises(ConfigError, match=remedy):
        RedisStore(url)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clock": 3}, "redis store: clock is 3; give a function"),
        ({"keep": 0}, "redis store: keep is 0; give seconds above 0"),
        ({"timeout": float("nan")}, "redis store: timeout is nan; give seconds above 0"),
    ],
)
def test_a_parameter_that_cannot_work(options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RedisStore("redis://localhost", **options)


def test_a_url_says_which_store_it_is_for(tmp_path: Path) -> None:
    for url in ("redis://localhost", "rediss://localhost", "unix:///run/redis.sock"):
        assert isinstance(store_at(url, prefix="mine:"), RedisStore)
    assert repr(store_at("rediss://u:p@h:7/3")) == "RedisStore('rediss://u@h:7/3')"
    assert not isinstance(store_at(f"sqlite:///{tmp_path}/x.db"), RedisStore)
    with pytest.raises(ConfigError, match="prefix is for a Redis"):
        store_at(f"sqlite:///{tmp_path}/x.db", prefix="mine:")


def test_a_server_is_reached_over_tls_and_only_if_it_is_the_one(another: Any, tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl makes the certificate, and is not here")
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    named = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *named]
    subprocess.run([*command, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    another(tls_port=port, tls_cert_file=str(cert), tls_key_file=str(key), tls_auth_clients="no", bind="127.0.0.1")
    with RedisStore(f"rediss://localhost:{port}?ssl_ca_certs={cert}") as store:
        assert store.keep("a", "x") == "x"
    with RedisStore(f"rediss://localhost:{port}", timeout=3.0) as store, pytest.raises(StoreError, match="certificate"):
        store.keep("a", "x")


def test_no_library_is_loaded_before_a_store_is_made() -> None:
    code = "import sys, rfx_agent.budgets; from rfx_agent.budgets import redis; print('redis' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_the_script_is_part_of_the_package() -> None:
    assert b"-- The accounting of shared budgets" in SCRIPT
