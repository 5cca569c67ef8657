"""One run of a collection: the units that are not recorded yet, phase by phase over all problems."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rfx_agent.errors import SamplerError
from rfx_agent.lab.collect import units
from rfx_agent.lab.collect.assemble import failed_draws, failing, needed, screened
from rfx_agent.lab.collect.journal import Journal, Key
from rfx_agent.lab.collect.measure import score
from rfx_agent.lab.collect.plan import Plan
from rfx_agent.lab.collect.work import Done, Failed

__all__ = ["Progress", "Run"]

_RECENT = 64  # finished units that the time left is estimated from
_GONE = 8  # attempts in a row without an answer, at least, after which a model is unreachable
_PAUSE = 0.2  # seconds between two reports of progress


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a collection stands.

    Attributes:
        phase: ``screen``, ``score`` or a remedy's name.
        done: units recorded, in this run and before.
        total: units known to be needed; grows as failing problems are found.
        failing: failing problems found.
        errors: units recorded with an error in this run: attempts that failed as such.
        elapsed: seconds of this run.
        left: seconds still needed at the recent rate, or None before there is one.
    """

    phase: str
    done: int
    total: int
    failing: int
    errors: int
    elapsed: float
    left: float | None


class Run:
    """One run over the units that are not recorded yet."""

    def __init__(self, plan: Plan, journal: Journal, progress: Callable[[Progress], None] | None) -> None:
        self.plan, self.journal, self.progress = plan, journal, progress
        known = journal.plan()
        assert known is not None  # noqa: S101  # acollect has begun it
        self.fingerprint = known
        self.records = journal.records()
        self.by_id = {problem.id: problem for problem in plan.problems}
        self.place = {problem.id: i for i, problem in enumerate(plan.problems)}
        self.found = {self.place[key.problem] for key, record in self.records.items() if _is_found(key, record)}
        self.began = time.perf_counter()
        self.recent: deque[float] = deque([self.began], _RECENT)
        self.phase, self.errors, self.told = "screen", 0, 0.0
        self.suspects: list[Done] = []

    async def everything(self) -> None:
        """All phases, each over all problems."""
        plan = self.plan
        await self.run("screen", self._screening())
        failing = self.failing()
        draws = [Key(name, "retry", n) for n in range(1, plan.draws + 1) for name in failing]
        await self.run("retry", (self._draw(key) for key in self._due(draws)))
        if plan.tool is not None:
            keys = [Key(name, "tool", n) for n in range(plan.attempts) for name in failing]
            await self.run("tool", (self._tool(key) for key in self._due(keys)))
        if plan.scorers != (None, None):
            await self.run("score", (self._score(name) for name in failing if self._unscored(name)))
        for operator in plan.steered:
            keys = [Key(name, operator, n) for n in range(plan.attempts) for name in failing]
            await self.run(operator, (self._steer(key) for key in self._due(keys)))
        self._settle()
        self._tell()

    def failing(self) -> list[str]:
        """Ids of the failing problems found so far, in the plan's order."""
        bodies = screened(self.fingerprint, self.records)
        return [b["id"] for b in bodies if failing(self.records[Key(b["id"], "retry", 0)])]

    async def run(self, phase: str, jobs: Iterator[Awaitable[Done]]) -> None:
        """Do ``jobs``, at most ``concurrency`` at once, recording each as it ends. The first error ends them all."""
        self.phase = phase
        self._tell()

        async def worker() -> None:
            for job in jobs:  # one iterator for all workers: a job is made when there is room for it
                self._take(await job)

        workers = [asyncio.ensure_future(worker()) for _ in range(self.plan.concurrency)]
        try:
            await asyncio.gather(*workers)
        finally:
            for one in workers:
                one.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        self._tell()

    def _screening(self) -> Iterator[Awaitable[Done]]:
        """In order, until enough of those already asked about have failed: a killed run leaves no gap behind it."""
        limit = self.plan.failures
        for i, problem in enumerate(self.plan.problems):
            if limit is not None and sum(place < i for place in self.found) >= limit:
                return
            key = Key(problem.id, "retry", 0)
            if key not in self.records:
                yield self._draw(key)

    def _due(self, keys: Iterable[Key]) -> Iterator[Key]:
        return (key for key in keys if key not in self.records)

    def _draw(self, key: Key) -> Awaitable[Done]:
        return units.draw(self.plan, self.by_id[key.problem], key.attempt)

    def _tool(self, key: Key) -> Awaitable[Done]:
        return units.tool(self.plan, self.by_id[key.problem], key.attempt)

    def _steer(self, key: Key) -> Awaitable[Done]:
        failed = failed_draws(self.records, key.problem, self.plan.draws)
        at = self._failed(key.problem, failed[key.attempt % len(failed)])
        return units.steer(self.plan, self.by_id[key.problem], key.remedy, key.attempt, at)

    def _unscored(self, name: str) -> list[int]:
        failed = failed_draws(self.records, name, self.plan.draws)[: self.plan.scored]
        return [attempt for attempt in failed if Key(name, "score", attempt) not in self.records]

    def _score(self, name: str) -> Awaitable[Done]:
        failed = [self._failed(name, attempt) for attempt in self._unscored(name)]
        return score(self.plan, self.by_id[name], failed)

    def _failed(self, name: str, attempt: int) -> Failed:
        key = Key(name, "retry", attempt)
        record, scores = self.records[key], self.records.get(Key(name, "score", attempt))
        place = record if scores is None or scores["junction"] is None else scores
        return Failed(attempt, record, self.journal.raw(key), place["junction"], place["peak"])

    def _take(self, done: Done) -> None:
        """Record ``done``. Where a model seems unreachable, its misses count once it has answered again."""
        if done.failure is not None and done.failure.transient:
            self.suspects.append(done)
            if len(self.suspects) >= max(_GONE, self.plan.concurrency):
                last = done.failure
                raise SamplerError(
                    f"{len(self.suspects)} attempts in a row got no answer and are not recorded: {last}; "
                    "see to the model and start again: what was recorded is kept",
                    transient=True,
                ) from last
            return
        if done.failure is None:
            self._settle()
        self._record(done)

    def _settle(self) -> None:
        suspects, self.suspects = self.suspects, []
        for done in suspects:
            self._record(done)

    def _record(self, done: Done) -> None:
        self.journal.add(done.units)
        for unit in done.units:
            self.records[unit.key] = dict(unit.record)
            if _is_found(unit.key, unit.record):
                self.found.add(self.place[unit.key.problem])
            self.errors += unit.record.get("error") is not None and done.failure is not None
        self.recent.append(time.perf_counter())
        if self.recent[-1] - self.told >= _PAUSE:
            self._tell()

    def _tell(self) -> None:
        self.told = time.perf_counter()
        if self.progress is None:
            return
        names, records = self.failing(), self.records
        wanted = {key for name in names for key in needed(self.fingerprint, records, name)}
        wanted |= {Key(problem.id, "retry", 0) for problem in self.plan.problems} if self.phase == "screen" else set()
        done = sum(key in records for key in wanted)
        now = self.told
        rate = (len(self.recent) - 1) / max(now - self.recent[0], 1e-9)
        left = (len(wanted) - done) / rate if rate else None
        self.progress(Progress(self.phase, done, len(wanted), len(names), self.errors, now - self.began, left))


def _is_found(key: Key, record: Mapping[str, Any]) -> bool:
    return key.remedy == "retry" and key.attempt == 0 and failing(record)
