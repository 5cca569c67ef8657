"""The metrics. Their attributes have few values: no ids, no texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry import metrics

from rfx_agent.bill import Bill, Line
from rfx_agent.case import Outcome
from rfx_agent.events import Judged, Reserved, Sampled, Scored, ToolRan
from rfx_agent.records import Spend, Usage
from rfx_agent.telemetry.attributes import ERROR_TYPE, EVALUATION, MODEL, OPERATION, PROVIDER, TOKEN_TYPE, Attributes

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider

__all__ = ["OTHER", "SCOPE", "Instruments"]

SCOPE = "rfx_agent"
OTHER = "_OTHER"  # OpenTelemetry's word for what instrumentation does not know
# Both as the conventions give them: four to the power of n, and a hundredth of a second doubled.
_TOKENS = [4**n for n in range(14)]
_SECONDS = [0.01 * 2**n for n in range(14)]
_SHARES = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0]
_NONE = "none"  # the label of what does not apply: one name of a metric has one set of labels


class Instruments:
    """Counters ``rfx.steps``, ``rfx.attempts``, ``rfx.escalations``, ``rfx.escalations.closed``,
    ``rfx.budget.refusals`` and ``rfx.requests``, and histograms. Of requests, ``made`` over ``asked`` is the
    amplification.

    Of steps that ended, ``rfx.spend.tokens`` and ``rfx.spend.usd`` count the lines of their bills. Of those with an
    estimate, ``rfx.compared.rescues`` and ``rfx.compared.tokens`` count what came of the ``run`` after its first
    diagnosis, and under ``retry_estimate`` what a plain retry under the same caps is estimated at; under
    ``retry_estimate_same_spend`` one that spent what the run did.

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
        self._closed = meter.create_counter("rfx.escalations.closed", "{case}", "Cases put before a person that ended.")
        self._tokens = meter.create_counter("rfx.spend.tokens", "{token}", "Tokens of steps that ended.")
        self._usd = meter.create_counter("rfx.spend.usd", "{USD}", "US dollars of steps that ended.")
        self._rescues = meter.create_counter(
            "rfx.compared.rescues", "{step}", "Failures rescued, and what a plain retry is estimated at."
        )
        self._compared = meter.create_counter(
            "rfx.compared.tokens",
            "{token}",
            "Tokens after the first diagnosis, and what a plain retry is estimated at.",
        )
        self._confidence = meter.create_histogram(
            "rfx.confidence",
            "1",
            "Probability that the answer of a step is right, where it is known.",
            explicit_bucket_boundaries_advisory=_SHARES,
        )
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

    def finished(self, outcome: Outcome, bill: Bill) -> None:
        """What a step came to that ended by itself."""
        how: Attributes = {"rfx.outcome": outcome.status}
        if outcome.confidence is not None:
            self._confidence.record(outcome.confidence, how)
        if any(x.spent.escalations for x in bill.lines):
            self._closed.add(1, how)
        for line in bill.lines:
            labels = _labels(line)
            if line.spent.tokens:
                self._tokens.add(line.spent.tokens, labels)
            if line.spent.usd:
                self._usd.add(line.spent.usd, labels)
        if (estimate := bill.retry_estimate) is not None:
            arms = {"retry_estimate": estimate.rescue, "retry_estimate_same_spend": estimate.within}
            for arm, rescues in (("run", float(outcome.status == "rescued")), *arms.items()):
                self._rescues.add(rescues, {"rfx.arm": arm})
            for arm, tokens in (("run", float(estimate.actual.tokens)), ("retry_estimate", estimate.tokens)):
                self._compared.add(tokens, {"rfx.arm": arm})

    def ended(self, status: str, by: str | None, spent: Spend, seconds: float) -> None:
        """A step's end."""
        how: Attributes = {"rfx.outcome": status}
        self._steps.add(1, {**how, "rfx.by": by or _NONE})
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


def _labels(line: Line) -> Attributes:
    model, verifier = (_NONE, line.model) if line.purpose == "verify" else (line.model, _NONE)
    return {
        MODEL: model or _NONE,
        EVALUATION: verifier or _NONE,
        "rfx.purpose": line.purpose,
        "rfx.remedy": line.remedy or "candidate",
        "rfx.share": line.share,
    }
