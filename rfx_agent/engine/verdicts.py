"""Verdicts: asked for at once, paid for where the verifier costs model calls, and not waited for without end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rfx_agent._errors import VerifierError
from rfx_agent._types import Rollout, Spend, Step, Usage, Verdict
from rfx_agent.case import Case
from rfx_agent.engine.drivers import Call, Flow, Reply, TimedOut
from rfx_agent.engine.paid import paid, refused
from rfx_agent.events import Judged

if TYPE_CHECKING:
    from rfx_agent.engine.recovery import Recovery

__all__ = ["judge", "verdict_call"]

_UNPAID = Verdict(False, reason="not judged: the budget cannot pay for the verifier")


def verdict_call(r: Recovery, step: Step, rollout: Rollout, peers: Sequence[Rollout]) -> Call:
    """Ask the verifier about ``rollout``; broken off after ``Recovery.verdict_seconds``, unless it cannot hang."""
    verifier = r.verifier
    limit = None if getattr(verifier, "instant", False) else r.verdict_seconds
    return Call(verifier.verify, verifier.averify, (step, rollout), {"peers": peers}, limit)


def judge(r: Recovery, case: Case, new: set[str]) -> Flow[Case]:
    """With a verdict on each rollout in ``new``; with peers that matter, the failed ones are judged again.

    A rollout whose verdict the budget cannot pay for, or that did not come in time, is not accepted, and its verdict
    says why.
    """
    peers = case.rollouts
    wanted = [x for x in peers if x.id in new or (r.verifier.needs_peers and not x.passed)]
    verdicts: dict[str, Verdict] = {x.id: x.verdict or _UNPAID for x in wanted}
    due, cost = _affordable(r, case, wanted)
    calls = tuple([verdict_call(r, case.step, x, peers) for x in due])
    if cost is None or not due:
        replies, told = (yield calls), True
        case = replace(case, ledger=case.ledger.charge(_price(r, replies)))
    else:
        about = (r.verifier.name, [(x.id, x.text) for x in due])
        case, done = yield from paid(
            r, case, "verify", cost, calls, about=about, gives=Verdict, price=lambda x: _price(r, x, cost)
        )
        replies, told = done.replies, not done.replayed
        due = due if replies else []
    for rollout, reply in zip(due, replies, strict=True):
        verdict = verdicts[rollout.id] = _verdict(r, rollout, reply)
        if told:
            said = (verdict.passed, verdict.weak, reply.seconds, r.verifier.name, verdict.usage)
            r.emit(Judged(case.step.id, rollout.id, *said, run_id=case.run_id))
    return replace(case, rollouts=tuple(replace(x, verdict=verdicts.get(x.id, x.verdict)) for x in peers))


def _verdict(r: Recovery, rollout: Rollout, reply: Reply) -> Verdict:
    error = reply.error
    if error is None:
        return reply.value  # type: ignore[no-any-return]  # what a verifier gives
    if isinstance(error, TimedOut):
        return Verdict(False, reason=f"not judged: {r.verifier.name}: {error}")
    if isinstance(error, VerifierError):
        raise error
    raise VerifierError(
        f"{r.verifier.name} broke on rollout {rollout.id}: {type(error).__name__}: {error}", rollout=rollout
    ) from error


def _price(r: Recovery, replies: tuple[Reply, ...], bound: Spend | None = None) -> Spend:
    """What the verdicts cost. One that was broken off may have cost all that was reserved for them."""
    spent = Spend()
    for reply in replies:
        usage = reply.value.usage if reply.error is None else Usage(calls=getattr(reply.error, "calls", 0))
        spent += r.spend(usage, seconds=reply.seconds) + Spend(asked=int(usage.calls > 0))
    if bound is not None and any(isinstance(x.error, TimedOut) for x in replies):
        return replace(bound, seconds=spent.seconds)
    return spent


def _affordable(r: Recovery, case: Case, wanted: list[Rollout]) -> tuple[list[Rollout], Spend | None]:
    """Those of ``wanted`` whose verdicts can be paid for together, and the most they cost; None where they are free."""
    bound = getattr(r.verifier, "bound", None)
    if bound is None:
        return wanted, None
    due: list[Rollout] = []
    total = Spend()
    for rollout in wanted:
        cost = r.spend(bound(case.step, rollout))
        if not refused(r, case, "verify", total + cost):
            due.append(rollout)
            total += cost
    return due, total
