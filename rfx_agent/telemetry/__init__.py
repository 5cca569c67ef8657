"""OpenTelemetry spans and metrics of what happens inside a step. Needs the extra ``otel`` when one is made."""

from rfx_agent.telemetry.hook import Telemetry

__all__ = ["Telemetry"]
