"""One visit of a recoverable node: its first run, the verdict on it, and the runs after it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any

from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import set_config_context
from langgraph.errors import GraphInterrupt
from langgraph.types import Command
from pydantic import BaseModel

from rfx_agent.adapters.attempts import RETRACT, Again, Attempts, Made, Thing, in_context, response_id
from rfx_agent.adapters.graph.keys import Keys, no_key, read
from rfx_agent.adapters.graph.place import Place, from_the_top
from rfx_agent.adapters.graph.source import Source, streaming, tell
from rfx_agent.adapters.graph.updates import Answer, answer_in, fits, located, made_of, put, replaced
from rfx_agent.adapters.shield import Shield
from rfx_agent.case import Case
from rfx_agent.codec import plain
from rfx_agent.engine.drive import Flow
from rfx_agent.engine.nodes import judged, recover, start
from rfx_agent.engine.run import Run
from rfx_agent.errors import ConfigError, SamplerError, Unresolved, is_control_flow
from rfx_agent.ports import Sampler
from rfx_agent.records import Rollout
from rfx_agent.recovery import Recovery
from rfx_agent.samplers.chat import rollout_of
from rfx_agent.samplers.chat.read import Prompt

__all__ = ["Plan", "Rerun", "Visit"]

_log = logging.getLogger("rfx_agent")


@dataclass(frozen=True, slots=True)
class Plan:
    """The parameters of ``recoverable``, checked.

    Attributes:
        source: of the recovery.
        keys: of the state.
        again: whether the node is what is sampled again.
        returns: whether an unresolved failure keeps the node's own update.
        failures: exceptions of the node that are failed answers.
        told: nodes that have answered, or of which was said that they did not.
    """

    source: Source
    keys: Keys
    again: bool
    returns: bool
    failures: tuple[type[Exception], ...]
    told: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Rerun:
    """A node, to be run again under another config, on the state that it was given or a revised one."""

    run: Callable[[RunnableConfig, Any], Any] | None = None
    arun: Callable[[RunnableConfig, Any], Awaitable[Any]] | None = None


class NodeAgain(Thing):
    """The node as a thing that can be run again, on the same state."""

    def __init__(self, visit: Visit, model: Sampler | None) -> None:
        self.name, self.failures = visit.name, visit.plan.failures
        self._visit, self._model = visit, model
        self.takes_revision = visit.plan.keys.told(visit.state, "") is not None

    def _given(self, again: Again) -> Any:
        addition = again.request.revision
        return self._visit.state if addition is None else self._visit.plan.keys.told(self._visit.state, addition)

    def driver(self) -> Sampler | None:
        """The recovery's own sampler."""
        return self._model

    def run(self, again: Again) -> Any:
        """One more run of the node."""
        run = self._visit.call.run
        assert run is not None  # noqa: S101  # a sync node is driven by sync code
        config = from_the_top(again.config(sync=True))
        with set_config_context(config) as context:
            return context.run(run, config, self._given(again))

    async def arun(self, again: Again) -> Any:
        """Do what ``run`` does, without blocking the event loop."""
        run = self._visit.call.arun
        assert run is not None  # noqa: S101  # an async node is driven by async code
        config = from_the_top(again.config(sync=False))
        with set_config_context(config) as context:
            return await in_context(_awaited(run, config, self._given(again)), context)

    def tried(self, again: Again) -> Made:
        """One more run. A new interrupt in it is refused: a resume would run the node, and all it paid, again."""
        try:
            return super().tried(again)
        except GraphInterrupt:
            return self.failed(self._interrupted(), again)

    async def atried(self, again: Again) -> Made:
        """Do what ``tried`` does, without blocking the event loop."""
        try:
            return await super().atried(again)
        except GraphInterrupt:
            return self.failed(self._interrupted(), again)

    def made(self, output: Any, again: Again) -> Made:
        """A run's update of the state; no draw where it has no answer."""
        answer, usage = self._visit.answer(output), again.reported.usage()
        if answer is None:
            return Made(output=output, usage=usage)
        return Made(replace(_rollout(answer), usage=usage), output, usage=usage)

    def _interrupted(self) -> ConfigError:
        return ConfigError(
            f"recoverable: {self.name} asked something new by an interrupt in a further attempt; put the interrupt "
            "into a node of its own, before this one"
        )


async def _awaited(run: Callable[[RunnableConfig, Any], Awaitable[Any]], config: RunnableConfig, state: Any) -> Any:
    return await run(config, state)


def _rollout(answer: Answer, prompt: Prompt | None = None) -> Rollout:
    if answer.message is None:
        return Rollout(answer.text, id="r0")
    return rollout_of(answer.message, name="r0", prompt=prompt)


