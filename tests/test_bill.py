"""The bill of a run: it adds up to the ledger and to the shared store, it says what was wasted, and what a plain retry
would have come to."""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from scenarios import EVERY, SCENARIOS, STEP

from rfx_agent import (
    Case,
    Delegate,
    Price,
    Recovery,
    RetryBudget,
    Rollout,
    SharedBudget,
    Step,
    Usage,
    Verdict,
    Window,
    recovery_graph,
    step_input,
)
from rfx_agent.adapters.graph.recovery_graph import case_of
from rfx_agent.bill import Bill, PlainRetry, bill_of, estimated
from rfx_agent.budgets.limits import amount_of
from rfx_agent.budgets.memory import MemoryStore
from rfx_agent.codec import dump, load
from rfx_agent.errors import SamplerError
from rfx_agent.events import Event, Finished, Reserved, Sampled, as_record
from rfx_agent.evidence.posterior import prob_any
from rfx_agent.policies import DefaultPolicy, FixedPolicy
from rfx_agent.ports import Escalator
from rfx_agent.records import Spend
from rfx_agent.remedies import Custom, Retry, Tool
from rfx_agent.testing import ScriptedSampler, ScriptedTool, ScriptedVerifier

MODEL, LARGE = Price(prompt=0.3, completion=0.7), Price(prompt=3.1, completion=9.7)
COUNTED = ("attempts", "samples", "tokens", "escalations", "calls", "asked")
MEASURED = ("usd", "seconds", "tool_seconds")


class Judging(ScriptedVerifier):
    """A verifier that asks a model: each verdict costs what it is given."""

    name = "judge"

    def __init__(self, usage: Usage) -> None:
        super().__init__(["42"])
        self.usage = usage

    def bound(self, step: Step, rollout: Rollout) -> Usage:
        return Usage(100, 100, 4)

    def verify(self, step: Step, rollout: Rollout, *, peers: Sequence[Rollout] = ()) -> Verdict:
        return replace(super().verify(step, rollout, peers=peers), usage=self.usage)


class Large(ScriptedSampler):
    """The second model."""

    name = "large"


class Seven(Custom):
    """A look-up."""

    name = "look_up"

    def candidate(self, step: Step, failed: Sequence[Rollout]) -> str | None:
        return "7"


class Person(Escalator):
    """Approves what can be approved."""

    def escalate(self, payload: Mapping[str, Any]) -> Any:
        allowed = payload["review_configs"][0]["allowed_decisions"]
        return {"type": "approve" if "approve" in allowed else "reject"}


def assert_same(one: Spend, other: Spend) -> None:
    """Counts to the unit, sums of floats to rounding."""
    assert [getattr(one, x) for x in COUNTED] == [getattr(other, x) for x in COUNTED]
    assert [getattr(one, x) for x in MEASURED] == pytest.approx([getattr(other, x) for x in MEASURED], abs=1e-9)


def assert_adds_up(case: Case) -> None:
    """Operations are the ledger, to the last bit; each way to cut the bill up is the whole of it."""
    paid = [x.spent for x in case.operations]
    assert reduce(add, paid, case.before) == case.ledger.spent
    bill, total = case.bill, case.ledger.spent - case.before
    assert bill.other == Spend()
    for parts in ([bill.first, bill.kept, bill.wasted], bill.by_model.values(), bill.by_remedy.values()):
        assert_same(sum(parts, Spend()), total)
    assert_same(sum(bill.by_purpose.values(), Spend()), total)
    assert_same(bill.spent, total)
    assert sum(x.operations for x in bill.lines) == sum(not x.refused for x in case.operations)
    models = {name: spent for name, spent in bill.by_model.items() if name}
    assert models.keys() == case.ledger.by_model.keys()
    for name, spent in models.items():
        assert_same(spent, case.ledger.by_model[name])


