"""How failures failed, in the audit's and the report's figures; a report of remedies that the paper does not have."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from rfx_agent.cli.app import app
from rfx_agent.evidence.features import TWO_MODEL
from rfx_agent.lab.audit import audit
from rfx_agent.lab.profiles import Profile
from rfx_agent.lab.report import report

pl = pytest.importorskip("polars")
pytest.importorskip("sklearn")


def made(n: int = 40) -> Profile:
    rng = np.random.default_rng(0)
    return Profile(
        *(["a|b"] * n, ["a"] * n, ["b"] * n, [f"p{i}" for i in range(n)], np.full(n, 5)),
        features={name: rng.normal(size=n) for name in TWO_MODEL},
        rates={op: rng.integers(0, 11, n) / 10 for op in ("retry", "revise")},
        kinds={"cut": np.full(n, 0.2), "no_answer": np.full(n, 0.1)},
    )


def test_the_figures_say_how_rollouts_failed_where_the_profile_does() -> None:
    profile = made()
    bare = audit(replace(profile, kinds={}), folds=2, repeats=1, bootstraps=2)
    assert "kinds" not in bare["cells"][0]
    assert "Kinds of failure" not in report(profile, orders=1, found=bare)
    found = audit(profile, folds=2, repeats=1, bootstraps=2)
    assert found["cells"][0]["kinds"] == {"cut": 0.2, "no_answer": 0.1}
    page = report(profile, orders=1, found=found)
    assert "Kinds of failure" in page
    assert "20.0%" in page


def test_a_report_plays_the_policies_that_these_remedies_allow() -> None:
    page = report(made(), orders=1, found=audit(made(), folds=2, repeats=1, bootstraps=2))
    assert "Rescue against attempts" in page
    assert "Not replayed" not in page
    assert "paper rule" not in page


def test_the_command_says_it(tmp_path: Path) -> None:
    profile, source = made(), tmp_path / "p.csv"
    names = {name: getattr(profile, name) for name in ("cell", "model", "task", "problem_id")}
    shares = {f"kind_{kind}": share for kind, share in profile.kinds.items()}
    numbers = {"n_failed_rollouts": profile.n_failed, **profile.features, **profile.rates, **shares}
    pl.DataFrame(names | numbers).write_csv(source)
    done = CliRunner().invoke(app, ["audit", str(source), "--folds", "2", "--repeats", "1", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout.splitlines()[-1])["cells"][0]["kinds"] == {"cut": 0.2, "no_answer": 0.1}
    assert "kinds of failure, a on b: cut 20.0%, no answer 10.0%" in done.stderr
