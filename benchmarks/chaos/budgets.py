"""Eight processes with fifty runs each on one store: never more spent than granted, in any scope and window.

The invariant is looked at from outside while they run, by a process that reads the store's accounts, and afterwards
from the complete log of reservations and settlements (``audit``). Two of the processes are killed on the way, and
what their runs had begun is begun again by others, under the same ids.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.chaos.audit import audit
from benchmarks.chaos.journal import Journal, Logged, read
from benchmarks.chaos.parts import chance, recovery, sampler, step_of, wrong
from benchmarks.chaos.processes import CONTEXT
from benchmarks.chaos.server import Server
from rfx_agent import Case, InFlight, Price, Ratio, SharedBudget, Window
from rfx_agent.budgets.at import store_at
from rfx_agent.budgets.limits import Account
from rfx_agent.errors import StoreError

__all__ = ["Load", "budgets"]

_PRICE = Price(prompt=1.0, completion=4.0)
_LIMITS = (
    Window("tenant", "usd", 0.006, per=4.0),
    Window("tenant", "attempts", 80, per=3.0),
    Window("global", "tokens", 8_000, per=2.0),
    Window("global", "tokens", 60_000, per="minute"),
    Window("agent", "tokens", 10**7, per="hour"),
    Ratio("agent", "attempts", share=0.25, floor=60, per=5.0),
    InFlight("global", 24),
    InFlight("tenant", 8),
)


@dataclass(frozen=True, slots=True)
class Load:
    """What one process does.

    Attributes:
        model: URL of the chaos server.
        budget: of the store.
        journal: folder of the logs.
        names: the runs; two processes never have the same at once.
        together: runs at once.
        wait: most seconds that a call waits for room.
        expires: seconds after which a reservation that nobody settled expires.
    """

    model: str
    budget: str
    journal: str
    names: tuple[str, ...]
    together: int = 50
    wait: float = 1.5
    expires: float = 8.0


def budgets(
    server: Server,
    budget: str,
    folder: str,
    *,
    processes: int = 8,
    runs: int = 500,
    killed: int = 2,
    after: float = 3.0,
) -> dict[str, Any]:
    """What ``processes`` processes of ``runs`` runs each came to, ``killed`` of them killed ``after`` seconds."""
    server.reset()
    store_at(budget).accounts()  # the tables are there before anybody races to make them
    loads = [_load(server, budget, folder, tuple(f"load{p}-{i}" for i in range(runs))) for p in range(processes)]
    started = time.time()
    watching = CONTEXT.Event()
    seen, hers = CONTEXT.Pipe(duplex=False)
    watcher = CONTEXT.Process(target=_watch, args=(budget, watching, hers), daemon=True)
    watcher.start()
    alive = [_run(load) for load in loads]
    ends: dict[str, Any] = {}
    time.sleep(after)
    for process, pipe in alive[:killed]:
        process.kill()
        ends.update(_said(pipe))
        process.join()
    again = [x for load in loads[:killed] for x in load.names if x not in ends]
    alive = [*alive[killed:], _run(_load(server, budget, folder, tuple(again)))] if again else alive[killed:]
    for process, pipe in alive:
        ends.update(_said(pipe))
        process.join()
    lasted = time.time() - started
    store = store_at(budget)
    _expired(store, loads[0].expires)
    watching.set()
    looks = seen.recv()
    watcher.join()
    return _report(store.accounts(), list(read(folder)), ends, server.truth(), looks, loads, lasted)


def _load(server: Server, budget: str, folder: str, names: tuple[str, ...]) -> Load:
    return Load(server.base_url, budget, folder, names)


def _run(load: Load) -> tuple[Any, Connection]:
    ours, theirs = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_work, args=(load, theirs), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def _said(pipe: Connection) -> dict[str, Any]:
    """What a process told before it ended, which this waits for. One that was killed may have been cut off."""
    found: dict[str, Any] = {}
    with contextlib.suppress(EOFError, OSError):
        while True:
            name, end = pipe.recv()
            found[name] = end
    return found


def _work(load: Load, pipe: Connection) -> None:
    asyncio.run(_all(load, pipe))
    pipe.close()
    os._exit(0)


async def _all(load: Load, pipe: Connection) -> None:
    model = sampler(load.model, timeout=30.0)
    store = Logged(store_at(load.budget), Journal(load.journal))
    shared = SharedBudget(store=store, limits=_LIMITS, wait=load.wait, seconds=load.expires)
    base = recovery(model, price=_PRICE)
    gate = asyncio.Semaphore(load.together)

    async def one(name: str) -> None:
        scopes = {"tenant": f"t{int(4 * chance('tenant', name))}", "agent": f"a{int(2 * chance('agent', name))}"}
        made = replace(base, shared=shared.scoped(**scopes))
        step = step_of(name)
        async with gate:
            try:
                case = await made.arun(step, _candidate(name), run_id=name)
                pipe.send((name, _end(case)))
            except Exception as error:  # noqa: BLE001  # an unhandled one is a finding
                pipe.send((name, {"error": f"{type(error).__name__}: {error}"[:300]}))

    await asyncio.gather(*map(one, load.names))


def _candidate(name: str) -> str | None:
    """One in three begins with a draw of its own; some of the others were right all along: normal traffic."""
    step, u = step_of(name), chance("candidate", name)
    return None if u < 0.33 else f"The answer is {step.expected}" if u < 0.6 else wrong(step)


def _end(case: Case) -> dict[str, Any]:
    assert case.outcome is not None  # noqa: S101  # a run that ends has one
    own = bool(case.attempts and case.rollouts and case.rollouts[0].round == 0)
    return {
        "status": case.outcome.status,
        "reason": case.outcome.reason,
        "tokens": case.ledger.spent.tokens,
        "first": case.attempts[0].tokens if own else 0,
        "right": not case.outcome.ok or case.outcome.answer == case.step.expected,
    }


def _watch(budget: str, stop: Any, pipe: Connection) -> None:
    """Read the accounts ten times a second; a window or a count above its limit is over, whatever the log says."""
    store, looks, missed, over = store_at(budget), 0, 0, []
    most: Counter[str] = Counter()
    while not stop.wait(0.1):
        try:
            accounts = store.accounts()
        except StoreError:  # it is down for a moment
            missed += 1
            continue
        looks += 1
        for account in accounts:
            there = account.reserved + (account.in_window if account.kind != "in_flight" else 0)
            most[account.name] = max(most[account.name], there)
            if account.kind != "ratio" and there > account.most:
                over.append((account.name, there, account.most))
    pipe.send({"looks": looks, "missed": missed, "over": over[:5], "most": dict(most)})


def _expired(store: Any, expires: float) -> None:
    ends = time.time() + expires + 5
    while any(x.reserved for x in store.accounts()) and time.time() < ends:
        time.sleep(0.25)


def _report(
    accounts: Sequence[Account],
    entries: Sequence[dict[str, Any]],
    ends: Mapping[str, Any],
    truth: Mapping[str, Any],
    looks: Mapping[str, Any],
    loads: Sequence[Load],
    lasted: float,
) -> dict[str, Any]:
    books = audit(entries)
    names = [name for load in loads for name in load.names]
    errors = Counter(x["error"] for x in ends.values() if "error" in x)
    fine = {name: x for name, x in ends.items() if "error" not in x}
    wrong_answers = [name for name, x in fine.items() if not x["right"]]
    over = {name: book.over[:3] for name, book in books.items() if book.over}
    peaks = {x.name: x.peak for x in accounts if x.kind != "ratio" and x.peak > x.most}
    left = {x.name: x.reserved for x in accounts if x.reserved}
    dear = {x.name: (x.spent, x.granted) for x in accounts if x.spent > x.granted}
    first = sum(x["first"] for x in fine.values())  # normal traffic: no account
    hours = sum(x.spent for x in accounts if x.name.endswith("tokens/3600s"))
    charged = sum(x.spent - x.lost for x in accounts if x.name.endswith("tokens/3600s"))
    total = truth["total"]
    # A first draw that died with its process is made again; it is normal traffic, and no limit holds for it.
    served = total.get("tokens", 0) - total.get("first_tokens", 0)
    unended = [name for name in names if name not in ends]
    ok = not (errors or wrong_answers or over or peaks or left or dear or unended or looks["over"])
    return {
        "held": ok and served <= hours,
        "runs": len(names),
        "processes": len(loads),
        "together": sum(load.together for load in loads),
        "outcomes": dict(Counter(f"{x['status']}: {x['reason']}" for x in fine.values()).most_common()),
        "errors": dict(errors.most_common(5)),
        "without_an_end": len(unended),
        "wrong_answers": len(wrong_answers),
        "over_in_the_log": over,
        "over_when_looked_at": looks["over"],
        "looks": looks["looks"],
        "looks_missed": looks["missed"],
        "peak_above_the_limit": peaks,
        "reserved_at_the_end": left,
        "spent_above_granted": dear,
        "served_tokens": served,
        "spent_tokens": hours,
        "spent_tokens_without_lost": charged,
        "tokens_in_ledgers": sum(x["tokens"] for x in fine.values()) - first,
        "seconds": round(lasted, 1),
        "reservations": sum(1 for x in entries if x["op"] == "reserve"),
        "accounts": {x.name: _row(x, books, looks) for x in accounts},
    }


def _row(account: Account, books: Mapping[str, Any], looks: Mapping[str, Any]) -> dict[str, Any]:
    book = books.get(account.name)
    return {
        "most": account.most,
        "granted": account.granted,
        "spent": account.spent,
        "lost": account.lost,
        "refused": account.refused,
        "peak": account.peak,
        "seen": looks["most"].get(account.name, 0),
        "certain_in_the_log": book.tightest if book else 0,
        "log": {"granted": book.granted, "spent": book.spent, "refused": book.refused} if book else None,
    }