texts = st.sampled_from(["1", "2 two", "three 3 words", "6*7", "broken", "42"])
given_texts = st.lists(texts | st.just("!"), min_size=1, max_size=12)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    said=given_texts,
    candidate=st.sampled_from([None, "41", "42"]),
    judged=st.none() | st.builds(Usage, st.integers(0, 90), st.integers(0, 90), st.integers(1, 3)),
    extra=st.sampled_from([None, 0, 2]),
    draws=st.integers(1, 3),
    route=st.lists(st.sampled_from(["retry", "tool", "delegate", "look_up"]), max_size=3, unique=True),
    caps=st.fixed_dictionaries(
        {"attempts": st.sampled_from([0, 2, 6]), "tokens": st.sampled_from([0, 300, 2_000, 9_000])}
    ),
    shares=st.sampled_from([None, 400, 1_000_000]),
    way=st.sampled_from(["run", "arun"]),
)
def test_the_bill_is_the_ledger_and_the_store(
    said: list[str],
    candidate: str | None,
    judged: Usage | None,
    extra: int | None,
    draws: int,
    route: list[str],
    caps: dict[str, Any],
    shares: int | None,
    way: str,
) -> None:
    store, ends, most = MemoryStore(), [], {"tokens": shares, "usd": 1.0}

    def end(event: Event) -> None:
        if isinstance(event, Finished):
            ends.append(event)

    down: list[Any] = [SamplerError("down", calls=3) if x == "!" else x for x in said]
    recovery = Recovery(
        ScriptedSampler(down, last="9"),
        ScriptedVerifier(["42"]) if judged is None else Judging(judged),
        remedies=[Retry(), Tool(ScriptedTool({"6*7": 42})), Delegate(Large(["8"], last="42"), price=LARGE), Seven()],
        policy=FixedPolicy(tuple(route)) if route else DefaultPolicy(),
        extra_samples=extra,
        concurrency=draws,
        budget=RetryBudget(**caps),
        price=MODEL,
        max_tokens=32,
        on_event=end,
        escalator=Person(),
        shared=None
        if shares is None
        else SharedBudget(store=store, limits=[Window("global", x, n, "day") for x, n in most.items()]),
    )
    case = recovery.run(STEP, candidate) if way == "run" else asyncio.run(recovery.arun(STEP, candidate))
    assert_adds_up(case)
    (ended,) = ends
    assert ended.bill == case.bill
    assert ended.spent == case.ledger.spent - case.before
    assert load(Finished, json.loads(json.dumps(as_record(ended)))).bill == case.bill
    assert load(Case, json.loads(json.dumps(dump(case)))).bill == case.bill
    if shares is not None:
        # The first draw is normal traffic, which limits on recoveries do not count.
        counts = [x for x in case.operations if (x.purpose, x.remedy) != ("sample", "")]
        for account in store.accounts():
            assert account.spent == sum(amount_of(x.spent, account.unit) for x in counts)
        assert store.accounts() or not any(x.spent.tokens for x in counts)


@pytest.mark.parametrize("name", EVERY)
def test_every_branch_adds_up(name: str) -> None:
    assert_adds_up(
        SCENARIOS[name].recovery(price=None if name == "delegate" else MODEL).run(STEP, SCENARIOS[name].candidate)
    )


def resumed(case: Case) -> Case:
    return load(Case, json.loads(json.dumps(dump(case))))


def test_an_operation_is_told_apart_from_an_attempt_and_from_the_tries_of_the_transport() -> None:
    events: list[Any] = []
    sampler = ScriptedSampler(["40", Rollout("6x7", usage=Usage(10, 1, 3)), "6*7"])
    recovery = Recovery(
        sampler,
        ScriptedVerifier(["42"]),
        remedies=[Tool(ScriptedTool({"6*7": 42}))],
        on_event=events.append,
    )
    case = recovery.run(STEP, run_id="run-7")
    told = [
        (type(e).__name__, e.operation, e.attempt)
        for e in events
        if not isinstance(e, Finished) and hasattr(e, "operation")
    ]
    assert told == [
        ("Reserved", "run-7/0", 1),
        ("Sampled", "run-7/0", 1),
        ("Judged", "run-7/1", 1),
        ("Reserved", "run-7/2", 2),
        ("Sampled", "run-7/2", 2),  # one attempt of the tool: two inputs and two runs
        ("Reserved", "run-7/3", 2),
        ("ToolRan", "run-7/3", 2),
        ("Reserved", "run-7/4", 2),
        ("Sampled", "run-7/4", 2),
        ("Reserved", "run-7/5", 2),
        ("ToolRan", "run-7/5", 2),
        ("Judged", "run-7/6", 2),
    ]
    assert [(x.purpose, x.remedy, x.attempt) for x in case.operations] == [
        ("sample", "", 1),
        ("verify", "", 1),
        ("sample", "tool", 2),
        ("tool", "tool", 2),
        ("sample", "tool", 2),
        ("tool", "tool", 2),
        ("verify", "tool", 2),
    ]
    assert [x.spent.calls for x in case.operations if x.purpose == "sample"] == [1, 3, 1]
    assert [e.usage.calls for e in events if isinstance(e, Sampled)] == [1, 3, 1]
    assert case.rollouts[-1].attempt == len(case.attempts) == 2


