"""A policy that runs beside the acting one: it decides, nobody acts on it, and the log shows where they differ."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rfx_agent.budgets.step import Ledger
from rfx_agent.case import Decision, Diagnosis
from rfx_agent.errors import is_control_flow
from rfx_agent.policies.base import Policy

__all__ = ["Difference", "ShadowPolicy", "log_difference"]

_log = logging.getLogger("rfx_agent.shadow")


@dataclass(frozen=True, slots=True)
class Difference:
    """Where the shadow would have done something else.

    Attributes:
        step_id: the step.
        attempts: rounds made on it so far, over all remedies.
        acting: what was done.
        shadow: what the shadow would have done; None where it failed.
        error: kind and message of its failure, or "".
    """

    step_id: str
    attempts: int
    acting: Decision
    shadow: Decision | None
    error: str = ""

    def as_dict(self) -> dict[str, Any]:
        """One line of a log: what both would do and expect, without prompts, answers or features."""
        return {
            "step": self.step_id,
            "attempts": self.attempts,
            "acting": _brief(self.acting),
            "shadow": None if self.shadow is None else _brief(self.shadow),
            "error": self.error,
        }


def log_difference(difference: Difference) -> None:
    """The default of ``on_difference``: one JSON line at level INFO on the logger ``rfx_agent.shadow``."""
    _log.info("%s", json.dumps(difference.as_dict()))


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowPolicy:
    """Returns the acting policy's decision, as it is, and reports where the shadow's is another.

    Two decisions differ when their routes or remedies do. What the shadow or the hook raises is logged and goes no
    further; only LangGraph's own control flow passes through.

    Attributes:
        acting: decides.
        shadow: is asked after it, with the same arguments.
        on_difference: called with each ``Difference``; logs it by default.
    """

    acting: Policy
    shadow: Policy
    on_difference: Callable[[Difference], None] = log_difference
    version: str = field(default="", init=False)

    def __post_init__(self) -> None:
        # Decisions carry the acting policy's own version; this names the pair.
        object.__setattr__(self, "version", f"{self.acting.version}|shadow:{self.shadow.version}")

    def decide(self, diagnosis: Diagnosis, ledger: Ledger) -> Decision:
        """The acting policy's decision."""
        acting = self.acting.decide(diagnosis, ledger)
        shadow, error = None, ""
        try:
            shadow = self.shadow.decide(diagnosis, ledger)
        except Exception as raised:
            if is_control_flow(raised):
                raise
            error = f"{type(raised).__name__}: {raised}"
        try:
            if shadow is None or (shadow.route, shadow.remedy) != (acting.route, acting.remedy):
                attempts = sum(diagnosis.tried.values())
                self.on_difference(Difference(diagnosis.step_id, attempts, acting, shadow, error))
        except Exception as raised:
            if is_control_flow(raised):
                raise
            _log.exception("on_difference failed on step %s", diagnosis.step_id)
        return acting


def _brief(decision: Decision) -> dict[str, Any]:
    return {
        "policy": decision.policy,
        "route": decision.route,
        "remedy": decision.remedy,
        "reason": decision.reason,
        "expected": None if decision.remedy is None else decision.expected.get(decision.remedy),
    }
