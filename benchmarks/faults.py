"""The provider's own bill against what was charged, on a server that breaks: one JSON object.

A loopback server (``fault_server.py``) breaks a share of its responses in one of 53 ways and bills every token that it
worked for. Runs go in by nine ways, sync and async (``fault_ways.py``), under a budget of their own and a shared one
that is kept in memory or in SQLite. What must hold of every run:

- ``bill_above_held``: the bill of its recovery is not above what the shared budget holds as spent.
- ``bill_not_equal``: without a fault the two are equal.
- ``above_reservation``: a purchase is charged no more than its reservation for each request that it made.
- ``untyped``: what reaches the caller is one of ours, or an exception of the caller's own first run as it was.
- ``error_as_answer``: no text of an error, and none of another host, goes on as an answer.
- ``still_reserved``: nothing is reserved in the end.
- ``key_seen``: the key stands in no exception, event or checkpoint.
- ``sent_elsewhere``: no prompt of a sampler of ours went to the host that a redirect names.

``callback`` is what LangChain's own ``UsageMetadataCallbackHandler`` counted on the traffic of chat models, beside the
bill of the same traffic. ``retrying_clients`` are runs of ``ChatOpenAI`` where ``langchain-openai`` is installed: its
client tries again inside, where no callback sees it; they are counted apart.

    python -m benchmarks.faults [--runs 600] [--share 0.35] [--seed 0] [--only FAULT]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from langchain_core.callbacks import get_usage_metadata_callback
from pydantic import SecretStr

from benchmarks.fault_chat import CAP, PlainChat
from benchmarks.fault_server import BAD_WORDS, FAULTS, OWN_CLIENT, Billed, FaultServer, spelled_keys
from benchmarks.fault_ways import WAYS, Models, Trip
from rfx_agent.budgets import MemoryStore, SQLStore
from rfx_agent.errors import RfxError
from rfx_agent.events import as_record

KEY = "fk/7Qm2+Vt9zRb4Lx"
TIMEOUT = 1.5  # seconds that a client waits
TOGETHER = 8
SYNC_WAYS = ("run", "with_recovery", "recoverable", "add_recovery", "recovery_graph", "agent", "chat_model_sampler")
KINDS = (
    "bill_above_held",
    "bill_not_equal",
    "above_reservation",
    "untyped",
    "error_as_answer",
    "still_reserved",
    "key_seen",
    "sent_elsewhere",
)


def trips(runs: int, seed: int, stores: Sequence[Any]) -> list[Trip]:
    """The runs, over ways, sides and stores in turn; some of them in a hurry."""
    ways = [(way, sync) for way in WAYS for sync in (True, False)]
    made = []
    for i in range(runs):
        way, sync = ways[i % len(ways)]
        made.append(Trip(way, sync, seed + i, stores[i // len(ways) % len(stores)], hurried=i % 20 == 7))
    return made


def measured(
    runs: int,
    *,
    share: float = 0.35,
    seed: int = 0,
    faults: tuple[str, ...] = FAULTS,
    chat: Any = PlainChat,
    ways: Sequence[str] = SYNC_WAYS,
) -> dict[str, Any]:
    """Run ``runs`` trips against a server of ``faults``, and hold each against the server's bill."""
    going: dict[str, Trip] = {}
    with tempfile.TemporaryDirectory() as place:
        sql = SQLStore(f"sqlite:///{Path(place) / 'budget.db'}")
        server = FaultServer(seed, share, lambda t: len(going[t].bought) if t in going else 0, faults=faults)
        with server:
            server.patience = TIMEOUT
            models = Models(server.base_url, KEY, TIMEOUT, lambda name: _model(chat, name, server.base_url))
            made = [x for x in trips(runs, seed, (MemoryStore(), sql)) if x.way in ways]
            going.update((x.ticket, x) for x in made)
            started = time.monotonic()
            with ThreadPoolExecutor(TOGETHER) as pool:
                list(pool.map(lambda trip: _go(trip, models), [x for x in made if x.sync]))
            asyncio.run(_ago([x for x in made if not x.sync], models))
            server.settled()
            took = time.monotonic() - started
            report = judged(made, server)
        sql.close()
    return report | {"seconds": round(took, 1)}


