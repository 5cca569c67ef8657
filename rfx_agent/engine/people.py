"""A case before a person: opened once, told to those who want to know, and answered once."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from rfx_agent._types import Spend
from rfx_agent.case import Ask, Case, Outcome, Status, decode, encode
from rfx_agent.engine.drivers import Call, Flow
from rfx_agent.engine.paid import name_of, refused, reserve_shared, set_aside, settle_shared
from rfx_agent.escalation import apply_reply, payload
from rfx_agent.events import Escalated, Finished
from rfx_agent.limits import Hold, Refused, Replayed

if TYPE_CHECKING:
    from rfx_agent.engine.recovery import Recovery

__all__ = ["answer_human", "finish", "open_case"]

_FEE = Spend(escalations=1)
_NOTICE = 30.0  # seconds that somebody may take to be told


def open_case(r: Recovery, case: Case, *, human: bool) -> Flow[Case]:
    """Put the case before a person, or end it where nobody can be asked. Paid for here, before the interrupt.

    Whoever is to be told is told before the opening is recorded: a process that dies between the two tells them
    again, under the same key, and never not at all.
    """
    if not human:
        return _unresolved(r, case, "unresolved", case.decision.reason, "nobody can be asked")
    if refused(r, case, "escalate", _FEE):
        return _unresolved(r, case, "unasked", "budget:escalations", "no escalation is left in the budget")
    opened, wait = r.clock(), r.escalation.deadline
    ask = Ask(opened, None if wait is None else opened + wait, r.escalation.default)
    hold = None
    if r.shared is not None:
        case, name = name_of(case, "escalate", case.step.id)
        grant = yield from reserve_shared(r, name, r.shared.claims(_FEE, flight=False))
        if isinstance(grant, Refused):
            why = f"no escalation is left in the shared budget ({grant.accounts[0]})"
            return _unresolved(r, case, "unasked", f"budget:{grant.accounts[0]}", why)
        if isinstance(grant, Replayed):
            case = set_aside(r, case, "escalate", _FEE)
            return replace(case, ledger=case.ledger.settle(_FEE, _FEE), ask=decode(Ask, json.loads(grant.record)))
        if isinstance(grant, Hold):
            hold = grant
        else:  # a person is never the wrong one to ask
            case = case.note(f"escalated without the shared budget: {grant}")
    case = set_aside(r, case, "escalate", _FEE)
    case = replace(case, ledger=case.ledger.settle(_FEE, _FEE), ask=ask)
    case = yield from _notify(r, case)
    if hold is not None:
        case = case.note(*(yield from settle_shared(r, hold, _FEE, json.dumps(encode(ask)))))
    r.emit(Escalated(case.step.id, ask.deadline, run_id=case.run_id))
    return case


def answer_human(
    r: Recovery, case: Case, reply: object, fits: Callable[[Outcome], None] = lambda _: None
) -> Flow[Case]:
    """The case with a person's reply applied; raises ``EscalationError`` on one that does not fit.

    With a shared budget the first answer of all is the one that stands, whoever gave it and in whatever process; so
    is a default that was applied because the deadline had passed.

    Args:
        r: the deployment.
        case: with ``ask`` set.
        reply: what the person said, or None for no reply.
        fits: raises ``EscalationError`` too, on an outcome that cannot stand where the case came from.

    Raises:
        EscalationError: the case stays open.
        StoreError: whether there is an answer already cannot be told; the case stays open.
    """
    case = apply_reply(case, reply, now=r.clock())
    assert case.outcome is not None  # noqa: S101  # apply_reply gives one or raises
    outcome = case.outcome
    fits(outcome)
    if r.shared is not None and case.run_id:
        store, record = r.shared.store, json.dumps(encode(outcome))
        (kept,) = yield (Call(store.keep, store.akeep, (f"{case.run_id}/answer", record)),)
        if kept.error is not None:
            raise kept.error
        outcome = decode(Outcome, json.loads(kept.value))
    return finish(r, case, outcome)


def finish(r: Recovery, case: Case, outcome: Outcome) -> Case:
    """The case with its outcome, told to the hook."""
    r.emit(Finished(case.step.id, outcome, run_id=case.run_id))
    return replace(case, outcome=outcome)


def _unresolved(r: Recovery, case: Case, status: Status, reason: str, why: str) -> Case:
    sentence = f"{case.decision.sentence} {status.capitalize()}: {why}."
    return finish(r, case, Outcome(status, reason=reason, sentence=sentence))


def _notify(r: Recovery, case: Case) -> Flow[Case]:
    if (notifier := r.escalation.notifier) is None:
        return case
    key = f"{case.run_id or case.step.id}/escalate"
    (reply,) = yield (Call(notifier.notify, notifier.anotify, (payload(case),), {"key": key}, limit=_NOTICE),)
    if reply.error is None:
        return case
    return case.note(f"nobody could be told of the case: {type(reply.error).__name__}: {reply.error}")
