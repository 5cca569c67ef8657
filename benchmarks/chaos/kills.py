"""SIGKILL at random moments, over real checkpoints: nothing lost, nothing charged twice, nothing stuck.

Workers run recovery graphs, several threads of work each; the driver kills them and gives what they left to others.
Some threads end at a person, who answers once, twice, from two processes at once, too late, or just at the deadline.
When the last kill is done, workers that nobody kills finish what is left, and what the store, the checkpoints, the
logs and the model's server say is held against each other.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.chaos.databases import Database
from benchmarks.chaos.processes import CONTEXT
from benchmarks.chaos.reckoning import reckon
from benchmarks.chaos.server import Server
from benchmarks.chaos.worker import Job, Plan, checkpointer, work
from rfx_agent.budgets.at import store_at

__all__ = ["Killing", "kill"]

_TOGETHER = 3  # workers alive at once
_HELD = 4  # threads of work in one worker
_LIVES = (0.1, 0.4, 1.2)  # most seconds that a worker lives while kills are left
_PATIENCE = 60.0  # seconds without an end after which what is left counts as stuck


@dataclass(slots=True)
class _Item:
    name: str
    how: str = ""  # how its person answers
    stands: str = "new"
    deadline: float = 0.0
    busy: int = 0  # workers that hold it
    answered: int = 0

    @property
    def done(self) -> bool:
        return self.stands == "ended"


@dataclass(slots=True)
class _Worker:
    process: Any
    pipe: Connection
    jobs: list[Job]
    dies: float = float("inf")  # Unix time
    ready: bool = False


@dataclass
class Killing:
    """The driver's half.

    Attributes:
        plan: where everything is.
        kills: processes to kill.
        seed: of the moments and of the choices.
        prefix: of the items' names.
    """

    plan: Plan
    kills: int
    seed: int = 0
    prefix: str = ""
    items: list[_Item] = field(default_factory=list)
    workers: list[_Worker] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)  # noqa: S311  # the same moments again, as far as a clock allows

    def run(self) -> None:
        """Start, kill and resume until ``kills`` are done and everything has ended; or give up as stuck."""
        last, done = time.time(), 0
        while True:
            killing = self.counts["kills"] < self.kills
            while len(self.workers) < _TOGETHER and (jobs := self._jobs(new=killing)):
                self._start(jobs)
            if not self.workers and not killing:
                if all(item.done for item in self.items) or time.time() - last > _PATIENCE:
                    return
                time.sleep(0.02)  # cases wait for their deadline
            self._listen()
            now = sum(item.done for item in self.items)
            if now != done or killing:
                last, done = time.time(), now
            if time.time() - last > _PATIENCE:
                return

    def stop(self) -> None:
        """End every worker that is left."""
        for worker in self.workers:
            worker.process.kill()
            worker.process.join()

    def _jobs(self, *, new: bool) -> list[Job]:
        """What the next worker is to resume: what was left, then new work."""
        now = time.time()
        free = [x for x in self.items if not x.done and not x.busy and self._due(x, now)]
        some = self.draw.sample(free, min(_HELD, len(free)))
        jobs = [Job(item.name, self._reply(item), now + 0.05) for item in some]
        while new and len(jobs) < _HELD:
            item = self._new()
            self.items.append(item)
            jobs.append(Job(item.name))
        return jobs

    def _new(self) -> _Item:
        number = f"{'in' if self.draw.random() < 0.5 else 'own'}-{self.prefix}{len(self.items)}"
        if self.draw.random() < 0.5:
            return _Item(f"easy-{number}")
        how = self.draw.choice(["once", "both", "both", "late", "edge"])
        return _Item(f"hard-{'short' if how in ('late', 'edge') else 'long'}-{number}", how)

    def _due(self, item: _Item, now: float) -> bool:
        if item.stands != "asked":
            return True
        match item.how:
            case "late":  # what a person is shown is cut to the second
                return now > item.deadline + 1.02
            case "edge":
                return now > item.deadline + 0.2
        return True

    def _reply(self, item: _Item) -> Any:
        if item.stands != "asked":
            return None
        item.answered += 1
        if item.how in ("late", "edge") and self.draw.random() < 0.5:
            return "sweep"
        return {"type": "respond", "message": f"person {item.answered} on {item.name}"}

    def _start(self, jobs: list[Job]) -> None:
        ours, theirs = CONTEXT.Pipe(duplex=False)
        options = {"asynchronous": self.draw.random() < 0.5}
        process = CONTEXT.Process(target=work, args=(self.plan, jobs, theirs), kwargs=options, daemon=True)
        process.start()
        theirs.close()
        self.counts["started"] += 1
        self.workers.append(_Worker(process, ours, jobs))
        by_name = {item.name: item for item in self.items}
        for job in jobs:
            by_name[job.item].busy += 1
        again = [job for job in jobs if job.reply is not None and by_name[job.item].how != "once"]
        if again and by_name[again[0].item].busy == 1:  # two processes at once, and each says something else
            self._start([Job(x.item, self._reply(by_name[x.item]), x.at) for x in again])

    def _listen(self) -> None:
        """Hear what the workers have to say for a moment, and kill those whose time has come."""
        by_name = {item.name: item for item in self.items}
        for worker in list(self.workers):
            over = False
            try:
                while worker.pipe.poll(0.002):
                    said = worker.pipe.recv()
                    if said == "ready":
                        worker.ready = True
                        if self.counts["kills"] < self.kills:
                            worker.dies = time.time() + self.draw.uniform(0.0, self.draw.choice(_LIVES))
                    elif said == "done":
                        over = True
                    else:
                        name, stands, deadline = said
                        item = by_name[name]
                        if not item.done and not (stands == "begun" and item.stands == "asked"):
                            item.stands, item.deadline = stands, deadline
            except (EOFError, OSError):
                over = True
                self.counts["broke"] += worker.process.exitcode not in (0, None)
            if not over and time.time() >= worker.dies and self.counts["kills"] < self.kills:
                worker.process.kill()
                self.counts["kills"] += 1
                over = True
                for job in worker.jobs:
                    # Of two that go on from one interrupt, one may end the thread and the other leave it half-way.
                    if by_name[job.item].done:
                        by_name[job.item].stands = "begun"
            if over:
                worker.process.join(10)
                worker.pipe.close()
                self.workers.remove(worker)
                for job in worker.jobs:
                    by_name[job.item].busy -= 1


def kill(
    server: Server, database: Database, *, kills: int, seed: int = 0, prefix: str = "", **more: Any
) -> dict[str, Any]:
    """``kills`` kills over ``database``, and what they did not break."""
    server.reset()
    with checkpointer(database.checkpoints):  # the tables are there before anybody races to make them
        pass
    store_at(database.budget).accounts()
    plan = Plan(server.base_url, database.budget, database.checkpoints, database.folder, **more)
    killing = Killing(plan, kills, seed, prefix)
    started = time.time()
    try:
        killing.run()
    finally:
        killing.stop()
    found = reckon(plan, [item.name for item in killing.items], server.truth())
    total = server.truth()["total"]
    counts = {name: killing.counts[name] for name in ("kills", "started", "broke")}
    return {**found, **counts, "http_requests": total.get("requests", 0), "seconds": round(time.time() - started, 1)}