def test_an_operation_that_was_refused_keeps_its_id_to_itself() -> None:
    store, events = MemoryStore(), list[Any]()
    shared = SharedBudget(store=store, limits=[Window("model", "tokens", 10, "day")], scopes={"model": "scripted"})
    large = Delegate(Large(["42"]), price=LARGE)
    recovery = Recovery(
        ScriptedSampler([], last="40"),
        ScriptedVerifier(["42"]),
        remedies=[large, Retry()],
        policy=FixedPolicy(("delegate", "retry")),
        shared=shared,
        price=MODEL,
        on_event=events.append,
    )
    case = recovery.run(STEP, "41", run_id="run")
    ids = [e.operation for e in events if isinstance(e, Reserved) and e.operation and not e.refused]
    assert len(ids) == len(set(ids))
    refused = [(i, x) for i, x in enumerate(case.operations) if x.refused]
    assert refused
    assert all(x.spent == Spend() for _, x in refused)
    assert {f"run/{i}" for i, _ in refused} == {
        e.operation for e in events if isinstance(e, Reserved) and e.refused and e.operation
    }
    assert_adds_up(case)


def test_what_was_wasted_is_what_did_not_end_in_the_answer() -> None:
    sampler = ScriptedSampler(["one two", "three four five", "6*7"])
    recovery = Recovery(
        sampler,
        Judging(Usage(4, 1, 1)),
        remedies=[Retry(), Tool(ScriptedTool({"6*7": 42}))],
        policy=FixedPolicy(("retry", "tool")),
        price=MODEL,
        budget=RetryBudget(attempts=3),
    )
    bill = recovery.run(STEP).bill
    assert [(x.purpose, x.remedy, x.model, x.share, x.spent.tokens) for x in bill.lines] == [
        ("sample", "", "scripted", "first", 12),
        ("verify", "", "judge", "first", 5),
        ("sample", "retry", "scripted", "wasted", 13),
        ("verify", "retry", "judge", "wasted", 5),
        ("sample", "tool", "scripted", "kept", 11),
        ("tool", "tool", "", "kept", 0),
        ("verify", "tool", "judge", "kept", 5),
    ]
    assert (bill.first.tokens, bill.wasted.tokens, bill.kept.tokens, bill.spent.tokens) == (17, 18, 16, 51)
    assert {name: x.tokens for name, x in bill.by_model.items()} == {"scripted": 36, "judge": 15, "": 0}
    assert {name: x.tokens for name, x in bill.by_remedy.items()} == {"": 17, "retry": 18, "tool": 16}
    assert {name: x.tokens for name, x in bill.by_purpose.items()} == {"sample": 36, "verify": 15, "tool": 0}
    assert bill.spent.usd == pytest.approx((30 * 0.3 + 6 * 0.7 + 3 * (4 * 0.3 + 0.7)) / 1e6)


REPLIES: dict[str, tuple[dict[str, Any], int, int]] = {
    "approve": ({"type": "approve"}, 11, 11),  # the second draw is not the one that was approved
    "edit": ({"type": "edit", "edited_action": {"name": "accept_answer", "args": {"answer": "42"}}}, 0, 22),
    "reject": ({"type": "reject"}, 0, 22),
}


@pytest.mark.parametrize(("reply", "kept", "wasted"), REPLIES.values(), ids=REPLIES)
def test_a_persons_answer_keeps_the_attempt_that_it_approves(reply: dict[str, Any], kept: int, wasted: int) -> None:
    recovery = Recovery(
        ScriptedSampler(["40", "39"]),
        ScriptedVerifier(["42"]),
        remedies=[Retry()],
        budget=RetryBudget(samples=2),
    )
    graph, thread = (
        recovery_graph(recovery, checkpointer=InMemorySaver(), interrupts=True),
        {"configurable": {"thread_id": "t"}},
    )
    failed = Rollout("", response_id="none")  # nothing to approve
    graph.invoke(step_input(STEP, failed), thread)  # type: ignore[arg-type]
    asked = case_of(graph.get_state(thread).values)  # type: ignore[arg-type]
    assert asked.bill.wasted.tokens == 22  # so far
    graph.invoke(Command(resume={"decisions": [reply]}), thread)  # type: ignore[arg-type]
    bill = case_of(graph.get_state(thread).values).bill  # type: ignore[arg-type]
    assert (bill.kept.tokens, bill.wasted.tokens, bill.by_remedy["human"].escalations) == (kept, wasted, 1)
    assert bill.kept.escalations == int("reject" not in reply["type"])
    assert bill.retry_estimate == asked.bill.retry_estimate


