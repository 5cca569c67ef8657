"""OpenTelemetry spans and metrics, collected in memory: names, parents, attributes, status; and what stays out."""

import asyncio
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from scenarios import EVERY, SCENARIOS, STEP

from rfx_agent import (
    ConfigError,
    JudgeVerifier,
    Price,
    Recovery,
    RetryBudget,
    Rollout,
    Step,
    Usage,
    recovery_graph,
    step_input,
    with_recovery,
)
from rfx_agent.case import Outcome
from rfx_agent.errors import SamplerError, VerifierError
from rfx_agent.events import Finished, Judged, Reserved, Sampled, Scored, ToolRan
from rfx_agent.policies import FixedPolicy
from rfx_agent.records import SampleRequest, SampleResult, Spend
from rfx_agent.remedies import Retry, Tool
from rfx_agent.telemetry import Telemetry
from rfx_agent.testing import ScriptedSampler, ScriptedTool, ScriptedVerifier

THREAD: Any = {"configurable": {"thread_id": "one"}}
FAILING = SCENARIOS["budget"]


class Seen:
    """A provider of each kind, with what reached them."""

    def __init__(self, **options: Any) -> None:
        self.exporter, self.reader = InMemorySpanExporter(), InMemoryMetricReader()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        meters = MeterProvider([self.reader], shutdown_on_exit=False)
        self.hook = Telemetry(tracer_provider=self.provider, meter_provider=meters, **options)
        self.tracer = self.provider.get_tracer("the agent's own")

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        """Ended spans, in the order of their ends."""
        return self.exporter.get_finished_spans()

    @property
    def steps(self) -> list[ReadableSpan]:
        """The spans of steps."""
        return [s for s in self.spans if s.name == "recover_step"]

    @property
    def step(self) -> ReadableSpan:
        """The only step's."""
        (step,) = self.steps
        return step

    def children(self, parent: ReadableSpan) -> list[ReadableSpan]:
        """Spans whose parent is ``parent``."""
        return [s for s in self.spans if s.parent is not None and s.parent.span_id == parent.context.span_id]

    def points(self, name: str) -> list[Any]:
        """Data points of a metric."""
        data = self.reader.get_metrics_data()
        metrics = [m for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics] if data else []
        return [p for m in metrics if m.name == name for p in m.data.data_points]

    def counts(self, name: str, *labels: str, maybe: str = "") -> dict[Any, Any]:
        """Value of a counter, or sum of a histogram, by the values of ``labels``, which must be all there are.

        ``maybe`` names one more label, which a point may have or not; where it does, its value comes last.
        """
        made = {}
        for point in self.points(name):
            there = (*labels, maybe) if maybe in point.attributes else labels
            assert set(point.attributes) == set(there)
            made[tuple(point.attributes[x] for x in there)] = getattr(point, "value", None) or point.sum
        return made


def graph_of(recovery: Recovery) -> Any:
    return recovery_graph(recovery)


# Each way in, given the recovery and a candidate.
WAYS: dict[str, Callable[[Recovery, str | None], Any]] = {
    "run": lambda r, c: r.run(STEP, c),
    "arun": lambda r, c: asyncio.run(r.arun(STEP, c)),
    "graph": lambda r, c: graph_of(r).invoke(step_input(STEP, c)),
    "agraph": lambda r, c: asyncio.run(graph_of(r).ainvoke(step_input(STEP, c))),
}
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)

CHAT, VERDICT, PROGRAM = "chat scripted", "evaluate scripted", "execute_tool scripted"
SPANS = {
    "accept": [VERDICT],
    "accept-own-draw": [CHAT, VERDICT],
    "extra-sample": [VERDICT, CHAT, VERDICT, VERDICT, VERDICT],
    "draw-by-draw": [VERDICT, *[CHAT, VERDICT] * 3],
    "tool-at-once": [VERDICT, CHAT, PROGRAM, VERDICT],
    "local-temp": [VERDICT, CHAT, *[VERDICT] * 3, CHAT, VERDICT],
    "extend": [VERDICT, *[CHAT, VERDICT] * 2],
    "revise": [VERDICT, *[CHAT, VERDICT] * 2],
    "delegate": [VERDICT, CHAT, VERDICT],
    "tool": [VERDICT, CHAT, *[VERDICT] * 3, CHAT, PROGRAM, VERDICT],
    "tool-repaired": [VERDICT, CHAT, *[VERDICT] * 3, CHAT, PROGRAM, CHAT, PROGRAM, VERDICT],
    "resample": [VERDICT, CHAT, *[VERDICT] * 3, CHAT, *[VERDICT] * 4],
    "budget": [VERDICT, CHAT, *[VERDICT] * 3],
    "no-budget-at-all": [VERDICT],
    "no-budget-for-draws": [VERDICT],
    "out-of-reach": [VERDICT, CHAT, *[VERDICT] * 3, CHAT, VERDICT, VERDICT, CHAT, VERDICT, VERDICT],
    # A failed call's span ends with the step, because the outcome decides whether it was an error.
    "model-down": [VERDICT, CHAT, *[VERDICT] * 3, CHAT],
}


