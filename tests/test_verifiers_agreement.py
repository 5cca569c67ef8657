"""Agreement among draws."""

from __future__ import annotations

import pytest
from verifier_conformance import HOSTILE, check_hostile, check_verifier

from rfx_agent.errors import ConfigError
from rfx_agent.records import Rollout, Step
from rfx_agent.verifiers import AgreementVerifier

STEP = Step.of("?")


def _draws(*answers, copies=()):
    """One rollout per answer; those at the indices ``copies`` have the response id of the first."""
    return [
        Rollout(
            "no idea\nat all" if answer is None else f"Answer: {answer}",
            id=f"r{i}",
            response_id=f"x-{0 if i in copies else i}",
        )
        for i, answer in enumerate(answers)
    ]


def _passes(draws, **settings):
    verifier = AgreementVerifier(**settings)
    return [verifier.verify(STEP, draw, peers=draws).passed for draw in draws]


@pytest.mark.parametrize(
    ("answers", "passes"),
    [
        ((1, 1, 1), [True, True, True]),
        ((1, "1.0", 2), [True, True, False]),  # 2 of 3; 1 and 1.0 are one answer
        ((1, 1, 2, 2), [False] * 4),  # half each, and a tie elects nobody
        ((1, 1, 2, 3), [True, True, False, False]),  # exactly half
        ((1, 1, 2, 3, 4), [False] * 5),  # 2 of 5
        ((1, 1, None, None), [True, True, False, False]),  # half; those without an answer agree on nothing
        ((1, 1, None, None, None), [False] * 5),
        ((None, None, None), [False] * 3),
        ((1, 1), [False] * 2),  # too few
    ],
)
def test_modal_share(answers, passes):
    assert _passes(_draws(*answers)) == passes


def test_copies_are_one_draw():
    # Four times the same response is one draw of 1 against one of 2.
    assert _passes(_draws(1, 1, 1, 1, 2, copies=(1, 2, 3))) == [False] * 5
    verdict = AgreementVerifier().verify(STEP, _draws(1)[0], peers=_draws(1, 1, 1, 1, 2, copies=(1, 2, 3)))
    assert "2 of at least 3 draws" in verdict.reason
    # Four copies and two more draws of 1: three draws of four.
    assert _passes(_draws(1, 1, 1, 1, 1, 2, 1, copies=(1, 2, 3)))[0]


def test_verdicts_are_weak_and_carry_the_share():
    draws = _draws(1, 1, 2)
    verifier = AgreementVerifier()
    assert verifier.needs_peers
    for draw in draws:
        verdict = verifier.verify(STEP, draw, peers=draws)
        assert verdict.weak
    assert verifier.verify(STEP, draws[0], peers=draws).score == pytest.approx(2 / 3)
    assert verifier.verify(STEP, draws[2], peers=draws).score == pytest.approx(1 / 3)
    assert "'2' is not the most frequent answer: 33% of 3 draws" in verifier.verify(STEP, draws[2], peers=draws).reason


def test_rollout_is_counted_though_peers_leave_it_out():
    draws = _draws(1, 1, 1)
    assert AgreementVerifier().verify(STEP, draws[0], peers=draws[1:]).passed
    assert not AgreementVerifier().verify(STEP, draws[0]).passed


def test_share_and_extract():
    assert _passes(_draws(1, 1, 2), share=0.7) == [False] * 3
    assert _passes(_draws(1, 1, 1), share=1) == [True] * 3
    draws = [Rollout(text, id=str(i)) for i, text in enumerate(("x 1", "y 1", "z 2"))]
    assert _passes(draws, extract=lambda text: text[-1]) == [True, True, False]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_text(hostile):
    check_hostile(AgreementVerifier(), STEP, HOSTILE[hostile])


def test_conformance():
    check_verifier(AgreementVerifier(), STEP, passing="Answer: 1", failing="Answer: 2")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"share": 0}, "share is 0"),
        ({"share": 1.1}, "share is 1.1"),
        ({"min_draws": 1}, "min_draws is 1"),
        ({"name": ""}, "name"),
    ],
)
def test_settings_fail_at_once(settings, told):
    with pytest.raises(ConfigError, match=told):
        AgreementVerifier(**settings)
