"""Where answers are found, and which are the same: the cases of ``data/answers.jsonl`` and the rules behind them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from verifier_conformance import HOSTILE

from rfx_agent.errors import ConfigError
from rfx_agent.records import Rollout, Step
from rfx_agent.verifiers import ExactVerifier, MathVerifier
from rfx_agent.verifiers.amounts import amount
from rfx_agent.verifiers.answers import alone, find_answer
from rfx_agent.verifiers.restated import restates
from rfx_agent.verifiers.tidy import mathematical, tidy
from rfx_agent.verifiers.units import unit_of
from rfx_agent.verifiers.unmarked import unmarked

CASES = [json.loads(line) for line in (Path(__file__).parent / "data" / "answers.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", sorted({case["kind"] for case in CASES}))
def test_cases(kind):
    wrong = []
    for case in (x for x in CASES if x["kind"] == kind):
        step = Step.of(case.get("question", "?"), expected=case["reference"])
        for name, verifier in (("math", MathVerifier()), ("exact", ExactVerifier())):
            verdict = verifier.verify(step, Rollout(case["text"]))
            if case[name] is not None and verdict.passed is not case[name]:
                wrong.append((name, case, verdict.reason))
    assert wrong == []


@pytest.mark.parametrize(
    ("text", "answer", "place"),
    [
        ("Answer: 7", "7", "line"),
        ("**Final answer:** 7", "7", "line"),
        ("1. **Answer:** 7", "7", "line"),
        ("So the final answer is 7.", "7.", "line"),
        ("The answer to the question is 7.", "7.", "line"),
        ("<b>Answer:</b> 7", "7", "line"),
        ("__Answer__: 7", "7", "line"),
        ("Die Antwort ist: 7", "7", "line"),
        ("答案：7", "7", "line"),
        ("Answer: 7 because 3 + 4 = 7", "7", "line"),
        ("Answer: 7. I hope it is correct.", "7", "line"),
        ("Answer: 7. No, 8.", "7. No, 8.", "line"),
        ("## Answer\n\n7\n\nThanks!", "7", "line"),
        ("Answer:\n```\n7\n```", "7", "line"),
        ("$\\boxed{7}$ is it", "7", "box"),
        ("Answer: $x = \\boxed{7}$", "7", "box"),
        ("\\boxed{1}, \\boxed{2}", "1 and 2", "box"),
        ("\\boxed{1} or \\boxed{2}", "1 or 2", "box"),
        ("\\boxed{1} and then \\boxed{2}", "2", "box"),
        ("<answer>7</answer>", "7", "tag"),
        ("3 + 4\n#### 7", "7", "hash"),
        ("Let us see.\nTherefore, the result is 7.", "7.", "end"),
        ("Let us see.\n\n**7**", "7", "end"),
        ('{"answer": 7}', "7", "json"),
        ('{"steps": "the answer is 6", "answer": 7}', "7", "json"),
        ('So:\n```json\n{"answer": "\\\\boxed{7}"}\n```', "7", "box"),
        ("<answer>The answer is 7</answer>", "7", "tag"),
        ("Answer: **6** and **7**", "6 and 7", "line"),
        ("Answer: <b>7</b>", "7", "line"),
        ("Answer: __init__", "__init__", "line"),
        ("Answer: St. Louis", "St. Louis", "line"),
        ("Answer: C. S. Lewis", "C. S. Lewis", "line"),
        ("Answer: C. Lyon", "C", "line"),
        ("Answer: 7 \u2014 because 3 + 4 = 7", "7", "line"),
        ("$x = \\boxed{6}$, $y = \\boxed{7}$", "6 and 7", "box"),
        ("\\boxed{6}/\\boxed{7}", "6/7", "box"),
        ("$x = -\\boxed{7}$", "- 7", "box"),
        ("$x \\neq \\boxed{7}$", "\\neq 7", "box"),
        ("$\\boxed{7}^2$", "7^", "box"),
        ("$3 \\cdot \\boxed{7} = 21$", "7", "box"),
        ("- \\boxed{7}", "7", "box"),
        ("The number that is not even is \\boxed{7}.", "7", "box"),
        ("It is not \\boxed{7}.", None, None),
        ("\\boxed{7} is wrong.", None, None),
        ("\\boxed{7}? No.", None, None),
        ("Answer: 7\nOops, 8", None, None),
        ("Answer: 7\nThat is wrong.", None, None),
        ("Answer: 7\nCorrection: 8", None, None),
        ("Answer: 7\nHold on, I misread it. It should be 8.", None, None),
        ("Answer: 7\nWait, let me check. There are no mistakes.", "7", "line"),
        ("Answer: 7\nNo, 7.", "7", "line"),
        ("Answer: 7\nActually, this is well known.", "7", "line"),
        ("Answer: 7\nOr maybe\nAnswer: 8", None, None),
        ("Answer: 7\nNo, that is wrong.", None, None),
        ("The answer is unknown.", None, None),
        ("Nobody knows the answer: it is lost", None, None),
        ("The result is not 7.", None, None),
    ],
)
def test_places(text, answer, place):
    found = find_answer(text)
    assert (answer, place) == (None, None) if found is None else (found.text, found.place) == (answer, place)


def test_a_text_alone_and_an_end():
    assert alone("```\n7\n```").place == "code"
    assert alone("The largest n is 34.").others == ("34",)
    assert alone("The largest n is not 34.").others == ()
    assert alone("B) Lyon").others == ("B", "Lyon")
    ends = {
        "First we add.\nThen we see that there are 12 ways of it.": "12",
        "We add.\nThis makes $x^2$.": "$x^2$",
        "We add.\n\n\\[\nx^2\n\\]": "x^2",
        "We add.\n7\n8": None,
        "We add.\nSo it is 7 or 8.": None,
        "We add.\nIt is at 10:45.": None,
        "We add.\n= 7": "7",
        "We add.\nSo x = 7.": "x = 7",
        "We add.\nWe know that f(2) = 7.": "7",
        "We add.\nWe see that $m + n = 7$.": "7",
        "We add.\nWe see that 2x + 4 = 7.": None,
        "We add.\nIt is more than 7.": None,
        "We add.\nNow divide by 7.": None,
        "We add.\nLet us try n = 7.": None,
        "We add.\nThis holds when n = 7.": None,
    }
    for text, answer in ends.items():
        assert next((x.text for x in unmarked(text)), None) == answer


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("1,234.50", 1234.5, None),
        ("$-3$", -3, None),
        ("-$3", -3, "dollar"),
        ("1 5/8 in", 1.625, "in"),
        ("\\frac{3}{4}\\text{ cup}", 0.75, "cup"),
        ("3 \\times 10^{-2} m", 0.03, "m"),
        ("2.5 million", 2_500_000, None),
        ("12 km/h", 12, "km/h"),
        ("90^\\circ", 90, "degree"),
        ("12 apple trees", 12, "apple tree"),
        ("1.234,5", 1234.5, None),
        ("1 234,5", 1234.5, None),
        ("forty-two", 42, None),
        ("one hundred and five", 105, None),
        ("42 (forty-two)", 42, None),
        ("5 \u00b5m", 5, "\u03bcm"),
        ("5\\,\\mu\\text{m}", 5, "\u03bcm"),
        ("42 (forty)", None, None),
        ("two five", None, None),
        ("0110", None, None),
        ("12 or so", None, None),
        ("12 more", None, None),
        ("1,23,4", None, None),
        ("3/0", None, None),
        ("1e9999", None, None),
        ("x", None, None),
    ],
)
def test_amounts(text, value, unit):
    made = amount(text)
    assert (None if made is None else float(made.value)) == value
    assert (None if made is None or made.unit is None else made.unit.name) == unit


def test_a_letter_at_a_number_may_be_a_variable():
    assert unit_of("m", attached=True).weak
    assert not unit_of("m", attached=False).weak
    assert unit_of("x", attached=False) is None


@pytest.mark.parametrize("text", ["x+1", "2xy", "\\frac{a}{b}", "10!", "|x|<3", "\\sin x", "a_1", "5 - 3"])
def test_mathematics(text):
    assert mathematical(tidy(text))


@pytest.mark.parametrize(
    "text", ["", "cat", "AB", "H2O", "1a2b", "10:30", "4-3", "2024-05-01", "0x1f", "not 5", "x y", "\\foo"]
)
def test_text(text):
    assert not mathematical(tidy(text))


@pytest.mark.parametrize(
    ("expected", "answer", "same"),
    [
        ("18", "18 dollars", True),
        ("18 kg", "18", True),
        ("18 kg", "18 kilograms", True),
        ("18 kg", "18 g", False),
        ("50", "50%", False),
        ("50", "50 or so", False),
        ("1/2", "1/2 cup", True),
        ("1/2", "2/4 cup", False),
        ("007", "7 units", False),
        ("18", "18 million", False),
        ("5", "5m", False),
        ("10:30", "10:30 PM", False),
    ],
)
def test_exact_but_for_a_unit(expected, answer, same):
    rollout = Rollout(f"Answer: {answer}")
    assert ExactVerifier(expected, units=True).verify(Step.of("?"), rollout).passed is same
    if "kilo" not in answer:
        assert not ExactVerifier(expected).verify(Step.of("?"), rollout).passed


@pytest.mark.parametrize(
    ("expected", "answer", "same"),
    [
        ("2 × 3 × 5", "5 × 3 × 2", True),
        ("2 × 3 × 5", "5*3*2", True),
        ("2 × 2 × 3", "2 × 3 × 3", False),
        ("[1, 2, 3]", "[3,2,1]", True),
        ("cat, dog", "dog, cat", True),
        ("cat, dog", "tac, god", False),
        ("[[1,2],[3,4]]", "[[3,4],[1,2]]", True),
        ("[[1,2],[3,4]]", "[[1,4],[3,2]]", False),
        ("(1, 2)", "(2, 1)", False),
        ("1,200", "200,1", False),
        ("-6*x**3 + 2*x", "x*-6**3 + 2*x", False),
        ("x*(y+z)", "z)*(y+x", False),
    ],
)
def test_exact_but_for_the_order(expected, answer, same):
    rollout = Rollout(f"Answer: {answer}")
    assert ExactVerifier(expected, order=False).verify(Step.of("?"), rollout).passed is same
    assert not ExactVerifier(expected).verify(Step.of("?"), rollout).passed


def test_options_that_need_canonical_forms():
    for options in ({"units": True}, {"order": False}):
        with pytest.raises(ConfigError, match="leave it True"):
            ExactVerifier("1", normalise=False, **options)


def test_tolerance_is_the_users():
    assert not MathVerifier("10").verify(Step.of("?"), Rollout("Answer: 10.01")).passed
    assert MathVerifier("10", tolerance=0.01).verify(Step.of("?"), Rollout("Answer: 10.01")).passed
    assert not MathVerifier("10", tolerance=0.01).verify(Step.of("?"), Rollout("Answer: 10.2")).passed
    assert MathVerifier("\\pi", tolerance=0.001).verify(Step.of("?"), Rollout("Answer: 3.14")).passed
    for bad in (-1, 1, float("nan"), "x"):
        with pytest.raises(ConfigError, match="tolerance"):
            MathVerifier("1", tolerance=bad)


def test_of_several_references_any_will_do():
    for expected in (["1/2", "2"], ("1/2", 2), {"1/2", "2"}):
        assert MathVerifier(expected).verify(Step.of("?"), Rollout("Answer: 0.5")).passed
        assert MathVerifier().verify(Step.of("?", expected=expected), Rollout("Answer: 2")).passed
        assert not MathVerifier(expected).verify(Step.of("?"), Rollout("Answer: 3")).passed
    with pytest.raises(ConfigError, match="at least one"):
        MathVerifier([])


def test_the_expected_answer_stays_out_of_reason_and_feedback():
    for verifier in (MathVerifier("98765"), ExactVerifier("98765")):
        for text in ("Answer: 5", "no idea at all", "", "Answer: 5 kg"):
            verdict = verifier.verify(Step.of("?"), Rollout(text))
            assert "98765" not in f"{verdict.reason}{verdict.feedback}"


def test_what_restates_a_question():
    ask = Step.of([{"role": "user", "content": [{"type": "text", "text": "Compute $3 \\times (4+5)$ now."}]}])
    assert restates(ask, "3*(4+5)")
    assert restates(ask, "(5+4)*3")
    assert not restates(ask, "3*4+3*5")
    assert not restates(ask, "27")
    assert not restates(Step.of("Is 27 or -27 right?"), "-27")


def test_a_form_that_is_asked_for():
    ask = Step.of("Write 0.75 as a fraction.")
    assert not MathVerifier("3/4").verify(ask, Rollout("Answer: 0.75")).passed
    assert MathVerifier("3/4").verify(ask, Rollout("Answer: 6/8")).passed
    given = Step.of("A coin lands heads with probability 0.5. What is that of tails?")
    assert MathVerifier("1/2").verify(given, Rollout("Answer: 0.5")).passed


def test_an_answer_in_words_is_no_mathematics():
    verdict = MathVerifier("8").verify(Step.of("?"), Rollout("I do not know"))
    assert (verdict.passed, verdict.kind) == (False, "no_answer")


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_text_is_read_in_time(hostile):
    text = HOSTILE[hostile]
    find_answer(text)
    list(unmarked(text))
    amount(text)
    restates(Step.of(text[:100_000] or "?"), text[:2000])
