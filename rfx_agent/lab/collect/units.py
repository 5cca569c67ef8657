"""One unit of a collection's work each: a draw, a steered decode, a program for the tool.

A unit depends on nothing but the plan, its key and what the journal holds, so that it may be done in any run.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from rfx_agent.errors import FeatureError, SamplerError, ToolInputError, VerifierError
from rfx_agent.evidence.kinds import kind_of
from rfx_agent.lab.collect.journal import Key, Unit
from rfx_agent.lab.collect.measure import proxies
from rfx_agent.lab.collect.tables import pack
from rfx_agent.lab.collect.work import Done, Failed, as_text, asked, seed_of
from rfx_agent.records import Rollout, SampleRequest, SampleResult, ToolResult, Usage, Verdict
from rfx_agent.thinking import after_thinking

if TYPE_CHECKING:
    from rfx_agent.lab.collect.plan import Plan
    from rfx_agent.lab.problems.problem import Problem

__all__ = ["draw", "steer", "tool"]


async def draw(plan: Plan, problem: Problem, attempt: int) -> Done:
    """One draw from the prompt."""
    key = Key(problem.id, "retry", attempt)
    ask = SampleRequest(problem.messages, 1, plan.temperature, plan.max_tokens, seed_of(plan, key))
    return await _decoded(plan, problem, key, plan.sampler.name, ask, partial(plan.sampler.asample, ask))


async def steer(plan: Plan, problem: Problem, operator: str, attempt: int, failed: Failed) -> Done:
    """One decode with ``operator`` applied to ``failed``."""
    assert plan.steerer is not None  # noqa: S101  # a plan has operators only with a steerer
    steerer, key, at = plan.steerer, Key(problem.id, operator, attempt), failed.rollout()
    ask = SampleRequest(problem.messages, 1, plan.temperature, plan.max_tokens, seed_of(plan, key))
    done = await _decoded(
        plan, problem, key, steerer.name, ask, partial(steerer.asteer, problem.step, operator, at, ask)
    )
    (unit,) = done.units
    return Done((Unit(key, {**unit.record, "source": failed.attempt}),), done.failure)


async def tool(plan: Plan, problem: Problem, attempt: int) -> Done:
    """Let the model write a program for the problem, and repair it once if it fails; judge the program's answer."""
    assert plan.tool is not None  # noqa: S101  # only asked for where there is one
    using, sampler = plan.tool, plan.tool_sampler or plan.sampler
    key, began, spent = Key(problem.id, "tool", attempt), time.perf_counter(), Usage()
    seed, source, finish, name = seed_of(plan, key), "", None, sampler.name
    messages, result, failure = using.prompt(problem.step), ToolResult(None), None
    for turn in range(2):
        ask = SampleRequest(
            messages, 1, plan.tool_temperature, plan.max_tokens, (seed + turn) % 2**31, want_logprobs=False
        )
        reply, failure = await _sampled(problem, name, partial(sampler.asample, ask))
        if reply is None:
            result = ToolResult(None, error=str(failure))
            break
        spent += reply.usage
        text, finish = reply.rollouts[0].text, reply.rollouts[0].finish_reason
        try:
            source = told = text  # where there is no program, what was written instead
            source = told = using.parse(text)
            result = await asked(problem, using.name, partial(using.arun, source))
        except ToolInputError as error:
            told, result = after_thinking(text).text, ToolResult(None, error=str(error))
        if result.answer is not None:
            break
        messages = using.repair(problem.step, told, result)
    verdict = None
    if result.answer is not None:
        verdict = await _judged(plan, problem, Rollout(text=result.answer, remedy="tool"))
    record = _record(key, seed, plan.tool_temperature, source, verdict, spent, time.perf_counter() - began)
    wrong = None if result.answer is not None else result.error or "the program gave no answer"
    return Done((Unit(key, {**record, "finish_reason": finish, "error": as_text(wrong)}),), failure)


async def _decoded(
    plan: Plan, problem: Problem, key: Key, name: str, ask: SampleRequest, call: Callable[[], Awaitable[SampleResult]]
) -> Done:
    began = time.perf_counter()
    result, failure = await _sampled(problem, name, call)
    seconds = time.perf_counter() - began
    seed = ask.seed or 0
    if result is None:
        record = _record(key, seed, ask.temperature, "", None, Usage(), seconds)
        return Done((Unit(key, {**record, "error": as_text(str(failure))}),), failure)
    rollout = result.rollouts[0]
    verdict = await _judged(plan, problem, rollout)
    heat = ask.temperature if rollout.temperature is None else rollout.temperature
    record = _record(key, seed, heat, rollout.text, verdict, result.usage, seconds)
    record |= {"finish_reason": rollout.finish_reason, "start": rollout.start, "notes": [*map(as_text, result.notes)]}
    record["kind"] = kind_of(replace(rollout, verdict=verdict))
    try:
        record |= proxies(plan.temperature, rollout.logprobs, rollout)
    except FeatureError as error:
        record["notes"].append(as_text(f"a rollout has no proxies: {error}"))
    if key.remedy != "retry":  # where the operator set in, not where this decode's own pressure peaks
        record |= {"junction": rollout.junction, "peak": rollout.peak}
    keep = key.remedy == "retry" and not verdict.passed
    return Done((Unit(key, record, pack(rollout) if keep else None),))


def _record(
    key: Key, seed: int, temperature: float, text: str, verdict: Verdict | None, usage: Usage, seconds: float
) -> dict[str, Any]:
    return {
        "attempt": key.attempt,
        "source": None,
        "seed": seed,
        "temperature": float(temperature),
        "text": as_text(text),
        "answer": None if verdict is None else as_text(verdict.answer),
        "passed": verdict is not None and bool(verdict.passed),
        "score": None if verdict is None or verdict.score is None else float(verdict.score),
        "finish_reason": None,
        "kind": None,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "seconds": round(seconds, 3),
        "start": 0,
        "junction": None,
        "peak": None,
        "error": None,
        "notes": [],
    }


async def _sampled(
    problem: Problem, name: str, call: Callable[[], Awaitable[SampleResult]]
) -> tuple[SampleResult | None, SamplerError | None]:
    """At least one rollout, or the error of the second try."""
    failure = None
    for _ in range(2):
        try:
            result = await asked(problem, name, call)
        except SamplerError as error:
            failure = error
            continue
        if result.rollouts:
            return result, None
        failure = SamplerError(f"{name} gave nothing: no completion came back")
    return None, failure


async def _judged(plan: Plan, problem: Problem, rollout: Rollout) -> Verdict:
    verifier = problem.verifier or plan.verifier
    assert verifier is not None  # noqa: S101  # a plan has looked
    try:
        return await verifier.averify(problem.step, rollout, peers=(rollout,))
    except Exception as error:
        raise VerifierError(
            f"problem {problem.id!r}: {verifier.name} broke: {type(error).__name__}: {error}", rollout=rollout
        ) from error
