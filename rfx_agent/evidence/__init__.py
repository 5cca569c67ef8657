"""What the failures say: token tables, features, agreement, posteriors, calibration, routing, diagnosis."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rfx_agent._lazy import lazily

if TYPE_CHECKING:
    from rfx_agent.evidence.agreement import agreement
    from rfx_agent.evidence.calibration import Calibration
    from rfx_agent.evidence.diagnosis import diagnose_case
    from rfx_agent.evidence.features import evidence_of
    from rfx_agent.evidence.routing import RoutingRule, route
    from rfx_agent.evidence.tables import TopLogprobs
    from rfx_agent.evidence.tokens import token_features
    from rfx_agent.evidence.trajectory import trajectory_features

__all__ = [
    "Calibration",
    "RoutingRule",
    "TopLogprobs",
    "agreement",
    "diagnose_case",
    "evidence_of",
    "route",
    "token_features",
    "trajectory_features",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "Calibration": "calibration",
        "RoutingRule": "routing",
        "TopLogprobs": "tables",
        "agreement": "agreement",
        "diagnose_case": "diagnosis",
        "evidence_of": "features",
        "route": "routing",
        "token_features": "tokens",
        "trajectory_features": "trajectory",
    },
)
