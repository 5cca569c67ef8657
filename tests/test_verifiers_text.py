"""Answer extraction, canonical forms, and the exact and regex verifiers."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from verifier_conformance import HOSTILE, check_hostile, check_verifier

from rfx_agent.errors import ConfigError
from rfx_agent.records import Rollout, Step
from rfx_agent.verifiers import ExactVerifier, RegexVerifier, canonical, extract_answer
from rfx_agent.verifiers.answers import number
from rfx_agent.verifiers.worker import shared_worker

STEP = Step.of("What is 6 times 7?", expected="42")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Answer: 42", "42"),
        ("so\n  answer:42  \nbye", "42"),
        ("**Answer:** 42", "42"),
        ("**Answer**: 42", "42"),
        ("**Answer: 42**", "42"),
        ("### Final Answer: `x_1`", "x_1"),
        ("> ANSWER = 7", "7"),
        ("Answer:\n\n 42\n", "42"),
        ("Answer: 1\nNo, wait.\nAnswer: 2", "2"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{1} then \\boxed{2}", "2"),
        ("\\boxed{1} then \\boxed{2", "1"),
        ("\\boxed{ never closed, and \\boxed{5}", "5"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{\\boxed{3}}", "3"),
        ("Answer: $\\boxed{42}$.", "42"),
        ("<answer> 42 </answer>", "42"),
        ("<ANSWER>a\nb</Answer>", "a\nb"),
        ("<answer>1</answer><answer>2</answer>", "2"),
        ("Answer: 1\n<answer>2</answer>", "2"),  # what stands last counts
        ("<answer>2</answer>\nAnswer: 1", "1"),
        ("\\boxed{5}\nAnswer: 6", "6"),
        ("the answer: 42", "42"),
        ("He doubts that the answer: 42", None),  # within a sentence it may be anybody's
        ("It is not so that the answer is 42.", None),
        ("Answering: 42", None),
        ("My answer is unclear", None),
        ("<answer>42", None),
        ("</answer>42<answer>", None),
        ("\\boxed{}", None),
        ("", None),
    ],
)
def test_extract_answer(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("answer", "form"),
    [
        ("42.", "42"),
        ("  7.0 ", "7"),
        ("-0.0", "0"),
        ("+5", "5"),
        (".50", "0.5"),
        ("1,234,567", "1234567"),
        ("1,23", "1,23"),  # a pair, or a comma that is a decimal point: not for us to say
        ("$1,234.50", "1234.5"),
        ("$42$", "42"),
        ("\\(42\\)", "42"),
        ("\u221242", "-42"),
        ("４２", "42"),
        ("1e3", "1000"),
        ("0.30000000000000004", "0.3"),  # 0.1 + 0.2
        ("1771.3719999999998", "1771.372"),
        ("5.000000000000001", "5"),
        ("3.141592653589793", "3.141592653589793"),
        ("0.3333333333333333", "0.3333333333333333"),
        ("1234567890.0000001", "1234567890"),
        ("12345678901.2345671", "12345678901.2345671"),
        ("100000000000001.0", "100000000000001"),
        ("100000000000.0001", "100000000000.0001"),
        ("1E-2", "0.01"),
        ("1e999999999", "1e999999999"),
        ("2/4", "2/4"),
        ("10²", "10²"),  # not 102
        ("Paris.", "paris"),
        ("New\n  York", "new york"),
        ("**yes**", "yes"),
        ("'a'", "a"),
        ("etc...", "etc..."),
        ("", ""),
        (".", ""),
    ],
)
def test_canonical(answer, form):
    assert canonical(answer) == form


@given(st.text(alphabet="abcXYZ 0123456789,-+/", max_size=40))
def test_canonical_is_stable(text):
    assert canonical(canonical(text)) == canonical(text)


@given(st.integers(-(10**30), 10**30))
@example(100_000_000_000_001)
@example(2_499_999_999_999_999)
def test_integers_have_one_spelling(value):
    assert canonical(str(value)) == canonical(f"{value:,}") == canonical(f"{value}.0") == str(value)


@given(st.text(alphabet="Answer: \n*<>/boxed{}\\1", max_size=80))
def test_extraction_never_breaks(text):
    extract_answer(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1/2", Fraction(1, 2)),
        ("-6/4", Fraction(-3, 2)),
        ("\\frac{3}{4}", Fraction(3, 4)),
        ("-\\dfrac{3}{4}", Fraction(-3, 4)),
        ("0.1", Fraction(1, 10)),
        ("1,000", Fraction(1000)),
        ("1/0", None),
        ("1e401", None),
        ("9" * 1001, None),
        ("x", None),
        ("", None),
    ],
)
def test_number(text, value):
    assert number(text) == value


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_text(hostile):
    check_hostile(ExactVerifier(), STEP, HOSTILE[hostile])
    check_hostile(RegexVerifier(pattern=r"^Answer: (\d+)$", group=1), STEP, HOSTILE[hostile])


@pytest.mark.parametrize(
    ("verifier", "passing", "failing"),
    [
        (ExactVerifier(), "Answer: 42", "Answer: 43"),
        (ExactVerifier(42), "42.0", "no idea\nnone"),
        (ExactVerifier(["Rome", "Roma"]), "roma", "Paris"),
        (ExactVerifier("Rome", casefold=False), "Rome.", "rome"),
        (ExactVerifier("4.0", normalise=False), "4.0", "4"),
        (ExactVerifier("42", whole=False), "Answer: 42", "42"),
        (ExactVerifier(extract=lambda text: text[-2:]), "so 42", "so 43"),
        (RegexVerifier(pattern=r"total (\d+)"), "the total 42 is", "no such thing"),
        (RegexVerifier(pattern=r"(?P<n>\d+)", group="n", full=True), " 42\n", "x 42"),
    ],
)
def test_conformance(verifier, passing, failing):
    check_verifier(verifier, STEP, passing=passing, failing=failing)


def test_answers_and_reasons():
    verdict = ExactVerifier().verify(STEP, Rollout("Answer: **1,000.0**"))
    assert (verdict.answer, verdict.score) == ("1000", 0.0)
    assert "42" not in verdict.reason  # what was expected is for the verifier alone
    long = ExactVerifier().verify(STEP, Rollout("I think\n" * 40))
    assert (long.answer, long.reason) == (None, "no answer was found in the text")
    same = [ExactVerifier().verify(STEP, Rollout("Answer: " + "x" * 5000)).answer for _ in range(2)]
    other = ExactVerifier().verify(STEP, Rollout("Answer: " + "x" * 4999 + "y")).answer
    assert same[0] == same[1] != other  # rejected answers are shortened and stay distinguishable


def test_what_is_falsy_is_expected_all_the_same():
    for expected in (0, "", False):
        verdict = ExactVerifier().verify(Step.of("?", expected=expected), Rollout(f"Answer: {expected}"))
        assert verdict.passed is (expected != "")  # an empty answer states none


def test_regex_answer_is_the_group():
    verifier = RegexVerifier(pattern=r"total (\d+)(x)?", group=1)
    assert verifier.verify(STEP, Rollout("a total 42 b")).answer == "42"
    unmatched = RegexVerifier(pattern=r"total (\d+)(x)?", group=2).verify(STEP, Rollout("a total 42 b"))
    assert (unmatched.passed, unmatched.answer) == (True, "")


def test_catastrophic_backtracking_is_stopped():
    verifier = RegexVerifier(pattern=r"^(\w+\s?)+$", seconds=0.2)
    verdict = verifier.verify(STEP, Rollout("word " * 10 + "a" * 40 + "!"))
    assert not verdict.passed
    assert "stopped" in verdict.reason
    before = shared_worker().pid
    assert verifier.verify(STEP, Rollout("two words")).passed  # a new process took over
    assert shared_worker().pid not in (None, before)


def test_worker_is_reused():
    verifier = RegexVerifier(pattern="a")
    verifier.verify(STEP, Rollout("a"))
    pid = shared_worker().pid
    verifier.verify(STEP, Rollout("b"))
    assert shared_worker().pid == pid


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: RegexVerifier(pattern="("), "pattern is '\\('"),
        (lambda: RegexVerifier(pattern=b"a"), "not bytes"),
        (lambda: RegexVerifier(pattern="(a)", group=2), "group is 2"),
        (lambda: RegexVerifier(pattern="(a)", group="n"), "group is 'n'"),
        (lambda: RegexVerifier(pattern="a", seconds=0), "seconds is 0"),
        (lambda: RegexVerifier(pattern="a", name=""), "name is ''"),
        (lambda: ExactVerifier([]), "expected is \\[\\]"),
        (lambda: ExactVerifier(extract="Answer"), "extract is 'Answer'"),
        (lambda: ExactVerifier(name=""), "name is ''"),
        (lambda: ExactVerifier().verify(Step.of("?"), Rollout("1")), "nothing to compare with"),
    ],
)
def test_settings_fail_at_once(make, told):
    with pytest.raises(ConfigError, match=told):
        make()


def test_a_repr_says_what_is_checked_and_not_what_is_expected():
    assert repr(ExactVerifier("secret")) == "ExactVerifier(name='exact')"
    assert repr(RegexVerifier("a+")) == "RegexVerifier('a+', name='regex')"


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="no /proc here")
def test_the_worker_has_an_environment_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-nobody-else")
    shared_worker().close()
    assert RegexVerifier(pattern="a").verify(STEP, Rollout("a")).passed
    assert b"sk-of-nobody-else" not in Path(f"/proc/{shared_worker().pid}/environ").read_bytes()
