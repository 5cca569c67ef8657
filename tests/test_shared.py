"""A budget that many runs share: what is refused, what is charged, and what a second process resumes."""

import asyncio
import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from scenarios import EVERY, SCENARIOS, STEP

from rfx_agent import (
    Case,
    ConfigError,
    Escalation,
    ExactVerifier,
    InFlight,
    Price,
    Ratio,
    Recovery,
    RetryBudget,
    Rollout,
    SharedBudget,
    Window,
    outcome_of,
    recovery_graph,
    step_input,
)
from rfx_agent.budgets.limits import Account
from rfx_agent.budgets.memory import MemoryStore
from rfx_agent.engine.drive import drive
from rfx_agent.engine.nodes import diagnose, start
from rfx_agent.engine.run import Run
from rfx_agent.errors import StoreError
from rfx_agent.escalation.overdue import aclose_overdue, close_overdue
from rfx_agent.records import Usage
from rfx_agent.testing import ScriptedSampler, ScriptedVerifier

THREAD: Any = {"configurable": {"thread_id": "t"}}


def run(recovery: Recovery, candidate: str | None = "41", run_id: str = "run") -> Case:
    return recovery.run(STEP, candidate, run_id=run_id)


def arun(recovery: Recovery, candidate: str | None = "41", run_id: str = "run") -> Case:
    return asyncio.run(recovery.arun(STEP, candidate, run_id=run_id))


ways = pytest.mark.parametrize("way", [run, arun])


def failing(shared: SharedBudget, texts: Sequence[Any] = (), **more: Any) -> Recovery:
    """Three draws at once, which is all that a step may have."""
    sampler = ScriptedSampler(texts, last="40")
    options: dict[str, Any] = {"budget": RetryBudget(samples=3), "max_tokens": 64, "extra_samples": 3} | more
    return Recovery(sampler=sampler, verifier=ScriptedVerifier(["42"]), shared=shared, **options)


def requests(recovery: Recovery) -> int:
    assert isinstance(recovery.sampler, ScriptedSampler)
    return len(recovery.sampler.requests)


def account(store: MemoryStore, name: str) -> Account:
    (one,) = [x for x in store.accounts() if x.name == name]
    return one


@ways
@pytest.mark.parametrize("name", EVERY)
def test_a_store_without_limits_changes_nothing(name: str, way: Callable[..., Case]) -> None:
    scenario = SCENARIOS[name]
    alone = way(scenario.recovery(), scenario.candidate, "")
    beside = way(scenario.recovery(shared=SharedBudget(store=MemoryStore())), scenario.candidate)

    def timeless(case: Case) -> Any:
        spent = replace(case.ledger.spent, seconds=0.0, tool_seconds=0.0)
        return (case.outcome, spent, case.attempts, [x.text for x in case.rollouts], case.notes)

    assert timeless(beside) == timeless(alone)


@ways
def test_recovery_is_charged_to_every_scope_and_the_first_draw_to_none(way: Callable[..., Case]) -> None:
    store = MemoryStore()
    limits = (Window("tenant", "attempts", 10, "hour"), Window("global", "tokens", 10_000, "day"))
    case = way(failing(SharedBudget(store=store, limits=limits).scoped(tenant="acme")), None)
    spent = case.ledger.spent
    assert (spent.samples, spent.attempts) == (3, 3)
    assert account(store, "tenant=acme attempts/3600s").spent == 2
    tokens = account(store, "global tokens/86400s")
    first = case.rollouts[0].usage.tokens
    assert tokens.spent == spent.tokens - first
    assert tokens.granted >= tokens.spent
    assert tokens.reserved == 0