def test_a_case_that_an_older_version_began_is_billed_for_the_rest() -> None:
    case = SCENARIOS["resample"].recovery(price=MODEL).run(STEP, "41")
    written = dump(case)
    for name in ("operations", "plain_retry"):
        del written[name]
    bill = load(Case, written).bill
    assert (bill.lines, bill.other, bill.retry_estimate) == ((), case.ledger.spent, None)
    assert_same(bill.spent, case.ledger.spent)


# What a plain retry would have come to.


def literal(a: int, b: int, n: int) -> tuple[float, float]:
    """(P(a pass in n), expected draws), integrated over the rate: exact, as all is polynomial."""
    x, w = np.polynomial.legendre.leggauss(120)
    p, w = (x + 1) / 2, w / 2
    density = p ** (a - 1) * (1 - p) ** (b - 1)
    density = w * density / (w * density).sum()
    draws = sum((density * (1 - p) ** i).sum() for i in range(n))
    return float((density * (1 - (1 - p) ** n)).sum()), float(draws)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(a=st.integers(1, 9), b=st.integers(1, 9), n=st.integers(0, 60), tokens=st.integers(1, 900))
def test_the_estimate_is_that_of_draws_that_share_one_unknown_rate(a: int, b: int, n: int, tokens: int) -> None:
    retry = PlainRetry((float(a), float(b)), Spend(attempts=1, tokens=tokens), n)
    rescue, draws = literal(a, b, n)
    found = estimated(retry, Spend())
    assert (found.rescue, found.draws, found.most) == (pytest.approx(rescue, abs=1e-12), pytest.approx(draws), n)
    assert (found.tokens, found.usd, found.within) == (pytest.approx(draws * tokens), 0.0, 0.0)
    if n > 1:  # independent draws would promise more
        assert found.rescue < 1 - (b / (a + b)) ** n


def test_within_is_for_as_much_as_the_run_itself_spent() -> None:
    belief = (0.5, 1.5)
    priced = PlainRetry(belief, Spend(attempts=1, tokens=100, usd=0.01), most=6)
    assert estimated(priced, Spend(tokens=9_999, usd=0.03)).within == pytest.approx(prob_any(belief, 3))
    counted = PlainRetry(belief, Spend(attempts=1, tokens=100), most=6)
    half = (prob_any(belief, 2) + prob_any(belief, 3)) / 2
    assert estimated(counted, Spend(attempts=9, tokens=250)).within == pytest.approx(half)
    assert estimated(counted, Spend(tokens=10**9)).within == estimated(counted, Spend()).rescue  # under the caps
    uncounted = PlainRetry(belief, Spend(attempts=1), most=6)
    assert estimated(uncounted, Spend(attempts=2)).within == pytest.approx(prob_any(belief, 2))


def test_the_estimate_rests_on_the_first_diagnosis() -> None:
    sampler = ScriptedSampler(["one two", "three four", "6*7"])
    recovery = Recovery(
        sampler,
        Judging(Usage(4, 1, 1)),
        remedies=[Retry(), Tool(ScriptedTool({"6*7": 42}))],
        policy=FixedPolicy(("tool",)),
        extra_samples=1,
        budget=RetryBudget(attempts=8, samples=5),
        max_tokens=20,
        price=MODEL,
    )
    case = recovery.run(STEP)
    retry = case.plain_retry
    assert retry is not None
    assert retry.posterior == case.decisions[0].posterior["retry"] == (pytest.approx(0.13), pytest.approx(0.87 + 1))
    draw = 12 * 0.3 - 2 * 0.3 + 2 * 0.7  # ten tokens read and two written
    assert (retry.each.tokens, retry.each.usd) == (12 + 5, pytest.approx((draw + 4 * 0.3 + 0.7) / 1e6))
    assert (retry.most, retry.after) == (3, 4)  # of five samples two were drawn
    estimate = case.bill.retry_estimate
    assert estimate is not None
    assert estimate.rescue == pytest.approx(prob_any(retry.posterior, 3))
    assert estimate.tokens == pytest.approx(17 * estimate.draws)
    since = sum((x.spent for x in case.operations[4:]), Spend())
    assert since.tokens == 11 + 5
    assert estimate.actual == since
    part = since.usd / retry.each.usd
    assert 0 < part < 1
    assert estimate.within == pytest.approx(part * prob_any(retry.posterior, 1))


