"""The recovery graph behind a node of a graph that does not share its keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

from langchain_core.runnables import RunnableConfig, RunnableLambda
from langgraph.graph import StateGraph
from langgraph.types import Command

from rfx_agent.adapters.given import (
    OnUnresolved,
    Options,
    SamplerLike,
    ToolLike,
    VerifierLike,
    checked_unresolved,
    recovery_of,
)
from rfx_agent.adapters.graph.keys import Keys, Reading, no_key, read
from rfx_agent.adapters.graph.place import Form, Place, form_of
from rfx_agent.adapters.graph.recovery_graph import RecoveryInput, case_of, outcome_of, recovery_graph, step_input
from rfx_agent.adapters.graph.source import Given
from rfx_agent.adapters.graph.updates import answer_in, written
from rfx_agent.budgets.step import RetryBudget
from rfx_agent.case import Outcome
from rfx_agent.errors import ConfigError, Unresolved
from rfx_agent.records import Rollout
from rfx_agent.recovery import Recovery
from rfx_agent.remedies.chosen import chosen
from rfx_agent.samplers.chat import ended, usage_of

__all__ = ["add_recovery"]


def add_recovery(
    builder: StateGraph[Any, Any, Any, Any],
    after: str,
    recovery: Given | None = None,
    *,
    verifier: VerifierLike | None = None,
    sampler: SamplerLike | None = None,
    tool: ToolLike | None = None,
    budget: RetryBudget | None = None,
    prompt: Reading = "messages",
    answer: str = "messages",
    expected: Reading | None = None,
    outcome: str | None = None,
    goto: str | None = None,
    unresolved: str | None = None,
    on_unresolved: OnUnresolved | None = None,
    interrupts: bool = False,
    name: str = "recover",
    nodes: Sequence[str] = (),
    **options: Unpack[Options],
) -> None:
    """Put the recovery graph behind the node ``after`` of ``builder``, as a node called ``name``.

    The answer that ``after`` left in the state is verified, and recovered where it fails; what comes of it stands
    under the same key, in the same form. The parent declares none of the recovery graph's keys. What led on from
    ``after`` leads on from ``name``; call this when those edges are there, or add them to ``name`` later.

    Where ``after`` sends its work elsewhere with a ``Command`` or a ``Send`` that it does not declare, that goes on
    beside the recovery; of several answers that parallel runs of ``after`` leave, the last is judged. Make the node
    ``recoverable`` in these cases.

    A state without an answer goes through as it is: nothing, no AI message, or one that calls tools. A person's
    interrupt needs a checkpointer on the parent graph; on resume neither ``after`` nor anything paid for runs again.

    Args:
        builder: the graph, not compiled yet.
        after: the node whose answers are to be verified.
        recovery: what to sample, verify and spend; or a function that makes it of the run's context. Or give
            ``verifier``, ``sampler`` and what else differs from ``Recovery``'s defaults by name.
        verifier: judges the answer as text.
        sampler: the model that is sampled again, on the prompt.
        tool: what ``tool_verify`` runs.
        budget: caps on one failure.
        prompt: the key of the prompt (text or messages), or a function from the state to text, messages or a
            ``Step``. Where it is the same key as ``answer``, the messages before the answer are the prompt.
        answer: the key of the answer, as ``recoverable`` reads it. Under ``add_messages`` the new message replaces the
            failed one by its id. Any other key with a reducer is overwritten as a whole, with the answer in its place:
            then no other node of the same step may write it.
        expected: the key of what the verifier compares with, or a function of the state.
        outcome: a key that takes the outcome, as a dict with ``status``.
        goto: the node to go on to, in place of those that ``after`` led to.
        unresolved: the node to go to where there is no answer.
        on_unresolved: whether a failure that nothing rescued raises ``Unresolved``, or leaves the failed answer in the
            state. By default it raises, unless ``outcome`` or ``unresolved`` tells it.
        interrupts: whether a person is asked when nothing helps. It needs a checkpointer on the parent graph.
        name: of the new node.
        nodes: as ``recovery_graph`` takes them.
        options: further parameters of ``Recovery``, such as ``remedies``, ``on_event`` or ``policy``.

    Raises:
        ConfigError: on parameters that do not fit the graph, and on edges that cannot be led through the new node;
            when the graph runs, ``interrupts`` without a checkpointer.
        Unresolved: when the graph runs, if there is no answer, as ``on_unresolved`` says.
    """
    keys = Keys(prompt, answer, expected, outcome)
    keys.check("add_recovery")
    if not isinstance(builder, StateGraph):
        raise ConfigError(f"add_recovery: builder is {builder!r}; give the StateGraph before it is compiled")
    _check(builder, after, keys, name)
    edges = {end for start, end in builder.edges if start == after}
    joins = {(starts, end) for starts, end in builder.waiting_edges if after in starts}
    if goto is not None:
        leads, joined = {goto}, set[tuple[tuple[str, ...], str]]()
    else:
        leads, joined = edges, {(tuple(name if x == after else x for x in starts), end) for starts, end in joins}
    if unresolved is not None and joined:
        raise ConfigError(
            f"add_recovery: unresolved is {unresolved!r}, but {after} is joined with other nodes before "
            f"{sorted(end for _, end in joined)}; give outcome= and branch behind the join"
        )
    named = {"verifier": verifier, "sampler": sampler, "tool": tool, "budget": budget}
    given: Given = recovery_of(add_recovery, recovery, named, options, factory=True)
    if isinstance(given, Recovery) and given.sampler is None and not (interrupts or _helps(given)):
        raise ConfigError(
            "add_recovery: the recovery has no sampler, and nothing else that could give another answer; give "
            "sampler=, the model to be sampled again, or make the node recoverable itself"
        )
    returns = outcome is not None or unresolved is not None
    if on_unresolved is not None:
        returns = checked_unresolved("add_recovery", on_unresolved) == "return"
    graph = recovery_graph(given, interrupts=interrupts, name=name, nodes=nodes)
    form = form_of(builder.channels[answer])
    if form.collects or (form.adds and form.type is str):
        raise ConfigError(
            f"add_recovery: {answer!r} has a reducer, which would add the answer to the failed one; take the reducer "
            f"away, or make {after} recoverable itself"
        )
    mapping = _Mapping(keys, form, tuple(sorted(leads)), unresolved, after, returns)

    def recover(state: Any, config: RunnableConfig) -> Any:
        asked = mapping.asked(state)
        return mapping.gave(state, graph.invoke(asked, config) if asked is not None else None)

    async def arecover(state: Any, config: RunnableConfig) -> Any:
        asked = mapping.asked(state)
        return mapping.gave(state, await graph.ainvoke(asked, config) if asked is not None else None)

    ends = None if unresolved is None else tuple(sorted(leads | {unresolved}))
    builder.add_node(
        name,
        RunnableLambda(recover, arecover, name=name),
        input_schema=_schema(builder, after, keys),
        destinations=ends,
    )
    builder.edges -= {(after, end) for end in edges}
    builder.waiting_edges -= joins
    builder.waiting_edges |= joined
    builder.add_edge(after, name)
    if unresolved is None:
        for end in leads:
            builder.add_edge(name, end)


def _helps(recovery: Recovery) -> bool:
    """Whether anything but the sampler can give an answer: another model, a steerer, a person."""
    others = any(remedy.elsewhere for remedy in chosen(recovery).values())
    return others or recovery.steerer is not None or recovery.escalator is not None


@dataclass(frozen=True, slots=True)
class _Mapping:
    """From the parent's state to the recovery graph's input, and from its output to an update of the state."""

    keys: Keys
    form: Form
    leads: tuple[str, ...]
    unresolved: str | None
    after: str
    returns: bool

    def asked(self, state: Any) -> RecoveryInput | None:
        """The recovery graph's input, or None where there is no answer to look at."""
        answer = answer_in(read(state, self.keys.answer), self.form)
        if answer is None:
            return None
        step, told = self.keys.step(state, self.after, answer), answer.message
        if told is None:
            return step_input(step, answer.text)
        usage = usage_of(told, prompt=step.messages)
        return step_input(step, Rollout(answer.text, finish_reason=ended(told), usage=usage))

    def gave(self, state: Any, output: Any) -> Any:
        """The update of the parent's state, and where to go where that is not in the edges."""
        if output is None:
            return self._to(self.leads, {})
        outcome = outcome_of(output)
        update = {} if self.keys.outcome is None else {self.keys.outcome: output["outcome"]}
        if not outcome.ok or outcome.text is None:
            if not self.returns:
                raise Unresolved(outcome.sentence, case=case_of(output))
            return self._to(self.leads if self.unresolved is None else (self.unresolved,), update)
        if outcome.status != "accepted":
            update |= {self.keys.answer: self._written(state, outcome, output)}
        return self._to(self.leads, update)

    def _written(self, state: Any, outcome: Outcome, output: Any) -> Any:
        value, key = read(state, self.keys.answer), self.keys.answer
        answer = answer_in(value, self.form)
        assert answer is not None  # noqa: S101  # asked has looked
        try:
            return written(value, answer, outcome.text or "", self.form)
        except ValueError as error:
            raise Unresolved(
                f"the answer of {outcome.by} does not fit the key {key!r}: {error}", case=case_of(output)
            ) from error

    def _to(self, nodes: tuple[str, ...], update: Mapping[str, Any]) -> Any:
        return dict(update) if self.unresolved is None else Command(goto=nodes, update=dict(update))


