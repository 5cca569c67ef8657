"""Calibrations: scores, what keeps features from routing, merging, files."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rfx_agent import Recovery
from rfx_agent.errors import CalibrationError, FeatureError
from rfx_agent.evidence.calibration import Calibration, FeatureStats
from rfx_agent.evidence.posterior import moments
from rfx_agent.evidence.rescue import belief_in
from rfx_agent.evidence.routing import operator_of
from rfx_agent.testing import ScriptedSampler, ScriptedVerifier

MEANS = {"spread": 0.4682, "concentration": 2.3291, "logit_dispersion": -0.7729}


def mine(seed: int, n: int = 40, **names: str) -> tuple[Calibration, dict, dict]:
    rng = np.random.default_rng(seed)
    features = {name: rng.normal(size=n) for name in MEANS}
    rates = {"retry": rng.beta(1, 3, n), "tool": rng.beta(2, 2, n)}
    given = {"name": "mine", "pair": "a/b", "task": "sums", **names}
    return Calibration.from_failures(features, rates=rates, **given), features, rates


def test_published_figures() -> None:
    published = Calibration.published()
    assert published.stats["two_model"]["spread"] == FeatureStats(1423, 0.4682, 0.2143)
    assert published.stats["two_model"]["concentration"] == FeatureStats(1423, 2.3291, 0.2989)
    assert published.stats["two_model"]["logit_dispersion"] == FeatureStats(1423, -0.7729, 0.2443)
    for operator in ("retry", "local_temp", "sparse_steer", "sparse_steer_random", "dense_steer"):
        assert published.prior(operator) == (0.27, 0.45)
    assert published.prior("tool") == published.prior("human") == (1.0, 1.0)
    # The prior of retry and the statistics that it stands on say the same.
    assert published.merge(published).prior("retry") == pytest.approx((0.27, 0.45))


def test_scores() -> None:
    published = Calibration.published()
    z = published.z({**MEANS, "spread": 0.4682 + 2 * 0.2143}, "two_model")
    assert z == pytest.approx({"spread": 2.0, "concentration": 0.0, "logit_dispersion": 0.0})
    assert operator_of(z) == "dense_steer"
    assert published.z(MEANS, "one_model") is None
    assert published.z(None, "two_model") is None
    assert published.z({"spread_proxy": 1.0}, "two_model") is None


def test_features_inside_their_calibration_have_no_caveat() -> None:
    assert Calibration.published().caveats(MEANS, "two_model") == ()
    edge = {**MEANS, "spread": 0.4682 + 3 * 0.2143}
    assert Calibration.published().caveats(edge, "two_model") == ()


def test_what_keeps_features_from_routing() -> None:
    published = Calibration.published()
    (outside,) = published.caveats({**MEANS, "spread": 1.2}, "two_model")
    assert "spread 1.2 " in outside
    assert "-0.1747 to 1.111" in outside  # 0.4682 -+ 3 * 0.2143
    assert "no statistics for one_model" in published.caveats(MEANS, "one_model")[0]
    assert "no statistics for novel" in published.caveats({**MEANS, "novel": 1.0}, "two_model")[0]
    assert published.caveats(None, "samples") == published.caveats({}, "samples") != ()
    assert len(published.caveats(dict.fromkeys(MEANS, 99.0), "two_model")) == 3
    assert len(published.caveats(MEANS, "two_model", min_failures=1424)) == 3
    assert "rests on 1423 failures" in published.caveats(MEANS, "two_model", min_failures=1424)[0]
    assert published.caveats({**MEANS, "spread": 0.9}, "two_model", max_z=2.0) != ()
    assert published.caveats({**MEANS, "spread": math.nan}, "two_model") != ()


def test_a_constant_calibration_lets_nothing_else_route() -> None:
    flat = Calibration("flat", "a/b", "sums", {"two_model": {"spread": FeatureStats(50, 0.5, 0.0)}})
    assert flat.caveats({"spread": 0.5}, "two_model") == ()
    assert flat.caveats({"spread": 0.51}, "two_model") != ()


def test_from_failures() -> None:
    calibration, features, rates = mine(0)
    stats = calibration.stats["two_model"]["spread"]
    assert (stats.count, stats.mean) == (40, pytest.approx(features["spread"].mean()))
    assert stats.std == pytest.approx(features["spread"].std())
    assert calibration.prior("tool") == pytest.approx(moments(rates["tool"]))
    assert calibration.prior("dense_steer") == (0.27, 0.45)  # not measured
    proxies = Calibration.from_failures(
        {"spread_proxy": [1.0, 2.0]}, name="n", pair="p", task="t", evidence="one_model", priors={}
    )
    assert proxies.z({"spread_proxy": 2.0}, "one_model") == {"spread_proxy": 1.0}
    assert proxies.priors == {}


def test_rates_that_fit_no_beta_leave_the_assumption() -> None:
    calibration = Calibration.from_failures(
        {"spread": [1.0, 2.0]}, name="n", pair="p", task="t", rates={"retry": [0.0, 0.0]}
    )
    assert calibration.prior("retry") == (0.27, 0.45)
    assert calibration.rates["retry"] == FeatureStats(2, 0.0, 0.0)


def test_from_broken_failures() -> None:
    names = {"name": "n", "pair": "p", "task": "t"}
    with pytest.raises(FeatureError, match=r"'spread'.*nan for failure 1"):
        Calibration.from_failures({"spread": [1.0, math.nan]}, **names)
    with pytest.raises(FeatureError, match="differ in length"):
        Calibration.from_failures({"spread": [1.0], "concentration": [1.0, 2.0]}, **names)
    with pytest.raises(FeatureError, match="without values"):
        Calibration.from_failures({"spread": []}, **names)
    with pytest.raises(CalibrationError, match=r"'retry' leave \[0, 1\]"):
        Calibration.from_failures({"spread": [1.0]}, rates={"retry": [1.5]}, **names)
    with pytest.raises(CalibrationError, match="'No body'; give a remedy's name"):
        Calibration.from_failures({"spread": [1.0]}, rates={"No body": [0.5]}, **names)


def test_merging_is_as_good_as_seeing_all_at_once() -> None:
    (a, fa, ra), (b, fb, rb) = mine(1, 30), mine(2, 50)
    both = a.merge(b)
    for name in MEANS:
        column = np.concatenate([fa[name], fb[name]])
        stats = both.stats["two_model"][name]
        assert (stats.count, stats.mean, stats.std) == pytest.approx((80, column.mean(), column.std()))
    assert both.prior("tool") == pytest.approx(moments(np.concatenate([ra["tool"], rb["tool"]])))
    assert both.prior("dense_steer") == (0.27, 0.45)
    assert (both.name, both.pair, both.task) == ("mine", "a/b", "sums")


def test_merging_kinds_of_evidence_keeps_them_apart() -> None:
    two, _, _ = mine(1)
    one = Calibration.from_failures(
        {"spread_proxy": [1.0, 2.0]}, name="p", pair="a/b", task="sums", evidence="one_model"
    )
    both = two.merge(one)
    assert both.stats["two_model"] == two.stats["two_model"]
    assert both.stats["one_model"] == one.stats["one_model"]
    assert both.name == "mine+p"


@pytest.mark.parametrize("what", ["pair", "task"])
def test_different_populations_merge_only_when_the_mixture_is_named(what: str) -> None:
    a, _, _ = mine(1)
    b, _, _ = mine(2, **{what: "other"})
    with pytest.raises(CalibrationError, match=f"{what}s differ"):
        a.merge(b)
    mixed = a.merge(b, **{what: "both"}, name="mixture")
    assert (getattr(mixed, what), mixed.name) == ("both", "mixture")


def test_files_keep_everything(tmp_path: Path) -> None:
    calibration = replace(mine(3)[0], counts={"retry|wrong": (1, 9), "retry|wrong@sums": (1, 4)})
    path = tmp_path / "calibration.json"
    path.write_text("old")
    calibration.save(path)
    assert Calibration.load(path) == calibration
    assert [p.name for p in tmp_path.iterdir()] == ["calibration.json"]
    assert Calibration.from_json(Calibration.published().to_json()) == Calibration.published()


def test_a_file_without_counts_has_none() -> None:
    body = json.loads(mine(3)[0].to_json())
    del body["counts"]
    assert Calibration.from_json(json.dumps(body)) == mine(3)[0]


def test_a_save_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "calibration.json"
    path.write_text("old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        Calibration.published().save(path)
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("place", "value", "named"),
    [
        (("schema_version",), 2, "schema_version"),
        (("name",), 5, "name"),
        (("extra",), 1, "extra"),
        (("stats", "two_model", "spread", "std"), -1.0, "stats.two_model.spread.std"),
        (("stats", "two_model", "spread", "count"), 1.5, "stats.two_model.spread.count"),
        (("stats", "two_model", "spread", "mean"), None, "stats.two_model.spread.mean"),
        (("stats", "three_model"), {}, "stats.three_model"),
        (("priors", "retry"), [0.0, 1.0], "priors.retry"),
        (("priors", "retry"), [1.0], "priors.retry"),
        (("priors", "No body"), [1.0, 1.0], "'No body'"),
        (("rates", "retry", "mean"), "x", "rates.retry.mean"),
        (("counts",), {"retry|wrong": [3, 2]}, "counts.retry|wrong"),
        (("counts",), {"retry|wrong": [1]}, "counts.retry|wrong"),
        (("counts",), {"retry|wrong": [1, None]}, "counts.retry|wrong"),
    ],
)
def test_bad_files_name_the_file_and_the_field(tmp_path: Path, place: tuple, value: object, named: str) -> None:
    body = json.loads(Calibration.published().to_json())
    inner = body
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(body))
    with pytest.raises(CalibrationError) as caught:
        Calibration.load(path)
    assert "bad.json" in str(caught.value)
    assert named in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "nonsense", "\x00"])
def test_no_json_at_all(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(CalibrationError, match=r"bad\.json"):
        Calibration.load(path)
    with pytest.raises(CalibrationError, match=r"missing\.json: No such file"):
        Calibration.load(tmp_path / "missing.json")


@pytest.mark.parametrize(
    "bad",
    [
        {"stats": {"no_model": {}}},
        {"stats": {"two_model": {"spread": FeatureStats(-1, 0.0, 1.0)}}},
        {"stats": {"two_model": {"spread": FeatureStats(3, math.nan, 1.0)}}},
        {"stats": {"two_model": {"spread": (3, 0.0, 1.0)}}},
        {"priors": {"retry": (0.0, 1.0)}},
        {"priors": {"retry": (1.0,)}},
        {"priors": {"No body": (1.0, 1.0)}},
        {"rates": {"retry": FeatureStats(3, 0.5, math.inf)}},
        {"counts": {"retry": (2, 1)}},
        {"counts": {"retry": (-1, 1)}},
        {"counts": {"retry": (0, math.inf)}},
        {"counts": {"retry": (math.nan, 1)}},
    ],
)
def test_statistics_that_cannot_be(bad: dict) -> None:
    with pytest.raises(CalibrationError):
        Calibration("n", "p", "t", **bad)


def test_what_is_given_is_copied() -> None:
    priors, counts = {"retry": (1.0, 1.0)}, {"retry": (1.0, 2.0)}
    calibration = Calibration("n", "p", "t", priors=priors, counts=counts)
    priors["retry"], counts["retry"] = (9.0, 9.0), (9.0, 9.0)
    assert calibration.prior("retry") == (1.0, 1.0)
    assert calibration.counts == {"retry": (1.0, 2.0)}


def test_counts_add_up_where_populations_merge() -> None:
    one = replace(mine(1)[0], counts={"retry|wrong": (1, 5), "tool|cut": (2, 2)})
    two = replace(mine(2)[0], counts={"retry|wrong": (0, 7), "revise|malformed|told": (3, 4)})
    added = {"retry|wrong": (1, 12), "tool|cut": (2, 2), "revise|malformed|told": (3, 4)}
    assert one.merge(two).counts == two.merge(one).counts == added


# What is believed of a remedy before it was tried on a failure.

LOCAL = Calibration("till", "a/b", "sums")


def believed(remedy: str, calibration: Calibration = LOCAL, **about: Any) -> tuple[float, float, str]:
    """Mean and strength of the prior, and where it comes from."""
    belief = belief_in(remedy, calibration, **{"kind": "wrong", "told": False} | about)
    alpha, beta = belief.beta
    return round(alpha / (alpha + beta), 6), round(alpha + beta, 6), belief.said


@pytest.mark.parametrize(
    ("remedy", "about", "mean"),
    [
        ("retry", {}, 0.130),
        ("retry", {"kind": "cut"}, 0.017),
        ("retry", {"kind": "malformed"}, 0.3),
        ("retry", {"kind": "no_answer"}, 0.25),
        ("extend", {"kind": "cut"}, 0.15),
        ("revise", {"told": True}, 0.4),
        ("revise", {"told": True, "kind": "malformed"}, 0.4),
        ("revise", {}, 0.034),
        ("tool", {}, 0.333),
        ("delegate", {}, 0.314),
        ("delegate_large", {}, 0.314),
        ("dense_steer", {}, 0.129),
        ("look_up", {}, 0.25),
    ],
)
def test_the_built_in_belief_goes_by_remedy_kind_and_feedback(remedy: str, about: Any, mean: float) -> None:
    got, _, said = believed(remedy, **about)
    assert (got, said) == (mean, "built-in prior, worth 8 failures at most")
    assert believed(remedy, Calibration.published(), **about)[0] == mean  # the published priors are of other operators


def test_what_was_counted_outweighs_the_built_in_belief_after_eight() -> None:
    counted = replace(LOCAL, counts={"retry|wrong": (8, 8), "retry|malformed": (0, 1000), "revise|wrong|told": (8, 8)})
    mean, strength, said = believed("retry", counted)
    assert mean == pytest.approx((8 * 0.130 + 8) / 16)
    assert strength == believed("retry")[1]  # how much failures differ is another matter
    assert said == "from calibration 'till', 8 attempts"
    # What shows the model no feedback does not depend on it; a revision does.
    assert believed("retry", counted, told=True) == believed("retry", counted)
    assert believed("revise", counted) == believed("revise")
    assert believed("revise", counted, told=True)[0] == pytest.approx((8 * 0.4 + 8) / 16)
    assert believed("retry", counted, kind="malformed", told=True)[0] == pytest.approx(8 * 0.3 / 1008, abs=1e-6)


def test_the_task_is_pooled_within_all_tasks() -> None:
    counted = replace(LOCAL, counts={"tool|wrong": (10, 40), "tool|wrong@sums": (8, 8)})
    pooled = (8 * 0.333 + 10) / 48
    assert believed("tool", counted)[0] == believed("tool", counted, task="days")[0] == pytest.approx(pooled, abs=1e-6)
    mean, _, said = believed("tool", counted, task="sums")
    elsewhere = (8 * 0.333 + 2) / 40  # a task's own attempts count once
    assert mean == pytest.approx((8 * elsewhere + 8) / 16, abs=1e-6)
    assert said == "from calibration 'till', 40 attempts"


def test_a_prior_of_the_calibrations_own_comes_before_the_built_in_one() -> None:
    own = replace(LOCAL, priors={"retry": (2.0, 6.0), "sparse_steer": (0.27, 0.45)})
    assert believed("retry", own) == (0.25, 8.0, "from calibration 'till'")
    counted = replace(own, counts={"retry|wrong": (0, 8)})
    assert believed("retry", counted) == (0.125, 8.0, "from calibration 'till', 8 attempts")
    # What is published of an operator holds where its features may route, and not elsewhere.
    assert believed("sparse_steer", own)[0] == 0.081
    assert believed("sparse_steer", own, published=True)[0] == 0.375


def test_features_that_may_route_are_held_against_the_priors_that_they_were_published_with() -> None:
    assert believed("retry", Calibration.published(), published=True)[:2] == (0.375, 0.72)
    assert believed("tool", Calibration.published(), published=True)[:2] == (0.5, 2.0)
    counted = replace(Calibration.published(), counts={"retry|wrong": (40, 40)})
    assert believed("retry", counted, published=True)[0] == 0.375


def test_a_decisions_sentence_names_where_its_rates_come_from() -> None:
    counted = replace(LOCAL, counts={"retry|wrong": (8, 8)})
    for calibration, said in (
        (LOCAL, "built-in prior, worth 8 failures at most"),
        (counted, "'till', 8 attempts"),
    ):
        sampler, verifier = ScriptedSampler(["42"]), ScriptedVerifier(["42"])
        case = Recovery(sampler, verifier, calibration=calibration).run("What is 6 times 7?", "41")
        first = case.decisions[0]
        assert first.reason == "worth:retry"
        assert "rescues with " in first.sentence
        assert first.sentence.endswith(f"{said}).")
