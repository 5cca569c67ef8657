"""One suite over every way into the recovery: the same decisions, outcome, spending, events and requests.

A way in is a subclass of ``Way``. It runs a scenario (see ``scenarios.py``) sync and async, with the parts that it is
handed, and gives the text that its user gets back. What happened on the inside is watched from outside, the same for
all: decisions and spending by the policy, events by the hook, requests by the model.

To add one (the agent middleware, the node decorator):

1. subclass ``Way``, give it a ``name``, and write ``run`` and ``arun``. Build the recovery with
   ``parts.recovery(sampler)``, or hand ``parts.options()`` to what builds its own, so that the watching policy and hook
   are in it. Let the agent or the node produce ``parts.scenario.candidate`` itself, then fail and be recovered. Return
   the final text, or None where the way says in its own manner that there is no answer.
2. say in ``limits`` what it cannot honour. The suite then compares it with the engine under the same limits, so a
   declared difference is checked as well: one that is not declared fails, and so does one that is declared and not
   there, where that shows in a scenario.
3. add an instance to ``WAYS`` in ``test_adapters.py``.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, convert_to_openai_messages
from langchain_core.outputs import ChatGeneration, ChatResult
from scenarios import SCENARIOS, STEP, Scenario

from rfx_agent import (
    Outcome,
    Recovery,
    Rollout,
    SampleRequest,
    SampleResult,
    Unresolved,
    Usage,
    outcome_of,
    recovery_graph,
    step_input,
    with_recovery,
)
from rfx_agent.budgets.step import Ledger
from rfx_agent.case import Decision, Diagnosis
from rfx_agent.events import Event, Finished
from rfx_agent.testing import ScriptedSampler

QUESTION = [dict(m) for m in STEP.messages]
ALL_FIELDS = ("n", "temperature", "max_tokens", "seed", "prefix", "messages")


@dataclass(frozen=True)
class Limits:
    """What a way in cannot honour.

    Attributes:
        own_candidate: it always has a candidate: the first answer is drawn by its user's own code, on no budget.
        single: it asks for one completion at a time.
        takes_prefix: whether a draw can go on from a text, at a temperature of its own.
        takes_max_tokens: whether the cap on a draw's tokens can be raised.
        draw_fields: fields of a request for a draw that reach the model. Requests for a tool's input carry all.
    """

    own_candidate: bool = False
    single: bool = False
    takes_prefix: bool = True
    takes_max_tokens: bool = True
    draw_fields: tuple[str, ...] = ALL_FIELDS


@dataclass
class Parts:
    """The scripted parts of one run of one scenario, and what was watched on them."""

    scenario: Scenario
    model: ScriptedSampler
    decided: list[tuple[Decision, Ledger]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    version = "watch"

    def decide(self, diagnosis: Diagnosis, ledger: Ledger) -> Decision:
        """The decision of the scenario's own policy, remembered: this object is the policy."""
        decision = self.scenario.recovery().policy.decide(diagnosis, ledger)
        self.decided.append((decision, ledger))
        return decision

    def options(self) -> dict[str, Any]:
        """Parameters of the recovery, but for its sampler."""
        made = self.scenario.recovery()
        names = ("verifier", "remedies", "tool", "seed", "max_tokens", "budget", "extra_samples", "concurrency")
        return {name: getattr(made, name) for name in names} | {"policy": self, "on_event": self.events.append}

    def recovery(self, sampler: Any = None) -> Recovery:
        """The whole recovery, with ``sampler`` in the place of the scripted one if there is one."""
        return Recovery(sampler=sampler or self.model, **self.options())


@dataclass(frozen=True)
class Observed:
    """What a scenario came to: comparable between ways in.

    Attributes:
        decisions: (route, remedy, reason) of each.
        kinds: how the last answer before each had failed.
        outcome: (status, text, answer, by, reason).
        text: what the user got back.
        spent: (attempts, samples, tokens, escalations, calls).
        bill: per line its purpose, remedy, share, operations, tokens and requests.
        events: their types, in order.
        requests: per request to the model, the fields that this way promises.
    """

    decisions: list[tuple[str, str | None, str]]
    kinds: list[str | None]
    outcome: tuple[Any, ...]
    text: str | None
    bill: list[tuple[Any, ...]]
    spent: tuple[int, ...]
    events: list[str]
    requests: list[dict[str, Any]]


class Way:
    """A way in. ``run`` and ``arun`` take the parts and give the text that the user gets, or None for no answer."""

    name = ""
    limits = Limits()

    def run(self, parts: Parts) -> str | None:
        raise NotImplementedError

    async def arun(self, parts: Parts) -> str | None:
        raise NotImplementedError


class EngineWay(Way):
    """``Recovery.run``."""

    name = "engine"

    def run(self, parts: Parts) -> str | None:
        return _text(parts.recovery().run(STEP, parts.scenario.candidate).outcome)

    async def arun(self, parts: Parts) -> str | None:
        return _text((await parts.recovery().arun(STEP, parts.scenario.candidate)).outcome)


class GraphWay(Way):
    """The recovery graph."""

    name = "graph"

    def run(self, parts: Parts) -> str | None:
        graph = recovery_graph(parts.recovery())
        return _text(outcome_of(graph.invoke(step_input(STEP, parts.scenario.candidate))))

    async def arun(self, parts: Parts) -> str | None:
        graph = recovery_graph(parts.recovery())
        return _text(outcome_of(await graph.ainvoke(step_input(STEP, parts.scenario.candidate))))


