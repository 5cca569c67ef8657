"""What opinions are worth, and which answers a deployment lets stand on them."""

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rfx_agent import FunctionVerifier, Recovery, RetryBudget, Rollout, SampleRequest, Step
from rfx_agent.case import Case
from rfx_agent.errors import ConfigError
from rfx_agent.events import Judged
from rfx_agent.evidence.calibration import Calibration
from rfx_agent.evidence.opinions import Opinion, RightRates, expected_share, probability_right
from rfx_agent.lab.calibrate import read_any
from rfx_agent.lab.logs import log_line
from rfx_agent.ports import Escalator, Sampler
from rfx_agent.records import SampleResult, Usage, Verdict
from rfx_agent.remedies import Retry
from rfx_agent.testing import ScriptedSampler, ScriptedVerifier
from rfx_agent.verifiers import AgreementVerifier, AllOf, AnyOf, Cascade, ExactVerifier, RegexVerifier

GOOD, POOR = (0.9, 0.01), (0.9, 0.3)
share = st.floats(0.01, 0.99)


def deployed(rates: Any = None, *, texts: Any = ("bad", "good"), rate: float = 0.4, **options: Any) -> Recovery:
    judge = FunctionVerifier(lambda text: text == "good", weak=True, rates=rates, name="judge")
    known = Calibration("ours", "a", "b", priors={"retry": (rate * 50, (1 - rate) * 50)})
    sampler = ScriptedSampler(list(texts), last="bad")
    return Recovery(sampler, judge, calibration=known, **({"budget": RetryBudget(attempts=6)} | options))


def sync(recovery: Recovery) -> Case:
    return recovery.run("How much?")


def async_(recovery: Recovery) -> Case:
    return asyncio.run(recovery.arun("How much?"))


@given(prior=share, true=share, false=share)
def test_one_opinion_is_bayes_rule(prior: float, true: float, false: float) -> None:
    got = probability_right(prior, [Opinion("a", True, (true, false))])
    assert got == pytest.approx(prior * true / (prior * true + (1 - prior) * false))
    against = probability_right(prior, [Opinion("a", False, (true, false))])
    assert against == pytest.approx(prior * (1 - true) / (prior * (1 - true) + (1 - prior) * (1 - false)))


def test_two_opinions_of_one_verifier_are_one_and_an_unmeasured_one_is_worth_nothing_known() -> None:
    one = Opinion("a", True, (0.9, 0.1))
    assert probability_right(0.3, [one, one]) == probability_right(0.3, [one])
    other = Opinion("b", True, (0.9, 0.1), correlation=0.0)
    assert probability_right(0.3, [one, other]) == pytest.approx(0.3 * 81 / (0.3 * 81 + 0.7))
    assert probability_right(0.3, [one, Opinion("b", True)]) == probability_right(0.3, [one])
    assert probability_right(0.3, [one, Opinion("b", False)]) is None
    assert probability_right(0.3, [Opinion("b", True)]) is None
    assert probability_right(None, [one]) is None


@given(prior=share, rates=st.tuples(share, share).map(lambda x: (max(x), min(x))), again=share)
def test_a_second_opinion_is_worth_less_the_more_it_repeats_the_first(prior: float, rates: Any, again: float) -> None:
    first = Opinion("a", True, rates)

    def sure(correlation: float) -> float:
        return probability_right(prior, [first, Opinion("b", True, rates, correlation)]) or 0.0

    assert sure(1.0) == pytest.approx(probability_right(prior, [first]))
    assert sure(0.0) >= sure(again) - 1e-9 >= sure(1.0) - 2e-9
    # Of two verifiers of the same rates the joint rates are those of correlated coins.
    true, false = rates
    both = [x * (x + again * (1 - x)) for x in (true, false)]
    assert sure(again) == pytest.approx(prior * both[0] / (prior * both[0] + (1 - prior) * both[1]))


