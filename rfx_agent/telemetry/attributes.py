"""Events as OpenTelemetry attributes, by the names of the GenAI semantic conventions. Nothing that was said is here.

The conventions are under development and their Python constants were deprecated when they moved to a repository of
their own, so the names stand here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TypeAlias

from rfx_agent.bill import Bill
from rfx_agent.case import Decision, Outcome
from rfx_agent.events import Judged, Reserved, Sampled, Scored, ToolRan
from rfx_agent.records import Spend, Usage

__all__ = [
    "ERROR_TYPE",
    "EVALUATION",
    "MODEL",
    "OPERATION",
    "PROVIDER",
    "TOKEN_TYPE",
    "Attributes",
    "billed",
    "decided",
    "finished",
    "judged",
    "reserved",
    "sampled",
    "scored",
    "spent",
    "tool_ran",
    "words",
]

Attributes: TypeAlias = dict[str, str | bool | int | float | Sequence[str] | Sequence[float]]

ERROR_TYPE = "error.type"
EVALUATION = "gen_ai.evaluation.name"
MODEL = "gen_ai.request.model"
OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
TOKEN_TYPE = "gen_ai.token.type"  # noqa: S105  # no password


def sampled(event: Sampled, provider: str) -> Attributes:
    """Of a model call's span."""
    made: Attributes = {
        OPERATION: "chat",
        PROVIDER: provider,
        "rfx.remedy": event.remedy,
        "rfx.tag": event.tag,
        "rfx.got": event.got,
    }
    if event.model:
        made[MODEL] = event.model
    if event.temperature is not None:
        made["gen_ai.request.temperature"] = event.temperature
    if event.asked != 1:
        made["gen_ai.request.choice.count"] = event.asked
    return made | _usage(event.usage) | _which(event)


def tool_ran(event: ToolRan) -> Attributes:
    """Of a tool run's span. That the program failed is a finding, not an error."""
    made: Attributes = {
        OPERATION: "execute_tool",
        "gen_ai.tool.name": event.tool,
        "gen_ai.tool.type": "function",
        "rfx.remedy": event.remedy,
        "rfx.tool.failed": event.failed,
    }
    return made | _which(event)


def judged(event: Judged, remedy: str) -> Attributes:
    """Of a verdict's span."""
    made: Attributes = {
        OPERATION: "evaluate",
        "gen_ai.evaluation.score.label": "pass" if event.passed else "fail",
        "rfx.remedy": remedy,
        "rfx.rollout": event.rollout_id,
        "rfx.weak": event.weak,
    }
    if event.kind is not None:
        made["rfx.kind"] = event.kind
    if event.verifier:
        made[EVALUATION] = event.verifier
    return made | _usage(event.usage) | _which(event)


def scored(event: Scored, provider: str) -> Attributes:
    """Of the span of an ancestor's reading."""
    made: Attributes = {
        OPERATION: "score",
        PROVIDER: provider,
        MODEL: event.scorer,
        "rfx.rollouts": event.rollouts,
        "rfx.scored": event.scored,
    }
    return made | _usage(event.usage) | _which(event)


def reserved(event: Reserved) -> Attributes:
    """Of the event on the step's span."""
    made: Attributes = {"rfx.purpose": event.purpose} | _amounts("rfx.cost", event.cost)
    if event.refused:
        made["rfx.refused"] = event.refused
    return made | _which(event)


def decided(decision: Decision) -> Attributes:
    """Of the event on the step's span: the decision in numbers and names. Its sentence may quote a server's error."""
    made: Attributes = {
        "rfx.route": decision.route,
        "rfx.reason": decision.reason,
        "rfx.policy": decision.policy,
        "rfx.evidence": decision.evidence,
    }
    if decision.remedy is not None:
        made["rfx.remedy"] = decision.remedy
    if decision.regime is not None:
        made["rfx.regime"] = decision.regime
    if decision.kind is not None:
        made["rfx.kind"] = decision.kind
        made["rfx.told"] = decision.told
    for kind, n in decision.kinds.items():
        made[f"rfx.kinds.{kind}"] = n
    for name, (alpha, beta) in decision.posterior.items():
        made[f"rfx.posterior.{name}"] = (float(alpha), float(beta))
    made |= _numbers("rfx.expected", decision.expected)
    made |= _numbers("rfx.feature", decision.features or {})
    return made | _numbers("rfx.z", decision.z or {})


def finished(outcome: Outcome) -> Attributes:
    """Of the step's span."""
    made: Attributes = {"rfx.outcome": outcome.status, "rfx.reason": outcome.reason, "rfx.weak": outcome.weak}
    if outcome.by is not None:
        made["rfx.by"] = outcome.by
    if outcome.confidence is not None:
        made["rfx.confidence"] = float(outcome.confidence)
    if outcome.status in ("unresolved", "unasked"):
        made[ERROR_TYPE] = outcome.reason or "unresolved"
    return made


def words(outcome: Outcome) -> Attributes:
    """What was said in the end; for those who switched it on."""
    made: Attributes = {"rfx.sentence": outcome.sentence}
    if outcome.text is not None:
        part = {"type": "text", "content": outcome.text}
        message = {"role": "assistant", "parts": [part], "finish_reason": "stop"}
        made["gen_ai.output.messages"] = json.dumps([message], ensure_ascii=False)
    if outcome.answer is not None:
        made["rfx.answer"] = outcome.answer
    return made


def spent(spend: Spend) -> Attributes:
    """What a step came to. Not under ``gen_ai.usage``: sums over a trace would count its calls twice."""
    return {"rfx.spent.tokens": 0} | _amounts("rfx.spent", spend)


def billed(bill: Bill) -> Attributes:
    """What a step's spending was good for, and the estimate of a plain retry in its place."""
    made: Attributes = {}
    for share in ("first", "kept", "wasted"):
        spend: Spend = getattr(bill, share)
        made |= {f"rfx.spent.{share}.tokens": spend.tokens, f"rfx.spent.{share}.usd": spend.usd}
    for remedy, spend in bill.by_remedy.items():
        if remedy:
            named = f"rfx.spent.remedy.{remedy}"
            made |= {f"{named}.tokens": spend.tokens, f"{named}.usd": spend.usd}
    if (estimate := bill.retry_estimate) is not None:
        for name in ("draws", "tokens", "usd", "rescue", "within"):
            made[f"rfx.retry_estimate.{name}"] = float(getattr(estimate, name))
    return made


def _which(event: Sampled | Judged | Scored | ToolRan | Reserved) -> Attributes:
    """The operation, its attempt, and the requests that it took of the transport."""
    made: Attributes = {"rfx.operation": event.operation, "rfx.attempt": event.attempt} if event.operation else {}
    usage = getattr(event, "usage", None)
    return made | {"rfx.tries": usage.calls} if usage is not None and usage.calls else made


def _usage(usage: Usage) -> Attributes:
    if not usage.tokens:
        return {}  # not counted, which is not the same as none
    return {"gen_ai.usage.input_tokens": usage.prompt_tokens, "gen_ai.usage.output_tokens": usage.completion_tokens}


def _amounts(prefix: str, spend: Spend) -> Attributes:
    return {f"{prefix}.{f.name}": amount for f in fields(Spend) if (amount := getattr(spend, f.name))}


def _numbers(prefix: str, numbers: Mapping[str, float]) -> Attributes:
    return {f"{prefix}.{name}": float(number) for name, number in numbers.items()}
