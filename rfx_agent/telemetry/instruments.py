"""The metrics. Their attributes have few values: no ids, no texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry import metrics

from rfx_agent.events import Judged, Reserved, Sampled, Scored, ToolRan
from rfx_agent.records import Spend, Usage
from rfx_agent.telemetry.attributes import ERROR_TYPE, MODEL, OPERATION, PROVIDER, TOKEN_TYPE, Attributes

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider

__all__ = ["OTHER", "SCOPE", "Instruments"]

SCOPE = "rfx_agent"
OTHER = "_OTHER"  # OpenTelemetry's word for what instrumentation does not know
# Both as the conventions give them: four to the power of n, and a hundredth of a second doubled.
_TOKENS = [4**n for n in range(14)]
_SECONDS = [0.01 * 2**n for n in range(14)]


class Instruments:
    """Counters ``rfx.steps``, ``rfx.attempts``, ``rfx.escalations``, ``rfx.budget.refusals`` and ``rfx.requests``, and
    histograms. Of requests, ``made`` over ``asked`` is the amplification.

    Args:
        provider: of the meter; the global one if None.
        system: ``gen_ai.provider.name``.
        model_calls: whether model calls are counted.
    """

    def __init__(self, provider: MeterProvider | None, system: str | None, *, model_calls: bool) -> None:
        meter = metrics.get_meter(SCOPE, meter_provider=provider)
        self._system = system or OTHER
        self._model_calls = model_calls
        self._steps = meter.create_counter("rfx.steps", "{step}", "Steps that ended.")
        self._attempts = meter.create_counter("rfx.attempts", "{attempt}", "Candidate answers, by what came of them.")
        self._escalations = meter.create_counter("rfx.escalations", "{case}", "Cases put before a person.")
        self._refusals = meter.create_counter("rfx.budget.refusals", "{refusal}", "Actions that a cap forbade.")
        self._requests = meter.create_counter("rfx.requests", "{request}", "Model requests, asked for and made.")
        self._step_seconds = meter.create_histogram(
            "rfx.step.duration",
            "s",
            "Time that a step took, a person's time left out.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._step_tokens = meter.create_histogram(
            "rfx.step.tokens",
            "{token}",
            "Tokens read and written for a step.",
            explicit_bucket_boundaries_advisory=[0, *_TOKENS],
        )
        self._call_seconds = meter.create_histogram(
            "gen_ai.client.operation.duration",
            "s",
            "GenAI operation duration.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._call_tokens = meter.create_histogram(
            "gen_ai.client.token.usage",
            "{token}",
            "Number of input and output tokens used.",
            explicit_bucket_boundaries_advisory=_TOKENS,
        )
        self._tool_seconds = meter.create_histogram(
            "gen_ai.execute_tool.duration",
            "s",
            "GenAI tool execution duration.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )

    def sampled(self, event: Sampled) -> None:
        """A model call, and the answers that it was to bring and did not."""
        labels: Attributes = {OPERATION: "chat", PROVIDER: self._system}
        if event.model:
            labels[MODEL] = event.model
        self._call(labels, event.usage, event.seconds, failed=bool(event.error))
        if event.asked > event.got:
            missing = {"rfx.remedy": event.remedy, "rfx.result": "missing"}
            self._attempts.add(event.asked - event.got, missing)

    def scored(self, event: Scored) -> None:
        """An ancestor's reading."""
        labels: Attributes = {OPERATION: "score", PROVIDER: self._system, MODEL: event.scorer}
        self._call(labels, event.usage, event.seconds, failed=not event.scored)

    def judged(self, event: Judged, remedy: str, *, first: bool) -> None:
        """A verdict; the ``first`` one on a candidate is the attempt's result."""
        if first:
            labels: Attributes = {"rfx.remedy": remedy, "rfx.result": "passed" if event.passed else "failed"}
            self._attempts.add(1, labels | ({"rfx.kind": event.kind} if event.kind else {}))
        if event.usage.calls:  # a verifier that asks models
            self._call({OPERATION: "evaluate", PROVIDER: self._system}, event.usage, event.seconds, failed=False)

    def tool_ran(self, event: ToolRan, *, attempt: bool) -> None:
        """A tool's run; as an ``attempt`` of a step it counts where it gave nothing to judge."""
        self._tool_seconds.record(event.seconds, {"gen_ai.tool.name": event.tool})
        if attempt and event.failed:
            self._attempts.add(1, {"rfx.remedy": event.remedy, "rfx.result": "broken"})

    def reserved(self, event: Reserved) -> None:
        """The caps that refused an action."""
        for cap in event.refused:
            # Of a shared account its scope, without the key: a label for each tenant would have no end.
            self._refusals.add(1, {"rfx.cap": cap.split("=")[0], "rfx.purpose": event.purpose})

    def escalated(self) -> None:
        """A case before a person."""
        self._escalations.add(1)

    def ended(self, status: str, by: str | None, spent: Spend, seconds: float) -> None:
        """A step's end."""
        how: Attributes = {"rfx.outcome": status}
        self._steps.add(1, {**how, "rfx.by": by or "none"})
        self._step_seconds.record(seconds, how)
        self._step_tokens.record(spent.tokens, how)

    def _call(self, labels: Attributes, usage: Usage, seconds: float, *, failed: bool) -> None:
        self._requests.add(1, {"rfx.request": "asked"})
        self._requests.add(usage.calls, {"rfx.request": "made"})
        if not self._model_calls:
            return
        self._call_seconds.record(seconds, {**labels, ERROR_TYPE: "call_failed"} if failed else labels)
        for kind, tokens in (("input", usage.prompt_tokens), ("output", usage.completion_tokens)):
            if tokens:
                self._call_tokens.record(tokens, {**labels, TOKEN_TYPE: kind})