@every_way
@pytest.mark.parametrize("name", EVERY)
def test_each_thing_done_is_a_child_of_the_step_and_the_step_of_what_was_active(
    way: Callable[..., Any], name: str
) -> None:
    seen, scenario = Seen(), SCENARIOS[name]
    with seen.tracer.start_as_current_span("agent") as agent:
        way(scenario.recovery(on_event=seen.hook), scenario.candidate)
    assert seen.step.parent == agent.get_span_context()
    assert [s.name for s in seen.children(seen.step)] == SPANS[name]
    assert len(seen.spans) == len(SPANS[name]) + 2
    assert {s.context.trace_id for s in seen.spans} == {agent.get_span_context().trace_id}
    kinds = {s.name: s.kind for s in seen.spans}
    assert kinds.get(CHAT, SpanKind.CLIENT) is SpanKind.CLIENT
    assert {kinds.get(x, SpanKind.INTERNAL) for x in ("recover_step", VERDICT, PROGRAM)} == {SpanKind.INTERNAL}


@every_way
@pytest.mark.parametrize("name", EVERY)
def test_the_status_is_the_outcomes_and_a_recovered_failure_is_no_error(way: Callable[..., Any], name: str) -> None:
    seen, scenario = Seen(), SCENARIOS[name]
    way(scenario.recovery(on_event=seen.hook), scenario.candidate)
    about = dict(seen.step.attributes or {})
    assert about["rfx.step_id"] == STEP.id
    assert (about["rfx.outcome"], about["rfx.reason"]) == (scenario.status, scenario.reason)
    broken = [s.name for s in seen.children(seen.step) if s.status.status_code is not StatusCode.UNSET]
    if scenario.status == "unresolved":
        assert (seen.step.status.status_code, about["error.type"]) == (StatusCode.ERROR, scenario.reason)
        assert seen.step.status.description == scenario.reason
        assert broken == (["chat scripted"] if name == "model-down" else [])
    else:
        assert seen.step.status.status_code is StatusCode.OK
        assert broken == []
        assert not [s for s in seen.spans if "error.type" in (s.attributes or {})]


def test_a_rescue_by_sampling_again_in_full() -> None:
    seen = Seen(system="openai")
    SCENARIOS["resample"].recovery(on_event=seen.hook).run(STEP, "41", run_id="run-1")
    draws = [dict(s.attributes or {}) for s in seen.spans if s.name == CHAT]
    assert draws[0] == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "scripted",
        "gen_ai.request.temperature": 0.6,
        "gen_ai.request.choice.count": 3,
        "gen_ai.usage.input_tokens": 10,
        "gen_ai.usage.output_tokens": 3,
        "rfx.remedy": "retry",
        "rfx.tag": "retry:attempt:1",
        "rfx.got": 3,
        "rfx.operation": "run-1/1",
        "rfx.attempt": 1,
        "rfx.tries": 1,
    }
    assert (draws[1]["rfx.tag"], draws[1]["gen_ai.request.choice.count"]) == ("retry:attempt:2", 4)
    verdicts = [dict(s.attributes or {}) for s in seen.spans if s.name == VERDICT]
    assert verdicts[0] == {
        "gen_ai.operation.name": "evaluate",
        "gen_ai.evaluation.name": "scripted",
        "gen_ai.evaluation.score.label": "fail",
        "rfx.kind": "wrong",
        "rfx.remedy": "candidate",
        "rfx.rollout": "r0",
        "rfx.weak": False,
        "rfx.operation": "run-1/0",
        "rfx.attempt": 0,
    }
    assert [v["gen_ai.evaluation.score.label"] for v in verdicts].count("pass") == 1
    assert [v["rfx.remedy"] for v in verdicts[1:]] == ["retry"] * 7
    about = dict(seen.step.attributes or {})
    assert (about["rfx.by"], about["rfx.spent.tokens"], about["rfx.spent.calls"]) == ("retry", 27, 2)
    first, last = [dict(e.attributes or {}) for e in seen.step.events if e.name == "rfx.decided"]
    assert (first["rfx.route"], first["rfx.remedy"], first["rfx.regime"]) == ("resample", "retry", "stochastic")
    assert (first["rfx.evidence"], first["rfx.reason"]) == ("samples", "worth:retry")
    assert (first["rfx.kind"], first["rfx.kinds.wrong"], first["rfx.told"]) == ("wrong", 4, False)
    assert first["rfx.posterior.retry"] == pytest.approx((0.13, 0.87 + 3))
    assert first["rfx.expected.retry"] == pytest.approx(0.13 / (1 + 3))
    assert last["rfx.route"] == "accept"


