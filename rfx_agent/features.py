"""The trajectory features, by their public names; see ``rfx_agent.evidence``."""

from rfx_agent.evidence.features import (
    ONE_MODEL,
    TWO_MODEL,
    FailureFeatures,
    evidence_of,
    places,
    pool_features,
    token_offset,
)
from rfx_agent.evidence.tables import TopLogprobs
from rfx_agent.evidence.tokens import TokenFeatures, token_features
from rfx_agent.evidence.trajectory import TrajectoryFeatures, trajectory_features

__all__ = [
    "ONE_MODEL",
    "TWO_MODEL",
    "FailureFeatures",
    "TokenFeatures",
    "TopLogprobs",
    "TrajectoryFeatures",
    "evidence_of",
    "places",
    "pool_features",
    "token_features",
    "token_offset",
    "trajectory_features",
]
