"""The steps that are open, and their spans."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, StatusCode

from rfx_agent._forks import Lock
from rfx_agent.events import Decided, Escalated, Event, Finished, Judged, Reserved, Sampled, Scored, ToolRan
from rfx_agent.records import Spend, Usage
from rfx_agent.telemetry import attributes
from rfx_agent.telemetry.attributes import ERROR_TYPE, Attributes
from rfx_agent.telemetry.instruments import OTHER, SCOPE, Instruments

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

__all__ = ["Steps"]

STEP_SPAN = "recover_step"
_CALL_FAILED = "call_failed"


@dataclass(slots=True)
class _Open:
    """A step under way. Its events come one after the other, so only the table of steps needs a lock."""

    span: Span
    began: int  # nanoseconds of Unix time, as all times here
    seen: int
    spent: Spend = Spend()
    seconds: float = 0.0  # worked before a person was asked
    remedy: str = "candidate"  # of the rollouts that are judged next
    judged: dict[str, str] = field(default_factory=dict)  # remedy of each rollout
    failed: list[tuple[Span, int]] = field(default_factory=list)  # calls whose status the outcome decides


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is kept of a step while a person is asked."""

    context: SpanContext
    spent: Spend
    seconds: float


class Steps:
    """Makes spans of events; see ``Telemetry`` for the arguments."""

    def __init__(
        self,
        instruments: Instruments,
        provider: TracerProvider | None,
        system: str | None,
        *,
        capture_content: bool,
        model_calls: bool,
        most_open: int,
        idle: float,
        clock: Callable[[], float],
    ) -> None:
        self._metrics = instruments
        self._tracer = trace.get_tracer(SCOPE, tracer_provider=provider)
        self._system = system or OTHER
        self._capture = capture_content
        self._model_calls = model_calls
        self._most = most_open
        self._idle = int(idle * 1e9)
        self._clock = clock
        self._lock = Lock()
        self._open: OrderedDict[str, _Open] = OrderedDict()  # the one idle longest first
        self._asked: OrderedDict[str, _Asked] = OrderedDict()

    def take(self, event: Event) -> None:
        """One event, now."""
        now = int(self._clock() * 1e9)
        step = self._step(event, now)
        match event:
            case ToolRan():
                self._tool_ran(step, event, now)
            case Reserved():
                self._metrics.reserved(event)
                if step is not None:
                    step.span.add_event("rfx.reserved", attributes.reserved(event), now)
            case _ if step is None:
                return
            case Sampled():
                self._sampled(step, event, now)
            case Judged():
                self._judged(step, event, now)
            case Scored():
                self._scored(step, event, now)
            case Decided():
                made = attributes.decided(event.decision)
                if self._capture:
                    made["rfx.sentence"] = event.decision.sentence
                step.span.add_event("rfx.decided", made, now)
            case Escalated():
                self._escalated(step, event, now)
            case Finished():
                self._finished(step, event, now)

    def close(self) -> None:
        """End what is open."""
        with self._lock:
            left = list(self._open.values())
            self._open.clear()
        self._abandon(left)

    def _step(self, event: Event, now: int) -> _Open | None:
        """The step that ``event`` belongs to, opened if need be; None for a tool that an agent runs outside of one."""
        key = _key(event)
        with self._lock:
            if (step := self._open.get(key)) is not None:
                self._open.move_to_end(key)
                step.seen = now
                return step
            if isinstance(event, ToolRan) or (isinstance(event, Reserved) and event.purpose == "tool"):
                return None  # in a step, a model was asked before
            asked = self._asked.pop(key, None)
        step = self._opened(event, asked, now)
        with self._lock:
            self._open[key] = step
            left = [self._open.popitem(last=False)[1] for _ in range(len(self._open) - self._most)]
            while (oldest := next(iter(self._open.values()))).seen < now - self._idle:
                left.append(oldest)
                self._open.popitem(last=False)
        self._abandon(left)
        return step

    def _opened(self, event: Event, asked: _Asked | None, now: int) -> _Open:
        began = now - int(getattr(event, "seconds", 0.0) * 1e9)
        about: Attributes = {"rfx.step_id": event.step_id}
        if run_id := event.run_id:
            about["rfx.run_id"] = run_id
        links = [Link(asked.context)] if asked else None
        span = self._tracer.start_span(STEP_SPAN, attributes=about, links=links, start_time=began)
        return _Open(span, began, now, asked.spent, asked.seconds) if asked else _Open(span, began, now)

    def _closed(self, event: Event) -> None:
        with self._lock:
            self._open.pop(_key(event), None)

    def _abandon(self, left: list[_Open]) -> None:
        for step in left:
            self._metrics.ended("abandoned", None, step.spent, _worked(step, step.seen))
            _end(step, {"rfx.outcome": "abandoned"} | attributes.spent(step.spent), step.seen)

    def _child(self, step: _Open | None, name: str, kind: SpanKind, made: Attributes, seconds: float, now: int) -> Span:
        within = None if step is None else trace.set_span_in_context(step.span)
        return self._tracer.start_span(name, within, kind, made, start_time=now - int(seconds * 1e9))

    def _sampled(self, step: _Open, event: Sampled, now: int) -> None:
        step.remedy = event.remedy
        step.spent += _spend(event.usage, event.seconds) + Spend(samples=event.got)
        self._metrics.sampled(event)
        if not self._model_calls:
            return
        made = attributes.sampled(event, self._system)
        if event.error and self._capture:
            made["rfx.error"] = event.error
        span = self._child(step, f"chat {event.model}".rstrip(), SpanKind.CLIENT, made, event.seconds, now)
        if event.error:
            step.failed.append((span, now))  # whether it was an error is known in the end
        else:
            span.end(now)

    def _scored(self, step: _Open, event: Scored, now: int) -> None:
        step.spent += _spend(event.usage, event.seconds)
        self._metrics.scored(event)
        if self._model_calls:
            made = attributes.scored(event, self._system)
            self._child(step, f"score {event.scorer}".rstrip(), SpanKind.CLIENT, made, event.seconds, now).end(now)

    def _judged(self, step: _Open, event: Judged, now: int) -> None:
        first = event.rollout_id not in step.judged  # with peers that matter, candidates are judged again
        remedy = step.judged.setdefault(event.rollout_id, event.remedy or step.remedy)
        step.spent += _spend(event.usage, event.seconds)
        self._metrics.judged(event, remedy, first=first)
        made = attributes.judged(event, remedy)
        self._child(step, f"evaluate {event.verifier}".rstrip(), SpanKind.INTERNAL, made, event.seconds, now).end(now)

    def _tool_ran(self, step: _Open | None, event: ToolRan, now: int) -> None:
        self._metrics.tool_ran(event, attempt=step is not None)
        if step is not None:
            step.spent += Spend(seconds=event.seconds, tool_seconds=event.seconds)
        made = attributes.tool_ran(event)
        self._child(step, f"execute_tool {event.tool}", SpanKind.INTERNAL, made, event.seconds, now).end(now)

    def _escalated(self, step: _Open, event: Escalated, now: int) -> None:
        self._metrics.escalated()
        deadline: Attributes = {} if event.deadline is None else {"rfx.deadline": event.deadline}
        step.span.add_event("rfx.escalated", deadline, now)
        self._closed(event)
        waiting = _Asked(step.span.get_span_context(), step.spent + Spend(escalations=1), _worked(step, now))
        with self._lock:
            self._asked[_key(event)] = waiting
            if len(self._asked) > self._most:
                self._asked.popitem(last=False)
        made: Attributes = {"rfx.outcome": "waiting", "rfx.escalated": True}
        _end(step, made | attributes.spent(waiting.spent), now)

    def _finished(self, step: _Open, event: Finished, now: int) -> None:
        outcome = event.outcome
        self._closed(event)
        self._metrics.ended(outcome.status, outcome.by, event.spent, _worked(step, now))
        self._metrics.finished(outcome, event.bill)
        # The engine knows what events do not say: money, and what an earlier process paid for.
        made = attributes.finished(outcome) | attributes.spent(event.spent) | attributes.billed(event.bill)
        if self._capture:
            made |= attributes.words(outcome)
        if outcome.ok:
            step.span.set_status(StatusCode.OK)
        elif outcome.status in ("unresolved", "unasked"):
            step.span.set_status(StatusCode.ERROR, outcome.reason)
            for span, _ in step.failed:
                span.set_attribute(ERROR_TYPE, _CALL_FAILED)
                span.set_status(StatusCode.ERROR)
        _end(step, made, now)


def _key(event: Event) -> str:
    return event.run_id or event.step_id


def _spend(usage: Usage, seconds: float) -> Spend:
    return Spend(tokens=usage.tokens, seconds=seconds, calls=usage.calls)


def _worked(step: _Open, now: int) -> float:
    return step.seconds + (now - step.began) / 1e9


def _end(step: _Open, made: Attributes, at: int) -> None:
    for span, ended in step.failed:
        span.end(ended)
    step.span.set_attributes(made)
    step.span.end(at)