@ways
def test_a_scope_that_has_spent_everything_asks_no_model(way: Callable[..., Case]) -> None:
    store = MemoryStore()
    shared = SharedBudget(store=store, limits=(Window("tenant", "attempts", 3, "hour"),))
    assert way(failing(shared.scoped(tenant="acme")), "41", "1").ledger.spent.samples == 3
    broke = failing(shared.scoped(tenant="acme"))
    case = way(broke, "41", "2")
    assert requests(broke) == 0
    assert case.outcome is not None
    assert (case.outcome.status, case.outcome.reason) == ("unresolved", "budget:tenant=acme attempts/3600s")
    assert "no room: tenant=acme attempts/3600s" in case.outcome.sentence
    assert case.ledger.reserved.attempts == 0
    assert way(failing(shared.scoped(tenant="zebra")), "41", "3").ledger.spent.samples == 3
    assert account(store, "tenant=acme attempts/3600s").refused == 1


def test_several_scopes_are_all_or_nothing() -> None:
    store = MemoryStore()
    limits = (Window("tenant", "attempts", 100, "hour"), Window("agent", "attempts", 2, "hour"))
    run(failing(SharedBudget(store=store, limits=limits).scoped(tenant="acme", agent="solver")))
    assert account(store, "tenant=acme attempts/3600s").granted == 0


@ways
def test_recovery_spends_a_share_of_normal_traffic(way: Callable[..., Case]) -> None:
    store = MemoryStore()
    shared = SharedBudget(store=store, limits=(Ratio("global", "attempts", share=0.5, floor=0, per=60),))
    for i in range(5):  # with each failing step more traffic, until half of it pays for the three draws of one
        case = way(failing(shared), "41", str(i))
        assert case.ledger.spent.samples == 0
    assert way(failing(shared), "41", "6").ledger.spent.samples == 3
    assert way(failing(shared), "41", "7").ledger.spent.samples == 0


def test_a_candidate_whose_usage_nobody_counted_is_estimated() -> None:
    limits = (Ratio("global", "tokens", share=90.0, floor=0, per=60),)
    for candidate, samples in ((Rollout("41"), 3), (Rollout("41", usage=Usage(1, 1)), 0)):
        shared = SharedBudget(store=MemoryStore(), limits=limits)
        assert failing(shared).run("word " * 100, candidate).ledger.spent.samples == samples


@ways
def test_no_more_recoveries_in_flight_than_may_be(way: Callable[..., Case]) -> None:
    store = MemoryStore()
    shared = SharedBudget(store=store, limits=(InFlight("global", 0),))
    case = way(failing(shared))
    assert case.outcome is not None
    assert case.outcome.reason == "budget:global in flight"


def test_a_refused_call_waits_for_room_as_long_as_it_may() -> None:
    store = MemoryStore()
    shared = SharedBudget(store=store, limits=(InFlight("global", 1),), wait=20.0)

    class Slow(ScriptedSampler):
        now = most = 0

        async def asample(self, request: Any) -> Any:
            self.now += 1
            self.most = max(self.most, self.now)
            await asyncio.sleep(0.01)
            self.now -= 1
            return super().sample(request)

    sampler = Slow([], last="42")
    recovery = replace(failing(shared), sampler=sampler)

    async def main() -> list[Case]:
        return await asyncio.gather(*(recovery.arun(STEP, "41") for _ in range(4)))

    assert [case.outcome.status for case in asyncio.run(main()) if case.outcome] == ["rescued"] * 4
    assert sampler.most == 1
    assert account(store, "global in flight").reserved == 0


@ways
@pytest.mark.parametrize("name", EVERY)
def test_a_run_that_is_started_again_pays_for_nothing_twice(name: str, way: Callable[..., Case]) -> None:
    scenario = SCENARIOS[name]
    store = MemoryStore()
    shared = SharedBudget(store=store, limits=(Window("global", "tokens", 10**6, "day"),))
    first = way(scenario.recovery(shared=shared), scenario.candidate)
    charged = [x.spent for x in store.accounts()]
    again = scenario.recovery(shared=shared)
    second = way(again, scenario.candidate)
    if name == "local-temp":  # the junction went with the tables of the process that died, so what follows is new
        assert [x.text for x in second.rollouts[:4]] == [x.text for x in first.rollouts[:4]]
        assert "draws of a run that was interrupted come back without their log-probabilities" in second.notes
        assert (first.decisions[0].remedy, second.decisions[0].remedy) == ("local_temp", "retry")
        assert requests(again) == len(second.attempts) - 1
        return
    assert [x.text for x in second.rollouts][: len(first.rollouts)] == [x.text for x in first.rollouts]
    if name == "model-down":  # a call that failed bought nothing, and is made again
        assert requests(again) >= 1
        return
    assert second.outcome == first.outcome
    assert replace(second.ledger.spent, seconds=0) == replace(first.ledger.spent, seconds=0)
    assert requests(again) == 0
    assert [x.spent for x in store.accounts()] == charged