class Visit:
    """One visit of a node.

    Args:
        name: the node's, by its function.
        plan: what to do about failures.
        state: what the node was given.
        call: runs the node again.
        config: that the node runs under; by default the active one.

    Raises:
        ConfigError: a key that the graph's state does not have.
    """

    def __init__(self, name: str, plan: Plan, state: Any, call: Rerun, config: RunnableConfig | None = None) -> None:
        place = Place.of(state, config)
        self.name, self.plan, self.state, self.place = place.node or name, plan, state, place
        self.call = call if plan.again else Rerun()
        self.form = place.form(plan.keys.answer)
        old = read(state, plan.keys.answer)
        self._old = [*old] if isinstance(old, list) else old  # as it was, whatever the node appends to it
        self._late: list[tuple[str, str]] = []
        for parameter, key in plan.keys.unknown(place, state):
            if not place.nested or parameter in ("prompt", "expected"):
                raise no_key("recoverable", parameter, key, place.keys)
            self._late.append((parameter, key))  # a Command may be for the parent graph, whose keys are not seen here

    @property
    def _root(self) -> bool:
        return self.place.root or not (self.place.channels is not None or _keyed(self.state))

    def answer(self, output: Any) -> Answer | None:
        """The answer in a run's update; None where there is none to look at."""
        return answer_in(located(output, self.plan.keys.answer, root=self._root), self.form, self._old)

    def looked(self, output: Any) -> Answer | None:
        """The answer in the first run's update.

        Raises:
            ConfigError: the graph has no such key, and the update is not for the parent graph.
        """
        for parameter, key in self._late:
            if not _for_parent(output):
                raise no_key("recoverable", parameter, key, self.place.keys)
        answer = self.answer(output)
        told = self.plan.told
        if answer is not None:
            told.add(self.name)
        elif self.name not in told and isinstance(output, Mapping) and output and self.plan.keys.answer not in output:
            told.add(self.name)
            _log.warning(
                "recoverable: %s wrote %s and nothing under answer=%r, so there was nothing to verify",
                self.name,
                ", ".join(map(str, output)),
                self.plan.keys.answer,
            )
        return answer

    def left(self) -> None:
        """Say once that a command for the parent graph took the node's answer past the verifier."""
        if self.name not in self.plan.told:
            self.plan.told.add(self.name)
            _log.warning(
                "recoverable: %s left its graph by a Command for the parent, so there was nothing to verify; make the "
                "node inside it recoverable",
                self.name,
            )

    def judged(self, output: Any, answer: Answer, recovery: Recovery) -> Flow[Any]:
        """The update to give after a first run that answered: its own where it passes, else what recovery came to.

        A pass that no hook watches costs the verdict alone; the stream is told of what failed.
        """
        run = Run.of(recovery, on_event=streaming(recovery))
        keys = self.plan.keys
        step = keys.step(self.state, self.name)
        candidate = _rollout(answer, step.messages)
        candidate = replace(candidate, response_id=candidate.response_id or response_id(1))
        first = yield from judged(run, step, candidate)
        if keys.outcome is None and first.let_through(run):
            return output
        if not first.passed and answer.message is not None:
            tell({"type": RETRACT, "step_id": first.step.id, "message": answer.message.id})
        run, attempts = self._attempts(recovery, run, Made(candidate, output), answer)
        case = yield from self._recovered(run, (yield from first.opened(run)))
        return self._update(case, attempts, output, answer)

    def failed(self, error: Exception, recovery: Recovery) -> Flow[Any]:
        """The update to give after a first run that raised one of the failures.

        Raises:
            Exception: the error itself, where nothing rescued it and the caller wants no ``Unresolved``.
        """
        if is_control_flow(error):
            raise error
        run = Run.of(recovery, on_event=streaming(recovery))
        step = self.plan.keys.step(self.state, self.name)
        made = NodeAgain(self, recovery.sampler).failed(error, Again(1))
        run, attempts = self._attempts(recovery, run, made, None)
        case = yield from self._recovered(run, start(run, step, made.rollout))
        return self._update(case, attempts, None, None)

    def _attempts(self, recovery: Recovery, run: Run, first: Made, answer: Answer | None) -> tuple[Run, Attempts]:
        attempts = Attempts(NodeAgain(self, recovery.sampler))
        attempts.first(first)
        shield = Shield(run.verifier, attempts, fits(answer, self.form, self._old))
        run = replace(run, verifier=shield)
        return replace(run, sampler=attempts) if self.call != Rerun() else run, attempts

    def _recovered(self, run: Run, case: Case) -> Flow[Case]:
        try:
            return (yield from recover(run, case))
        except SamplerError as error:
            if isinstance(error.__cause__, ConfigError):
                raise error.__cause__ from None
            raise

    def _update(self, case: Case, attempts: Attempts, output: Any, answer: Answer | None) -> Any:
        outcome = case.outcome
        assert outcome is not None  # noqa: S101  # recover gives one
        keys, key = self.plan.keys, self.plan.keys.answer
        record = {} if keys.outcome is None else {keys.outcome: plain(outcome)}
        if not outcome.ok or outcome.text is None:
            error = next((made.error for made in attempts.made if made.error is not None), None)
            if not self.plan.returns:
                raise Unresolved(outcome.sentence, case=case) from error
            if output is None:  # the first run raised
                output = next(reversed(attempts.outputs.values()), None)
            if output is None and not record and error is not None:
                raise error
        elif outcome.status != "accepted":
            same = [x for x in case.rollouts if x.text == outcome.text and x.response_id in attempts.outputs]
            if same:
                output = attempts.outputs[max(same, key=lambda x: x.passed).response_id or ""]
            else:
                output = put(output, key, {key: self._restored(case, output, answer)}, root=self._root)
        return put(output, key, record, root=self._root) if record else output

    def _restored(self, case: Case, output: Any, answer: Answer | None) -> Any:
        """What the key is given of a text that no run gave: a tool's was looked at already, a person's was not."""
        assert case.outcome is not None  # noqa: S101
        text, by, key = case.outcome.text or "", case.outcome.by, self.plan.keys.answer
        try:
            if answer is None:
                return made_of(text, self.form, self._old)
            return replaced(located(output, key, root=self._root), answer, text)
        except ValueError as error:
            raise Unresolved(f"the answer of {by} does not fit the key {key!r}: {error}", case=case) from error


def _keyed(state: Any) -> bool:
    return isinstance(state, (Mapping, BaseModel)) or is_dataclass(state)


def _for_parent(output: Any) -> bool:
    parts = output if isinstance(output, (list, tuple)) else [output]
    return any(isinstance(part, Command) and part.graph is not None for part in parts)