@pytest.mark.parametrize(("true", "false"), [(0.9, 0.1), (0.95, 0.3), (1.0, 0.0)])
def test_how_often_answers_are_right_is_read_off_opinions(true: float, false: float) -> None:
    right, n = 0.42, 4000
    passes = round(n * (right * true + (1 - right) * false))
    seen = {(true, false): passes, (1 - true, 1 - false): n - passes}
    assert expected_share(0.1, seen) == pytest.approx(right, abs=0.01)
    assert expected_share(0.1, {}) == pytest.approx(0.1, abs=0.01)


def test_what_was_learned_of_a_first_answer_is_its_prior() -> None:
    judge = FunctionVerifier(lambda text: text == "good", weak=True, rates=GOOD, name="judge")
    recovery = Recovery(ScriptedSampler([], last="good"), judge)
    outcomes = [recovery.run("?").outcome for _ in range(40)]
    assert [x.confidence for x in outcomes[:29]] == [None] * 29  # nothing is known of so few
    assert outcomes[-1].status == "accepted"
    assert outcomes[-1].confidence > 0.99


def test_answers_that_follow_several_failures_are_counted_apart() -> None:
    rates = RightRates()
    for _ in range(200):
        rates.add("", "retry", 0, (0.9, 0.1))
        rates.add("", "retry", 1, (0.1, 0.9))
    early, late = (rates.of("", "retry", k, (0.5, 0.5)) for k in (0, 1))
    assert early > 0.7
    assert late < 0.4
    assert rates.of("", "tool", 0, (1.0, 3.0)) == 0.25
    assert rates.of("", "tool", 2, (1.0, 3.0)) == pytest.approx(1 / 6)


@pytest.mark.parametrize("strength", [0.5, 4.0, 200.0])
def test_what_is_learned_of_a_rate_that_differs_from_failure_to_failure(strength: float) -> None:
    chance, rates, after = random.Random(0), RightRates(), {0: [0, 0], 1: [0, 0], 2: [0, 0]}  # noqa: S311
    for _ in range(3000):
        right = chance.betavariate(0.4 * strength, 0.6 * strength)
        for k in range(3):
            hit = chance.random() < right
            passed = chance.random() < (0.9 if hit else 0.1)
            rates.add("", "retry", k, (0.9, 0.1) if passed else (0.1, 0.9))
            after[k][0] += hit
            after[k][1] += 1
            if hit:
                break
    for k, (hits, n) in after.items():
        assert rates.of("", "retry", k, (0.13, 0.87)) == pytest.approx(hits / n, abs=0.06)


@pytest.mark.parametrize("run", [sync, async_])
@pytest.mark.parametrize(
    ("passes", "options", "status"),
    [
        (True, {"weak": True, "rates": (0.9, 0.01)}, "rescued"),
        (True, {"weak": True, "rates": (0.9, 0.8)}, "unconfirmed"),
        (True, {"weak": True}, "unconfirmed"),
        (True, {}, "rescued"),
        (False, {}, "unresolved"),
    ],
)
def test_a_second_opinion_is_asked_of_what_the_first_is_not_sure_of(
    run: Any, passes: bool, options: Any, status: str
) -> None:
    asked: list[str] = []

    def judge(text: str) -> bool:
        asked.append(text)
        return passes

    second = FunctionVerifier(judge, name="other", **options)
    events: list[Any] = []
    case = run(deployed(POOR, second_opinion=second, on_event=events.append))
    assert (case.outcome.status, asked) == (status, ["good"])
    assert [x.verifier for x in events if isinstance(x, Judged)].count("other") == 1
    if not passes:
        assert case.outcome.best == "bad"
        assert case.rollouts[1].kind == "wrong"
    asked.clear()
    assert run(deployed(GOOD, second_opinion=second)).outcome.status == "rescued"
    assert run(deployed(POOR, texts=["good"], second_opinion=second)).outcome.status == "accepted"
    assert asked == []