@ways
def test_a_run_under_another_id_pays_for_itself(way: Callable[..., Case]) -> None:
    shared = SharedBudget(store=MemoryStore())
    way(failing(shared), "41", "a")
    other = failing(shared)
    way(other, "41", "b")
    assert requests(other) == 1


def test_a_task_that_is_cancelled_in_mid_call_leaves_nothing_reserved() -> None:
    store = MemoryStore()
    shared = SharedBudget(store=store, limits=(Window("global", "attempts", 100, "hour"), InFlight("global", 5)))

    class Hanging(ScriptedSampler):
        async def asample(self, request: Any) -> Any:
            await asyncio.sleep(60)

    recovery = replace(failing(shared), sampler=Hanging([]))

    async def main() -> None:
        task = asyncio.ensure_future(recovery.arun(STEP, "41"))
        while not any(x.reserved for x in store.accounts()):
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert [x.reserved for x in store.accounts()] == [0, 0]
    assert account(store, "global attempts/3600s").spent == 3  # nobody knows what it cost: all that was reserved


class Broken(MemoryStore):
    """Cannot be reached for some of its methods."""

    def __init__(self, *methods: str) -> None:
        super().__init__()
        self._broken = methods

    def reserve(self, *args: Any, **kwargs: Any) -> Any:
        self._check("reserve")
        return super().reserve(*args, **kwargs)

    async def areserve(self, *args: Any, **kwargs: Any) -> Any:
        self._check("reserve")
        return await super().areserve(*args, **kwargs)

    def settle(self, *args: Any, **kwargs: Any) -> None:
        self._check("settle")
        super().settle(*args, **kwargs)

    async def asettle(self, *args: Any, **kwargs: Any) -> None:
        self._check("settle")
        await super().asettle(*args, **kwargs)

    def keep(self, *args: Any, **kwargs: Any) -> str:
        self._check("keep")
        return super().keep(*args, **kwargs)

    def _check(self, method: str) -> None:
        if method in self._broken:
            raise StoreError("connection refused")


@ways
def test_a_store_that_cannot_be_reached_stops_spending_and_a_person_is_asked_all_the_same(
    way: Callable[..., Case],
) -> None:
    recovery = failing(SharedBudget(store=Broken("reserve")))
    case = way(recovery)
    assert requests(recovery) == 0
    assert case.outcome is not None
    assert case.outcome.reason == "budget:store"
    assert "connection refused" in case.outcome.sentence
    graph = recovery_graph(
        failing(SharedBudget(store=Broken("reserve"))), checkpointer=InMemorySaver(), interrupts=True
    )
    state = graph.invoke(step_input(STEP, "41"), THREAD)
    assert state["__interrupt__"]
    assert "escalate without the shared budget: connection refused" in state["recovery"]["notes"]


@ways
def test_an_answer_that_could_not_be_settled_is_kept(way: Callable[..., Case]) -> None:
    case = way(failing(SharedBudget(store=Broken("settle")), texts=["42"]))
    assert case.outcome is not None
    assert case.outcome.status == "rescued"
    assert any("could not be settled: connection refused" in note for note in case.notes)


def told() -> tuple[list[Any], Callable[[Mapping[str, Any]], None]]:
    heard: list[Any] = []
    return heard, heard.append


