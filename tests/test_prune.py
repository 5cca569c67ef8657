"""What a store forgets, what it keeps, and what it notices of its file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rfx_agent.budgets import MemoryStore, SQLStore
from rfx_agent.budgets.accounting import BUCKETS, AccountRow
from rfx_agent.budgets.limits import Claim, Refused, Reservation
from rfx_agent.cli.app import app
from rfx_agent.errors import StoreError
from rfx_agent.policies import Belief
from rfx_agent.policies.sql_store import SQLPolicyStore
from rfx_agent.ports import BudgetStore


def window(name: str, amount: int = 10, most: int = 1000) -> Claim:
    return Claim(name, "window", "tokens", amount, most, 60.0)


def spent(store: BudgetStore, name: str, amount: int = 10) -> None:
    grant = store.reserve(f"{name}-{amount}", [window(name, amount)], seconds=60)
    assert isinstance(grant, Reservation)
    store.settle(grant, {"tokens": amount}, "record")


def test_idle_accounts_and_old_records_go_and_what_counts_stays(tmp_path: Path) -> None:
    now = [1_000_000.0]
    with SQLStore(f"sqlite:///{tmp_path}/b.db", clock=lambda: now[0]) as store:
        for i in range(30):
            spent(store, f"old-{i}")
        now[0] += 3600
        spent(store, "new")
        store.reserve("open", [window("open")], seconds=1e6)
        pruned = store.prune(600)
        assert (pruned.accounts, pruned.reservations) == (30, 30)
        assert [x.name for x in store.accounts()] == ["new", "open"]
        assert store.keep("new-10", "other") == "record"
        assert store.keep("old-1-10", "other") == "other"
        spent(store, "old-1", 20)
        assert store.accounts("old")[0].spent == 20


def test_a_command_prunes_and_shrinks(tmp_path: Path) -> None:
    url, now = f"sqlite:///{tmp_path}/b.db", [time.time() - 90 * 86_400]
    with SQLStore(url, clock=lambda: now[0]) as store:
        for i in range(300):
            store.keep(f"run-{i}", "x" * 10_000)
            spent(store, f"tenant-{i}")
    large = (tmp_path / "b.db").stat().st_size
    done = CliRunner().invoke(app, ["budget", "prune", url, "--shrink", "--json"])
    assert done.exit_code == 0, done.output
    assert done.output.strip() == '{"accounts": 300, "reservations": 600}'
    assert (tmp_path / "b.db").stat().st_size < large / 10
    assert "no account yet" in CliRunner().invoke(app, ["budget", url]).output


def test_credit_of_hours_without_a_failure_is_kept_for_one_window() -> None:
    row = AccountRow("r", "ratio", "tokens", 10, 3_600_000_000)
    for second in range(0, 100_000, 10):
        row.credit(1, second * 1_000_000)
    assert len(row.credits) <= BUCKETS + 2
    claim = Claim("r", "ratio", "tokens", 1, 10, 3600.0, 1.0)
    assert 340 <= row.room(claim, 100_000_000_000) - 10 <= 361


def test_a_file_that_was_deleted_or_replaced_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    with SQLStore(f"sqlite:///{path}") as store:
        spent(store, "a", 700)
        path.unlink()
        with pytest.raises(StoreError, match="deleted or replaced"):
            spent(store, "a", 20)
        spent(store, "a", 30)
        path.rename(tmp_path / "old.db")
        with SQLStore(f"sqlite:///{path}") as other:
            spent(other, "a", 40)
        with pytest.raises(StoreError, match="deleted or replaced"):
            spent(store, "a", 50)
        spent(store, "a", 60)
        assert [x.spent for x in store.accounts()] == [100]


_STOPPED = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("in", flush=True)
time.sleep(60)
"""