def test_a_rescue_at_a_lifted_temperature() -> None:
    seen = Seen()
    SCENARIOS["local-temp"].recovery(on_event=seen.hook).run(STEP, "41")
    draws = [dict(s.attributes or {}) for s in seen.spans if s.name == CHAT]
    assert [d["gen_ai.request.temperature"] for d in draws] == [0.6, 1.0]
    assert [d["rfx.remedy"] for d in draws] == ["retry", "local_temp"]
    verdicts = [dict(s.attributes or {}) for s in seen.spans if s.name == VERDICT]
    assert [v["rfx.remedy"] for v in verdicts] == ["candidate", *["retry"] * 3, "local_temp"]
    about = dict(seen.step.attributes or {})
    assert (about["rfx.by"], about["rfx.spent.calls"]) == ("local_temp", 2)
    first = next(dict(e.attributes or {}) for e in seen.step.events if e.name == "rfx.decided")
    assert (first["rfx.route"], first["rfx.remedy"], first["rfx.regime"]) == ("resample", "local_temp", "stochastic")
    assert (first["rfx.evidence"], first["rfx.reason"]) == ("one_model", "worth:local_temp")
    assert first["rfx.expected.local_temp"] == pytest.approx(0.065)


def test_a_rescue_by_the_tool_and_its_repair() -> None:
    seen = Seen()
    SCENARIOS["tool-repaired"].recovery(on_event=seen.hook).run(STEP, "41")
    programs = [dict(s.attributes or {}) for s in seen.spans if s.name == PROGRAM]
    assert [p["rfx.tool.failed"] for p in programs] == [True, False]
    assert programs[0]["gen_ai.operation.name"] == "execute_tool"
    assert programs[0]["gen_ai.tool.name"] == "scripted"
    assert (seen.step.attributes or {})["rfx.by"] == "tool"
    attempts = seen.counts("rfx.attempts", "rfx.remedy", "rfx.result", maybe="rfx.kind")
    assert attempts == {
        ("candidate", "failed", "wrong"): 1,
        ("retry", "failed", "wrong"): 3,
        ("tool", "broken"): 1,
        ("tool", "passed"): 1,
    }


def test_operations_attempts_and_the_tries_of_the_transport_are_told_apart() -> None:
    seen = Seen()
    said = ["40", Rollout("6x7", usage=Usage(10, 1, 3)), "6*7"]
    recovery = SCENARIOS["tool"].recovery(sampler=ScriptedSampler(said), on_event=seen.hook, extra_samples=0)
    recovery.run(STEP, run_id="run-1")
    told = [dict(s.attributes or {}) for s in seen.children(seen.step)]
    assert [(x["rfx.operation"], x["rfx.attempt"], x.get("rfx.tries")) for x in told] == [
        ("run-1/0", 1, 1),
        ("run-1/1", 1, None),
        ("run-1/2", 2, 3),
        ("run-1/3", 2, None),
        ("run-1/4", 2, 1),
        ("run-1/5", 2, None),
        ("run-1/6", 2, None),
    ]
    assert {x["rfx.remedy"] for x in told[2:]} == {"tool"}
    reserved = [dict(e.attributes or {}) for e in seen.step.events if e.name == "rfx.reserved"]
    assert [x["rfx.operation"] for x in reserved] == ["run-1/0", "run-1/2", "run-1/3", "run-1/4", "run-1/5"]
    assert seen.counts("rfx.requests", "rfx.request") == {("asked",): 3, ("made",): 5}


SPEND = ("gen_ai.request.model", "gen_ai.evaluation.name", "rfx.purpose", "rfx.remedy", "rfx.share")