def test_a_panel_that_was_measured_as_one_is_one_opinion() -> None:
    weak = [FunctionVerifier(lambda _: True, weak=True, rates=GOOD, name=x) for x in "ab"]
    verdict = AllOf(*weak, rates=(0.8, 0.05), name="both").verify(Step.of("?"), Rollout("x"))
    assert verdict.opinions == (Opinion("both", True, (0.8, 0.05)),)
    alone = AllOf(*weak, correlation=0.1).verify(Step.of("?"), Rollout("x"))
    assert [x.correlation for x in alone.opinions] == [0.1, 0.1]


def test_a_log_tells_calibrate_what_a_pass_was_worth(tmp_path: Path) -> None:
    """A judge passes 30 % of wrong answers: of its passes, calibrate counts as right what is."""
    judge = FunctionVerifier(lambda text: text.endswith("good"), weak=True, rates=(0.9, 0.3), name="judge")
    lines = []
    for i in range(300):
        chance = random.Random(i)  # noqa: S311  # a simulation

        def text(chance: random.Random = chance) -> str:
            right = chance.random() < 0.2
            return f"{chance.random()} {'good' if chance.random() < (0.9 if right else 0.3) else 'bad'}"

        sampler = ScriptedSampler(["bad", *(text() for _ in range(4))], last="bad")
        case = Recovery(sampler, judge, budget=RetryBudget(attempts=4), remedies=[Retry()]).run(Step.of("?", id=str(i)))
        lines.append(log_line(case, model="m", task="t"))
    log = tmp_path / "log.jsonl"
    log.write_text("\n".join(lines))
    (population,), bad = read_any(log)
    assert bad == ()
    rights, attempts = population.counts["retry|wrong"]
    assert rights / attempts == pytest.approx(0.2, abs=0.06)
    passes = sum(passed for line in lines for _, passed in json.loads(line)["attempts"][1:])
    assert passes / attempts > 0.35  # what counting passes would have said
    assert population.rates["retry"].mean() < passes / attempts


@pytest.mark.parametrize("run", [sync, async_])
def test_an_unresolved_case_returns_its_best_candidate_marked_as_that(run: Any) -> None:
    case = run(Recovery(ScriptedSampler(["6", "8", "8"], last="8"), ExactVerifier(7)))
    assert (case.outcome.status, case.outcome.text, case.outcome.best) == ("unresolved", None, "8")


@pytest.mark.parametrize("run", [sync, async_])
@pytest.mark.parametrize(
    ("rates", "options", "status"),
    [
        (GOOD, {}, "rescued"),
        (POOR, {}, "unconfirmed"),
        (POOR, {"accept": 0.5}, "rescued"),
        (None, {}, "unconfirmed"),
        (None, {"accept": 0.0}, "rescued"),
        (GOOD, {"texts": ("good",)}, "accepted"),
        (POOR, {"texts": ("good",)}, "accepted"),
        (POOR, {"texts": ("good",), "hold_first": True}, "unconfirmed"),
    ],
)
def test_what_an_opinion_passed_stands_where_it_is_worth_enough(
    run: Any, rates: Any, options: Any, status: str
) -> None:
    outcome = run(deployed(rates, **options)).outcome
    assert (outcome.status, outcome.text, outcome.ok, outcome.weak) == (status, "good", True, True)
    if status == "rescued" and rates is not None:
        assert outcome.confidence == pytest.approx(
            probability_right(20 / 51, [Opinion("judge", True, rates)]), abs=0.02
        )
    if rates is None or status == "accepted":
        assert outcome.confidence is None  # nobody measured how often a first answer is right


