"""The hook that turns events into OpenTelemetry's spans and metrics."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from rfx_agent.checks import number, whole
from rfx_agent.errors import ConfigError
from rfx_agent.events import Event

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

__all__ = ["Telemetry"]

_log = logging.getLogger("rfx_agent")


class Telemetry:
    """``Recovery(on_event=Telemetry())``: a span per step, a child for each thing done for it, and metrics.

    Names follow OpenTelemetry's GenAI conventions where these have one; what is ours begins with ``rfx.``. A step's
    span ``recover_step`` has the children ``chat {model}``, ``evaluate {verifier}``, ``execute_tool {tool}`` and
    ``score {model}``; decisions, reservations and escalations are events on it. The span that is active when a step
    begins is its parent. Attempts carry ``rfx.tag`` (``retry:attempt:N``). What was paid for carries ``rfx.operation``,
    its id, ``rfx.attempt``, and ``rfx.tries``, the requests that it took; a step's end carries what was spent, on
    what, and an estimate of a plain retry. Metrics carry no ids. A failed attempt, a program that does not
    run and a call that the step survived are no errors; a step that ends unresolved is one, with the reason as
    ``error.type``, and so are then its failed calls. While a person is asked no span is open: the step's ends with
    ``rfx.outcome`` ``waiting``, and the answer opens another, linked to it in the same process and of the same
    ``rfx.step_id`` and ``rfx.run_id`` in any.

    A hook is told afterwards. Spans are dated back by the seconds that the event carries, and spans that a model's
    own client makes are siblings of the step's span, not children. A step broken off by an exception ends when it has
    been idle, or with ``close``.

    Args:
        tracer_provider: of the spans; by default the global one.
        meter_provider: of the metrics; by default the global one.
        system: ``gen_ai.provider.name`` of model calls ("openai", "anthropic", ...); events do not know it.
        capture_content: whether what events carry of the texts goes out too: the final text and answer, the sentences
            of decisions, and messages of errors. Prompts and failed answers are in no event.
        model_calls: whether model calls get spans and the metrics ``gen_ai.client.*``; False where the client is
            instrumented itself, so that they are not counted twice.
        most_open: steps kept open; beyond them the one idle longest ends as ``abandoned``.
        idle: seconds without an event after which an open step ends so.
        clock: Unix time in seconds.

    Raises:
        ConfigError: OpenTelemetry is not installed, or a parameter cannot work. When called it raises nothing: what
            fails is logged.
    """

    def __init__(
        self,
        *,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        system: str | None = None,
        capture_content: bool = False,
        model_calls: bool = True,
        most_open: int = 1024,
        idle: float = 3600.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if system == "":
            raise ConfigError("Telemetry: system is ''; give the provider's name ('openai', ...), or None")
        whole("Telemetry: most_open", most_open, least=1)
        number("Telemetry: idle", idle, above=0, finite=False, unit="seconds")
        try:
            from rfx_agent.telemetry.instruments import Instruments
            from rfx_agent.telemetry.steps import Steps
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "opentelemetry":
                raise
            raise ConfigError("opentelemetry is not installed; pip install 'rfx-agent[otel]'") from error
        self._steps = Steps(
            Instruments(meter_provider, system, model_calls=model_calls),
            tracer_provider,
            system,
            capture_content=capture_content,
            model_calls=model_calls,
            most_open=most_open,
            idle=idle,
            clock=clock,
        )

    def __call__(self, event: Event) -> None:
        """Take in one event."""
        try:
            self._steps.take(event)
        except Exception:  # noqa: BLE001  # exporters are foreign code, and telemetry must not fail a step
            _log.exception("telemetry failed on %s", type(event).__name__)

    def close(self) -> None:
        """End the spans of steps that are still open, as ``abandoned``; before the tracer provider is shut down."""
        self._steps.close()