def test_the_bill_is_on_the_steps_span_and_in_the_metrics() -> None:
    seen = Seen()
    judge = JudgeVerifier(ScriptedSampler([], last='{"nonce": "?"}'), rubric="It is right.", seed=1)
    recovery = Recovery(
        ScriptedSampler(["one two", "6*7"]),
        judge,
        remedies=[Retry(), Tool(ScriptedTool({"6*7": 42}))],
        policy=FixedPolicy(("tool",)),
        price=Price(prompt=1, completion=2),
        budget=RetryBudget(attempts=3),
        on_event=seen.hook,
    )
    case = recovery.run(STEP)
    bill, about = case.bill, dict(seen.step.attributes or {})
    assert bill.retry_estimate is not None
    assert bill.wasted.tokens > bill.first.tokens > 0 == bill.kept.tokens
    assert {name: about[name] for name in about if name.startswith("rfx.spent.")} == {
        **{f"rfx.spent.{f.name}": x for f in fields(Spend) if (x := getattr(case.ledger.spent, f.name))},
        **{f"rfx.spent.{x}.tokens": getattr(bill, x).tokens for x in ("first", "kept", "wasted")},
        **{f"rfx.spent.{x}.usd": getattr(bill, x).usd for x in ("first", "kept", "wasted")},
        **{f"rfx.spent.remedy.{x}.tokens": bill.by_remedy[x].tokens for x in ("tool", "human") if x in bill.by_remedy},
        **{f"rfx.spent.remedy.{x}.usd": bill.by_remedy[x].usd for x in ("tool", "human") if x in bill.by_remedy},
    }
    assert about["rfx.retry_estimate.rescue"] == bill.retry_estimate.rescue
    tokens = seen.counts("rfx.spend.tokens", *SPEND)
    assert tokens == {
        (
            "none" if x.purpose == "verify" else x.model or "none",
            x.model if x.purpose == "verify" else "none",
            x.purpose,
            x.remedy or "candidate",
            x.share,
        ): x.spent.tokens
        for x in bill.lines
        if x.spent.tokens
    }
    assert ("scripted", "none", "sample", "candidate", "first") in tokens
    assert ("none", judge.name, "verify", "tool", "wasted") in tokens
    assert sum(tokens.values()) == case.ledger.spent.tokens
    assert sum(seen.counts("rfx.spend.usd", *SPEND).values()) == pytest.approx(case.ledger.spent.usd)
    estimate = bill.retry_estimate
    # A counter of nothing is 0.
    assert {p.attributes["rfx.arm"]: p.value for p in seen.points("rfx.compared.rescues")} == {
        "run": 0,
        "retry_estimate": estimate.rescue,
        "retry_estimate_same_spend": estimate.within,
    }
    assert seen.counts("rfx.compared.tokens", "rfx.arm") == {
        ("run",): estimate.actual.tokens,
        ("retry_estimate",): estimate.tokens,
    }


def test_confidence_is_on_the_span_and_in_a_histogram_where_it_is_known() -> None:
    seen = Seen()
    seen.hook(Finished("s", Outcome("rescued", by="retry", confidence=0.93)))
    seen.hook(Finished("t", Outcome("unconfirmed", by="retry")))
    assert [(s.attributes or {}).get("rfx.confidence") for s in seen.steps] == [0.93, None]
    (known,) = seen.points("rfx.confidence")
    assert (dict(known.attributes), known.sum, known.count) == ({"rfx.outcome": "rescued"}, 0.93, 1)


def test_reservations_are_told_and_refusals_counted() -> None:
    seen = Seen()
    SCENARIOS["no-budget-at-all"].recovery(on_event=seen.hook).run(STEP, None)
    told = [dict(e.attributes or {}) for e in seen.step.events if e.name == "rfx.reserved"]
    assert told[0]["rfx.purpose"] == "sample"
    assert told[0]["rfx.refused"] == ("attempts",)
    assert told[0]["rfx.cost.attempts"] == 1
    assert seen.counts("rfx.budget.refusals", "rfx.cap", "rfx.purpose")["attempts", "sample"] >= 1


def test_a_tenant_is_no_label() -> None:
    seen = Seen()
    seen.hook(Reserved("s", "sample", Spend(tokens=9), ("tenant=acme corp usd/3600s", "global in flight"), run_id="r"))
    refusals = seen.counts("rfx.budget.refusals", "rfx.cap", "rfx.purpose")
    assert refusals == {("tenant", "sample"): 1, ("global in flight", "sample"): 1}