def _model(chat: Any, name: str, url: str) -> Any:
    told = {"timeout": TIMEOUT, "max_tokens": CAP, "default_headers": {OWN_CLIENT: "yes"}}
    return chat(model=name, base_url=url, api_key=SecretStr(KEY), **told)


def _go(trip: Trip, models: Models) -> None:
    try:
        with get_usage_metadata_callback() as counting:
            WAYS[trip.way](trip, models)()
    except BaseException as error:  # noqa: BLE001  # that is what is looked at
        trip.error = error
    trip.counted = sum(one["total_tokens"] for one in counting.usage_metadata.values())


async def _ago(made: Sequence[Trip], models: Models) -> None:
    room = asyncio.Semaphore(TOGETHER)

    async def one(trip: Trip) -> None:
        async with room:
            try:
                with get_usage_metadata_callback() as counting:
                    await WAYS[trip.way](trip, models)()
            except BaseException as error:  # noqa: BLE001  # as above
                trip.error = error
            trip.counted = sum(one["total_tokens"] for one in counting.usage_metadata.values())

    await asyncio.gather(*(one(trip) for trip in made))
    await models.aclose()


def judged(made: Sequence[Trip], server: FaultServer) -> dict[str, Any]:
    """What the runs came to, and every violation by its kind."""
    bills: dict[str, list[Billed]] = defaultdict(list)
    for billed in server.bill:
        bills[billed.ticket].append(billed)
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    ends: Counter[str] = Counter()
    clean = 0
    for trip in made:
        bill = bills[trip.ticket]
        patience = 0.5 if trip.hurried else 0.8 * TIMEOUT
        late = any(getattr(event, "seconds", 0.0) > patience for event in trip.events)
        faulty = any(x.fault for x in bill) or trip.ticket in server.unplanned or late
        clean += not faulty
        for kind, said in _violations(trip, bill, faulty, server):
            names = sorted({x.fault for x in bill if x.fault})
            found[kind].append({"way": _name(trip), "seed": trip.seed, "said": said, "faults": names})
        ends["answer" if trip.ok else type(trip.error).__name__ if trip.error else "no answer"] += 1
    chats = [x for x in made if x.counted or x.way in ("with_recovery", "recoverable", "agent", "chat_model_sampler")]
    return {
        "runs": len(made),
        "by_way": Counter(_name(x) for x in made),
        "requests": len(server.bill),
        "faulty": sum(bool(x.fault) for x in server.bill),
        "clean_runs": clean,
        "bill": sum(x.tokens for x in server.bill),
        "recovery_bill": sum(x.tokens for x in server.bill if x.phase),
        "held": sum(_held(x) for x in made),
        "ends": dict(ends.most_common()),
        "violations": {kind: len(some) for kind, some in found.items()},
        "by_fault": _by_fault(server.bill, found),
        "examples": {kind: some[:12] for kind, some in found.items() if some},
        "callback": {
            "counted": sum(x.counted for x in chats),
            "bill": sum(b.tokens for x in chats for b in bills[x.ticket] if b.own),
        },
    }


def _by_fault(bill: Sequence[Billed], found: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, int]]:
    seen = Counter(x.fault for x in bill if x.fault)
    runs = Counter(fault for some in found.values() for one in some for fault in one["faults"])
    return {fault: {"responses": seen[fault], "in_runs_with_a_violation": runs[fault]} for fault in sorted(seen)}


def _name(trip: Trip) -> str:
    return f"{trip.way}{'' if trip.sync else '_async'}"


def _held(trip: Trip) -> int:
    return sum(x.charged or 0 for x in trip.bought)


