"""A diagnosis of a first failed draw without log-probabilities, for tests of policies; a test changes what it needs."""

from dataclasses import replace
from typing import Any

from rfx_agent.case import Diagnosis
from rfx_agent.records import Agreement, Spend

ONE = Spend(attempts=1, samples=1, tokens=100)
DECODING = ("retry", "local_temp", "sparse_steer", "sparse_steer_random", "dense_steer")


def diagnosis(**changes: Any) -> Diagnosis:
    base = Diagnosis(
        step_id="s",
        evidence="samples",
        features=None,
        z=None,
        calibration="published",
        routable=False,
        caveats=(),
        draws=1,
        passes=0,
        agreement=Agreement(1, 1, 1.0, 0.0),
        posterior=dict.fromkeys(DECODING, (0.27, 0.45)),
        tried={},
        cost=dict.fromkeys(DECODING, ONE),
    )
    return replace(base, **changes)
