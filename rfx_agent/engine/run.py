"""One run of one step, and the one way in which it pays: reserve, call, settle, record, tell.

A reservation is made in the step's own ledger and, where there is one, in the budget that runs share. There each
call has an id that is the same whenever the same run makes the same call, and what came back is recorded in the
transaction that charges it. A run that is started again after its process died is given the record in place of the
call.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, is_dataclass, replace
from typing import Any

from rfx_agent.bill import Operation, Purpose
from rfx_agent.budgets import ambient
from rfx_agent.budgets.charge import Charge, same_limits
from rfx_agent.budgets.limits import Grant, Refused, Replayed, Reservation
from rfx_agent.budgets.step import Purse
from rfx_agent.case import Case, Outcome
from rfx_agent.codec import SCHEMA, load, plain
from rfx_agent.engine.drive import Call, Flow, Reply
from rfx_agent.engine.settings import Settings
from rfx_agent.errors import StoreError
from rfx_agent.events import Done, Event, Finished, Reserved
from rfx_agent.evidence.verdicts import learn
from rfx_agent.policies.default import DefaultPolicy
from rfx_agent.policies.fixed import FixedPolicy
from rfx_agent.policies.learned import LearnedPolicy
from rfx_agent.ports import Sampler, Verifier
from rfx_agent.records import SampleResult, ScoreResult, Spend, Usage

__all__ = ["Paid", "Purchase", "Run"]

_log = logging.getLogger("rfx_agent")
_ACCEPTING = (DefaultPolicy, FixedPolicy, LearnedPolicy)


def _values(replies: tuple[Reply, ...]) -> tuple[Any, ...] | None:
    return None if any(x.error is not None for x in replies) else tuple(x.value for x in replies)


def _silent(_: tuple[Reply, ...]) -> Iterable[Done]:
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Purchase:
    """Calls that cost something, and everything that paying for them takes.

    Attributes:
        purpose: what for.
        cost: the most that the calls can cost together; reserved before they are made.
        calls: what is done; they may run at once.
        about: what the calls are about, as plain values and records. With the run's id it names the purchase in a
            shared budget: a policy that changed asks for another call, and must not be given this one's record.
        gives: the record that each call gives.
        price: what the replies really cost.
        model: name of the model that is asked, or "".
        keep: what is recorded of the replies, records of class ``gives``; None where nothing is to be.
        tell: events about the replies; not sent when they come from the record of an earlier process.
        normal: whether this is the step's first draw. It is recorded, but shared limits do not apply to it: they limit
            recoveries.
        flight: whether it counts as a recovery in flight.
        insist: whether the calls are made without the shared budget where its store cannot be reached.
        elsewhere: whether ``model`` is another one than the deployment's: shared limits by model then hold for it.
        remedy: what it is done for; "" for the first answer.
        attempt: which attempt of the case it belongs to (see ``events``).
    """

    purpose: Purpose
    cost: Spend
    calls: tuple[Call, ...]
    about: object = None
    gives: type[Any] = object
    price: Callable[[tuple[Reply, ...]], Spend]
    model: str = ""
    keep: Callable[[tuple[Reply, ...]], tuple[Any, ...] | None] = _values
    tell: Callable[[tuple[Reply, ...]], Iterable[Done]] = _silent
    normal: bool = False
    flight: bool = True
    insist: bool = False
    elsewhere: bool = False
    remedy: str = ""
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class Paid:
    """What came of a purchase.

    Attributes:
        replies: one for each call; none where it was refused.
        replayed: whether they come from the record of a process that died.
        spent: what they cost.
        refused: the caps or accounts that had no room, "store" where the store could not be reached; then no call
            was made.
        shared: whether the shared budget refused.
        why: the refusal in a sentence, or "".
        notes: what the case should say of the payment.
    """

    replies: tuple[Reply, ...] = ()
    replayed: bool = False
    spent: Spend = Spend()
    refused: tuple[str, ...] = ()
    shared: bool = False
    why: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Run:
    """The settings of a recovery with the parts of one call put in their place.

    Attributes:
        settings: what was configured.
        sampler: what is sampled: the settings' own, or the user's chain, node or agent.
        verifier: what judges.
        temperature: decode temperature of draws.
        on_event: called with every event, or None.
    """

    settings: Settings
    sampler: Sampler | None
    verifier: Verifier
    temperature: float
    on_event: Callable[[Event], None] | None

    @classmethod
    def of(
        cls,
        settings: Settings,
        *,
        sampler: Sampler | None = None,
        verifier: Verifier | None = None,
        temperature: float | None = None,
        on_event: Callable[[Event], None] | None = None,
    ) -> Run:
        """A run under ``settings``; what is None is taken from them."""
        return cls(
            settings,
            settings.sampler if sampler is None else sampler,
            settings.verifier if verifier is None else verifier,
            settings.temperature if temperature is None else temperature,
            settings.on_event if on_event is None else on_event,
        )

    @property
    def unseen(self) -> bool:
        """Whether nobody would see the engine accept a passing candidate: no hook, no trace store, no shared budget
        that counts traffic, and no policy of somebody else's."""
        s = self.settings
        return s.on_event is None and s.traces is None and s.shared is None and type(s.policy) in _ACCEPTING

    def emit(self, event: Event) -> None:
        """Give ``event`` to the hook. A hook that fails must not fail the step that it watches."""
        if self.on_event is None:
            return
        try:
            self.on_event(event)
        except Exception:  # noqa: BLE001  # the hook is foreign code
            _log.exception("on_event failed on %s", type(event).__name__)

    def finish(self, case: Case, outcome: Outcome) -> Case:
        """The case with its outcome, told to the hook; its verdicts are counted."""
        learn(self.settings.right_rates, case)
        regime = next((x.regime for x in reversed(case.decisions) if x.regime is not None), None)
        first = next((x.usage for x in case.rollouts if x.round is None), Usage())
        case = replace(case, outcome=outcome)
        if self.on_event is None:
            return case
        told = (case.ledger.spent - case.before, first, regime, case.step.task, case.bill)
        self.emit(Finished(case.step.id, outcome, *told, run_id=case.run_id))
        return case

    def short(self, case: Case, purpose: Purpose, cost: Spend) -> tuple[str, ...]:
        """The step's own caps that ``cost`` would cross, told to the hook; empty when it can be paid."""
        if caps := case.ledger.shortfall(cost):
            self.emit(Reserved(case.step.id, purpose, cost, caps, run_id=case.run_id))
        return caps

    def pay(self, case: Case, item: Purchase) -> Flow[tuple[Case, Paid]]:
        """Make the calls of ``item`` on the ledger of ``case``.

        Where the shared budget refuses, no model can be asked any more: the case is blocked.
        """
        name, purse = "", Purse(case.ledger)
        if self.settings.shared is not None:
            name = f"{case.run_id}/{case.holds}/{item.purpose}/{_digest(item.about)}"
            case = replace(case, holds=case.holds + 1)
        about = {"step_id": case.step.id, "run_id": case.run_id, "operation": case.next_operation}
        paid = yield from self.buy(purse, item, **about, name=name)
        model = item.model if paid.spent.calls else ""
        done = Operation(item.purpose, paid.spent, item.remedy, model, item.attempt, paid.refused)
        case = replace(case, ledger=purse.ledger).paid(done).note(*paid.notes)
        if paid.shared and item.elsewhere:
            case = case.note(paid.why)
        elif paid.shared and item.purpose != "escalate":  # a person may still be asked
            case = replace(case, blocked=paid.why, blocked_by=f"budget:{paid.refused[0]}")
        return case, paid

    def buy(
        self, purse: Purse, item: Purchase, *, step_id: str, run_id: str = "", operation: str = "", name: str = ""
    ) -> Flow[Paid]:
        """Make the calls of ``item`` on ``purse``, and on the shared budget where they have a ``name`` there.

        Where a budget holds for everything that runs here (``budgets/ambient.py``), they are reserved in it first. A
        model that LangChain calls inside pays there by itself; then the reservation makes way for it.
        """
        cost, at = item.cost, item.attempt

        def reserved(*caps: str) -> None:
            self.emit(Reserved(step_id, item.purpose, cost, caps, run_id=run_id, operation=operation, attempt=at))

        if caps := purse.reserve(cost):
            reserved(*caps)
            return Paid(refused=caps, why=f"The budget has too few {caps[0]} left.")
        hold: ambient.Hold | None = None
        if (scope := ambient.current()) is not None and not item.insist:  # a person is never the wrong one to ask
            held = yield from self._held(scope, item)
            if not isinstance(held, ambient.Hold):
                purse.settle(cost, Spend())
                refusal = _refusal(held)
                reserved(*refusal.refused)
                return refusal
            hold = held
        reserved()
        reservation: Reservation | None = None
        notes: tuple[str, ...] = ()
        if name:
            grant = yield from self._granted(name, item)
            if isinstance(grant, Replayed):
                spent, replies = _replayed(grant.record, item)
                purse.settle(cost, spent, item.model)
                yield from _ended(hold, replayed=spent)
                return Paid(replies, replayed=True, spent=spent)
            if isinstance(grant, Reservation):
                reservation = grant
            elif isinstance(grant, StoreError) and item.insist:
                notes = (f"{item.purpose} without the shared budget: {grant}",)
            else:
                purse.settle(cost, Spend())
                yield from _ended(hold, replayed=Spend())
                refusal = _refusal(grant)
                reserved(*refusal.refused)
                return refusal
        try:
            with ambient.purchase(hold):
                replies = (yield item.calls) if item.calls else ()
        except GeneratorExit:
            raise
        except BaseException:
            # Cancelled, or steering the graph, in mid-call: the cost is unknown, so charge all that was reserved.
            lost = cost.tried(max((x.meter.lost for x in item.calls), default=1))
            purse.settle(cost, lost, item.model)
            yield from _ended(hold, self._charge(item, lost))
            if reservation is not None:
                yield from self._settled(reservation, lost, None)
            raise
        try:
            actual = item.price(replies)
        except Exception:
            # A port broke its contract. What the call cost is not known, so all that was reserved.
            purse.settle(cost, cost, item.model)
            yield from _ended(hold)
            if reservation is not None:
                yield from self._settled(reservation, cost, None)
            raise
        purse.settle(cost, actual, item.model)
        yield from _ended(hold, self._charge(item, actual))
        if reservation is not None:
            kept = item.keep(replies)
            record = None if kept is None else _record(actual, replies, kept)
            notes += yield from self._settled(reservation, actual, record)
            if item.normal and self.settings.shared is not None:
                self.settings.shared.deposit(actual)
        for event in item.tell(replies):
            self.emit(replace(event, operation=operation, attempt=at))
        return Paid(replies, spent=actual, notes=notes)

    def _charge(self, item: Purchase, spend: Spend) -> Charge:
        """``spend`` on ``item``, for the budget that holds here: a scope's own clock counts its time."""
        asks = bool(item.cost.samples or item.cost.tokens or item.cost.calls)
        return Charge(
            spend=replace(spend, seconds=0.0, tool_seconds=0.0),
            model=item.model,
            priced=self.settings.price is not None,
            tool=not asks and item.cost.tool_seconds > 0,
            flight=asks,
        )

    def _held(self, scope: ambient.Scope, item: Purchase) -> Flow[ambient.Hold | ambient.Short | StoreError]:
        """What the budget that holds here says. What the engine charges in a shared one is not charged there again."""
        shared = self.settings.shared
        covered = () if shared is None else (same_limits(shared),)
        args = (self._charge(item, item.cost),)
        said: ambient.Hold | ambient.Short | StoreError = yield from _stored(
            Call(scope.reserve, scope.areserve, args, {"covered": covered})
        )
        return said

    def _granted(self, name: str, item: Purchase) -> Flow[Grant | StoreError]:
        """What the shared budget says; the error as a value where it cannot be asked."""
        shared = self.settings.shared
        assert shared is not None  # noqa: S101  # only then has a purchase a name
        if item.elsewhere and "model" in shared.scopes:
            shared = shared.scoped(model=item.model)
        claims = () if item.normal else shared.claims(item.cost, flight=item.flight)
        granted: Grant | StoreError = yield from _stored(Call(shared.reserve, shared.areserve, (name, claims)))
        return granted

    def _settled(self, reservation: Reservation, actual: Spend, record: str | None) -> Flow[tuple[str, ...]]:
        """Charge and record; a note where that could not be done, for then the reservation expires."""
        shared = self.settings.shared
        assert shared is not None  # noqa: S101  # it made the reservation
        said = yield from _stored(Call(shared.settle, shared.asettle, (reservation, actual, record)))
        return (f"the shared budget could not be settled: {said}",) if isinstance(said, StoreError) else ()


