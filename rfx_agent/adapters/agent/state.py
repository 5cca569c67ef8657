"""What the agent's middleware keeps: counts per run and per thread in the graph's state, and the purse of a run.

State is written by one node at a time, so its values need no reducer. What runs at once within a run (parallel tool
calls) shares a ``Purse`` instead: a ledger behind a lock, found by the run's id and never by the instance alone.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NotRequired

from langchain.agents.middleware.types import AgentState, PrivateStateAttr
from langchain_core.messages import ToolMessage
from langgraph.channels.untracked_value import UntrackedValue

from rfx_agent.adapters.kept import Kept
from rfx_agent.budgets.step import Ledger, Purse, RetryBudget
from rfx_agent.records import Spend

__all__ = ["AgentRun", "Purses", "RecoverabilityState", "RunPurse", "counted"]


class RecoverabilityState(AgentState[Any]):
    """The middleware's keys, in no input and no output schema; ``agent.get_state(config).values`` shows them.

    ``rfx_run`` and ``rfx_thread`` count answers by how they ended, and what was spent on recovering them; the first
    since the run began, the second since the thread did.
    """

    rfx_run: NotRequired[Annotated[dict[str, Any], PrivateStateAttr]]
    rfx_thread: NotRequired[Annotated[dict[str, Any], PrivateStateAttr]]
    rfx_live: NotRequired[Annotated[str, UntrackedValue, PrivateStateAttr]]
    rfx_open: NotRequired[Annotated[dict[str, Any] | None, PrivateStateAttr]]


class RunPurse(Purse):
    """What one run has spent and set aside.

    Attributes:
        gave_up: which call of the model node ended unresolved, so that another middleware's retry of it is seen.
    """

    def __init__(self, budget: RetryBudget, spent: Spend) -> None:
        super().__init__(Ledger(budget, spent))
        self.gave_up: tuple[Any, ...] | None = None


class Purses:
    """The purses of the runs under way, each found by the run's id and LangGraph's object for the invocation.

    A run that is forgotten (see ``Kept``) goes on from its state.
    """

    def __init__(self, budget: RetryBudget, most: int = 1024) -> None:
        self._budget = budget
        self._kept = Kept[RunPurse](most)

    def of(self, run_id: str, control: object, spent: Spend) -> RunPurse:
        """The run's purse; a new one begins with ``spent``, what its state says."""
        return self._kept.put((run_id, id(control)), lambda: RunPurse(self._budget, spent), control)


@dataclass(frozen=True, slots=True)
class AgentRun:
    """One run of an agent: a message from the user and everything until the answer to it.

    Attributes:
        id: the id of the task that made the run's first model call.
        live: whether this invocation has written the id into its state.
        kept: the run's record in state.
        thread: the thread's record in state.
        purse: what the run has spent.
    """

    id: str
    live: bool
    kept: Mapping[str, Any]
    thread: Mapping[str, Any]
    purse: RunPurse

    @classmethod
    def of(cls, state: Mapping[str, Any], runtime: Any, purses: Purses) -> AgentRun:
        """The run that ``state`` is in.

        An invocation begins one, unless it resumes one: then the last message is a tool's result. An interrupt
        therefore does not refill the budget.
        """
        kept = state.get("rfx_run") or {}
        live = state.get("rfx_live")
        messages = state.get("messages") or [None]
        info = getattr(runtime, "execution_info", None)
        if live is None and kept and isinstance(messages[-1], ToolMessage):
            run_id = kept["id"]
        else:
            run_id = live or getattr(info, "task_id", None) or uuid.uuid4().hex
        if kept.get("id") != run_id:
            kept = {}
        purse = purses.of(run_id, getattr(runtime, "control", None), Spend.read(kept.get("spent")))
        return cls(run_id, live is not None, kept, state.get("rfx_thread") or {}, purse)

    def update(self, event: str = "") -> dict[str, Any]:
        """The update of state that counts ``event`` and what was spent since the last one; empty where nothing was."""
        spent = self.purse.ledger.spent
        more = spent - Spend.read(self.kept.get("spent"))
        if self.live and self.kept and not event and not more.amounts():
            return {}
        total = Spend.read(self.thread.get("spent")) + more
        return {
            "rfx_live": self.id,
            "rfx_run": counted(self.kept, event) | {"id": self.id, "spent": spent.amounts()},
            "rfx_thread": counted(self.thread, event) | {"spent": total.amounts()},
        }


def counted(record: Mapping[str, Any], event: str) -> dict[str, Any]:
    """A copy of ``record`` whose count of ``event`` is one higher; a plain copy where ``event`` is ""."""
    return {**record, event: record.get(event, 0) + 1} if event else dict(record)