def test_metrics_have_the_conventions_names_and_buckets_and_no_ids() -> None:
    seen = Seen(system="openai")
    recovery = SCENARIOS["tool"].recovery(on_event=seen.hook)
    recovery.run(STEP, "41")
    recovery.run(STEP, "42")
    assert seen.counts("rfx.steps", "rfx.outcome", "rfx.by") == {("rescued", "tool"): 1, ("accepted", "retry"): 1}
    client = ("gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model")
    tokens = seen.counts("gen_ai.client.token.usage", *client, "gen_ai.token.type")
    assert tokens == {("chat", "openai", "scripted", "input"): 20, ("chat", "openai", "scripted", "output"): 4}
    (calls,) = seen.points("gen_ai.client.operation.duration")
    assert (calls.count, set(calls.attributes)) == (2, set(client))
    assert calls.explicit_bounds == pytest.approx([0.01 * 2**n for n in range(14)])
    assert seen.points("gen_ai.client.token.usage")[0].explicit_bounds == tuple(4**n for n in range(14))
    assert seen.counts("rfx.step.tokens", "rfx.outcome") == {("rescued",): 24, ("accepted",): 0}
    assert seen.counts("rfx.requests", "rfx.request") == {("asked",): 2, ("made",): 2}
    assert {p.count for p in seen.points("rfx.step.duration")} == {1}
    assert [dict(p.attributes) for p in seen.points("gen_ai.execute_tool.duration")] == [
        {"gen_ai.tool.name": "scripted"}
    ]


def test_a_person_is_waited_for_without_a_span_and_the_answer_is_linked() -> None:
    seen = Seen()
    graph = recovery_graph(FAILING.recovery(on_event=seen.hook), checkpointer=InMemorySaver(), interrupts=True)
    with seen.tracer.start_as_current_span("first request"):
        graph.invoke(step_input(STEP, "41"), THREAD)
    waiting = seen.step
    assert waiting.status.status_code is StatusCode.UNSET
    assert (waiting.attributes or {})["rfx.outcome"] == "waiting"
    assert (waiting.attributes or {})["rfx.escalated"] is True
    assert waiting.events[-1].name == "rfx.escalated"
    assert seen.points("rfx.steps") == []  # it has not ended
    answer = {"type": "edit", "edited_action": {"name": "accept_answer", "args": {"answer": "42"}}}
    with seen.tracer.start_as_current_span("second request") as second:
        graph.invoke(Command(resume={"decisions": [answer]}), THREAD)
    _, answered = seen.steps
    assert answered.parent == second.get_span_context()
    assert [link.context for link in answered.links] == [waiting.context]
    assert answered.status.status_code is StatusCode.OK
    same = ("rfx.step_id",)
    assert [(answered.attributes or {})[k] for k in same] == [(waiting.attributes or {})[k] for k in same]
    assert (answered.attributes or {})["rfx.by"] == "human"
    assert (answered.attributes or {})["rfx.spent.tokens"] == (waiting.attributes or {})["rfx.spent.tokens"] == 13
    assert seen.counts("rfx.escalations") == {(): 1}
    assert seen.counts("rfx.escalations.closed", "rfx.outcome") == {("human",): 1}
    assert seen.counts("rfx.steps", "rfx.outcome", "rfx.by") == {("human", "human"): 1}


def test_an_answer_in_another_process_is_told_by_the_same_step_id() -> None:
    first, second, saver = Seen(), Seen(), InMemorySaver()
    recovery_graph(FAILING.recovery(on_event=first.hook), checkpointer=saver, interrupts=True).invoke(
        step_input(STEP, "41"), THREAD
    )
    reply = Command(resume={"decisions": [{"type": "reject"}]})
    recovery_graph(FAILING.recovery(on_event=second.hook), checkpointer=saver, interrupts=True).invoke(reply, THREAD)
    assert not second.step.links
    assert (second.step.attributes or {})["rfx.step_id"] == (first.step.attributes or {})["rfx.step_id"]
    # A person said no: that is neither a success nor a fault.
    assert (second.step.attributes or {})["rfx.outcome"] == "rejected"
    assert second.step.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize("how", ["invoke", "ainvoke"])
def test_a_wrapped_chain_is_told_like_any_step(how: str) -> None:
    seen, texts = Seen(), iter(["41", "40", "42"])
    chain = with_recovery(
        lambda _: next(texts), verifier=ScriptedVerifier(["42"]), extra_samples=2, on_event=seen.hook, name="solve"
    )
    with seen.tracer.start_as_current_span("agent") as agent:
        given = chain.invoke("6 times 7") if how == "invoke" else asyncio.run(chain.ainvoke("6 times 7"))
    assert given == "42"
    assert seen.step.parent == agent.get_span_context()
    assert [s.name.split()[0] for s in seen.children(seen.step)] == ["evaluate", "chat", "evaluate", "evaluate"]
    assert seen.step.status.status_code is StatusCode.OK


class Clerk:
    """A person within the process."""

    def escalate(self, request: Any) -> Any:
        return {"type": "approve"}

    async def aescalate(self, request: Any) -> Any:
        return self.escalate(request)


