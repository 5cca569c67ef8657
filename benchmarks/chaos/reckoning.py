"""After the last kill: what the store, the checkpoints, the logs and the model's server say, beside each other."""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.chaos.journal import read
from benchmarks.chaos.worker import Plan, checkpointer, ended, graph_of, opened
from rfx_agent import Case, Outcome, Recovery
from rfx_agent.budgets.at import store_at
from rfx_agent.budgets.limits import Account, Replayed, Reservation
from rfx_agent.codec import load
from rfx_agent.ports import Sampler

__all__ = ["reckon"]


class _Silent:
    def write(self, **entry: Any) -> None:
        pass


def reckon(plan: Plan, names: Sequence[str], truth: Mapping[str, Any]) -> dict[str, Any]:
    """What was lost, charged twice, stuck or answered twice among the threads of work called ``names``."""
    store = store_at(plan.budget)
    entries = list(read(plan.journal))
    _expired(store, plan.expires)
    cases = _cases(plan, names, store)
    accounts = {x.name: x for x in store.accounts()}
    wrong: defaultdict[str, list[str]] = defaultdict(list)
    sums: Counter[str] = Counter()
    for name in names:
        case = cases.get(name)
        if case is None or case.outcome is None:
            wrong["stuck"].append(name)
            continue
        sums.update(_charged(name, case, accounts, truth["runs"].get(name, {}), wrong))
    sums.update(_records(store, entries, cases, wrong))
    sums.update(_answers(entries, cases, wrong))
    for account in accounts.values():
        if account.reserved:
            wrong["reserved"].append(f"{account.name}: {account.reserved} still reserved")
    last = {x["pid"]: x["op"] for x in entries}
    errors = Counter(x["error"][:160] for x in entries if x["op"] == "error")
    outcomes = Counter(f"{c.outcome.status}: {c.outcome.reason}" for c in cases.values() if c.outcome is not None)
    return {
        "held": not any(wrong.values()),
        "threads": len(names),
        "lost_results": len(wrong["lost"]),
        "double_charges": len(wrong["charged"]),
        "stuck": len(wrong["stuck"]),
        "answered_otherwise": len(wrong["answered"]),
        "reserved_at_the_end": sum(x.reserved for x in accounts.values()),
        "wrong": {kind: found[:5] for kind, found in wrong.items() if found},
        "last_words": dict(Counter(last.values()).most_common()),
        "worker_errors": dict(errors.most_common(8)),
        "outcomes": dict(outcomes.most_common()),
        **sums,
    }


def _expired(store: Any, expires: float) -> None:
    """Wait until what dead owners had reserved has expired."""
    ends = time.time() + expires + 5
    while any(x.reserved for x in store.accounts()) and time.time() < ends:
        time.sleep(0.25)


def _cases(plan: Plan, names: Sequence[str], store: Any) -> dict[str, Case]:
    found = {}
    with checkpointer(plan.checkpoints) as saver:
        for name in names:
            made: Recovery = opened(plan, _Silent(), _NoModel(), store, name)
            state = graph_of(made, name, saver).get_state({"configurable": {"thread_id": name}})
            if ended(state):
                found[name] = load(Case, state.values["recovery"])
    return found


class _NoModel(Sampler):
    name = "none"

    def sample(self, request: Any) -> Any:
        raise NotImplementedError


def _charged(
    name: str, case: Case, accounts: Mapping[str, Account], served: Mapping[str, int], wrong: dict[str, list[str]]
) -> Counter[str]:
    """The thread's account against its ledger and against the server. Its first draw is normal traffic: no account."""
    account = accounts.get(f"run={name} tokens/86400s")
    spent, lost = (account.spent, account.lost) if account else (0, 0)
    first = case.attempts[0].tokens if case.attempts and case.rollouts and case.rollouts[0].round == 0 else 0
    ledger = case.ledger.spent.tokens
    if spent - lost != ledger - first:
        wrong["charged"].append(f"{name}: the store charged {spent - lost}, the ledger says {ledger - first}")
    # A first draw that died with its process is made again, and no limit holds for it.
    if (real := served.get("tokens", 0) - served.get("first_tokens", 0)) > spent:
        wrong["charged"].append(f"{name}: {real} tokens were served, {spent} are accounted for")
    if account is not None and account.spent > account.granted:
        wrong["charged"].append(f"{name}: spent {account.spent} of {account.granted} granted")
    return Counter(
        served_tokens=served.get("tokens", 0),
        ledger_tokens=ledger,
        granted=account.granted if account else 0,
        spent=spent,
        lost_tokens=lost,
        first_draws_paid_again=served.get("first_tokens", 0) > first > 0,
        threads_with_a_loss=lost > 0,
    )