def test_a_process_that_stopped_in_a_transaction_holds_nobody_longer_than_the_timeout(tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    with SQLStore(f"sqlite:///{path}", timeout=1.0) as store:
        spent(store, "a")
        beliefs = SQLPolicyStore(f"sqlite:///{path}", timeout=1.0)
        beliefs.add(Belief())
        child = subprocess.Popen([sys.executable, "-c", _STOPPED, str(path)], stdout=subprocess.PIPE)
        try:
            assert child.stdout is not None
            child.stdout.readline()
            os.kill(child.pid, signal.SIGSTOP)
            for i in range(3):
                before = time.monotonic()
                with pytest.raises(StoreError):
                    spent(store, "b", i + 1)
                assert time.monotonic() - before < 2.5
            before = time.monotonic()
            assert beliefs.load() == Belief()  # a reader waits for nobody
            with pytest.raises(StoreError, match="another process holds the file"):
                beliefs.add(Belief())
            assert time.monotonic() - before < 2.5
        finally:
            child.kill()
            child.wait()
        time.sleep(1.1)
        spent(store, "b", 9)
        assert beliefs.add(Belief()) == Belief()


def test_a_database_that_answers_no_more_holds_a_belief_no_longer_than_the_timeout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SQLPolicyStore(f"sqlite:///{tmp_path}/b.db", timeout=0.2)
    store.add(Belief())
    frozen = threading.Event()
    once = SQLPolicyStore._once
    monkeypatch.setattr(SQLPolicyStore, "_once", lambda *given: (frozen.wait(20), once(*given))[1])
    before, threads = time.monotonic(), threading.active_count()
    for call in (store.load, lambda: store.add(Belief()), store.load):
        with pytest.raises(StoreError, match=r"no answer within 0.2 s; look for a server that stopped"):
            call()
    assert time.monotonic() - before < 2.5
    assert threading.active_count() <= threads + 1
    frozen.set()
    assert store.load() == Belief()


def test_a_store_in_memory_forgets_nothing_that_counts() -> None:
    store = MemoryStore()
    grant = store.reserve("a", [window("a", 900)], seconds=60)
    assert isinstance(grant, Reservation)
    assert isinstance(store.reserve("b", [window("a", 200)], seconds=60), Refused)


def test_a_file_of_another_kind_is_named(tmp_path: Path) -> None:
    (tmp_path / "b.db").write_bytes(b"no database at all" * 100)
    with SQLStore(f"sqlite:///{tmp_path}/b.db") as store, pytest.raises(StoreError, match="give another path"):
        spent(store, "a")


def test_a_store_in_memory_forgets_accounts_in_which_nothing_counts_any_more() -> None:
    now = [1e6]
    store = MemoryStore(clock=lambda: now[0], keep=100.0)
    for i in range(200):
        spent(store, f"old-{i}")
    store.reserve("refused", [window("old-0", 9999), window("never asked again")], seconds=5)
    week = store.reserve("week", [Claim("week", "window", "tokens", 1, 10, 6e5)], seconds=5)
    assert isinstance(week, Reservation)
    store.settle(week, {"tokens": 1})
    store.reserve("open", [window("open", 1)], seconds=1000)
    now[0] += 101
    for i in range(40):
        store.reserve(f"later{i}", [window(f"new{i}")], seconds=500)
    assert {x.name for x in store.accounts()} == {"week", "open", *(f"new{i}" for i in range(40))}
    assert store.accounts("week")[0].in_window == 1
    assert store.accounts("open")[0].reserved == 1


def test_a_settlement_that_comes_after_its_account_was_forgotten_is_let_go() -> None:
    now = [1e6]
    store = MemoryStore(clock=lambda: now[0], keep=100.0)
    held = store.reserve("late", [window("a", 1)], seconds=50)
    assert isinstance(held, Reservation)
    for _ in range(20):  # it expires, and its window slides out; each call looks at a few accounts
        now[0] += 20
        store.keep("other", "record")
    assert store.accounts() == []
    store.settle(held, {"tokens": 3}, "record")
    store.keep("other", "record")
    assert store.accounts() == []
