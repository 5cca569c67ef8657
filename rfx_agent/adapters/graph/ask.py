"""A case before a person by LangGraph's interrupt: asked until the reply fits."""

from __future__ import annotations

from collections.abc import Callable

from langgraph.types import interrupt

from rfx_agent.case import Case, Outcome
from rfx_agent.engine.drive import Flow
from rfx_agent.engine.run import Run
from rfx_agent.errors import EscalationError
from rfx_agent.escalation.ask import answer_person
from rfx_agent.escalation.request import payload

__all__ = ["ask_person"]


def ask_person(run: Run, case: Case, fits: Callable[[Outcome], None] = lambda _: None) -> Flow[Case]:
    """The case with a person's answer applied. On resume a node runs again from its top: spend nothing before this.

    Args:
        run: the deployment.
        case: with ``ask`` set.
        fits: raises ``EscalationError`` on an outcome that cannot stand; then the person is asked again.
    """
    reply = interrupt(payload(case))
    while True:
        try:
            return (yield from answer_person(run, case, reply, fits))
        except EscalationError as error:
            # A thread keeps the reply it was resumed with, so one that does not fit is asked for again.
            reply = interrupt(payload(case, error=str(error)))