def _records(
    store: Any, entries: Sequence[dict[str, Any]], cases: Mapping[str, Case], wrong: dict[str, list[str]]
) -> Counter[str]:
    """Every draw that was paid for and recorded is in its case, and nowhere else."""
    runs = {case.run_id: (name, case) for name, case in cases.items()}
    counts: Counter[str] = Counter()
    replayed = Counter(x["id"] for x in entries if x["op"] == "reserve" and x.get("replayed"))
    counts["replayed"] = sum(replayed.values())
    seen: set[str] = set()
    for entry in entries:
        if entry["op"] != "settling" or entry["record"] is None or entry["id"] in seen:
            continue
        seen.add(entry["id"])
        run, _, purpose, _ = entry["id"].split("/")
        grant = store.reserve(entry["id"], (), seconds=60)
        if isinstance(grant, Reservation):
            store.release(grant)
            counts["killed_before_the_record"] += 1
            continue
        assert isinstance(grant, Replayed)  # noqa: S101  # nothing is claimed, so nothing is refused
        counts["recorded"] += 1
        if run not in runs:
            wrong["lost"].append(f"{entry['id']} is of no case: a run that was begun anew paid anew")
            continue
        if purpose == "sample":
            name, case = runs[run]
            drawn = {x["response_id"] for v in json.loads(grant.record)["values"] for x in v.get("rollouts", ())}
            gone = {x for x in drawn if x.startswith("draw/")} - {x.response_id for x in case.rollouts}
            wrong["lost"] += [f"{name}: {x} was recorded and is not in the case" for x in gone]
            counts["recorded_draws"] += len(drawn)
    return counts


def _answers(entries: Sequence[dict[str, Any]], cases: Mapping[str, Case], wrong: dict[str, list[str]]) -> Counter[str]:
    """Every process that saw a thread end saw the same outcome; what a person said stands if they were in time."""
    counts: Counter[str] = Counter()
    answering: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for entry in entries:
        if entry["op"] == "answering":
            answering[entry["item"]].append(entry)
        elif entry["op"] == "ended" and entry["item"] in cases:
            case = cases[entry["item"]]
            if load(Outcome, entry["outcome"]) != case.outcome:
                wrong["answered"].append(f"{entry['item']}: ended as {entry['outcome']}, stands as {case.outcome}")
    for name, said in answering.items():
        if name not in cases:
            continue
        case = cases[name]
        if case.outcome is None or case.ask is None:
            continue
        counts["threads_answered"] += 1
        counts["answers_given"] += len(said)
        deadline = case.ask.deadline or float("inf")
        words = [x["reply"]["message"] for x in said if x["reply"] != "sweep" and x["t"] <= deadline]
        outcome = case.outcome
        if outcome.status == "human":
            if outcome.text not in words:
                wrong["answered"].append(f"{name}: {outcome.text!r} stands, in time were {words}")
        elif outcome.reason != "deadline:reject":
            wrong["answered"].append(f"{name}: {outcome.status}: {outcome.reason} after {words}")
        counts[f"answered_{'by_a_person' if outcome.status == 'human' else 'by_the_default'}"] += 1
    kept: defaultdict[str, set[str]] = defaultdict(set)
    for entry in entries:
        if entry["op"] == "keep":
            kept[entry["id"]].add(entry["kept"])
    wrong["answered"] += [f"{name}: {len(stood)} answers stood" for name, stood in kept.items() if len(stood) > 1]
    counts["kept_more_than_once_asked"] = sum(
        n > 1 for n in Counter(x["id"] for x in entries if x["op"] == "keep").values()
    )
    return counts
