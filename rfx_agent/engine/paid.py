"""Calls that cost something: reserved before they are made, settled and recorded afterwards, and never paid twice.

A reservation is made in the step's own ledger and, where there is one, in the budget that runs share. There each
call has an id that is the same whenever the same run makes the same call, and what came back is recorded in the
transaction that charges it. A run that is started again after its process died is given the record in place of the
call.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rfx_agent._errors import StoreError
from rfx_agent._types import SampleResult, ScoreResult, Spend
from rfx_agent.case import Case, decode, encode
from rfx_agent.engine.drivers import Call, Flow, Reply
from rfx_agent.events import Purpose, Reserved
from rfx_agent.limits import Claim, Grant, Hold, Refused, Replayed

if TYPE_CHECKING:
    from rfx_agent.engine.recovery import Recovery

__all__ = ["Paid", "blocked", "name_of", "paid", "refused", "reserve_shared", "set_aside", "settle_shared"]


@dataclass(frozen=True, slots=True)
class Paid:
    """What came of paid calls.

    Attributes:
        replies: one for each call; none where the shared budget had no room.
        replayed: whether they come from the record of a run that was broken off.
    """

    replies: tuple[Reply, ...]
    replayed: bool = False


def paid(
    r: Recovery,
    case: Case,
    purpose: Purpose,
    cost: Spend,
    calls: tuple[Call, ...],
    *,
    about: object,
    gives: type[Any],
    price: Callable[[tuple[Reply, ...]], Spend],
    normal: bool = False,
) -> Flow[tuple[Case, Paid]]:
    """Make ``calls``, which together cost at most ``cost``.

    Args:
        r: the deployment.
        case: the step so far.
        purpose: what for.
        cost: reserved; the step's own ledger must be able to pay it.
        calls: what to do.
        about: what the calls are about, as records; tells this call from another that a changed policy would make
            in its place.
        gives: the record that each call gives.
        price: what the replies really cost.
        normal: whether this is normal traffic, the step's first draw: recorded, and no recovery that limits hold for.

    Raises:
        BudgetExhausted: the step's own ledger cannot pay; nothing was called.
    """
    case = set_aside(r, case, purpose, cost)
    hold = None
    if r.shared is not None:
        claims = () if normal else r.shared.claims(cost)
        case, name = name_of(case, purpose, about)
        grant = yield from reserve_shared(r, name, claims)
        if isinstance(grant, Replayed):
            case, replies = _replayed(case, grant.record, cost, gives)
            return case, Paid(replies, replayed=True)
        if not isinstance(grant, Hold):
            case = replace(case, ledger=case.ledger.settle(cost, Spend()))
            return blocked(r, case, purpose, cost, grant), Paid(())
        hold = grant
    try:
        replies = yield calls
    except GeneratorExit:
        raise
    except BaseException:
        # Cancelled, or steering the graph, in mid-call: nobody knows what it cost, so all that was reserved.
        if hold is not None:
            yield from settle_shared(r, hold, cost, None)
        raise
    actual = price(replies)
    case = replace(case, ledger=case.ledger.settle(cost, actual))
    if hold is not None:
        record = None if any(x.error is not None for x in replies) else _record(actual, replies)
        unsettled = yield from settle_shared(r, hold, actual, record)
        case = case.note(*unsettled)
        if normal and r.shared is not None:
            r.shared.deposit(actual)
    return case, Paid(replies)


def name_of(case: Case, purpose: str, about: object) -> tuple[Case, str]:
    """The id of the case's next paid call, and the case with it counted."""
    text = json.dumps(encode(about), sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode(errors="replace")).hexdigest()[:12]
    return replace(case, holds=case.holds + 1), f"{case.run_id}/{case.holds}/{purpose}/{digest}"


def reserve_shared(r: Recovery, name: str, claims: tuple[Claim, ...]) -> Flow[Grant | StoreError]:
    """What the shared budget says to ``claims``; the error as a value where it cannot be asked."""
    assert r.shared is not None  # noqa: S101  # the caller has looked
    (reply,) = yield (Call(r.shared.reserve, r.shared.areserve, (name, claims)),)
    if reply.error is not None and not isinstance(reply.error, StoreError):
        raise reply.error
    return reply.error or reply.value


def settle_shared(r: Recovery, hold: Hold, actual: Spend, record: str | None) -> Flow[tuple[str, ...]]:
    """Charge and record; a note where that could not be done, for then the hold is written off when its time is up."""
    assert r.shared is not None  # noqa: S101  # the caller has looked
    (reply,) = yield (Call(r.shared.settle, r.shared.asettle, (hold, actual, record)),)
    if reply.error is not None and not isinstance(reply.error, StoreError):
        raise reply.error
    return () if reply.error is None else (f"the shared budget could not be settled: {reply.error}",)


def blocked(r: Recovery, case: Case, purpose: Purpose, cost: Spend, why: Refused | StoreError) -> Case:
    """With the reason why the shared budget lets no model be asked any more, told to the hook too."""
    if isinstance(why, Refused):
        caps, said = why.accounts, f"The shared budget has no room: {', '.join(why.accounts)}."
    else:
        caps, said = ("store",), f"The shared budget cannot be reached, so nothing is spent: {why}"
    r.emit(Reserved(case.step.id, purpose, cost, caps, run_id=case.run_id))
    return replace(case, blocked=said, blocked_by=f"budget:{caps[0]}")


def refused(r: Recovery, case: Case, purpose: Purpose, cost: Spend) -> tuple[str, ...]:
    """The step's own caps that ``cost`` would cross, told to the hook; empty when it can be paid."""
    if caps := case.ledger.shortfall(cost):
        r.emit(Reserved(case.step.id, purpose, cost, caps, run_id=case.run_id))
    return caps


def set_aside(r: Recovery, case: Case, purpose: Purpose, cost: Spend) -> Case:
    """With ``cost`` reserved in the step's own ledger; raises ``BudgetExhausted`` where it cannot be paid."""
    case = replace(case, ledger=case.ledger.reserve(cost))
    r.emit(Reserved(case.step.id, purpose, cost, run_id=case.run_id))
    return case


def _record(actual: Spend, replies: tuple[Reply, ...]) -> str:
    values = [encode(_compact(x.value)) for x in replies]
    return json.dumps({"spent": encode(actual), "seconds": [x.seconds for x in replies], "values": values})


def _compact(value: Any) -> Any:
    """Without raw tables: they are far larger than everything else, and only the process that made them needs them."""
    if isinstance(value, SampleResult):
        return replace(value, rollouts=tuple(x.compact() for x in value.rollouts))
    return replace(value, tables=()) if isinstance(value, ScoreResult) else value


def _replayed(case: Case, record: str, cost: Spend, gives: type[Any]) -> tuple[Case, tuple[Reply, ...]]:
    data = json.loads(record)
    actual = decode(Spend, data["spent"])
    values = [decode(gives, x) for x in data["values"]]
    replies = tuple(Reply(x, None, seconds) for x, seconds in zip(values, data["seconds"], strict=True))
    return replace(case, ledger=case.ledger.settle(cost, actual)), replies
