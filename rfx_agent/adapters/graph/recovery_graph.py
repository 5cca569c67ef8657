"""The recovery graph: the engine's flows as LangGraph nodes.

    diagnose ──accept──────────────▶ END
       │ ▲
       ├─┼─▶ resample ──────┐
       ├─┼─▶ extend ────────┤
       ├─┼─▶ revise ────────┤ each remedy returns to diagnose; a user's own has a node
       ├─┼─▶ tool_verify ───┤ of its own name. The others are always there, so that a
       ├─┼─▶ delegate ──────┤ thread that waits at one can go on in any deployment
       ├─┼─▶ steer ─────────┤
       │ └──────────────────┘
       └───▶ escalate ─────────────▶ END   one interrupt, nothing spent before it

The graph owns the keys of ``RecoveryState`` and touches no other, so it can be a node of any parent graph that
shares them; ``rfx_agent.add_recovery`` puts it behind a node of a graph that does not. A parent that shares
``messages`` alone has a chat node; let it declare ``outcome`` too, which says whether the last message may stand.

Every event of the engine is also written to LangGraph's custom stream, as ``rfx_agent.events.as_record`` makes it;
from within a parent graph they arrive under the subgraph's namespace, with ``subgraphs=True``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, NotRequired, Unpack

from langchain_core.messages import AnyMessage
from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Checkpointer, Command
from typing_extensions import TypedDict

from rfx_agent.adapters.given import Options, SamplerLike, ToolLike, VerifierLike, recovery_of
from rfx_agent.adapters.graph.ask import ask_person
from rfx_agent.adapters.graph.opening import ended_with, opening
from rfx_agent.adapters.graph.place import saved
from rfx_agent.adapters.graph.source import Given, Source, streaming, task_id, thread_id
from rfx_agent.budgets.step import RetryBudget
from rfx_agent.case import Case, Outcome
from rfx_agent.codec import dump, load, load_case, plain, unreadable
from rfx_agent.engine.drive import Flow, drive, drive_async
from rfx_agent.engine.nodes import carry_out, diagnose, start
from rfx_agent.engine.run import Run
from rfx_agent.errors import ConfigError, StateError
from rfx_agent.records import Rollout, Step
from rfx_agent.recovery import Recovery
from rfx_agent.remedies.chosen import chosen

__all__ = ["RecoveryInput", "RecoveryOutput", "RecoveryState", "case_of", "outcome_of", "recovery_graph", "step_input"]


class RecoveryInput(TypedDict, total=False):
    """What the graph takes: a step, or messages.

    ``step`` is a prompt, or the mapping that ``step_input`` makes. ``candidate`` is what the agent already has: its
    text, or the mapping that ``step_input`` makes of a rollout, with how it ended. Without it the sampler is asked for
    the first draw.

    ``messages`` are the prompt; where they end with an AI message, that one is the candidate.
    """

    step: str | dict[str, Any]
    candidate: str | dict[str, Any] | None
    messages: Annotated[list[AnyMessage], add_messages]


class RecoveryOutput(TypedDict):
    """What the graph gives: ``outcome`` (the fields of ``Outcome`` that differ from their defaults) and the record.

    Where messages were given, the answer that stands is the last of ``messages``: behind them, or in the place of the
    candidate, under its id. Without an answer they are as they were; ``outcome`` says so.
    """

    outcome: dict[str, Any]
    recovery: dict[str, Any]
    messages: NotRequired[Annotated[list[AnyMessage], add_messages]]


class RecoveryState(RecoveryInput):
    """Everything that the graph owns. ``recovery`` is a ``Case``, encoded: compact, made of plain values."""

    outcome: dict[str, Any]
    recovery: dict[str, Any]
    seen: dict[str, Any]


def step_input(step: Step | str, candidate: str | Rollout | None = None) -> RecoveryInput:
    """The graph's input for ``step``, or for a prompt.

    Raises:
        ConfigError: ``step`` or ``candidate`` is something else.

    Example:
        >>> step_input("What is 6 times 7?", "41")["candidate"]
        '41'
    """
    if isinstance(step, str):
        step = Step.of(step)
    if not isinstance(step, Step):
        raise ConfigError(f"step_input: step is {step!r}; give a Step, such as Step.of(prompt), or a prompt")
    if candidate is not None and not isinstance(candidate, (str, Rollout)):
        raise ConfigError(f"step_input: candidate is {candidate!r}; give its text, or a Rollout")
    return {"step": plain(step), "candidate": plain(candidate) if isinstance(candidate, Rollout) else candidate}


def outcome_of(state: RecoveryOutput | dict[str, Any]) -> Outcome:
    """The typed outcome in a state that the graph returned.

    Raises:
        ConfigError: the state has none: the graph waits for a person, or has no node for a remedy of one's own.
    """
    if not isinstance(state, Mapping) or not state.get("outcome") or state.get("__interrupt__"):
        raise ConfigError(
            "outcome_of: the state has no outcome; resume the thread if the graph waits for a person "
            "(state['__interrupt__']), and name the node of a remedy that the recovery no longer lists in "
            "recovery_graph(nodes=[...])"
        )
    return load(Outcome, state["outcome"])


def case_of(state: RecoveryOutput | dict[str, Any]) -> Case:
    """The whole case in a state that the graph returned; with the outcome alone where this version cannot read it."""
    try:
        return load(Case, state["recovery"])
    except StateError:
        return replace(unreadable(StateError()), outcome=outcome_of(state))


def recovery_graph(
    recovery: Given | None = None,
    *,
    verifier: VerifierLike | None = None,
    sampler: SamplerLike | None = None,
    tool: ToolLike | None = None,
    budget: RetryBudget | None = None,
    context_schema: type[Any] | None = None,
    interrupts: bool = False,
    checkpointer: Checkpointer = None,
    name: str = "recovery",
    nodes: Sequence[str] = (),
    **options: Unpack[Options],
) -> CompiledStateGraph[RecoveryState, Any, RecoveryInput, RecoveryOutput]:
    """The recovery graph, compiled: on its own with a checkpointer, or as a node of another graph.

    It takes what ``step_input`` makes, or ``{"messages": [...]}``. The messages are the prompt, and where they end with
    an AI message that one is the candidate; the answer that stands is put behind them, or in the candidate's place.

    Args:
        recovery: what to sample, verify and spend; or a function that makes it of the run's context, called in every
            node, so let it give the same object for the same context. Or give ``verifier``, ``sampler`` and what else
            differs from ``Recovery``'s defaults by name.
        verifier: judges answers.
        sampler: the model that is sampled.
        tool: what ``tool_verify`` runs.
        budget: caps on one step.
        context_schema: of the context that such a function takes: a pydantic model, a dataclass or a TypedDict.
        interrupts: whether ``escalate`` interrupts for a person. By default it does not, and a failure that nothing
            rescued ends ``unresolved``. An interrupt needs a checkpointer, here or in the parent graph.
        checkpointer: as ``StateGraph.compile`` takes it.
        name: the graph's name in traces and drawings.
        nodes: further nodes, for remedies of one's own, where ``recovery`` is a function: what it will give is not
            known when the graph is built.
        options: further parameters of ``Recovery``, such as ``remedies``, ``on_event`` or ``policy``.

    Raises:
        ConfigError: ``recovery`` is neither; when the graph runs, ``interrupts`` without a checkpointer, and an input
            without a step or messages.

    Example:
        >>> from rfx_agent.testing import ScriptedSampler, ScriptedVerifier
        >>> graph = recovery_graph(verifier=ScriptedVerifier(["42"]), sampler=ScriptedSampler(["41", "42"]))
        >>> state = graph.invoke({"messages": [("user", "What is 6 times 7?")]})
        >>> outcome_of(state).status, state["messages"][-1].text
        ('rescued', '42')
    """
    named = {"verifier": verifier, "sampler": sampler, "tool": tool, "budget": budget}
    source = Source(recovery_of(recovery_graph, recovery, named, options, factory=True), where="recovery_graph")
    own = [] if source.fixed is None else [r.node or r.name for r in chosen(source.fixed).values()]
    reachable = list(dict.fromkeys((*_NODES, *own, *nodes)))

    def opened(run: Run, state: RecoveryState) -> Flow[Case]:
        if interrupts:
            _resumable()
        return diagnose(run, _opened(run, state), human=interrupts)

    def routed(case: Case, state: RecoveryState) -> Command[str]:
        route = case.decision.route
        if case.outcome is None and case.ask is None and route not in reachable:
            raise ConfigError(
                f"recovery graph: policy {case.decision.policy} chose route {route!r} on step {case.step.id}, and the "
                f"graph has no such node; name it in recovery_graph(nodes=[...]), or choose among {reachable}"
            )
        return _routed(case, state)

    builder = StateGraph(
        RecoveryState, context_schema=context_schema, input_schema=RecoveryInput, output_schema=RecoveryOutput
    )
    builder.add_node(
        "diagnose",
        _flow_node("diagnose", source, opened, routed),
        destinations=(*reachable, "escalate", END) if interrupts else (*reachable, END),
    )
    builder.add_edge(START, "diagnose")
    for node in reachable:
        flow = _flow_node(node, source, _kept(carry_out), _returned)
        builder.add_node(node, flow, destinations=("diagnose",))
    if interrupts:
        builder.add_node("escalate", _flow_node("escalate", source, _kept(ask_person), _answered))
        builder.add_edge("escalate", END)
    return builder.compile(checkpointer=checkpointer, name=name)


_NODES = ("resample", "extend", "revise", "tool_verify", "delegate", "steer")


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
    flow: Callable[[Run, RecoveryState], Flow[Case]],
    give: Callable[[Case, RecoveryState], Any],
) -> _Node:
    def run(state: RecoveryState) -> Any:
        try:
            return give(drive(flow(_run(source.get()), state)), state)
        except StateError as error:
            return _unreadable(error)

    async def arun(state: RecoveryState) -> Any:
        try:
            return give(await drive_async(flow(_run(await source.aget()), state)), state)
        except StateError as error:
            return _unreadable(error)

    return _Node(name, run, arun)


def _run(recovery: Recovery) -> Run:
    return Run.of(recovery, on_event=streaming(recovery))


def _kept(flow: Callable[[Run, Case], Flow[Case]]) -> Callable[[Run, RecoveryState], Flow[Case]]:
    return lambda run, state: flow(run, load_case(state["recovery"]))


def _opened(run: Run, state: RecoveryState) -> Case:
    opened = opening(state)
    if opened.returns:
        return load_case(state["recovery"])
    # LangGraph gives a node that runs again from the same checkpoint the same task, in whatever process.
    return start(run, opened.step, opened.candidate, run_id=task_id() if run.settings.shared is not None else "")


def _resumable() -> None:
    """Raise ``ConfigError`` where an interrupt could never be resumed, before anything is spent."""
    if saved() is False or (saved() is None and not thread_id()):
        raise ConfigError(
            "recovery graph: interrupts is True, but no checkpointer keeps the state to resume from; compile the graph "
            "(or its parent) with one and give a thread_id in the config, or set interrupts=False"
        )


def _routed(case: Case, state: RecoveryState) -> Command[str]:
    opened = opening(state).update
    update = opened | _updated(case)
    if case.outcome is not None:
        return Command(goto=END, update=update | {"outcome": plain(case.outcome)} | ended_with(case, state, opened))
    return Command(goto="escalate" if case.ask is not None else case.decision.route, update=update)


def _updated(case: Case) -> dict[str, Any]:
    return {"recovery": dump(case)}


def _returned(case: Case, _: RecoveryState) -> Command[str]:
    return Command(goto="diagnose", update=_updated(case))


def _answered(case: Case, state: RecoveryState) -> dict[str, Any]:
    return _updated(case) | {"outcome": plain(case.outcome)} | ended_with(case, state, {})


def _unreadable(error: StateError) -> Command[str]:
    """The end of a case that this version cannot read. The case itself stays as it was, for a version that can."""
    return Command(goto=END, update={"outcome": plain(unreadable(error).outcome)})
