"""A worker: resumes threads of work from where their checkpoint says, as often as it is started and killed.

``durability="sync"``: a node's checkpoint is on disk before the next node begins. With LangGraph's default the
checkpoint is written while the next node runs, and what a process that dies had done since would be done again. It
would still be paid for once, from the store's record, but verdicts would be asked for again.

LangGraph does not wait for the checkpoint of the input, not even then: a process that dies in the first node may
leave a thread of which nothing is known, and whoever begins it anew gets a new run, which pays anew. So the input is
put down first (``update_state``), and the run begins from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
import traceback
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from multiprocessing.connection import Connection
from typing import Any

import langgraph.checkpoint.postgres.aio
import langgraph.checkpoint.sqlite.aio
import psycopg  # noqa: F401  # loaded here, so that a forked worker need not
import sqlalchemy.dialects.postgresql.psycopg
import sqlalchemy.dialects.sqlite.pysqlite  # noqa: F401
from langgraph.graph import START, StateGraph
from langgraph.types import Command

from benchmarks.chaos.journal import Journal, Logged
from benchmarks.chaos.parts import chance, recovery, sampler, step_of, wrong
from rfx_agent import (
    Escalation,
    InFlight,
    Recovery,
    RetryBudget,
    SampleRequest,
    SampleResult,
    SharedBudget,
    Window,
    recovery_graph,
    step_input,
)
from rfx_agent.adapters.graph.recovery_graph import RecoveryState
from rfx_agent.budgets.at import store_at
from rfx_agent.escalation.overdue import aclose_overdue, close_overdue
from rfx_agent.events import Event, Finished
from rfx_agent.ports import Sampler
from rfx_agent.samplers.openai.sampler import OpenAISampler

__all__ = ["SHORT", "Job", "Plan", "checkpointer", "ended", "given", "graph_of", "limits", "opened", "work"]

SHORT = 0.5
"""Seconds that a case stays open on threads whose name begins with ``hard-short``."""

_SWEEP = "sweep"


@dataclass(frozen=True, slots=True)
class Plan:
    """Where everything is.

    Attributes:
        model: URL of the chaos server.
        budget: URL of the shared budget.
        checkpoints: a path (SQLite) or a ``postgresql://`` URL.
        journal: folder that every process writes its log into.
        expires: seconds after which a reservation that nobody settled expires.
        durability: of LangGraph's checkpoints.
        dies: see ``Journal``.
        put_first: whether the input is put down before the run begins; without it some runs are begun anew.
    """

    model: str
    budget: str
    checkpoints: str
    journal: str
    expires: float = 20.0
    put_first: bool = True
    durability: Any = "sync"
    dies: str = ""


@dataclass(frozen=True, slots=True)
class Job:
    """One thread of work to be resumed.

    Attributes:
        item: its name, which is the thread's too. ``hard`` ones end at a person.
        reply: what a person says should the thread wait for them, or None to leave it waiting; "sweep" applies the
            deadline's default as a sweep would.
        at: Unix time at which they say it, so that two workers can say it at once.
    """

    item: str
    reply: Mapping[str, Any] | str | None = None
    at: float = 0.0


def limits() -> tuple[Any, ...]:
    """Wide enough to refuse nothing: here they count, by run and in all."""
    day = {"per": "day"}
    return (
        Window("run", "tokens", 10**7, **day),
        Window("run", "attempts", 10**5, **day),
        Window("run", "escalations", 10, **day),
        Window("global", "tokens", 10**10, **day),
        InFlight("global", 10**4),
    )


def opened(plan: Plan, journal: Any, model: Any, store: Any, item: str) -> Recovery:
    """The recovery of ``item``: its own account, its deadline, and a log of how it ended."""

    def told(event: Event) -> None:
        if isinstance(event, Finished):
            journal.write(op="finished", item=item, run=event.run_id, reason=event.outcome.reason)

    more: dict[str, Any] = {}
    if item.startswith("hard"):
        more = {"budget": RetryBudget(samples=8)}
    return recovery(
        model,
        shared=SharedBudget(store=store, limits=limits(), scopes={"run": item}, seconds=plan.expires),
        escalation=Escalation(deadline=SHORT if item.startswith("hard-short") else 3600.0),
        on_event=told,
        **more,
    )


def _nothing(_: RecoveryState) -> dict[str, Any]:
    return {}


def graph_of(made: Recovery, item: str, saver: Any) -> Any:
    """The recovery graph, on its own, or as a node of a parent where the item's name says ``in``."""
    if "-in-" not in item:
        return recovery_graph(made, checkpointer=saver, interrupts=True)
    builder: Any = StateGraph(RecoveryState)
    builder.add_node("think", _nothing)
    builder.add_node("recover", recovery_graph(made, interrupts=True))
    builder.add_node("go_on", _nothing)
    builder.add_edge(START, "think")
    builder.add_edge("think", "recover")
    builder.add_edge("recover", "go_on")
    return builder.compile(checkpointer=saver)


def given(item: str) -> Any:
    """The input of a thread: two in three begin with a wrong candidate."""
    step = step_of(item)
    return step_input(step, wrong(step) if chance("candidate", item) < 0.67 else None)


def ended(state: Any) -> bool:
    """Whether a thread has run to its end. ``state.next`` does not tell: it is empty, too, where a node's result is
    saved and the checkpoint after it is not."""
    return bool(state.values.get("outcome")) and not state.tasks


