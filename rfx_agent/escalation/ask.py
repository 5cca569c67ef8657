"""A case before a person: opened once, announced to those who want to know, and answered once."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

from rfx_agent.case import Ask, Case, Outcome, Status
from rfx_agent.codec import dump, load
from rfx_agent.engine.drive import Call, Flow, Reply
from rfx_agent.engine.run import Purchase, Run
from rfx_agent.escalation.reply import apply_reply
from rfx_agent.escalation.request import payload, proposed
from rfx_agent.events import Escalated
from rfx_agent.records import Spend

__all__ = ["answer_person", "open_case"]

_FEE = Spend(escalations=1)
_NOTICE = 30.0  # seconds that a notification may take


def open_case(run: Run, case: Case, *, human: bool, otherwise: Outcome | None = None) -> Flow[Case]:
    """Put the case before a person, or end it where no person can be asked. Paid for here, before the interrupt.

    The notification goes out before the opening is recorded: a process that dies between the two sends it again, under
    the same key, instead of never.

    Args:
        run: the deployment.
        case: with a decision to escalate.
        human: whether a person can be asked.
        otherwise: the outcome if no person can be asked; by default the case ends without an answer.
    """

    def unresolved(status: Status, reason: str, why: str) -> Case:
        if otherwise is not None:
            return run.finish(case, replace(otherwise, sentence=f"{otherwise.sentence} {why[0].upper()}{why[1:]}."))
        return _unresolved(run, case, status, reason, why)

    if not human:
        return unresolved("unresolved", case.decision.reason, "nobody can be asked")
    if run.short(case, "escalate", _FEE):
        return unresolved("unasked", "budget:escalations", "no escalation is left in the budget")
    settings = run.settings.escalation
    opened = run.settings.clock()
    deadline = None if settings.deadline is None else opened + settings.deadline
    asked = replace(case, ask=Ask(opened, deadline, settings.default))
    notifier, calls = settings.notifier, tuple[Call, ...]()
    if notifier is not None:
        key = f"{case.run_id or case.step.id}/escalate"
        calls = (Call(notifier.notify, notifier.anotify, (payload(asked),), {"key": key}, limit=_NOTICE),)
    case, paid = yield from run.pay(
        case,
        Purchase(
            purpose="escalate",
            cost=_FEE,
            calls=calls,
            about=case.step.id,
            gives=Ask,
            price=lambda _: _FEE,
            keep=lambda _: (asked.ask,),
            tell=lambda _: [Escalated(case.step.id, deadline, run_id=case.run_id)],
            flight=False,
            insist=True,  # a person is never the wrong one to ask
            remedy="human",
            attempt=len(case.attempts) + 1,
        ),
    )
    if paid.refused:
        why = f"no escalation is left in the shared budget ({paid.refused[0]})"
        return unresolved("unasked", f"budget:{paid.refused[0]}", why)
    if paid.replayed:
        return replace(case, ask=paid.replies[0].value)
    return replace(case, ask=asked.ask).note(*_unnotified(paid.replies))


def answer_person(run: Run, case: Case, reply: object, fits: Callable[[Outcome], None] = lambda _: None) -> Flow[Case]:
    """The case with a person's reply applied; raises ``EscalationError`` on one that does not fit.

    With a shared budget the first answer of all stands, whoever gave it and in whatever process; so does a default
    that was applied because the deadline had passed.

    Args:
        run: the deployment.
        case: with ``ask`` set.
        reply: what the person said, or None for no reply.
        fits: raises ``EscalationError`` too, on an outcome that cannot stand where the case came from.

    Raises:
        EscalationError: the case stays open.
        StoreError: whether there is an answer already cannot be known; the case stays open.
    """
    case = apply_reply(case, reply, now=run.settings.clock())
    outcome, shared = case.outcome, run.settings.shared
    assert outcome is not None  # noqa: S101  # apply_reply gives one or raises
    fits(outcome)
    if shared is not None and case.run_id:
        record = json.dumps(dump(outcome))
        (kept,) = yield (Call(shared.store.keep, shared.store.akeep, (f"{case.run_id}/answer", record)),)
        if kept.error is not None:
            raise kept.error
        outcome = load(Outcome, json.loads(kept.value))
    return run.finish(case, outcome)


def _unresolved(run: Run, case: Case, status: Status, reason: str, why: str) -> Case:
    sentence = f"{case.decision.sentence} {status.capitalize()}: {why}."
    pick = proposed(case)
    best = pick.text if pick is not None and pick.text.strip() else None
    return run.finish(case, Outcome(status, best=best, reason=reason, sentence=sentence))


def _unnotified(replies: tuple[Reply, ...]) -> tuple[str, ...]:
    return tuple(
        f"nobody could be notified of the case: {type(x.error).__name__}: {x.error}"
        for x in replies
        if x.error is not None
    )