@ways
def test_a_cap_on_escalations_has_an_outcome_of_its_own(way: Callable[..., Case]) -> None:
    class Person:
        asked = 0

        def escalate(self, payload: Any) -> Any:
            self.asked += 1
            return {"type": "respond", "message": "42"}

        async def aescalate(self, payload: Any) -> Any:
            return self.escalate(payload)

    store, person = MemoryStore(), Person()
    shared = SharedBudget(store=store, limits=(Window("tenant", "escalations", 1, "day"),)).scoped(tenant="acme")
    heard, notify = told()
    options: dict[str, Any] = {"escalator": person, "escalation": Escalation(notify=notify)}
    first, second = (way(failing(shared, **options), "41", i) for i in "12")
    assert first.outcome is not None
    assert second.outcome is not None
    assert (first.outcome.status, first.outcome.text) == ("human", "42")
    assert (second.outcome.status, second.outcome.reason) == ("unasked", "budget:tenant=acme escalations/86400s")
    assert person.asked == 1
    assert [x["rfx"]["step"] for x in heard] == [STEP.id]
    assert second.ledger.spent.escalations == 0


@pytest.mark.parametrize("invoke", ["sync", "async"])
def test_the_first_answer_is_the_one_that_stands(invoke: str) -> None:
    """Two processes resume copies of one thread at once, as from one checkpoint."""
    shared = SharedBudget(store=MemoryStore())
    savers = InMemorySaver(), InMemorySaver()
    graphs = [recovery_graph(failing(shared), checkpointer=saver, interrupts=True) for saver in savers]

    def resume(graph: Any, text: str) -> Any:
        command = Command(resume={"decisions": [{"type": "respond", "message": text}]})
        if invoke == "sync":
            return graph.invoke(command, THREAD)
        return asyncio.run(graph.ainvoke(command, THREAD))

    graphs[0].invoke(step_input(STEP, "41"), THREAD)
    for part in ("storage", "writes", "blobs"):
        setattr(savers[1], part, copy.deepcopy(getattr(savers[0], part)))
    outcomes = [outcome_of(resume(graph, text)) for graph, text in zip(graphs, ["first", "second"], strict=True)]
    assert [x.text for x in outcomes] == ["first", "first"]


def test_an_answer_that_cannot_be_recorded_leaves_the_case_open() -> None:
    store = Broken("keep")
    graph = recovery_graph(failing(SharedBudget(store=store)), checkpointer=InMemorySaver(), interrupts=True)
    graph.invoke(step_input(STEP, "41"), THREAD)
    answer = Command(resume={"decisions": [{"type": "respond", "message": "42"}]})
    with pytest.raises(StoreError, match="connection refused"):
        graph.invoke(answer, THREAD)
    store._broken = ()
    assert outcome_of(graph.invoke(answer, THREAD)).text == "42"


def test_a_default_is_applied_lazily_and_once() -> None:
    now = [1000.0]
    heard, notify = told()
    escalation = Escalation(deadline=60.0, default="approve", notify=notify)
    shared = SharedBudget(store=MemoryStore())
    recovery = failing(shared, escalation=escalation, clock=lambda: now[0])
    graph = recovery_graph(recovery, checkpointer=InMemorySaver(), interrupts=True)
    graph.invoke(step_input(STEP, "41"), THREAD)
    assert len(heard) == 1
    assert heard[0]["rfx"]["deadline"] == "1970-01-01T00:17:40+00:00"
    assert not close_overdue(graph, THREAD, clock=lambda: now[0])
    # A sweep whose clock is ahead of the recovery's closes nothing: the case is asked about again.
    assert close_overdue(graph, THREAD, clock=lambda: now[0] + 61)
    assert graph.get_state(THREAD).next == ("escalate",)
    now[0] += 61
    assert close_overdue(graph, THREAD, clock=lambda: now[0])
    outcome = outcome_of(graph.get_state(THREAD).values)
    assert (outcome.status, outcome.reason) == ("human", "deadline:approve")
    assert outcome.sentence == "The default applied, approve: nobody answered."
    assert not close_overdue(graph, THREAD, clock=lambda: now[0])
    assert not asyncio.run(aclose_overdue(graph, THREAD, clock=lambda: now[0]))
    assert len(heard) == 1