def test_a_person_is_asked_about_what_is_not_confirmed() -> None:
    from langgraph.checkpoint.memory import InMemorySaver

    from rfx_agent import outcome_of, recovery_graph, step_input

    graph = recovery_graph(deployed(POOR), checkpointer=InMemorySaver(), interrupts=True)
    config: Any = {"configurable": {"thread_id": "1"}}
    state = graph.invoke(step_input(Step.of("How much?")), config)
    assert "__interrupt__" in state
    from langgraph.types import Command

    state = graph.invoke(Command(resume={"type": "approve"}), config)
    assert (outcome_of(state).status, outcome_of(state).text) == ("human", "good")


def test_a_proof_is_certain() -> None:
    case = Recovery(ScriptedSampler(["8", "7"]), ScriptedVerifier(["7"])).run("3 + 4?")
    assert case.outcome is not None
    assert (case.outcome.status, case.outcome.confidence) == ("rescued", 1.0)


class Draws(Sampler):
    """Right with a given rate."""

    name = "draws"

    def __init__(self, rate: float, chance: random.Random) -> None:
        self.rate, self.chance = rate, chance

    def sample(self, request: SampleRequest) -> SampleResult:
        text = "right" if self.chance.random() < self.rate else f"wrong {self.chance.random()}"
        return SampleResult((Rollout(text, usage=Usage(9, 3, 1)),), Usage(9, 3, 1))


@pytest.mark.parametrize("rate", [0.095, 0.42])
@pytest.mark.parametrize("false", [0.02, 0.1, 0.2])
@pytest.mark.parametrize("judges", [1, 2])
def test_rescued_is_earned_and_confidence_is_what_it_says(rate: float, false: float, judges: int) -> None:
    """Measured rates of the judges and of the draws; two judges are wrong independently."""
    known = Calibration("ours", "a", "b", priors={"retry": (rate * 200, (1 - rate) * 200)})
    said, right, rescued, wrong = 0.0, 0, 0, 0
    answered = 0
    for i in range(300):
        chance = random.Random(f"{rate} {false} {judges} {i}")  # noqa: S311  # a simulation

        def opinion(text: str, chance: random.Random = chance) -> bool:
            return chance.random() < (0.9 if text == "right" else false)

        members = [FunctionVerifier(opinion, weak=True, rates=(0.9, false), name=f"judge-{j}") for j in range(judges)]
        verifier = members[0] if judges == 1 else Cascade(*members, correlation=0.0)
        budget = RetryBudget(attempts=6)
        outcome = Recovery(Draws(rate, chance), verifier, calibration=known, budget=budget).run("?").outcome
        assert outcome is not None
        if outcome.status == "rescued":
            rescued += 1
            wrong += outcome.text != "right"
        if outcome.confidence is not None:
            answered += 1
            said += outcome.confidence
            right += outcome.text == "right"
    assert wrong <= 0.1 * rescued + 2 * (0.1 * 0.9 * rescued) ** 0.5
    assert abs(said - right) / answered < 0.1


