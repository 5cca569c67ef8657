"""Each fault alone and all mixed at 30 %: what became of every run, and whether the ledgers say what the server did."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any, get_args

from benchmarks.chaos.parts import recovery, sampler, step_of, woken, wrong
from benchmarks.chaos.server import ERROR_TEXT, FAULTS, Server, Settings, running
from rfx_agent import Case, InFlight, Recovery, SharedBudget, Window, recovery_graph, step_input
from rfx_agent.budgets.memory import MemoryStore
from rfx_agent.case import Status
from rfx_agent.codec import load
from rfx_agent.records import Spend
from rfx_agent.samplers.breaker import CircuitBreaker

__all__ = ["cancelled", "down", "faults", "one_fault", "violations"]

_WAYS = ("graph", "graph", "arun", "graph_sync", "sync")
_HANGS = {"verifier": 0.05, "tool": 0.3}


def faults(*, runs: int = 200, together: int = 100, share: float = 0.3) -> dict[str, Any]:
    """``runs`` runs, ``together`` at once, under each of ``FAULTS`` with probability ``share``, then under all."""
    plans: dict[str, Mapping[str, float]] = {"none": {}, **{name: {name: share} for name in FAULTS}}
    plans["mixed"] = {name: share / len(FAULTS) for name in FAULTS}
    found = {}
    with running() as server:
        for name, plan in plans.items():
            found[name] = one_fault(server, plan, prefix=name, runs=runs, together=together)
        found["down"] = down(server, runs=runs)
        found["cancelled"] = cancelled(server, runs=runs)
    return {"held": all(x["held"] for x in found.values()), "share": share, "runs": runs, "faults": found}


def one_fault(
    server: Server,
    plan: Mapping[str, float],
    *,
    prefix: str,
    runs: int,
    together: int,
    hangs: Mapping[str, float] | None = None,
    timeout: float = 0.5,
    retries: int = 2,
    **more: Any,
) -> dict[str, Any]:
    """What ``runs`` runs came to under ``plan``. Each begins with a wrong candidate, or with none."""
    server.reset()
    server.set(faults=dict(plan), seed=Settings().seed)
    model = sampler(server.base_url, timeout=timeout, max_retries=retries)
    made = recovery(model, hangs=_HANGS if hangs is None else hangs, verdict_seconds=0.25, **more)
    names = [f"{prefix}-{i}" for i in range(runs)]
    started = time.perf_counter()
    try:
        ended = asyncio.run(_all(made, names, together))
    finally:
        woken.set()  # the threads left behind by sync calls
        woken.clear()
    return _report(names, ended, server.truth(), time.perf_counter() - started)


def cancelled(server: Server, *, runs: int, seed: int = 0) -> dict[str, Any]:
    """What the shared budget says after ``runs`` runs, most of them cancelled at a random moment: nothing is left
    reserved, and what was under way counts as spent in full."""
    server.reset()
    server.set(faults={}, seed=seed)
    store = MemoryStore()
    limits = (Window("global", "tokens", 10**9, per="day"), InFlight("global", runs))
    ended: Counter[str] = Counter()

    async def main() -> None:
        model = sampler(server.base_url)
        made = recovery(model, shared=SharedBudget(store=store, limits=limits))
        draw = random.Random(seed)  # noqa: S311  # a seed makes it the same again
        tasks = []
        for i in range(runs):
            step = step_of(f"cancelled-{i}")
            tasks.append(asyncio.create_task(made.arun(step, wrong(step))))
            asyncio.get_running_loop().call_later(draw.uniform(0, 1.0), tasks[-1].cancel)
        for said in await asyncio.gather(*tasks, return_exceptions=True):
            ended[type(said).__name__] += 1
        await model.aclose()

    asyncio.run(main())
    accounts = {x.name: x for x in store.accounts()}
    tokens = accounts["global tokens/86400s"]
    served = server.truth()["total"].get("tokens", 0)
    left = {name: x.reserved for name, x in accounts.items() if x.reserved}
    return {
        "held": not left and served <= tokens.spent and set(ended) <= {"Case", "CancelledError"},
        "ended": dict(ended),
        "reserved_at_the_end": left,
        "granted": tokens.granted,
        "spent": tokens.spent,
        "served_tokens": served,
    }


def down(server: Server, *, runs: int, together: int = 10, seconds: float = 1.0) -> dict[str, Any]:
    """A server that is down, behind a circuit breaker: ``runs`` runs end without waiting for it, and say why. Then it
    is up again, and after ``seconds`` the runs find it so."""
    server.reset()
    server.set(faults={"status_503": 1.0})
    breaker = CircuitBreaker(sampler(server.base_url, max_retries=0), failures=5, seconds=seconds)
    made = recovery(breaker)

    async def main() -> tuple[list[Case | Exception], int, list[Case | Exception]]:
        broken = await _all(made, [f"down-{i}" for i in range(runs)], together, close=False)
        requests = server.truth()["total"]["requests"]
        server.set(faults={})
        await asyncio.sleep(seconds)
        probe = await _all(made, ["probe-1"], 1, close=False)
        return broken, requests, probe + await _all(made, [f"up-{i}" for i in range(runs)], together)

    broken, requests, healed = asyncio.run(main())
    ends = [Counter(_said(x) for x in cases) for cases in (broken, healed)]
    wrong = [x for case in broken + healed if isinstance(case, Case) for x in violations(case.step.id, case)]
    unhandled = any(isinstance(x, Exception) for x in broken + healed)
    # Those that were under way when it opened were not held back.
    held = not wrong and not unhandled and requests <= 5 + 2 * together and ends[1]["unresolved: circuit_open"] == 0
    return {"held": held, "down": dict(ends[0]), "requests_while_down": requests, "up": dict(ends[1]), "broken": wrong}


def _said(case: Case | Exception) -> str:
    if isinstance(case, Exception) or case.outcome is None:
        return repr(case)[:200]
    return f"{case.outcome.status}: {case.outcome.reason}"


async def _all(made: Recovery, names: list[str], together: int, *, close: bool = True) -> list[Case | Exception]:
    gate = asyncio.Semaphore(together)
    graph = recovery_graph(made)

    async def one(i: int, name: str) -> Case | Exception:
        step = step_of(name)
        candidate = wrong(step) if i % 2 else None
        async with gate:
            try:
                match _WAYS[i % len(_WAYS)]:
                    case "graph":
                        state = await graph.ainvoke(step_input(step, candidate))
                        return load(Case, state["recovery"])
                    case "graph_sync":
                        state = await asyncio.to_thread(graph.invoke, step_input(step, candidate))
                        return load(Case, state["recovery"])
                    case "arun":
                        return await made.arun(step, candidate)
                    case _:
                        return await asyncio.to_thread(made.run, step, candidate)
            except Exception as error:  # noqa: BLE001  # an unhandled one is what this looks for
                return error

    try:
        return await asyncio.gather(*(one(i, name) for i, name in enumerate(names)))
    finally:
        if close:
            await made.sampler.aclose()  # type: ignore[attr-defined]  # it is an OpenAISampler


def _report(
    names: list[str], ended: list[Case | Exception], truth: Mapping[str, Any], seconds: float
) -> dict[str, Any]:
    outcomes: Counter[str] = Counter()
    broken: list[str] = []
    spent = Spend()
    calls_apart, tokens_uncounted = 0, 0
    for name, case in zip(names, ended, strict=True):
        if isinstance(case, Exception):
            broken.append(f"{name}: {type(case).__name__}: {case}")
            continue
        outcome = case.outcome
        if wrongs := violations(name, case):
            broken += wrongs
        elif outcome is not None:
            outcomes[f"{outcome.status}: {outcome.reason}"] += 1
        spent += case.ledger.spent
        real = truth["runs"].get(name, {})
        calls_apart += abs(case.ledger.spent.calls - real.get("requests", 0))
        tokens_uncounted += max(0, real.get("tokens", 0) - case.ledger.spent.tokens)
    total = truth["total"]
    return {
        "held": not broken,
        "runs": len(names),
        "verified": sum(n for name, n in outcomes.items() if name.startswith(("accepted", "rescued"))),
        "outcomes": dict(outcomes.most_common()),
        "broken": broken[:5],
        "faults": {name: total[name] for name in FAULTS if name in total},
        "http_requests": total.get("requests", 0),
        "ledger_calls": spent.calls,
        "calls_apart": calls_apart,
        "asked": spent.asked,
        "amplification": round(spent.calls / spent.asked, 3) if spent.asked else None,
        "ledger_tokens": spent.tokens,
        "served_tokens": total.get("tokens", 0),
        "tokens_uncounted": tokens_uncounted,
        "tokens_of_broken_replies": total.get("wasted", 0),
        "seconds": round(seconds, 2),
    }


def violations(name: str, case: Case) -> list[str]:
    """What is wrong with how a run ended: an answer that nobody verified, an error's text, no outcome, no reason."""
    outcome, found = case.outcome, []
    if outcome is None:
        return [f"{name}: no outcome"]
    if outcome.status not in get_args(Status) or not outcome.reason:
        found.append(f"{name}: status {outcome.status!r}, reason {outcome.reason!r}")
    if outcome.text is not None and ERROR_TEXT in outcome.text:
        found.append(f"{name}: an error's text was returned as an answer")
    if outcome.ok and outcome.answer != case.step.expected:
        found.append(f"{name}: {outcome.status} with {outcome.answer!r}, and {case.step.expected} is right")
    if not outcome.ok and outcome.text is not None:
        found.append(f"{name}: {outcome.status}, and there is a text")
    if case.ledger.reserved != Spend():
        found.append(f"{name}: still reserved: {case.ledger.reserved}")
    return found