@pytest.mark.parametrize("way", ["run", "arun"])
def test_an_escalator_is_told_like_an_interrupt(way: str) -> None:
    seen = Seen()
    WAYS[way](FAILING.recovery(on_event=seen.hook, escalator=Clerk()), "41")
    assert [(s.attributes or {})["rfx.outcome"] for s in seen.steps] == ["waiting", "human"]
    assert seen.steps[1].links[0].context == seen.steps[0].context


def test_a_call_that_the_step_survived_is_no_error() -> None:
    seen = Seen()

    hook = seen.hook
    hook(Sampled("s", "sparse_steer", 1, 0, Usage(), 0.1, "retry:attempt:1", "steerer", 0.6, "steerer gave nothing"))
    hook(Sampled("s", "retry", 1, 1, Usage(1, 1, 1), 0.1, "retry:attempt:2", "m", 0.6))
    hook(Finished("s", Outcome("rescued", by="retry", reason="passed")))
    lost = next(s for s in seen.children(seen.step) if s.name == "chat steerer")
    assert lost.status.status_code is StatusCode.UNSET
    assert "error.type" not in (lost.attributes or {})
    assert (lost.attributes or {})["rfx.got"] == 0
    kept = next(s for s in seen.children(seen.step) if s.name == "chat m")
    assert lost.end_time is not None
    assert kept.end_time is not None
    assert lost.end_time <= kept.end_time  # its own end, not the step's
    # The call did fail, and the client's metric says so.
    assert [p.attributes.get("error.type") for p in seen.points("gen_ai.client.operation.duration")] == [
        "call_failed",
        None,
    ]
    assert seen.counts("rfx.attempts", "rfx.remedy", "rfx.result") == {("sparse_steer", "missing"): 1}


def test_a_judge_and_an_ancestor_are_counted() -> None:
    seen = Seen()
    seen.hook(Judged("s", "r0", False, True, 0.5, "judge", Usage(7, 2, 1)))
    seen.hook(Judged("s", "r0", True, True, 0.5, "judge", Usage(7, 2, 1)))  # judged again, with peers
    seen.hook(Scored("s", "base", 2, 1, Usage(20, 0, 2), 0.2))
    seen.hook(Finished("s", Outcome("accepted", by="retry", reason="passed"), Spend(tokens=38)))
    assert [s.name for s in seen.children(seen.step)] == ["evaluate judge", "evaluate judge", "score base"]
    assert seen.counts("rfx.attempts", "rfx.remedy", "rfx.result") == {("candidate", "failed"): 1}
    spent = {p.attributes["gen_ai.operation.name"]: 0 for p in seen.points("gen_ai.client.token.usage")}
    for point in seen.points("gen_ai.client.token.usage"):
        spent[point.attributes["gen_ai.operation.name"]] += point.sum
    assert spent == {"evaluate": 18, "score": 20}
    assert (seen.step.attributes or {})["rfx.spent.tokens"] == 38


def test_spans_are_dated_back_by_what_they_took() -> None:
    now = 1000.0
    seen = Seen(clock=lambda: now)
    seen.hook(Judged("s", "r0", False, False, 2.0, "v"))
    now = 1004.0
    seen.hook(Sampled("s", "retry", 1, 1, Usage(), 3.0, "retry:attempt:1", "m"))
    now = 1005.0
    seen.hook(Finished("s", Outcome("unresolved", reason="out_of_reach")))
    times = {s.name: ((s.start_time or 0) / 1e9, (s.end_time or 0) / 1e9) for s in seen.spans}
    assert times == {
        "evaluate v": (998.0, 1000.0),
        "chat m": (1001.0, 1004.0),
        "recover_step": (998.0, 1005.0),
    }
    assert seen.counts("rfx.step.duration", "rfx.outcome") == {("unresolved",): 7.0}


class Meeting(ScriptedSampler):
    """Answers once all have asked, so that the steps are under way at the same time."""

    def __init__(self, texts: Sequence[str], parties: int) -> None:
        super().__init__(texts)
        self.sync = threading.Barrier(parties, timeout=60)
        self.parties, self.arrived = parties, 0

    def sample(self, request: SampleRequest) -> SampleResult:
        self.sync.wait()
        return super().sample(request)

    async def asample(self, request: SampleRequest) -> SampleResult:
        self.arrived += 1
        while self.arrived < self.parties:
            await asyncio.sleep(0.001)
        return super().sample(request)


