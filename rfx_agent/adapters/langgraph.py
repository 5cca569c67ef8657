"""The recovery graph: the engine's flows as LangGraph nodes.

    diagnose ──accept──────────────▶ END
       │ ▲
       ├─┼─▶ resample ──────┐
       ├─┼─▶ tool_verify ───┤ each remedy returns to diagnose
       ├─┼─▶ steer ─────────┤ (where a backend offers it)
       │ └──────────────────┘
       └───▶ escalate ─────────────▶ END   one interrupt, nothing spent before it

The graph owns the keys of ``RecoveryState`` and touches no other, so it can be a node of any parent graph that
shares them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NotRequired

from langchain_core.runnables import RunnableLambda
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Checkpointer, Command, interrupt
from typing_extensions import TypedDict

from rfx_agent._errors import ConfigError, EscalationError
from rfx_agent._types import Step
from rfx_agent.case import Case, Outcome, decode, encode
from rfx_agent.engine import (
    Flow,
    Recovery,
    answer_human,
    diagnose,
    drive,
    drive_async,
    resample,
    steer,
    tool_verify,
)
from rfx_agent.escalation import payload

__all__ = ["RecoveryInput", "RecoveryOutput", "RecoveryState", "outcome_of", "recovery_graph", "step_input"]


class RecoveryInput(TypedDict):
    """What the graph takes.

    ``step`` is a prompt, or the mapping that ``step_input`` makes. ``candidate`` is the text that the agent already
    has; without it the sampler is asked for the first draw.
    """

    step: str | dict[str, Any]
    candidate: NotRequired[str | None]


class RecoveryOutput(TypedDict):
    """What the graph gives: ``outcome`` (the fields of ``Outcome`` that differ from their defaults) and the record."""

    outcome: dict[str, Any]
    recovery: dict[str, Any]


class RecoveryState(RecoveryInput, RecoveryOutput):
    """Everything that the graph owns. ``recovery`` is a ``Case``, encoded: compact, made of plain values."""


def step_input(step: Step, candidate: str | None = None) -> RecoveryInput:
    """The graph's input for ``step``."""
    return {"step": encode(step), "candidate": candidate}


def outcome_of(state: RecoveryOutput | dict[str, Any]) -> Outcome:
    """The typed outcome in a state that the graph returned."""
    return decode(Outcome, state["outcome"])


def recovery_graph(
    recovery: Recovery,
    *,
    interrupts: bool = True,
    checkpointer: Checkpointer = None,
    name: str = "recovery",
) -> CompiledStateGraph[RecoveryState, None, RecoveryInput, RecoveryOutput]:
    """The recovery graph, compiled: on its own with a checkpointer, or as a node of another graph.

    Args:
        recovery: what to sample, verify and spend.
        interrupts: whether ``escalate`` interrupts for a person. Without it a failure that nothing rescued ends
            ``unresolved``. An interrupt needs a checkpointer, here or in the parent graph.
        checkpointer: as ``StateGraph.compile`` takes it.
        name: the graph's name in traces and drawings.
    """
    if not isinstance(recovery, Recovery):
        raise ConfigError(f"recovery_graph: recovery is {recovery!r}; give a rfx_agent.Recovery")
    remedies: dict[str, Callable[[Recovery, Case], Flow[Case]]] = {"resample": resample}
    if recovery.tool is not None:
        remedies["tool_verify"] = tool_verify
    if recovery.steerer is not None:
        remedies["steer"] = steer

    def route(case: Case) -> Command[str]:
        update: dict[str, Any] = {"recovery": encode(case)}
        if case.outcome is not None:
            return Command(goto=END, update=update | {"outcome": encode(case.outcome)})
        return Command(goto="escalate" if case.ask is not None else case.decision.route, update=update)

    def opened(state: RecoveryState) -> Case:
        given = state["step"]
        step = Step.of(given) if isinstance(given, str) else decode(Step, given)
        if kept := state.get("recovery"):
            case = decode(Case, kept)
            # A case that comes back from its remedy goes on. Any other belongs to an earlier run of the thread:
            # it has ended, was left before a person, or was broken off.
            back = case.outcome is None and case.ask is None and case.decision.budget_after is not None
            if back and case.step.id == step.id:
                return case
        return recovery.start(step, state.get("candidate"))

    def diagnose_node(state: RecoveryState) -> Command[str]:
        return route(drive(diagnose(recovery, opened(state), human=interrupts)))

    async def adiagnose_node(state: RecoveryState) -> Command[str]:
        return route(await drive_async(diagnose(recovery, opened(state), human=interrupts)))

    builder = StateGraph(RecoveryState, input_schema=RecoveryInput, output_schema=RecoveryOutput)
    builder.add_node(
        "diagnose",
        RunnableLambda(diagnose_node, adiagnose_node, name="diagnose"),
        destinations=(*remedies, "escalate", END) if interrupts else (*remedies, END),
    )
    builder.add_edge(START, "diagnose")
    for node, flow in remedies.items():
        builder.add_node(node, _remedy(node, recovery, flow))
        builder.add_edge(node, "diagnose")
    if interrupts:

        def escalate_node(state: RecoveryState) -> dict[str, Any]:
            # On resume a node runs again from its top, so nothing is sampled or spent before the interrupt.
            case = decode(Case, state["recovery"])
            asked = payload(case)
            reply = interrupt(asked)
            while True:
                try:
                    case = answer_human(recovery, case, reply)
                except EscalationError as error:
                    # A thread keeps the reply it was resumed with, so one that does not fit is asked for again.
                    reply = interrupt(asked | {"error": str(error)})
                else:
                    return {"recovery": encode(case), "outcome": encode(case.outcome)}

        builder.add_node("escalate", escalate_node)
        builder.add_edge("escalate", END)
    return builder.compile(checkpointer=checkpointer, name=name)


def _remedy(
    node: str, recovery: Recovery, flow: Callable[[Recovery, Case], Flow[Case]]
) -> RunnableLambda[RecoveryState, dict[str, Any]]:
    def run(state: RecoveryState) -> dict[str, Any]:
        return {"recovery": encode(drive(flow(recovery, decode(Case, state["recovery"]))))}

    async def arun(state: RecoveryState) -> dict[str, Any]:
        return {"recovery": encode(await drive_async(flow(recovery, decode(Case, state["recovery"]))))}

    return RunnableLambda(run, arun, name=node)