CAPS: dict[str, tuple[dict[str, Any], int]] = {
    "attempts": ({"attempts": 5}, 5),
    "nothing": ({"attempts": 0}, 0),
    # At most 45 tokens for a draw, where 12 are expected.
    "tokens": ({"tokens": 45 + 12 * 3}, 4),
    "tokens-short": ({"tokens": 45 + 12 * 3 - 1}, 3),
    "no-cap": (dict.fromkeys(("attempts", "samples", "tokens", "calls", "seconds"), None), 1_000),
}


@pytest.mark.parametrize(("caps", "most"), CAPS.values(), ids=CAPS)
def test_the_caps_say_how_often_a_plain_retry_draws(caps: dict[str, Any], most: int) -> None:
    step = Step.of("0123456789", id="ten")
    candidate = Rollout("one two", usage=Usage(10, 2, 1))
    recovery = Recovery(
        ScriptedSampler([], last="x y"),
        ScriptedVerifier(["42"]),
        budget=RetryBudget(**{"samples": None, "calls": None} | caps),
        max_tokens=20,
        policy=FixedPolicy(("tool",)),
        remedies=[Retry()],
    )
    case = recovery.run(step, candidate)
    assert case.plain_retry is not None
    assert case.diagnosis is not None
    bound = case.diagnosis.cost["retry"].tokens
    assert (case.plain_retry.most, bound) == (most, 45), bound


NONE: dict[str, tuple[Callable[[], Recovery], str | None]] = {
    "nothing-failed": (lambda: Recovery(ScriptedSampler([]), ScriptedVerifier(["42"])), "42"),
    "no-model": (lambda: Recovery(None, ScriptedVerifier(["42"])), "41"),
    "no-retry": (
        lambda: Recovery(ScriptedSampler([], last="1"), ScriptedVerifier(["42"]), remedies=[Tool(ScriptedTool({}))]),
        "41",
    ),
    "model-down": (lambda: Recovery(ScriptedSampler([SamplerError("down")]), ScriptedVerifier(["42"])), None),
}


@pytest.mark.parametrize(("recovery", "candidate"), NONE.values(), ids=NONE)
def test_there_is_no_estimate_where_nothing_could_be_drawn(
    recovery: Callable[[], Recovery], candidate: str | None
) -> None:
    case = recovery().run(STEP, candidate)
    assert case.bill.retry_estimate is None
    assert_adds_up(case)


def test_an_empty_bill() -> None:
    assert bill_of((), lambda _: True) == Bill()
    assert Bill().spent == Spend()
    assert {f.name for f in fields(Spend)} == {*COUNTED, *MEASURED}


def test_a_run_that_is_started_again_has_the_same_bill() -> None:
    store, told = MemoryStore(), list[list[Any]]([[], []])

    def made(n: int, texts: Sequence[str]) -> Case:
        shared = SharedBudget(store=store, limits=[Window("global", "tokens", 9_000, "day")])
        parts: dict[str, Any] = {"remedies": [Retry()], "shared": shared, "price": MODEL, "max_tokens": 32}
        sampler = ScriptedSampler(texts)
        return Recovery(sampler, Judging(Usage(4, 1, 1)), on_event=told[n].append, **parts).run(STEP, run_id="run")

    first, again = made(0, ["1", "2", "42"]), made(1, [])
    assert_adds_up(again)
    assert again.operations == first.operations
    reserved = [[e.operation for e in events if isinstance(e, Reserved)] for events in told]
    assert reserved[0] == reserved[1] == [f"run/{i}" for i in range(6)]
    (account,) = store.accounts()
    assert account.spent == again.bill.spent.tokens - 11  # charged once, without the first draw