def side_by_side(way: str, recovery: Recovery, steps: list[Step], tracer: Any) -> None:
    """Every step at once, each under a span of its own called ``agent N``."""
    graph = graph_of(recovery)

    def one(i: int) -> None:
        with tracer.start_as_current_span(f"agent {i}"):
            recovery.run(steps[i], "41") if way == "run" else graph.invoke(step_input(steps[i], "41"))

    async def aone(i: int) -> None:
        with tracer.start_as_current_span(f"agent {i}"):
            await (recovery.arun(steps[i], "41") if way == "arun" else graph.ainvoke(step_input(steps[i], "41")))

    async def all_of_them() -> None:
        await asyncio.gather(*[aone(i) for i in range(len(steps))])

    if way in ("run", "graph"):
        with ThreadPoolExecutor(len(steps)) as pool:
            list(pool.map(one, range(len(steps))))
    else:
        asyncio.run(all_of_them())


@pytest.mark.parametrize("same", [False, True], ids=["different steps", "one step"])
@pytest.mark.parametrize("way", WAYS)
def test_steps_side_by_side_keep_to_their_own_parents(way: str, same: bool) -> None:
    seen, n = Seen(), 4
    steps = [STEP if same else Step.of(f"What is {i} times 7?", id=f"step-{i}") for i in range(n)]
    sampler = Meeting(["42"] * 3 * n, n)
    parts: dict[str, Any] = {"extra_samples": 3, "on_event": seen.hook, "max_tokens": 64}
    recovery = Recovery(sampler=sampler, verifier=ScriptedVerifier(["42"]), **parts)
    side_by_side(way, recovery, steps, seen.tracer)
    agents = {s.context.span_id: s for s in seen.spans if s.name.startswith("agent")}
    assert sorted(s.parent.span_id for s in seen.steps if s.parent) == sorted(agents)
    for step in seen.steps:
        assert [s.name for s in seen.children(step)] == [VERDICT, CHAT, VERDICT, VERDICT, VERDICT]
        assert step.status.status_code is StatusCode.OK
        assert step.parent is not None
        if not same:
            mine = agents[step.parent.span_id].name.split()[-1]
            assert (step.attributes or {})["rfx.step_id"] == f"step-{mine}"


def test_a_step_that_was_broken_off_is_not_continued_by_the_next_run() -> None:
    seen = Seen()

    class Breaking(ScriptedVerifier):
        broken = True

        def verify(self, step: Step, rollout: Rollout, *, peers: Sequence[Rollout] = ()) -> Any:
            if self.broken and rollout.text == "40":
                raise RuntimeError("the verifier is down")
            return super().verify(step, rollout, peers=peers)

    verifier = Breaking(["42"])
    sampler = ScriptedSampler(["40", "40", "40", "42", "42", "42"])
    recovery = Recovery(sampler=sampler, verifier=verifier, on_event=seen.hook, extra_samples=3)
    with pytest.raises(VerifierError):
        recovery.run(STEP, "41")
    verifier.broken = False
    recovery.run(STEP, "41")
    assert [s.name for s in seen.children(seen.step)] == [VERDICT, CHAT, VERDICT, VERDICT, VERDICT]
    seen.hook.close()
    assert [(s.attributes or {})["rfx.outcome"] for s in seen.steps] == ["rescued", "abandoned"]


def test_open_steps_are_bounded_in_number_and_in_time() -> None:
    now = 0.0
    seen = Seen(most_open=2, idle=100.0, clock=lambda: now)
    for i in range(4):
        seen.hook(Judged(f"s{i}", "r0", False, False, 0.0, "v"))
    assert [(s.attributes or {})["rfx.step_id"] for s in seen.steps] == ["s0", "s1"]
    now = 60.0
    seen.hook(Judged("s2", "r1", False, False, 0.0, "v"))
    now = 120.0
    seen.hook(Judged("s4", "r0", False, False, 0.0, "v"))
    assert [(s.attributes or {})["rfx.step_id"] for s in seen.steps] == ["s0", "s1", "s3"]
    assert {(s.attributes or {})["rfx.outcome"] for s in seen.steps} == {"abandoned"}
    assert {s.status.status_code for s in seen.steps} == {StatusCode.UNSET}
    assert seen.counts("rfx.steps", "rfx.outcome", "rfx.by") == {("abandoned", "none"): 3}


def test_an_agents_own_tool_call_opens_no_step() -> None:
    seen = Seen()
    with seen.tracer.start_as_current_span("agent") as agent:
        seen.hook(ToolRan("call-1", "price", True, 0.1))
        seen.hook(Reserved("call-1", "tool", Spend(attempts=1), ("attempts",)))
    assert [(s.name, s.parent) for s in seen.spans[:-1]] == [("execute_tool price", agent.get_span_context())]
    assert seen.counts("rfx.budget.refusals", "rfx.cap", "rfx.purpose") == {("attempts", "tool"): 1}
    assert seen.points("rfx.attempts") == []
    seen.hook.close()
    assert seen.steps == []