def _stored(call: Call) -> Flow[Any]:
    (reply,) = yield (call,)
    if reply.error is not None and not isinstance(reply.error, StoreError):
        raise reply.error
    return reply.error or reply.value


def _ended(hold: ambient.Hold | None, actual: Charge | None = None, *, replayed: Spend | None = None) -> Flow[None]:
    """Settle ``hold``: by what the calls cost, except what models inside have paid; or by what was paid before."""
    if hold is None:
        return
    if replayed is not None:
        yield (Call(hold.release, hold.arelease, (replayed,)),)
        return
    if actual is not None and hold.inside.calls:
        actual = replace(actual, spend=hold.rest(actual.spend))
    yield (Call(hold.settle, hold.asettle, (actual,)),)


def _refusal(why: Refused | StoreError | ambient.Short) -> Paid:
    if isinstance(why, ambient.Short):
        return Paid(refused=why.caps or why.accounts, shared=True, why=why.sentence)
    if isinstance(why, Refused):
        said = f"The shared budget has no room: {', '.join(why.accounts)}."
        return Paid(refused=why.accounts, shared=True, why=said)
    said = f"The shared budget cannot be reached, so nothing is spent: {why}"
    return Paid(refused=("store",), shared=True, why=said)


def _digest(about: object) -> str:
    parts = about if isinstance(about, tuple) else (about,)
    values = [plain(x) if is_dataclass(x) else x for x in parts]
    text = json.dumps(values if isinstance(about, tuple) else values[0], sort_keys=True, default=str)
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:12]


def _record(actual: Spend, replies: tuple[Reply, ...], kept: tuple[Any, ...]) -> str:
    spent, seconds, values = plain(actual), [x.seconds for x in replies], [_compact(x) for x in kept]
    return json.dumps({"schema": SCHEMA, "spent": spent, "seconds": seconds, "values": values})


def _compact(value: Any) -> Any:
    """Without raw tables: they are far larger than everything else, and only the process that made them needs them."""
    if isinstance(value, SampleResult):
        value = replace(value, rollouts=tuple(x.compact() for x in value.rollouts))
    return plain(replace(value, tables=()) if isinstance(value, ScoreResult) else value)


def _replayed(record: str, item: Purchase) -> tuple[Spend, tuple[Reply, ...]]:
    data = json.loads(record)
    if "values" not in data:  # schema 1 wrote an escalation as its Ask alone
        data = {"spent": plain(item.cost), "values": [data]}
    values = [load(item.gives, x) for x in data["values"]]
    seconds = [*data.get("seconds", ()), *([0.0] * len(values))]
    replies = tuple(Reply(x, None, s) for x, s in zip(values, seconds, strict=False))
    return load(Spend, data["spent"]), replies