def _check(builder: StateGraph[Any, Any, Any, Any], after: str, keys: Keys, name: str) -> None:
    if after not in builder.nodes:
        raise ConfigError(f"add_recovery: after is {after!r}; give one of the nodes {sorted(builder.nodes)}")
    if name in builder.nodes:
        raise ConfigError(f"add_recovery: there is a node {name!r} already; give another name=")
    if "__root__" in builder.channels:
        raise ConfigError(
            "add_recovery: the graph's state has no keys, so there is none for the answer; make the node recoverable "
            "itself: recoverable(node, recovery)"
        )
    for parameter, key in keys.unknown(Place(builder.channels, builder.managed), None):
        raise no_key("add_recovery", parameter, key, sorted(builder.channels))
    if branches := builder.branches.get(after):
        raise ConfigError(
            f"add_recovery: conditional edges ({', '.join(branches)}) lead on from {after!r} and would be taken beside "
            f"the recovery; call add_recovery first and add_conditional_edges({name!r}, ...) in their place"
        )
    if ends := builder.nodes[after].ends:
        raise ConfigError(
            f"add_recovery: {after!r} says itself where to go ({', '.join(ends)}); let it return "
            f"its update without a Command and give goto= here, or make the node recoverable itself"
        )


def _schema(builder: StateGraph[Any, Any, Any, Any], after: str, keys: Keys) -> type[Any]:
    """The schema that the new node reads: the state's, or ``after``'s own where only that has the keys."""
    own: type[Any] = builder.nodes[after].input_schema
    for schema in (builder.state_schema, own):
        if all(key in builder.schemas[schema] for key in keys.named if key != keys.outcome):
            return schema
    raise ConfigError(
        f"add_recovery: no one schema has all of {', '.join(keys.named)}; declare them in the state, or give functions "
        "of the state"
    )