def work(plan: Plan, jobs: list[Job], pipe: Connection, *, asynchronous: bool) -> None:
    """Resume ``jobs`` concurrently, telling ``pipe`` "ready", then (item, how it stands) for each, then "done"."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    hands = _Hands(plan, pipe)
    if asynchronous:
        asyncio.run(hands.all_async(jobs))
    else:
        hands.all_sync(jobs)
    pipe.send("done")
    os._exit(0)  # nothing is left to do; the store's and the model's connections go with the process


class _Told(Sampler):
    """A sampler that writes down when a reply has come, before anybody else knows."""

    def __init__(self, model: OpenAISampler, journal: Journal) -> None:
        self.name, self.max_calls = model.name, model.max_calls
        self._model, self._journal = model, journal

    def sample(self, request: SampleRequest) -> SampleResult:
        result = self._model.sample(request)
        self._journal.write(op="sampled")
        return result

    async def asample(self, request: SampleRequest) -> SampleResult:
        result = await self._model.asample(request)
        self._journal.write(op="sampled")
        return result


@dataclass
class _Hands:
    plan: Plan
    pipe: Connection
    journal: Journal = field(init=False)

    def __post_init__(self) -> None:
        self.journal = Journal(self.plan.journal, dies=self.plan.dies)
        self.model = _Told(sampler(self.plan.model), self.journal)
        self.store = Logged(store_at(self.plan.budget), self.journal)

    def graph(self, item: str, saver: Any) -> Any:
        return graph_of(opened(self.plan, self.journal, self.model, self.store, item), item, saver)

    def all_sync(self, jobs: list[Job]) -> None:
        with checkpointer(self.plan.checkpoints) as saver, ThreadPoolExecutor(len(jobs)) as pool:
            self.pipe.send("ready")
            list(pool.map(lambda job: self.one_sync(job, saver), jobs))

    async def all_async(self, jobs: list[Job]) -> None:
        async with _asaver(self.plan.checkpoints) as saver:
            self.pipe.send("ready")

            await asyncio.gather(*(self.one_async(job, saver) for job in jobs))

    def one_sync(self, job: Job, saver: Any) -> None:
        try:
            self.tell(job, self.sync(job, saver))
        except Exception as error:  # noqa: BLE001  # counted, and the thread of work is resumed again
            self.broke(job, error)

    async def one_async(self, job: Job, saver: Any) -> None:
        try:
            self.tell(job, await self.asynchronous(job, saver))
        except Exception as error:  # noqa: BLE001  # as above
            self.broke(job, error)

    def broke(self, job: Job, error: Exception) -> None:
        said = "".join(traceback.format_exception(error))[-3000:]
        self.journal.write(op="error", item=job.item, error=f"{type(error).__name__}: {error}", said=said)
        self.pipe.send((job.item, "begun", 0.0))

    def tell(self, job: Job, state: Any) -> None:
        """How the thread stands: ``ended``, ``asked`` with the Unix time of the deadline, or ``begun``."""
        stands: tuple[Any, ...]
        if ended(state):
            stands = (job.item, "ended", 0.0)
            self.journal.write(op="ended", item=job.item, outcome=state.values["outcome"])
        elif state.interrupts:
            self.journal.write(op="asked", item=job.item)
            # To the second. Who answers before it is over may be in time or not; the sweep looks again.
            deadline = datetime.fromisoformat(state.interrupts[0].value["rfx"]["deadline"])
            stands = (job.item, "asked", deadline.timestamp())
        else:
            stands = (job.item, "begun", 0.0)
        self.pipe.send(stands)

    def sync(self, job: Job, saver: Any) -> Any:
        graph, config = self.graph(job.item, saver), _thread(job.item)
        state = graph.get_state(config)
        begin = None if state.values or self.plan.put_first else given(job.item)
        if not state.values and self.plan.put_first:
            graph.update_state(config, given(job.item), as_node=START)
        if state.interrupts:
            if job.reply is None:
                return state
            time.sleep(max(0.0, job.at - time.time()))
            self.journal.write(op="answering", item=job.item, reply=job.reply, t=time.time())
            if job.reply == _SWEEP:
                close_overdue(graph, config)
            else:
                graph.invoke(Command(resume=job.reply), config, durability=self.plan.durability)
        elif not ended(state):
            graph.invoke(begin, config, durability=self.plan.durability)
        return graph.get_state(config)

    async def asynchronous(self, job: Job, saver: Any) -> Any:
        graph, config = self.graph(job.item, saver), _thread(job.item)
        state = await graph.aget_state(config)
        begin = None if state.values or self.plan.put_first else given(job.item)
        if not state.values and self.plan.put_first:
            await graph.aupdate_state(config, given(job.item), as_node=START)
        if state.interrupts:
            if job.reply is None:
                return state
            await asyncio.sleep(max(0.0, job.at - time.time()))
            self.journal.write(op="answering", item=job.item, reply=job.reply, t=time.time())
            if job.reply == _SWEEP:
                await aclose_overdue(graph, config)
            else:
                await graph.ainvoke(Command(resume=job.reply), config, durability=self.plan.durability)
        elif not ended(state):
            await graph.ainvoke(begin, config, durability=self.plan.durability)
        return await graph.aget_state(config)


def _thread(item: str) -> Any:
    return {"configurable": {"thread_id": item}}


@contextlib.contextmanager
def checkpointer(where: str) -> Iterator[Any]:
    module = langgraph.checkpoint.postgres if "://" in where else langgraph.checkpoint.sqlite
    kind = module.PostgresSaver if "://" in where else module.SqliteSaver
    with kind.from_conn_string(where) as saver:
        if "://" not in where:
            saver.setup()
        yield saver


@contextlib.asynccontextmanager
async def _asaver(where: str) -> AsyncIterator[Any]:
    module = langgraph.checkpoint.postgres.aio if "://" in where else langgraph.checkpoint.sqlite.aio
    kind = module.AsyncPostgresSaver if "://" in where else module.AsyncSqliteSaver
    async with kind.from_conn_string(where) as saver:
        yield saver