@ways
def test_a_notifier_that_fails_is_a_note(way: Callable[..., Case]) -> None:
    class Nobody:
        def escalate(self, payload: Any) -> Any:
            return None

        async def aescalate(self, payload: Any) -> Any:
            return None

    async def fails(payload: Any) -> None:
        raise OSError("no route to host")

    case = way(failing(SharedBudget(store=MemoryStore()), escalator=Nobody(), escalation=Escalation(notify=fails)))
    assert "nobody could be notified of the case: OSError: no route to host" in case.notes
    assert case.outcome is not None
    assert case.outcome.reason == "deadline:reject"


def test_a_case_that_was_opened_is_not_opened_again() -> None:
    """A process that died before its checkpoint, but after the opening was recorded."""
    heard, notify = told()
    now = [1000.0]
    shared = SharedBudget(store=MemoryStore(), limits=(Window("global", "escalations", 1, "day"),))
    deadlines = []
    for _ in range(2):
        recovery = failing(shared, escalation=Escalation(notify=notify), clock=lambda: now[0])
        run = Run.of(recovery)
        opened = drive(diagnose(run, start(run, STEP, "41", run_id="run"), human=True))
        assert opened.ask is not None
        deadlines.append(opened.ask.deadline)
        assert opened.ledger.spent.escalations == 1
        now[0] += 500
    assert deadlines[0] == deadlines[1]
    assert len(heard) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SharedBudget(store="db"), "store is 'db'"),  # type: ignore[arg-type]
        (lambda: SharedBudget(store=MemoryStore(), wait=-1), "wait is -1"),
        (lambda: SharedBudget(store=MemoryStore(), limits=("x",)), "limits has 'x'"),  # type: ignore[arg-type]
        (lambda: SharedBudget(store=MemoryStore()).scoped(**{"global": "x"}), "scope 'global'"),
        (lambda: SharedBudget(store=MemoryStore(), limits=(InFlight("tenant", 1),)).claims, None),
        (lambda: failing(SharedBudget(store=MemoryStore(), limits=(InFlight("tenant", 1),))), "does not name"),
        (
            lambda: failing(SharedBudget(store=MemoryStore(), limits=(Window("global", "usd", 1.0, "day"),))),
            "shared limits usd but price is None",
        ),
        (lambda: Escalation(notify=3), "notify is 3"),  # type: ignore[arg-type]
        (lambda: failing(SharedBudget(store=MemoryStore()), verdict_seconds=0), "verdict_seconds is 0"),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_put_together(make: Callable[[], Any], message: str | None) -> None:
    if message is None:
        make()
        return
    with pytest.raises(ConfigError, match=message):
        make()


def test_money_is_counted_in_every_scope() -> None:
    store = MemoryStore()
    shared = SharedBudget(store=store, limits=(Window("global", "usd", 1.0, "day"),))
    case = run(failing(shared, price=Price(prompt=1.0, completion=10.0)))
    money = account(store, "global usd/86400s")
    assert money.unit == "usd"
    assert money.spent == pytest.approx(case.ledger.spent.usd * 1e9, abs=1)
    assert money.most == 10**9
    assert json.dumps(money.spent).isdigit()


def test_nothing_is_approved_unseen_in_which_the_verifier_found_no_answer() -> None:
    now = [1000.0]
    recovery = Recovery(
        sampler=ScriptedSampler([], last="Error: upstream timeout"),
        verifier=ExactVerifier("42", whole=False),
        budget=RetryBudget(samples=3),
        escalation=Escalation(deadline=60.0, default="approve"),
        clock=lambda: now[0],
    )
    graph = recovery_graph(recovery, checkpointer=InMemorySaver(), interrupts=True)
    asked = graph.invoke(step_input(STEP, None), THREAD)["__interrupt__"][0].value
    assert "Without a reply by 1970-01-01T00:17:40+00:00:** reject" in asked["action_requests"][0]["description"]
    now[0] += 61
    assert close_overdue(graph, THREAD, clock=lambda: now[0])
    outcome = outcome_of(graph.get_state(THREAD).values)
    assert (outcome.status, outcome.text, outcome.reason) == ("rejected", None, "deadline:reject")
