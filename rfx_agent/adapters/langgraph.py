"""The recovery graph: the engine's flows as LangGraph nodes.

    diagnose ──accept──────────────▶ END
       │ ▲
       ├─┼─▶ resample ──────┐
       ├─┼─▶ tool_verify ───┤ each remedy returns to diagnose
       ├─┼─▶ steer ─────────┤ (where a backend offers it)
       │ └──────────────────┘
       └───▶ escalate ─────────────▶ END   one interrupt, nothing spent before it

The graph owns the keys of ``RecoveryState`` and touches no other, so it can be a node of any parent graph that
shares them; ``rfx_agent.adapters.node.add_recovery`` puts it behind a node of a graph that does not.

Every event of the engine is also written to LangGraph's custom stream, as ``rfx_agent.events.as_record`` makes it;
from within a parent graph they arrive under the subgraph's namespace, with ``subgraphs=True``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NotRequired

from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Checkpointer, Command
from typing_extensions import TypedDict

from rfx_agent._types import Step
from rfx_agent.adapters._graph.ask import ask_person
from rfx_agent.adapters._graph.source import Given, Source, task_id
from rfx_agent.case import Case, Outcome, decode, encode
from rfx_agent.engine import (
    Flow,
    Recovery,
    diagnose,
    drive,
    drive_async,
    resample,
    steer,
    tool_verify,
)

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
    recovery: Given,
    *,
    context_schema: type[Any] | None = None,
    interrupts: bool = True,
    checkpointer: Checkpointer = None,
    name: str = "recovery",
) -> CompiledStateGraph[RecoveryState, Any, RecoveryInput, RecoveryOutput]:
    """The recovery graph, compiled: on its own with a checkpointer, or as a node of another graph.

    Args:
        recovery: what to sample, verify and spend; or a function that makes it of the run's context, called in every
            node, so let it give the same object for the same context.
        context_schema: of the context that such a function takes: a pydantic model, a dataclass or a TypedDict.
        interrupts: whether ``escalate`` interrupts for a person. Without it a failure that nothing rescued ends
            ``unresolved``. An interrupt needs a checkpointer, here or in the parent graph.
        checkpointer: as ``StateGraph.compile`` takes it.
        name: the graph's name in traces and drawings.

    Raises:
        ConfigError: ``recovery`` is neither.
    """
    source = Source(recovery, where="recovery_graph")
    remedies: dict[str, Callable[[Recovery, Case], Flow[Case]]] = {"resample": resample}
    if source.fixed is None or source.fixed.tool is not None:
        remedies["tool_verify"] = tool_verify
    if source.fixed is None or source.fixed.steerer is not None:
        remedies["steer"] = steer

    def start(r: Recovery, state: RecoveryState) -> Flow[Case]:
        return diagnose(r, _opened(r, state), human=interrupts)

    builder = StateGraph(
        RecoveryState, context_schema=context_schema, input_schema=RecoveryInput, output_schema=RecoveryOutput
    )
    builder.add_node(
        "diagnose",
        _flow_node("diagnose", source, start, _routed),
        destinations=(*remedies, "escalate", END) if interrupts else (*remedies, END),
    )
    builder.add_edge(START, "diagnose")
    for node, flow in remedies.items():
        builder.add_node(node, _flow_node(node, source, _kept(flow), _updated))
        builder.add_edge(node, "diagnose")
    if interrupts:
        builder.add_node("escalate", _flow_node("escalate", source, _kept(ask_person), _answered))
        builder.add_edge("escalate", END)
    return builder.compile(checkpointer=checkpointer, name=name)


class _Node(Runnable[RecoveryState, Any]):
    """A node with a sync and an async side. LangGraph makes it a run; a ``RunnableLambda`` would be a second one."""

    def __init__(
        self, name: str, run: Callable[[RecoveryState], Any], arun: Callable[[RecoveryState], Awaitable[Any]]
    ) -> None:
        self.name, self._run, self._arun = name, run, arun

    def invoke(self, input: RecoveryState, config: RunnableConfig | None = None, **_: Any) -> Any:  # noqa: A002  # LangChain's name
        return self._run(input)

    async def ainvoke(self, input: RecoveryState, config: RunnableConfig | None = None, **_: Any) -> Any:  # noqa: A002  # LangChain's name
        return await self._arun(input)


def _flow_node(
    name: str,
    source: Source,
    flow: Callable[[Recovery, RecoveryState], Flow[Case]],
    give: Callable[[Case], Any],
) -> _Node:
    def run(state: RecoveryState) -> Any:
        return give(drive(flow(source.get(), state)))

    async def arun(state: RecoveryState) -> Any:
        return give(await drive_async(flow(await source.aget(), state)))

    return _Node(name, run, arun)


def _kept(flow: Callable[[Recovery, Case], Flow[Case]]) -> Callable[[Recovery, RecoveryState], Flow[Case]]:
    return lambda r, state: flow(r, decode(Case, state["recovery"]))


def _opened(r: Recovery, state: RecoveryState) -> Case:
    given = state["step"]
    step = Step.of(given) if isinstance(given, str) else decode(Step, given)
    if kept := state.get("recovery"):
        case = decode(Case, kept)
        # A case that comes back from its remedy goes on. Any other belongs to an earlier run of the thread:
        # it has ended, was left before a person, or was broken off.
        back = case.outcome is None and case.ask is None and case.decision.budget_after is not None
        if back and case.step.id == step.id:
            return case
    # LangGraph gives a node that runs again from the same checkpoint the same task, in whatever process.
    return r.start(step, state.get("candidate"), run_id=task_id() if r.shared is not None else "")


def _routed(case: Case) -> Command[str]:
    if case.outcome is not None:
        return Command(goto=END, update=_updated(case) | {"outcome": encode(case.outcome)})
    return Command(goto="escalate" if case.ask is not None else case.decision.route, update=_updated(case))


def _updated(case: Case) -> dict[str, Any]:
    return {"recovery": encode(case)}


def _answered(case: Case) -> dict[str, Any]:
    return _updated(case) | {"outcome": encode(case.outcome)}