def everything(seen: Seen) -> str:
    spans = [span.to_json() for span in seen.spans]
    data = seen.reader.get_metrics_data()
    return "\n".join([*spans, data.to_json() if data else ""])


SAID = ["prompt-said", "expected-said", "candidate-said", "draw-said", "program-said", "error-said", "person-said"]


def talk(seen: Seen) -> None:
    """A failure with something said in every place, put before a person."""
    asked = Step.of("prompt-said", system="prompt-said too", expected="expected-said")
    draws = ["draw-said 1", "draw-said 2", "draw-said 3", "program-said", SamplerError("error-said", calls=1)]
    scenario = SCENARIOS["tool"]
    recovery = scenario.recovery(sampler=ScriptedSampler(draws), on_event=seen.hook)
    graph = recovery_graph(recovery, checkpointer=InMemorySaver(), interrupts=True)
    graph.invoke(step_input(asked, "candidate-said"), THREAD)
    edit = {"type": "edit", "edited_action": {"name": "accept_answer", "args": {"answer": "person-said"}}}
    graph.invoke(Command(resume={"decisions": [edit]}), THREAD)


def test_nothing_that_was_said_goes_out() -> None:
    seen = Seen()
    talk(seen)
    assert [(s.attributes or {})["rfx.outcome"] for s in seen.steps] == ["waiting", "human"]
    assert [said for said in SAID if said in everything(seen)] == []


def test_what_events_carry_goes_out_where_it_is_switched_on() -> None:
    seen = Seen(capture_content=True)
    talk(seen)
    answered = dict(seen.steps[1].attributes or {})
    assert answered["rfx.answer"] == "person-said"
    assert '"content": "person-said"' in str(answered["gen_ai.output.messages"])
    assert [said for said in SAID if said in everything(seen)] == ["error-said", "person-said"]


def test_two_hooks_keep_to_their_own_providers() -> None:
    one, other = Seen(), Seen(system="openai")

    def both(event: Any) -> None:
        one.hook(event)
        other.hook(event)

    SCENARIOS["tool"].recovery(on_event=both).run(STEP, "41")
    SCENARIOS["accept"].recovery(on_event=other.hook).run(STEP, "42")
    assert len(one.steps) == 1
    assert len(other.steps) == 2
    assert {s.context.trace_id for s in one.spans}.isdisjoint({s.context.trace_id for s in other.spans})
    assert {(s.attributes or {})["gen_ai.provider.name"] for s in one.spans if s.name == CHAT} == {"_OTHER"}
    assert {(s.attributes or {})["gen_ai.provider.name"] for s in other.spans if s.name == CHAT} == {"openai"}


def test_a_client_that_is_instrumented_itself_is_not_counted_twice() -> None:
    seen = Seen(model_calls=False)
    SCENARIOS["tool"].recovery(on_event=seen.hook).run(STEP, "41")
    assert [s.name for s in seen.children(seen.step)] == [*[VERDICT] * 4, PROGRAM, VERDICT]
    assert seen.points("gen_ai.client.token.usage") == []
    assert (seen.step.attributes or {})["rfx.spent.tokens"] == 24


def test_a_provider_that_breaks_fails_no_step(caplog: pytest.LogCaptureFixture) -> None:
    seen = Seen()

    class Broken(InMemorySpanExporter):
        def export(self, spans: Any) -> Any:
            raise OSError("no collector")

        def on_start(self, span: Any, parent_context: Any = None) -> None:
            raise OSError("no collector")

        _on_ending = on_end = on_start

        def force_flush(self, timeout_millis: int = 0) -> bool:
            return True

    seen.provider.add_span_processor(Broken())  # type: ignore[arg-type]
    with caplog.at_level(logging.ERROR, logger="rfx_agent"):
        case = SCENARIOS["accept"].recovery(on_event=seen.hook).run(STEP, "42")
        seen.hook(Judged("s", "r0", True, False, 0.0))  # called by hand: it raises nothing itself
    assert case.outcome is not None
    assert case.outcome.status == "accepted"
    assert "telemetry failed on Judged" in caplog.text
    assert "on_event failed" not in caplog.text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"system": ""}, "Telemetry: system is ''"),
        ({"most_open": 0}, "Telemetry: most_open is 0"),
        ({"most_open": True}, "Telemetry: most_open is True"),
        ({"idle": 0}, "Telemetry: idle is 0"),
    ],
)
def test_parameters_that_cannot_work_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Telemetry(**options)


def test_without_the_library_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from rfx_agent.telemetry import Telemetry\n"
        "from rfx_agent import ConfigError\n"
        "try: Telemetry()\n"
        "except ConfigError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "opentelemetry is not installed; pip install 'rfx-agent[otel]'"