@pytest.mark.parametrize("run", ["verify", "averify"])
def test_panels_join_verdicts(run: str) -> None:
    step, rollout = Step.of("3 + 4?"), Rollout("7")
    weak = FunctionVerifier(lambda _: True, weak=True, rates=GOOD, name="cheap")
    deny = FunctionVerifier(lambda _: False, weak=True, rates=GOOD, name="strict")

    def judged(panel: Any) -> Any:
        given = getattr(panel, run)(step, rollout)
        return asyncio.run(given) if run == "averify" else given

    assert (judged(AllOf(weak, ExactVerifier(7))).passed, judged(AllOf(weak, ExactVerifier(7))).weak) == (True, False)
    assert judged(AllOf(weak, deny)).passed is False
    both = judged(AnyOf(weak, deny))
    assert (both.passed, both.weak, [o.passed for o in both.opinions]) == (True, True, [True, False])
    assert judged(Cascade(weak, ExactVerifier(8))).passed is False
    assert judged(Cascade(ExactVerifier(7), weak)).opinions == ()  # a proof ends it
    assert judged(Cascade(deny, weak)).opinions == (Opinion("strict", False, GOOD),)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: AllOf(ExactVerifier(1)), "at least two"),
        (lambda: AnyOf(ExactVerifier(1), ExactVerifier(2)), "two verifiers are called 'exact'"),
        (lambda: FunctionVerifier(bool, rates=GOOD), "weak is False"),
        (lambda: FunctionVerifier(bool, weak=True, rates=(0.2, 0.4)), "tells nothing"),
        (lambda: FunctionVerifier(bool, weak=True, rates=0.9), "rates is 0.9"),  # type: ignore[arg-type]
        (lambda: deployed(accept=1.2), "accept"),
        (lambda: deployed(second_opinion=AgreementVerifier()), "judges one answer"),
        (lambda: deployed(second_opinion=FunctionVerifier(lambda _: True, name="judge")), "both called 'judge'"),
        (lambda: AllOf(ExactVerifier(1), ExactVerifier(2, name="b"), correlation=2), "correlation"),
    ],
)
def test_what_cannot_work_says_so(make: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make()


class Broken(FunctionVerifier):
    """Cannot be reached."""

    def __init__(self) -> None:
        self.asked = 0
        super().__init__(self._asked, name="broken")

    def _asked(self, text: str) -> bool:
        self.asked += 1
        raise ConnectionError(text)


@pytest.mark.parametrize("run", [sync, async_])
def test_where_the_second_opinion_breaks_the_first_stands_and_it_is_asked_once(run: Any) -> None:
    broken = Broken()
    case = run(deployed(POOR, texts=("bad", "good", "good"), second_opinion=broken, accept=0.95, extra_samples=1))
    assert (case.outcome.status, case.outcome.text, broken.asked) == ("unconfirmed", "good", 1)
    assert any("broken, came to no verdict on r1" in note for note in case.notes)


@pytest.mark.parametrize("run", [sync, async_])
def test_each_answer_that_is_not_confirmed_gets_a_second_opinion(run: Any) -> None:
    judge = FunctionVerifier(lambda text: text != "bad", weak=True, rates=(0.9, 0.3), name="judge")
    strict = FunctionVerifier(lambda text: text == "three", weak=True, rates=(0.9, 0.01), name="strict")
    known = Calibration("ours", "a", "b", priors={"retry": (20, 30)})
    recovery = Recovery(
        ScriptedSampler(["bad", "one", "two", "three"], last="bad"),
        judge,
        second_opinion=strict,
        calibration=known,
        extra_samples=3,
        remedies=[Retry()],
    )
    outcome = run(recovery).outcome
    assert (outcome.status, outcome.text) == ("rescued", "three")


@pytest.mark.parametrize("run", [sync, async_])
def test_what_opinions_passed_is_not_lost_where_nobody_can_be_asked(run: Any) -> None:
    class Nobody(Escalator):
        def escalate(self, payload: Any) -> Any:
            raise AssertionError(payload)

    asked = deployed(POOR, escalator=Nobody(), budget=RetryBudget(attempts=6, escalations=0))
    outcome = run(asked).outcome
    assert (outcome.status, outcome.text) == ("unconfirmed", "good")
    held = run(deployed(POOR, unconfirmed="unresolved")).outcome
    assert (held.status, held.text, held.best, held.ok) == ("unresolved", None, "good", False)


def test_a_check_of_the_form_is_no_proof_beside_a_judge() -> None:
    step, rollout = Step.of("A number?"), Rollout("Answer: 8")
    asked: list[str] = []

    def judge(text: str) -> bool:
        asked.append(text)
        return True

    weak = FunctionVerifier(judge, weak=True, rates=POOR, name="judge")
    digit = RegexVerifier(r"\d")
    for panel in (AllOf(digit, weak), AllOf(weak, digit), Cascade(digit, weak)):
        verdict = panel.verify(step, rollout)
        assert (verdict.passed, verdict.weak, [x.by for x in verdict.opinions]) == (True, True, ["judge"])
    assert len(asked) == 3
    assert AllOf(digit, RegexVerifier("Answer", name="word")).verify(step, rollout).weak is False
    assert Cascade(weak, FunctionVerifier(lambda _: True, partial=True, name="form")).verify(step, rollout).weak
    assert AllOf(digit, weak).verify(step, Rollout("none")).weak is False  # its "no" is one


@given(
    given=st.lists(st.tuples(st.booleans(), st.tuples(share, share).map(lambda x: (max(x), min(x)))), max_size=4),
    more=st.tuples(share, share).map(lambda x: (max(x), min(x))),
    correlation=share,
    prior=share,
    seed=st.integers(0, 99),
)
def test_the_order_of_opinions_does_not_matter_and_a_second_that_agrees_never_lowers(
    given: Any, more: Any, correlation: float, prior: float, seed: int
) -> None:
    some = [Opinion(str(i), passed, rates, correlation) for i, (passed, rates) in enumerate(given)]
    shuffled = random.Random(seed).sample(some, len(some))  # noqa: S311  # an order
    assert probability_right(prior, some) == pytest.approx(probability_right(prior, shuffled))
    first = Opinion("first", True, given[0][1] if given else (0.9, 0.1), correlation)
    both = probability_right(prior, [first, Opinion("more", True, more, correlation)]) or 0.0
    assert both >= (probability_right(prior, [first]) or 0.0) - 1e-9


def test_what_was_learned_of_one_task_says_nothing_of_another() -> None:
    rates = RightRates()
    for _ in range(100):
        rates.add("easy", "retry", 0, (0.9, 0.1))
    assert rates.of("easy", "retry", 0, (0.1, 0.9)) > 0.7
    assert rates.of("hard", "retry", 0, (0.1, 0.9)) == pytest.approx(0.1)


def test_what_was_learned_is_forgotten_when_it_changes() -> None:
    chance, rates = random.Random(1), RightRates()  # noqa: S311
    for right in (0.6, 0.05):
        for _ in range(4000):
            passed = chance.random() < (0.9 if chance.random() < right else 0.1)
            rates.add("", "retry", 0, (0.9, 0.1) if passed else (0.1, 0.9))
        assert rates.of("", "retry", 0, (0.13, 0.87)) == pytest.approx(right, abs=0.07)


def test_a_nested_panel_keeps_what_its_members_share() -> None:
    a, b, c = (FunctionVerifier(lambda _: True, weak=True, rates=(0.9, 0.1), name=x) for x in "abc")
    verdict = AllOf(AllOf(a, b, correlation=0.5), c, correlation=0.0).verify(Step.of("?"), Rollout("x"))
    assert [x.correlation for x in verdict.opinions] == [0.5, 0.5, 0.0]


@pytest.mark.parametrize(
    "verdict",
    [
        Verdict(True, weak=True, rates=("a", "b")),  # type: ignore[arg-type]
        Verdict(True, weak=True, rates=(float("nan"), 0.1)),
        Verdict(True, weak=True, opinions=(Opinion("x", True, (0.9, 0.1), -3.0),)),
    ],
)
def test_rates_that_cannot_be_are_refused_by_name(verdict: Verdict) -> None:
    with pytest.raises(ConfigError, match="verifier odd"):
        deployed().__class__(
            ScriptedSampler(["bad"], last="bad"), FunctionVerifier(lambda _: verdict, name="odd", weak=True)
        ).run("?")


def test_a_member_without_a_verdict_is_no_vote() -> None:
    silent = FunctionVerifier(lambda _: Verdict(False, kind="unchecked"), weak=True, rates=POOR, name="silent")
    sure = FunctionVerifier(lambda _: True, weak=True, rates=GOOD, name="sure")
    verdict = AnyOf(sure, silent).verify(Step.of("?"), Rollout("x"))
    assert [x.by for x in verdict.opinions] == ["sure"]