def _violations(trip: Trip, bill: Sequence[Billed], faulty: bool, server: FaultServer) -> Iterator[tuple[str, str]]:
    accounts = {x.kind: x for x in trip.store.accounts(f"tenant={trip.ticket} ")}
    window = accounts.get("window")
    spent = window.spent if window else 0
    normal = [at for at, x in enumerate(trip.bought, 1) if x.normal]
    recovery = sum(x.tokens for x in bill if x.phase and x.phase not in normal)
    first = sum(x.tokens for x in bill if x.phase in normal)
    drawn = sum(x.charged or 0 for x in trip.bought if x.normal)
    if recovery > spent or first > drawn:
        yield "bill_above_held", f"recovery {recovery} of {spent}, first draw {first} of {drawn}"
    if not faulty and (recovery, first) != (spent, drawn):
        yield "bill_not_equal", f"recovery {recovery}, held {spent}; first draw {first}, held {drawn}"
    own = sum(x.tokens for x in bill if not x.phase)
    if not faulty and own and trip.credited != own:
        yield "bill_not_equal", f"first run {own}, credited {trip.credited}"
    for at, x in enumerate(trip.bought, 1):
        tries = max(x.tries, sum(b.phase == at for b in bill))
        if (x.charged or 0) > x.reserved * tries and not trip.hurried:
            yield "above_reservation", f"purchase {at}: {x.charged} of {x.reserved} x {tries}"
    if trip.hurried and _held(trip) > sum(x.reserved for x in trip.bought) * max(1, len(bill)):
        yield "above_reservation", f"all purchases: {_held(trip)}"
    recovered = any(x.phase for x in bill)
    own_error = trip.error is not None and not recovered and not isinstance(trip.error, RfxError)
    if trip.error is not None and not isinstance(trip.error, RfxError) and not (own_error and _has_a_thing(trip)):
        yield "untyped", f"{type(trip.error).__name__}: {str(trip.error)[:200]}"
    if trip.ok and any(word in (trip.said or "") for word in BAD_WORDS):
        yield "error_as_answer", (trip.said or "")[:200]
    if any(x.reserved for x in accounts.values()) or any(x.charged is None for x in trip.bought):
        yield "still_reserved", str([(x.kind, x.reserved) for x in accounts.values()])
    seen = [*map(repr, trip.events), *(json.dumps(as_record(x)) for x in trip.events)]
    if not own_error:  # LangGraph writes the user's own exception into its checkpoint, as it would without us
        seen += [*map(repr, trip.kept), *([] if trip.error is None else [_printed(trip.error)])]
    for text in seen:
        for spelling in spelled_keys(KEY):
            if spelling in text:
                at = text.index(spelling)
                yield "key_seen", text[max(0, at - 200) : at].replace("\n", " ")[-160:]
                return
    if server.elsewhere[trip.ticket] and trip.way in ("run", "recovery_graph"):
        yield "sent_elsewhere", f"{server.elsewhere[trip.ticket]} prompts"


def _has_a_thing(trip: Trip) -> bool:
    return trip.way not in ("run", "recovery_graph", "chat_model_sampler")


def _printed(error: BaseException) -> str:
    """All that a traceback, a log or a debugger may show of an exception."""
    said, seen = "".join(traceback.format_exception(error)), set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        said += f"{error!r} {error.args!r} {vars(error)!r}"
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return said


def main() -> None:
    """Print the JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=600)
    parser.add_argument("--share", type=float, default=0.35)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=FAULTS, action="append")
    given = parser.parse_args()
    logging.disable(logging.CRITICAL)
    settings: dict[str, Any] = {"share": given.share, "seed": given.seed, "faults": tuple(given.only or FAULTS)}
    report = measured(given.runs, **settings)
    report["retrying_clients"] = None
    if find_spec("langchain_openai"):
        from langchain_openai import ChatOpenAI

        ways = ("with_recovery", "recoverable", "agent", "chat_model_sampler")
        report["retrying_clients"] = measured(given.runs // 2, chat=ChatOpenAI, ways=ways, **settings)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
