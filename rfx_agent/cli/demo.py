"""The demo's work: the same failures through plain retry and through the recovery graph. Nothing here prints."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from langgraph.checkpoint.memory import InMemorySaver

from rfx_agent.adapters.graph.recovery_graph import recovery_graph, step_input
from rfx_agent.budgets.step import Ledger, RetryBudget
from rfx_agent.case import Case
from rfx_agent.cli.problems import Problem, stated
from rfx_agent.codec import load
from rfx_agent.engine.costs import of_draw
from rfx_agent.engine.drive import drive_async
from rfx_agent.engine.nodes import recover
from rfx_agent.engine.run import Run
from rfx_agent.policies.fixed import FixedPolicy
from rfx_agent.ports import Sampler
from rfx_agent.records import Spend, Step
from rfx_agent.recovery import Recovery
from rfx_agent.tools.program import ProgramTool
from rfx_agent.verifiers.text import ExactVerifier

__all__ = ["Asked", "Failure", "Report", "Task", "demo_recovery", "live_tasks", "run_tasks"]

MAX_TOKENS = 200
TOP_LOGPROBS = 10


class Asked(Protocol):
    """A problem, as the demo shows it."""

    @property
    def family(self) -> str:
        """What made it."""
        ...


@dataclass(frozen=True, slots=True)
class Task:
    """One problem with both arms' parts.

    Attributes:
        family: what made the problem.
        step: the problem.
        recovery: for the recovery graph.
        retry: for plain retry, which goes on from the recovery's draws before its first decision; its policy, its
            budget and its numbers of draws are set when it is run.
    """

    family: str
    step: Step
    recovery: Recovery
    retry: Recovery


@dataclass(frozen=True, slots=True)
class Failure:
    """One problem whose first draw failed, and what became of it in each arm.

    Attributes:
        problem: the problem.
        recovery: its case after the recovery graph.
        retry: its case after plain retry with the tokens that the recovery spent, or more.
    """

    problem: Asked
    recovery: Case
    retry: Case

    @property
    def path(self) -> tuple[str, ...]:
        """The remedies that recovery tried after the extra samples."""
        return tuple(d.remedy for d in self.recovery.decisions if d.remedy is not None)

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
        tool=ProgramTool(sandbox="monty"),  # the same on every machine
        budget=RetryBudget(attempts=8, samples=10),  # a demo should end within minutes
        seed=seed,
        max_tokens=MAX_TOKENS,
    )


def live_tasks(recovery: Recovery, problems: Sequence[Problem]) -> list[Task]:
    """Generated problems, with one recovery for all of them and both arms."""
    return [Task(p.family, p.step(i), recovery, recovery) for i, p in enumerate(problems)]


async def run_tasks(
    tasks: Sequence[Task], *, concurrency: int, on_done: Callable[[Asked, Failure | None], None]
) -> Report:
    """Run every task through both arms, ``concurrency`` tasks at a time.

    Both arms start from the same failed draws, so that they differ in what they do next and in nothing else.
    """
    gate = asyncio.Semaphore(concurrency)

    async def one(task: Task) -> Failure | None:
        async with gate:
            graph = recovery_graph(task.recovery, checkpointer=InMemorySaver(), interrupts=True)
            state = await graph.ainvoke(step_input(task.step), {"configurable": {"thread_id": task.step.id}})
            case = load(Case, state["recovery"])
            failure = None
            if not case.rollouts or not case.rollouts[0].passed:
                failure = Failure(task, case, await _retry(task.retry, case))
            on_done(task, failure)
            return failure

    done = await asyncio.gather(*(one(task) for task in tasks))
    return Report(len(tasks), [f for f in done if f is not None])


async def _retry(recovery: Recovery, case: Case) -> Case:
    """Plain retry from the first draw that the recovery had, one draw at a time.

    It draws on as long as it has spent fewer tokens than the recovery did, so its last draw may carry it past them.
    """
    shared = tuple(x for x in case.rollouts if x.round is None or x.round < 1)
    attempts = case.attempts[:1]
    got, tokens = sum(a.got for a in attempts), sum(a.tokens for a in attempts)
    budget = RetryBudget(attempts=None, samples=None, tokens=None, seconds=None)
    ledger = Ledger(budget).charge(Spend(attempts=got, samples=got, tokens=tokens))
    start = Case(step=case.step, ledger=ledger, rollouts=shared, attempts=attempts)
    run = Run.of(replace(recovery, policy=FixedPolicy(("retry",)), extra_samples=None, concurrency=1, on_event=None))
    most = case.ledger.spent.tokens + of_draw(run, start).tokens - 1
    start = replace(start, ledger=replace(ledger, budget=replace(budget, tokens=most)))
    return await drive_async(recover(run, start))


def _rescued(case: Case) -> bool:
    return case.outcome is not None and case.outcome.status == "rescued"


def _arm(cases: Iterable[Case]) -> dict[str, int]:
    cases = list(cases)
    return {
        "rescued": sum(_rescued(c) for c in cases),
        "attempts": sum(c.ledger.spent.attempts for c in cases),
        "tokens": sum(c.ledger.spent.tokens for c in cases),
        "cut_short": sum(bool(c.blocked) for c in cases),
    }
