"""The demo's work: the same failures through plain retry and through the recovery graph. Nothing here prints."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from langgraph.checkpoint.memory import InMemorySaver

from rfx_agent._records import Attempt
from rfx_agent._types import Operator, Spend
from rfx_agent.adapters.langgraph import recovery_graph, step_input
from rfx_agent.budgets import Ledger, RetryBudget
from rfx_agent.case import Case, decode
from rfx_agent.cli.problems import Problem, stated
from rfx_agent.engine import Recovery, drive_async, recover
from rfx_agent.policies import FixedPolicy
from rfx_agent.ports import Sampler
from rfx_agent.tools import ProgramTool
from rfx_agent.verifiers import ExactVerifier

__all__ = ["Failure", "Report", "demo_recovery", "run_demo"]

MAX_TOKENS = 200
TOP_LOGPROBS = 10


@dataclass(frozen=True, slots=True)
class Failure:
    """One problem whose first draw failed, and what became of it in each arm.

    Attributes:
        problem: the problem.
        recovery: its case after the recovery graph.
        retry: its case after plain retry with the tokens that the recovery spent, or more.
    """

    problem: Problem
    recovery: Case
    retry: Case

    @property
    def path(self) -> tuple[Operator, ...]:
        """The operators that recovery tried after the extra samples."""
        return tuple(d.operator for d in self.recovery.decisions if d.operator is not None)

    @property
    def escalated(self) -> bool:
        """Whether recovery put it before a person."""
        return self.recovery.ask is not None


@dataclass(slots=True)
class Report:
    """What the demo measured."""

    problems: int
    failures: list[Failure] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The figures, as ``--json`` prints them."""
        routes = Counter(op for f in self.failures for op in f.path)
        return {
            "problems": self.problems,
            "failures": len(self.failures),
            "retry": _arm(f.retry for f in self.failures),
            "recovery": _arm(f.recovery for f in self.failures)
            | {"escalated": sum(f.escalated for f in self.failures), "routes": dict(routes)},
            "families": {
                family: {
                    "failures": len(group),
                    "retry": sum(_rescued(f.retry) for f in group),
                    "recovery": sum(_rescued(f.recovery) for f in group),
                }
                for family in dict.fromkeys(f.problem.family for f in self.failures)
                if (group := [f for f in self.failures if f.problem.family == family])
            },
        }


def demo_recovery(sampler: Sampler, *, seed: int) -> Recovery:
    """The recovery that the demo runs: the defaults, with short answers and a seed."""
    return Recovery(
        sampler=sampler,
        verifier=ExactVerifier(extract=stated),
        tool=ProgramTool(),
        budget=RetryBudget(attempts=8, samples=10),  # a demo should end within minutes
        seed=seed,
        max_tokens=MAX_TOKENS,
    )


async def run_demo(
    recovery: Recovery,
    problems: list[Problem],
    *,
    parallel: int,
    on_done: Callable[[Problem, Failure | None], None],
) -> Report:
    """Run every problem through both arms, ``parallel`` problems at a time.

    Both arms start from the same failed draws, so that they differ in what they do next and in nothing else.
    """
    graph = recovery_graph(recovery, checkpointer=InMemorySaver())
    gate = asyncio.Semaphore(parallel)
    report = Report(len(problems))

    async def one(number: int, problem: Problem) -> Failure | None:
        async with gate:
            step = problem.step(number)
            state = await graph.ainvoke(step_input(step), {"configurable": {"thread_id": step.id}})
            case = decode(Case, state["recovery"])
            failure = None
            if not case.rollouts or not case.rollouts[0].passed:
                failure = Failure(problem, case, await _retry(recovery, case))
            on_done(problem, failure)
            return failure

    done = await asyncio.gather(*(one(i, p) for i, p in enumerate(problems)))
    report.failures = [f for f in done if f is not None]
    return report


async def _retry(recovery: Recovery, case: Case) -> Case:
    """Plain retry from the draws that the recovery had before its first decision, one draw at a time.

    It draws on as long as it has spent fewer tokens than the recovery did, so its last draw may carry it past them.
    """
    shared = tuple(x for x in case.rollouts if x.round is None or x.round < 2)
    start = Case(
        step=case.step,
        ledger=Ledger(RetryBudget(attempts=None, samples=None, tokens=None, seconds=None)),
        rollouts=shared,
        attempts=case.attempts[:2],
    )
    start = replace(start, ledger=start.ledger.charge(_cost(start.attempts)))
    one_more = recovery.bound(start, start.step.messages).tokens
    budget = replace(start.ledger.budget, tokens=case.ledger.spent.tokens + one_more - 1)
    start = replace(start, ledger=replace(start.ledger, budget=budget))
    arm = replace(recovery, policy=FixedPolicy(("retry",)), extra_samples=0, resample_draws=1, on_event=None)
    return await drive_async(recover(arm, start))


def _cost(attempts: tuple[Attempt, ...]) -> Spend:
    got = sum(a.got for a in attempts)
    return Spend(attempts=got, samples=got, tokens=sum(a.tokens for a in attempts))


def _rescued(case: Case) -> bool:
    return case.outcome is not None and case.outcome.status == "rescued"


def _arm(cases: Iterable[Case]) -> dict[str, int]:
    cases = list(cases)
    return {
        "rescued": sum(_rescued(c) for c in cases),
        "attempts": sum(c.ledger.spent.attempts for c in cases),
        "tokens": sum(c.ledger.spent.tokens for c in cases),
    }