class WrapWay(Way):
    """``with_recovery`` around a chat model. A chain is run on its input and asked for nothing else."""

    limits = Limits(
        own_candidate=True, single=True, takes_prefix=False, takes_max_tokens=False, draw_fields=("n", "messages")
    )

    def __init__(self, *, streaming: bool = False) -> None:
        self.name = "wrapper-stream" if streaming else "wrapper"
        self._streaming = streaming

    def run(self, parts: Parts) -> str | None:
        wrapped, config = self._wrapped(parts)
        try:
            if not self._streaming:
                return str(wrapped.invoke(QUESTION, config).text)
            return "".join(chunk.text for chunk in wrapped.stream(QUESTION, config))
        except Unresolved:
            return None

    async def arun(self, parts: Parts) -> str | None:
        wrapped, config = self._wrapped(parts)
        try:
            if not self._streaming:
                return str((await wrapped.ainvoke(QUESTION, config)).text)
            return "".join([chunk.text async for chunk in wrapped.astream(QUESTION, config)])
        except Unresolved:
            return None

    def _wrapped(self, parts: Parts) -> tuple[Any, Any]:
        model = ScriptedChat(source=parts.model, candidate=[parts.scenario.candidate])
        chain = with_recovery(model, sampler=parts.model, prompt=lambda _: STEP, **parts.options())
        # One at a time, so that the script's order is the draws' order.
        return chain, {"max_concurrency": 1}


class ScriptedChat(BaseChatModel):
    """A chat model that answers with a candidate first and then from the script; it reports the script's usage."""

    source: Any
    candidate: list[str]

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | AsyncCallbackManagerForLLMRun | None = None,
        **_: Any,
    ) -> ChatResult:
        if self.candidate:
            return ChatResult(generations=[ChatGeneration(message=AIMessage(self.candidate.pop()))])
        asked = tuple(dict(m) for m in convert_to_openai_messages(messages))
        (rollout,) = self.source.sample(SampleRequest(asked)).rollouts
        return ChatResult(generations=[ChatGeneration(message=message_of(rollout))])


def message_of(rollout: Rollout) -> AIMessage:
    """A draw as a chat model gives it, with what it used and how it ended."""
    used: Any = {
        "input_tokens": rollout.usage.prompt_tokens,
        "output_tokens": rollout.usage.completion_tokens,
        "total_tokens": rollout.usage.tokens,
    }
    ended = {} if rollout.finish_reason is None else {"finish_reason": rollout.finish_reason}
    return AIMessage(rollout.text, usage_metadata=used, response_metadata=ended)


class Limited:
    """A sampler under a way's limits: what the engine has to be compared with."""

    name = "scripted"

    def __init__(self, inner: ScriptedSampler, limits: Limits) -> None:
        self._inner, self._single = inner, limits.single
        self.continues_prefix = inner.continues_prefix and limits.takes_prefix
        self.takes_max_tokens = limits.takes_max_tokens

    def sample(self, request: SampleRequest) -> SampleResult:
        if not self._single:
            return self._inner.sample(request)
        made = [self._inner.sample(replace(request, n=1)) for _ in range(request.n)]
        return SampleResult(tuple(x for m in made for x in m.rollouts), sum((m.usage for m in made), Usage()))

    async def asample(self, request: SampleRequest) -> SampleResult:
        return self.sample(request)


class ReferenceWay(Way):
    """The engine under another way's limits."""

    def __init__(self, limits: Limits) -> None:
        self.name, self.limits = "expected", limits

    def run(self, parts: Parts) -> str | None:
        recovery = parts.recovery(Limited(parts.model, self.limits))
        return _text(recovery.run(STEP, parts.scenario.candidate).outcome)

    async def arun(self, parts: Parts) -> str | None:
        return self.run(parts)


def observe(way: Way, name: str, *, use_async: bool) -> Observed:
    """Run the scenario called ``name`` through ``way``."""
    scenario = own_candidate(SCENARIOS[name]) if way.limits.own_candidate else SCENARIOS[name]
    parts = Parts(scenario, scenario.sampler())
    text = asyncio.run(way.arun(parts)) if use_async else way.run(parts)
    (ended,) = [event for event in parts.events if isinstance(event, Finished)]
    outcome, bill = ended.outcome, ended.bill
    assert bill.spent.tokens == ended.spent.tokens
    spent = parts.decided[-1][1].spent
    return Observed(
        decisions=[(d.route, d.remedy, d.reason) for d, _ in parts.decided],
        kinds=[d.kind for d, _ in parts.decided],
        outcome=(outcome.status, outcome.text, outcome.answer, outcome.by, outcome.reason),
        text=text,
        spent=(spent.attempts, spent.samples, spent.tokens, spent.escalations, spent.calls),
        bill=[(x.purpose, x.remedy, x.share, x.operations, x.spent.tokens, x.spent.calls) for x in bill.lines],
        events=[type(event).__name__ for event in parts.events],
        requests=[_request(request, way.limits) for request in parts.model.requests],
    )


def own_candidate(scenario: Scenario) -> Scenario:
    """The scenario for a way whose first answer is always its user's: the engine's own first draw becomes it."""
    if scenario.candidate is not None:
        return scenario
    return replace(scenario, candidate=scenario.texts[0], texts=scenario.texts[1:])


def _request(request: SampleRequest, limits: Limits) -> dict[str, Any]:
    draw = len(request.messages) == len(STEP.messages)  # a tool's prompt has a message more
    return {name: getattr(request, name) for name in (limits.draw_fields if draw else ALL_FIELDS)}


def _text(outcome: Outcome | None) -> str | None:
    return outcome.text if outcome is not None and outcome.ok else None
