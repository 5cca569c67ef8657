"""The engine without a graph: every branch, both drivers, what is spent, and what breaks."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from scenarios import EVERY, SCENARIOS, STEP

from rfx_agent import Case, ConfigError, Price, Recovery, RetryBudget, Rollout, Step, Usage, Verdict
from rfx_agent.codec import load, plain
from rfx_agent.errors import SamplerError, VerifierError
from rfx_agent.events import Decided, Event, Finished, Judged, Reserved, Sampled, ToolRan
from rfx_agent.records import Spend
from rfx_agent.testing import ScriptedSampler, ScriptedTool, ScriptedVerifier

RUNS: dict[str, Callable[[Recovery, str | None], Case]] = {
    "sync": lambda r, c: r.run(STEP, c),
    "async": lambda r, c: asyncio.run(r.arun(STEP, c)),
}


def same(case: Case) -> Any:
    """What must not depend on the driver or the day: everything but measured seconds."""

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: strip(v) for k, v in value.items() if k not in ("seconds", "tool_seconds")}
        return [strip(v) for v in value] if isinstance(value, (list, tuple)) else value

    return strip(plain(case))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_every_branch_ends_as_it_must(run: Callable[..., Case], name: str) -> None:
    scenario = SCENARIOS[name]
    case = run(scenario.recovery(), scenario.candidate)
    assert case.outcome is not None
    assert (case.outcome.status, [d.route for d in case.decisions], case.outcome.reason) == (
        scenario.status,
        scenario.routes,
        scenario.reason,
    )
    assert case.ledger.reserved == Spend()
    assert load(Case, plain(case)) == case


@pytest.mark.parametrize("name", EVERY)
def test_both_drivers_and_every_repetition_do_the_same(name: str) -> None:
    scenario = SCENARIOS[name]
    first, second, third = scenario.recovery(), scenario.recovery(), scenario.recovery()
    cases = [
        first.run(STEP, scenario.candidate),
        second.run(STEP, scenario.candidate),
        asyncio.run(third.arun(STEP, scenario.candidate)),
    ]
    assert same(cases[0]) == same(cases[1]) == same(cases[2])
    requests = [r.sampler.requests for r in (first, second, third)]  # type: ignore[attr-defined]
    assert requests[0] == requests[1] == requests[2]


def test_a_step_that_passes_makes_no_model_call() -> None:
    recovery = SCENARIOS["accept"].recovery()
    case = recovery.run(STEP, "42")
    assert recovery.sampler.requests == []  # type: ignore[attr-defined]
    assert case.ledger.spent.calls == 0


def test_every_sample_starts_from_the_original_prompt() -> None:
    recovery = SCENARIOS["out-of-reach"].recovery()
    recovery.run(STEP, "41")
    assert all(r.messages == STEP.messages for r in recovery.sampler.requests)  # type: ignore[attr-defined]


def test_the_tool_never_sees_a_failed_answer() -> None:
    recovery = SCENARIOS["tool-repaired"].recovery()
    recovery.run(STEP, "41")
    assert isinstance(recovery.tool, ScriptedTool)
    shown = str(recovery.tool.prompts)
    assert not [failed for failed in ("40", "41", "43", "44") if failed in shown]
    assert "KeyError" in shown  # its own error, once


def test_a_repeated_response_is_one_draw() -> None:
    copies = [Rollout("40", response_id="cached:0", usage=Usage(1, 1, 1)) for _ in range(3)]
    recovery = Recovery(
        sampler=ScriptedSampler(copies, last="0"),
        verifier=ScriptedVerifier(["42"]),
        budget=RetryBudget(samples=3),
    )
    diagnosis = recovery.run(STEP, "41").diagnosis
    assert diagnosis is not None
    assert (diagnosis.draws, diagnosis.agreement.draws) == (2, 2)


def test_the_ledger_holds_what_every_layer_spent_on_success_too() -> None:
    # Prompt 10 tokens a call, one token a word: three extra samples in one call, then the tool's program.
    case = SCENARIOS["tool"].recovery(price=Price(prompt=1, completion=2)).run(STEP, "41")
    spent = case.ledger.spent
    assert (spent.attempts, spent.samples, spent.tokens, spent.calls) == (4, 4, 10 + 3 + 10 + 1, 2)
    assert spent.usd == pytest.approx((20 * 1 + 4 * 2) / 1e6)
    assert spent.tool_seconds > 0


def test_nothing_is_dispatched_that_the_budget_cannot_pay_for() -> None:
    prompt = 64 + len("What is 6 times 7?")  # the bound before the server has counted: bytes and the template
    # Completions use up all the tokens they may, so what is left after two of them pays for no third.
    full = [Rollout("40", response_id=f"x:{i}", usage=Usage(prompt, 64, 1)) for i in range(9)]
    recovery = SCENARIOS["tool"].recovery(
        sampler=ScriptedSampler(full), budget=RetryBudget(tokens=3 * (prompt + 64) - 1)
    )
    case = recovery.run(STEP, "41")
    assert [r.n for r in recovery.sampler.requests] == [2]  # type: ignore[attr-defined]
    assert case.outcome is not None
    assert case.outcome.reason == "budget:tokens"


def test_an_answer_that_crossed_the_budget_is_kept() -> None:
    dear = Rollout("42", response_id="x:0", usage=Usage(10, 5_000, 1))
    recovery = Recovery(
        sampler=ScriptedSampler([dear]),
        verifier=ScriptedVerifier(["42"]),
        extra_samples=1,
        budget=RetryBudget(tokens=1_000),
    )
    case = recovery.run(STEP, "41")
    assert case.outcome is not None
    assert case.outcome.status == "rescued"
    assert case.ledger.spent.tokens == 5_010


def test_no_time_left_means_no_call() -> None:
    recovery = SCENARIOS["tool"].recovery(budget=RetryBudget(seconds=0))
    case = recovery.run(STEP, "41")
    assert recovery.sampler.requests == []  # type: ignore[attr-defined]
    assert case.outcome is not None
    assert case.outcome.reason == "budget:seconds"


class Broken:
    name = "broken"
    needs_peers = False

    def verify(self, step: Step, rollout: Rollout, *, peers: Any = ()) -> Verdict:
        raise RuntimeError("disk on fire")

    async def averify(self, step: Step, rollout: Rollout, *, peers: Any = ()) -> Verdict:
        raise RuntimeError("disk on fire")


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_a_verifier_that_breaks_is_a_typed_error_with_the_rollout_kept(run: Callable[..., Case]) -> None:
    recovery = Recovery(sampler=ScriptedSampler([]), verifier=Broken())
    with pytest.raises(VerifierError, match="broken broke on rollout r0: RuntimeError: disk on fire") as caught:
        run(recovery, "41")
    assert caught.value.rollout.text == "41"
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_control_flow_passes_through(run: Callable[..., Case]) -> None:
    from langgraph.errors import GraphInterrupt

    recovery = Recovery(
        sampler=ScriptedSampler([GraphInterrupt()]), verifier=ScriptedVerifier([]), budget=RetryBudget()
    )
    with pytest.raises(GraphInterrupt):
        run(recovery, "41")


def test_a_sampler_with_a_bug_is_an_error_and_not_a_failed_step() -> None:
    recovery = Recovery(sampler=ScriptedSampler([TypeError("bad")]), verifier=ScriptedVerifier([]))
    with pytest.raises(SamplerError, match="scripted: TypeError: bad"):
        recovery.run(STEP, "41")


def test_an_empty_result_fails_only_when_the_verifier_says_so() -> None:
    passing = Recovery(sampler=ScriptedSampler([]), verifier=ScriptedVerifier(lambda text: True))
    case = passing.run(STEP, "")
    assert case.outcome is not None
    assert (case.outcome.status, case.outcome.text) == ("accepted", "")


def test_events_tell_the_story_and_a_broken_hook_does_no_harm() -> None:
    events: list[Event] = []

    def hook(event: Event) -> None:
        events.append(event)
        raise ValueError("dashboard down")

    SCENARIOS["tool"].recovery(on_event=hook).run(STEP, "41")
    assert [type(e) for e in events] == [
        Judged, Reserved, Sampled, Judged, Judged, Judged, Decided,
        Reserved, Sampled, Reserved, ToolRan, Judged, Decided, Finished,
    ]  # fmt: skip
    assert [e.tag for e in events if isinstance(e, Sampled)] == ["retry:attempt:1", "retry:attempt:2"]
    assert [e.purpose for e in events if isinstance(e, Reserved)] == ["sample", "sample", "tool"]


class PaidVerifier(ScriptedVerifier):
    """A judge that costs 100 tokens a verdict and says so beforehand."""

    def bound(self, step: Step, rollout: Rollout) -> Usage:
        return Usage(90, 10, 1)

    def verify(self, step: Step, rollout: Rollout, *, peers: Sequence[Rollout] = ()) -> Verdict:
        return replace(super().verify(step, rollout, peers=peers), usage=Usage(80, 5, 1))


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_verdicts_are_paid_for_before_they_are_asked_for(run: Callable[..., Case]) -> None:
    events: list[Event] = []
    parts: dict[str, Any] = {"sampler": ScriptedSampler([], last="wrong"), "on_event": events.append, "max_tokens": 50}
    parts |= {"extra_samples": 3, "concurrency": 4}
    verifier = PaidVerifier(["42"])
    case = run(Recovery(verifier=verifier, budget=RetryBudget(tokens=900), **parts), "41")
    assert case.ledger.reserved == Spend()
    assert 0 < case.ledger.spent.tokens <= 900
    unpaid = [x for x in case.rollouts if x.verdict is not None and x.verdict.reason.startswith("not judged")]
    assert len(verifier.judged) + len(unpaid) == len(case.rollouts)
    assert unpaid
    refusals = [e for e in events if isinstance(e, Reserved) and e.refused and e.purpose == "verify"]
    assert [e.refused for e in refusals] == [("tokens",)] * len(unpaid)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"extra_samples": -1}, "extra_samples is -1"),
        ({"concurrency": 0}, "concurrency is 0"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"sampler": "no-such-provider:gpt"}, "sampler is 'no-such-provider:gpt'"),
        ({"verifier": ScriptedVerifier}, "verifier is <class"),
        ({"tool": object()}, "tool is <object"),
        ({"budget": RetryBudget(usd=1.0)}, "budget.usd is 1.0 but price is None"),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_put_together(option: dict[str, Any], message: str) -> None:
    parts: dict[str, Any] = {"sampler": ScriptedSampler([]), "verifier": ScriptedVerifier([])}
    with pytest.raises(ConfigError, match=message):
        Recovery(**(parts | option))
