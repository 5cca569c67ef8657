"""States of version 0.1, read and resumed by this version with the results that 0.1 itself gave.

And two promises about states to come: what a later version adds is ignored, what it leaves out has its default. What
cannot be read at all is an outcome that says so, never an exception out of the middle of a graph.
"""

import asyncio
import json
import re
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sqlalchemy")
pytest.importorskip("langchain.agents")
pytest.importorskip("langgraph.checkpoint.sqlite.aio")

import states
import upgrade_parts as parts
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import BaseModel
from upgrade_parts import MANIFEST, Opened, Order, accounts, asaver_of, close_to, memory_of, saver_of, summary

from rfx_agent import Case, Outcome, Recovery, Rollout, Step, Unresolved, Usage, Verdict, events
from rfx_agent.adapters.graph.recovery_graph import case_of, outcome_of
from rfx_agent.bill import Operation, PlainRetry
from rfx_agent.budgets.step import Ledger, RetryBudget
from rfx_agent.case import Ask, Attempt, Decision, Diagnosis
from rfx_agent.codec import SCHEMA, dump, load, plain
from rfx_agent.errors import StateError
from rfx_agent.escalation.overdue import aclose_overdue, close_overdue
from rfx_agent.evidence.calibration import Calibration
from rfx_agent.evidence.diagnosis import diagnose_case
from rfx_agent.evidence.features import TWO_MODEL
from rfx_agent.evidence.kinds import kind_of
from rfx_agent.evidence.opinions import Opinion
from rfx_agent.lab.logs import log_line, read_log
from rfx_agent.policies import Belief, LearnedPolicy
from rfx_agent.policies.sql_store import SQLPolicyStore
from rfx_agent.ports import Escalator
from rfx_agent.records import Agreement, SampleResult, ScoreResult, Spend, ToolResult
from rfx_agent.remedies import Retry

THREADS, ORDERS = MANIFEST["threads"], MANIFEST["orders"]
CASES = states.json_of("cases.json.gz")
RENAMED = {"operator": "remedy", "reference": "expected"}
"""Fields of records that are called differently now."""
SAID = {"broken off come back": "interrupted come back"}
"""A note that is worded differently now."""
NEW = {"status": {"confidence", "best"}, "answers": {"kinds", "reasons"}, "failed": {"confidence"}}
"""Fields that 0.1 did not have in an outcome, in what a person is shown and in marks, by a field of each."""
GONE = {"Decision": {"temperature"}}
"""Fields that 0.1 had and that are read no more: a remedy knows its own temperature."""
AGAIN = {"learned/2": "learned/1"}
"""The version of a policy that decides as it did under the one before."""

_RESERVED = 100  # above it what was granted is tokens or money, below it cases in flight

both = pytest.mark.parametrize("mode", ["sync", "async"])
WAYS = [pytest.param(name, way, id=f"{name}-{way['name']}") for name, entry in THREADS.items() for way in entry["then"]]


def expected(gives: Any) -> Any:
    """What 0.1 gave, under the names of today."""
    if isinstance(gives, Mapping):
        return {"remedy" if key == "operator" else key: expected(value) for key, value in counted(gives).items()}
    if isinstance(gives, list):
        return [expected(x) for x in gives]
    if isinstance(gives, str):
        for before, now in SAID.items():
            gives = gives.replace(before, now)
    return gives


def counted(account: Mapping[str, Any]) -> Mapping[str, Any]:
    """Without the tokens and money that were granted: what is reserved for a judge grows with its prompt."""
    return {key: value for key, value in account.items() if key != "granted" or value < _RESERVED}


def told(gave: Any) -> Any:
    """What this version gave, as it would stand in the manifest."""
    if isinstance(gave, Mapping):
        added = set().union(*(names for mark, names in NEW.items() if mark in gave))
        return {key: told(value) for key, value in counted(gave).items() if key not in added}
    if isinstance(gave, str):
        return AGAIN.get(gave, gave)
    return [told(x) for x in gave] if isinstance(gave, (list, tuple)) else gave


def assert_same(gave: Any, gives: Any) -> None:
    """``gave`` is what 0.1 gave; money to within rounding."""
    assert told(gave) == close_to(expected(gives), pytest.approx)


def went_on(name: str, way: Mapping[str, Any], folder: Path, *, kind: str = "memory", mode: str = "sync") -> Any:
    """What comes of going on with a recorded thread."""

    async def on() -> Any:
        async with asaver_of(kind, name, folder) as saver:
            return await Opened(name, saver, folder, way).awent_on(way)

    if mode == "async":
        return asyncio.run(on())
    with saver_of(kind, name, folder) as saver:
        return Opened(name, saver, folder, way).went_on(way)


# What 0.1 left, resumed.


@both
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@pytest.mark.parametrize(("name", "way"), WAYS)
def test_a_thread_goes_on_as_it_did(name: str, way: dict[str, Any], kind: str, mode: str, tmp_path: Path) -> None:
    assert_same(went_on(name, way, tmp_path, kind=kind, mode=mode), way["gives"])


@pytest.mark.parametrize("name", THREADS)
def test_a_thread_stands_as_it_was_left(name: str, tmp_path: Path) -> None:
    way = {"do": "read", "script": {}, "at": 60.0}
    way["parts"] = {"verifier": {"kind": "exact"}} if name == "alone-broken" else {}  # its own breaks
    gave = told(went_on(name, way, tmp_path)["stands"])
    # The interrupt is what 0.1 wrote: "operator" in it is its own word.
    assert gave.pop("asks", None) == THREADS[name]["stands"].get("asks")
    assert_same(gave, {key: value for key, value in THREADS[name]["stands"].items() if key != "asks"})


@both
@pytest.mark.parametrize(
    "name", [name for name, entry in THREADS.items() if "late" in {x["name"] for x in entry["then"]}]
)
def test_a_deadline_that_passed_applies_its_default(name: str, mode: str, tmp_path: Path) -> None:
    (late,) = (x for x in THREADS[name]["then"] if x["name"] == "late")
    opened, now = Opened(name, memory_of(name), tmp_path, late), MANIFEST["clock"] + late["at"]
    if mode == "sync":
        assert close_overdue(opened.compiled, opened.config, clock=lambda: now)
    else:
        assert asyncio.run(aclose_overdue(opened.compiled, opened.config, clock=lambda: now))
    # The recorded way is an answer that came too late; a sweep says something else of it, as it did.
    gave, gives = (
        json.loads(json.dumps(x).replace("the answer came after the deadline", "nobody answered"))
        for x in (told(opened.went_on({"do": "read"})), late["gives"])
    )
    assert_same(gave, gives)


@both
@pytest.mark.parametrize(
    ("name", "way"), [pytest.param(name, way, id=name) for name, entry in ORDERS.items() for way in entry["then"]]
)
def test_a_run_without_a_graph_goes_on_as_it_did(name: str, way: dict[str, Any], mode: str, tmp_path: Path) -> None:
    order = Order(name, tmp_path, way)
    if mode == "sync":
        case = order.recovery.run(*order.given, run_id=name)
    else:
        case = asyncio.run(order.recovery.arun(*order.given, run_id=name))
    assert_same(order.gave(case), way["gives"])


@both
def test_nothing_is_paid_for_twice_wherever_a_thread_starts_again(mode: str, tmp_path: Path) -> None:
    """Every kind of paid call is in the record of this thread, the opening of the case before a person with them."""
    way, saver = {"do": "go on", "script": {}, "at": 60.0}, memory_of("shared-paused")
    opened = Opened("shared-paused", saver, tmp_path, way)
    before, starts = accounts(opened.store), [x for x in saver.list(opened.config) if "recovery" in _values(x)]
    assert len(starts) == 11
    holds = {json.dumps(_values(x)["recovery"].get("holds")) for x in starts}
    assert len(holds) > 5  # from many places
    for start in reversed(starts):
        if mode == "sync":
            opened.compiled.invoke(None, start.config, durability="sync")
        else:
            asyncio.run(opened.compiled.ainvoke(None, start.config, durability="sync"))
        stands = parts.stands(opened.compiled.get_state(opened.config), list(saver.list(opened.config)))
        assert_same(stands["case"]["ask"], THREADS["shared-paused"]["stands"]["case"]["ask"])
        assert (stands["next"], opened.model.requests) == (["escalate"], [])
        assert parts.changed(before, accounts(opened.store)) == {}
    opened.store.close()


def _values(found: Any) -> Any:
    return found.checkpoint["channel_values"]


# What 0.1 left, resumed with the policy and the remedies of today.

RIGHT = {"till": "Answer: 11.85", "ec16": "Answer: 9.45", "six-": "42"}
"""What passes, by how the step's id begins."""


def today(name: str, texts: list[str], **parts: Any) -> dict[str, Any]:
    """A way to go on with today's policy, and with today's remedies unless ``parts`` says otherwise."""
    said = [{"text": x, "id": f"said-{i}"} for i, x in enumerate(texts)]
    script = {"sampler": said, "steerer": [{"text": "Answer: 0", "id": f"steered-{i}"} for i in range(20)]}
    return {
        "do": "go on",
        "script": script,
        "at": 60.0,
        "parts": {"policy": {"kind": "today"}, "remedies": None, **parts},
    }


@both
@pytest.mark.parametrize(
    "name", [name for name, entry in THREADS.items() if entry["then"][0]["do"] == "go on" and "agent" not in name]
)
def test_todays_policy_takes_a_thread_from_where_it_stood(name: str, mode: str, tmp_path: Path) -> None:
    says = ["Answer: 1", "Answer: 2", *["7 * 1.35 + 3 * 0.85"] * 30]
    way = today(name, says, **THREADS[name]["then"][0].get("parts", {}))
    raw, stood = went_on(name, way, tmp_path, mode=mode), THREADS[name]["stands"].get("case", {})
    gave = told(raw)
    case, asked = gave["stands"]["case"], gave["asked"]
    for what in ("rollouts", "attempts", "decisions"):
        kept = expected(stood.get(what, []))
        assert case[what][: len(kept)] == kept
    assert {x[4] for x in case["decisions"][len(stood.get("decisions", [])) :]} <= {"default/2"}
    if case["outcome"] is None:
        assert case["ask"] is not None
        rfx = raw["stands"]["asks"]["rfx"]  # answers of 0.1 had no kind; those that are judged have one
        assert sum(rfx["kinds"].values()) == len(case["rollouts"])
        assert sum(x["count"] for x in rfx["answers"]) == len(case["rollouts"])
    new = {key: n - stood.get("spent", {}).get(key, 0) for key, n in case["spent"].items()}
    if name == "shared-ran":  # it had everything that it needed
        assert (asked, gave["accounts"]) == ([], {})
    elif not name.startswith("shared"):
        steered = [x for x in case["attempts"][len(stood.get("attempts", [])) :] if x[0] == "dense_steer"]
        assert new["samples"] == new["calls"] == sum(x["n"] for x in asked) + len(steered)


def lacks(name: str, mode: str, folder: Path, **parts: Any) -> None:
    """A thread whose decision names a remedy that the deployment lacks goes on, and is rescued by another."""
    stood = THREADS[name]["stands"]["case"]
    remedy, right = stood["decisions"][-1][1], RIGHT[stood["step"][:4]]
    way = today(name, [right] * 2, remedies=[Retry()], tool=None, steers=None, **parts)
    gave = went_on(name, way, folder, mode=mode)
    case = gave["stands"]["case"]
    assert (case["outcome"]["status"], case["outcome"]["by"], gave["stands"]["next"]) == ("rescued", "retry", [])
    new = case["attempts"][len(stood["attempts"]) :]
    assert [new[0], *(x[:3] for x in new[1:])] == [[remedy, 1, 0, 0, 0], ["retry", 2, 2]]
    assert [x["n"] for x in gave["asked"]] == [2]
    assert [x[1] for x in case["decisions"]] == [*(x[1] for x in stood["decisions"]), "retry", None]


@both
@pytest.mark.parametrize("name", ["alone-resample", "parent-resample", "behind-resample"])
def test_a_remedy_that_the_deployment_has_no_more_is_an_attempt_that_gave_nothing(
    name: str, mode: str, tmp_path: Path
) -> None:
    lacks(name, mode, tmp_path)


@both
def test_a_model_that_continues_no_prefix_any_more_is_given_none(mode: str, tmp_path: Path) -> None:
    way = today("alone-resample", [RIGHT["till"]] * 2, continues_prefix=False)
    gave = went_on("alone-resample", way, tmp_path, mode=mode)
    assert gave["asked"]
    assert {x["prefix"] for x in gave["asked"]} == {None}


@pytest.mark.parametrize("name", ["decided", "midway", "escalated"])
def test_an_answer_that_0_1_turned_down_has_its_kind_when_it_is_diagnosed(name: str) -> None:
    case = load(Case, CASES[name]["case"])
    assert case.failed
    found = diagnose_case(case, Calibration.published(), {})
    assert sum(found.kinds.values()) == len(case.failed)
    assert found.kind == kind_of(case.failed[-1])


@both
@pytest.mark.parametrize("name", ["alone-steer", "alone-tool", "alone-learned-tool", "shared-ran"])
def test_a_node_that_the_deployment_has_no_more_is_gone_through(name: str, mode: str, tmp_path: Path) -> None:
    lacks(name, mode, tmp_path)


# What 0.1 left, read.


def _old(*written: str, **left_out: Any) -> dict[str, Any]:
    """The fields of one of 0.1's records: those it always wrote, and the others with the default they were left out at.

    A record that was left out holds the defaults of its own fields.
    """
    return dict.fromkeys(written, ...) | left_out


OLD: dict[str, dict[str, Any]] = {
    "Usage": _old(prompt_tokens=0, completion_tokens=0, calls=0),
    "Spend": _old(attempts=0, samples=0, tokens=0, usd=0, seconds=0, tool_seconds=0, escalations=0, calls=0, asked=0),
    "Step": _old("messages", "id", reference=None),
    "Verdict": _old("passed", answer=None, score=None, reason="", weak=False, usage={}),
    "Rollout": _old(
        "text",
        **_old(id="", round=None, response_id=None, operator="retry", temperature=None, finish_reason=None, usage={}),
        **_old(prompt_ids=None, tokens=None, logprobs=None, verdict=None, features=None),
        **_old(junction=None, peak=None, start=0),
    ),
    "Agreement": _old("draws", "distinct", "modal_share", "entropy", modal=None),
    "Attempt": _old("operator", "asked", "got", misses=0, tokens=0, note=""),
    "Diagnosis": _old(
        *("step_id", "evidence", "features", "z", "calibration", "routable", "caveats", "draws", "passes"),
        *("agreement", "posterior", "tried", "cost"),
        passed=None,
        blocked="",
        blocked_by="",
    ),
    "Decision": _old(
        *("route", "operator", "regime", "reason", "sentence", "policy", "evidence"),
        **_old(features=None, z=None, posterior={}, expected={}, temperature=None, from_junction=False),
        **_old(budget_before={}, budget_after=None),
    ),
    "RetryBudget": parts.CAPS,
    "Ledger": _old(budget={}, spent={}, reserved={}),
    "Outcome": _old("status", text=None, answer=None, by=None, weak=False, reason="", sentence="", confirmed_by=[]),
    "Ask": _old("opened", "deadline", "default"),
    "Case": _old(
        "step",
        **_old(ledger={}, rollouts=[], attempts=[], diagnosis=None, decisions=[], ask=None, outcome=None, blocked=""),
        **_old(blocked_by="", holds=0, notes=[], run_id=""),
    ),
    # Events wrote all their fields.
    "Reserved": _old("step_id", "purpose", "cost", "refused", "run_id"),
    "Sampled": _old(
        *("step_id", "operator", "asked", "got", "usage", "seconds", "tag", "model", "temperature", "error", "run_id")
    ),
    "Judged": _old("step_id", "rollout_id", "passed", "weak", "seconds", "verifier", "usage", "run_id"),
    "Scored": _old("step_id", "scorer", "rollouts", "scored", "usage", "seconds", "run_id"),
    "ToolRan": _old("step_id", "tool", "failed", "seconds", "run_id"),
    "Decided": _old("step_id", "decision", "run_id"),
    "Escalated": _old("step_id", "deadline", "run_id"),
    "Finished": _old("step_id", "outcome", "run_id"),
}


def assert_read(record: Any, written: Any, at: str = "") -> None:
    """Each value that 0.1 wrote is in ``record``, each that it left out is there as 0.1 would have read it."""
    if is_dataclass(record):
        old = OLD[type(record).__name__]
        assert set(written) <= set(old), at
        for name, default in old.items():
            value = written.get(name, default)
            assert value is not ..., f"{at}.{name} was not written"
            if name in GONE.get(type(record).__name__, ()):
                continue
            assert_read(getattr(record, RENAMED.get(name, name)), value, f"{at}.{name}")
        known = {RENAMED.get(name, name) for name in old}
        for one in fields(record):
            if one.name not in known:  # new: nothing is known of it
                assert getattr(record, one.name) == _default(one), f"{at}.{one.name}"
    elif isinstance(record, Mapping):
        assert list(record) == list(written), at
        for key in record:
            assert_read(record[key], written[key], f"{at}.{key}")
    elif isinstance(record, (list, tuple)):
        assert len(record) == len(written), at
        for i, (one, value) in enumerate(zip(record, written, strict=True)):
            assert_read(one, value, f"{at}[{i}]")
    else:
        assert record == written, at


def _default(one: Any) -> Any:
    return one.default if one.default_factory is MISSING else one.default_factory()


@pytest.mark.parametrize("name", CASES)
def test_a_case_is_read_without_loss(name: str) -> None:
    written, gives = CASES[name]["case"], CASES[name]["gives"]
    case = load(Case, written)
    assert_read(case, written)
    assert_same(summary(case) | {"amplification": case.amplification}, gives)
    again = dump(case)
    assert again["schema"] == SCHEMA
    assert plain(load(Case, again)) == plain(case)
    assert plain(load(Case, json.loads(json.dumps(again)))) == plain(case)


class Bill(BaseModel):
    """What a step may be compared with: any object."""

    total: str = "0.00"
    items: int = 1


@pytest.mark.parametrize("kept", [Bill(items=7), {"total": ["11.85", None]}, Decimal("11.85"), {1, 2}, b"\xff"])
def test_what_a_step_is_compared_with_is_kept(kept: object) -> None:
    written = {"messages": [{"role": "user", "content": "?"}], "reference": kept, "id": "s"}
    step = load(Step, written)
    case = load(Case, {"step": written})
    assert (step.expected, case.step.expected) == (kept, kept)
    assert load(Step, plain(step)).expected == kept
    assert load(Case, dump(case)).step.expected == kept


def test_events_are_read_without_loss() -> None:
    kinds = {events.as_record(made)["type"]: type(made) for made in _one_of_each_event()}
    lines = states.lines_of("events.jsonl.gz")
    assert Counter(x["type"] for x in lines) == MANIFEST["events"]
    for line in lines:
        event = load(kinds[line["type"]], line)
        assert_read(event, {key: value for key, value in line.items() if key != "type"}, line["type"])
        assert set(expected(line)) <= set(events.as_record(event))  # no field of an event is gone


def _one_of_each_event() -> list[events.Event]:
    return [
        events.Reserved("s", "sample", Spend()),
        events.Sampled("s", "retry", 1, 1, Usage(), 0.0, ""),
        events.Judged("s", "r0", True, False, 0.0),
        events.Scored("s", "base-1", 1, 1, Usage(), 0.0),
        events.ToolRan("s", "till", False, 0.0),
        events.Decided("s", Decision("accept")),
        events.Escalated("s", None),
        events.Finished("s", Outcome("accepted")),
    ]


def test_a_log_is_read_and_written_as_before(tmp_path: Path) -> None:
    rows = read_log(states.STATES / "log.jsonl").rows
    assert json.loads(json.dumps([plain(x) for x in rows])) == MANIFEST["log"]
    ended = {name: load(Case, x["case"]) for name, x in CASES.items() if x["gives"]["outcome"] is not None}
    lines = [
        log_line(replace(case, step=replace(case.step, id=f"{case.step.id}/{name}")), model=rows[0].model, task="till")
        for name, case in ended.items()
    ]
    (tmp_path / "again.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    assert read_log(tmp_path / "again.jsonl").rows == rows


def test_a_belief_and_a_calibration_are_read_as_before(tmp_path: Path) -> None:
    says, path = MANIFEST["belief"], states.unpacked("budget.sqlite.gz", tmp_path)
    belief = Belief.from_json((states.STATES / "belief.json").read_bytes())
    assert belief.failures == says["failures"]
    stored = {name: SQLPolicyStore(f"sqlite:///{path}", name=name).load() for name in says["stored"]}
    assert {name: x.failures for name, x in stored.items()} == says["stored"]
    assert stored["default"] == belief == Belief.from_json(belief.to_json())
    policy = LearnedPolicy(belief=belief)
    assert [[x, policy.expected(x)] for x, _ in says["expected"]] == [
        [x, pytest.approx(y)] for x, y in says["expected"]
    ]
    calibration = Calibration.load(states.STATES / "calibration.json")
    z = calibration.z(dict.fromkeys(TWO_MODEL, 0.6), "two_model")
    assert {"name": calibration.name, "z": z} == MANIFEST["calibration"]
    assert Calibration.from_json(calibration.to_json()) == calibration


def test_accounts_and_holds_are_as_they_were_left(tmp_path: Path) -> None:
    store = parts.store_of(tmp_path, MANIFEST["clock"] + 60)
    seen = store.accounts()
    store.close()
    assert [plain(x) for x in seen] == MANIFEST["budget"]["accounts"]
    with sqlite3.connect(tmp_path / "budget.sqlite") as connection:
        holds = connection.execute("SELECT id, state, record IS NOT NULL FROM rfx_holds ORDER BY id").fetchall()
    named = ("open", "settled", "released", "lost")
    assert [[name, named[state], bool(kept)] for name, state, kept in holds] == MANIFEST["budget"]["holds"]


# What a later version writes: one field more in each record, one less, and a higher number.


def widened(record: Any, written: Any) -> Any:
    """What was ``written`` of ``record`` with a field in each record of it that this version does not know."""
    if is_dataclass(record):
        known = {f.name: widened(getattr(record, f.name), written[f.name]) for f in fields(record) if f.name in written}
        return {**written, **known, "later": {"seen": [1, None]}}
    if isinstance(record, Mapping):
        return {key: widened(record[key], value) for key, value in written.items()}
    if isinstance(record, (list, tuple)):
        return [widened(one, value) for one, value in zip(record, written, strict=True)]
    return written


def narrowed(record: Any, written: Any) -> Iterator[tuple[Any, Any]]:
    """What was ``written`` without one of the fields that have a default, and how that is to be read; for each."""
    if is_dataclass(record):
        for one in fields(record):
            if one.name not in written:
                continue
            if one.default is not MISSING or one.default_factory is not MISSING:
                rest = {key: value for key, value in written.items() if key != one.name}
                yield rest, replace(record, **{one.name: _default(one)})
            for less, read in narrowed(getattr(record, one.name), written[one.name]):
                yield {**written, one.name: less}, replace(record, **{one.name: read})
    elif isinstance(record, Mapping):
        for key in record:
            for less, read in narrowed(record[key], written[key]):
                yield {**written, key: less}, {**record, key: read}
    elif isinstance(record, (list, tuple)):
        for i in range(len(record)):
            for less, read in narrowed(record[i], written[i]):
                yield [*written[:i], less, *written[i + 1 :]], (*record[:i], read, *record[i + 1 :])


def _later() -> dict[str, Any]:
    """Records of every kind, with every field set in one of them."""
    rich = load(Case, CASES["escalated"]["case"])
    said = (False, "40", 0.5, "it is not 42", "7 * 6 is no 40")
    opinions = (Opinion("till", False, (0.9, 0.1)),)
    verdict = Verdict(*said, weak=True, usage=Usage(40, 10, 1), kind="wrong", rates=(0.9, 0.1), opinions=opinions)
    last = replace(rich.rollouts[-1], verdict=verdict, kind="wrong")
    outcome = Outcome("rescued", "42", "42", "tool", 0.9, "41", True, "passed", "r1 passed.", ("r0",))
    assert rich.diagnosis is not None
    diagnosis = replace(rich.diagnosis, passes=1, cost={"tool": Spend(tokens=3)}, passed="r1", blocked="x")
    known = {"kinds": {"cut": 1, "wrong": 2}, "kind": "wrong", "told": True}
    diagnosis = replace(diagnosis, blocked_by="budget:usd", task="till", failed={"tool": 2}, turn=3, **known)
    called = {
        "nodes": {"tool": "tool_verify"},
        "words": {"tool": "a check with the tool"},
        "priors": {"tool": "built-in prior"},
        "priced": True,
    }
    diagnosis = replace(diagnosis, unavailable={"extend": "it was not cut"}, measurable=True, **called)
    decision = replace(rich.decisions[0], from_junction=True, budget_after={"attempts": 3}, **known)
    attempt = Attempt("tool", 2, 1, 1, 5, "a note", "wrong", told=True)
    return {
        "case": replace(
            rich,
            step=replace(rich.step, task="till"),
            ledger=replace(rich.ledger, reserved=Spend(samples=1), by_model={"small-1": Spend(tokens=5, calls=1)}),
            rollouts=(*rich.rollouts[:-1], last),
            attempts=(*rich.attempts[:-1], attempt),
            diagnosis=diagnosis,
            decisions=(decision, *rich.decisions[1:]),
            outcome=outcome,
            blocked="it is down",
            blocked_by="sampler_error",
            holds=3,
            notes=("a note",),
            run_id="run-1",
            before=Spend(attempts=1),
            operations=(Operation("verify", Spend(tokens=3), "tool", "judge", 1, ("tokens",)),),
            plain_retry=PlainRetry((0.5, 1.5), Spend(tokens=9), 4, 1),
        ),
        "finished": load(Case, CASES["rescued-dense_steer"]["case"]),
        "step": Step.of("What is 6 times 7?", expected="42", id="six", task="till"),
        "outcome": outcome,
        "ask": Ask(1.0, 2.0, "approve"),
        "sample": SampleResult((last,), Usage(1, 2, 3), ("a note",)),
        "score": ScoreResult((None,), Usage(1, 2, 3), ("a note",)),
        "tool": ToolResult("42", "6*7", "none", 0.1),
        "verdict": verdict,
        "decision": decision,
        "attempt": attempt,
        "diagnosis": diagnosis,
        "agreement": Agreement(4, 2, 0.5, 0.7, "40"),
        "ledger": rich.ledger,
        "budget": RetryBudget(attempts=3, usd=0.5),
    }


LATER = _later()


def test_every_field_is_tried() -> None:
    """Or the next three tests say nothing of it."""
    set_: dict[type, set[str]] = {}

    def look(record: Any) -> None:
        if is_dataclass(record):
            names = {f.name for f in fields(record) if getattr(record, f.name) != _default(f)}
            set_[type(record)] = set_.get(type(record), set()) | names
            for one in fields(record):
                look(getattr(record, one.name))
        elif isinstance(record, (Mapping, list, tuple)):
            for one in record.values() if isinstance(record, Mapping) else record:
                look(one)

    for record in LATER.values():
        look(record)
    raw = {Rollout: {"prompt_ids", "tokens", "logprobs"}}  # in no state
    kinds = (Case, Step, Outcome, Ask, Rollout, Verdict, Attempt, Ledger, Agreement, Decision, Diagnosis, ToolResult)
    kinds = (*kinds, Operation, PlainRetry)
    for kind in kinds:
        assert set_[kind] == {f.name for f in fields(kind)} - raw.get(kind, set()), kind


@pytest.mark.parametrize("name", LATER)
@pytest.mark.parametrize("schema", [SCHEMA, SCHEMA + 1])
def test_what_a_later_version_adds_is_ignored(name: str, schema: int) -> None:
    record = LATER[name]
    written = {**widened(record, plain(record)), "schema": schema}
    assert json.dumps(written).count('"later"') >= 1
    assert plain(load(type(record), written)) == plain(record)
    assert plain(load(type(record), json.loads(json.dumps(written)))) == plain(record)


@pytest.mark.parametrize("name", LATER)
def test_what_a_later_version_leaves_out_has_its_default(name: str) -> None:
    record = LATER[name]
    tried = 0
    for written, read in narrowed(record, plain(record)):
        assert plain(load(type(record), {**written, "schema": SCHEMA})) == plain(read)
        tried += 1
    assert tried >= (100 if isinstance(record, Case) else 2)


def _as_later(case: Any) -> Any:
    read = load(Case, case)
    return {**widened(read, dump(read)), "schema": SCHEMA + 1}


LATER_STATES: list[Any] = [
    ("alone-resample", "rescued", "recovery", _as_later),
    ("alone-resample", "asked", "step", lambda step: {**widened(read := load(Step, step), plain(read)), "schema": 3}),
    ("alone-paused", "edit", "recovery", _as_later),
    ("parent-paused", "approve", "recovery", _as_later),
    ("behind-paused", "edit", "recovery", _as_later),
    ("agent-paused", "edit", "rfx_open", lambda x: {**x, "case": _as_later(x["case"]), "later": 1, "schema": 3}),
    ("agent-finished", "third", "rfx_run", lambda x: {**x, "later": {"seen": 1}, "spent": {**x["spent"], "watts": 7}}),
]


@both
@pytest.mark.parametrize(("name", "way", "channel", "change"), LATER_STATES)
def test_a_state_of_a_later_version_goes_on(
    name: str, way: str, channel: str, change: Callable[[Any], Any], mode: str, tmp_path: Path
) -> None:
    (how,) = (x for x in THREADS[name]["then"] if x["name"] == way)
    opened = Opened(name, changed(name, channel, change), tmp_path, how)
    gave = opened.went_on(how) if mode == "sync" else asyncio.run(opened.awent_on(how))
    assert_same(gave, how["gives"])


def changed(name: str, channel: str, change: Callable[[Any], Any]) -> InMemorySaver:
    """The recorded checkpoints, with what a thread has in one of its channels changed, wherever that is."""
    saver, found = memory_of(name), 0
    for key, typed in saver.blobs.items():
        if key[0] == name and key[2] == channel and typed[0] != "empty" and (value := saver.serde.loads_typed(typed)):
            saver.blobs[key] = saver.serde.dumps_typed(change(value))
            found += 1
    assert found
    return saver


class Person(Escalator):
    """Gives one reply."""

    def __init__(self, reply: Any) -> None:
        self.reply, self.asked = reply, 0

    def escalate(self, payload: Any) -> Any:
        """The reply."""
        self.asked += 1
        return self.reply


APPROVE, REJECT = {"decisions": [{"type": "approve"}]}, {"decisions": [{"type": "reject"}]}
GIVES = {"sample": SampleResult, "tool": ToolResult, "verify": Verdict, "score": ScoreResult, "escalate": Ask}


@both
@pytest.mark.parametrize("change", ["as it is", "wider", "higher"])
def test_records_in_a_store_outlive_a_version(change: str, mode: str, tmp_path: Path) -> None:
    """This version's own: those of 0.1 are in the orders."""
    texts = [
        "Answer: 11.45",
        "Answer: 11.75",
        "Answer: 12.25",
        "7 * 1.35 + 3 * 0.85",
        *[f"Answer: {i}" for i in range(9)],
    ]
    way = {"script": {"sampler": [{"text": x, "id": f"said-{i}"} for i, x in enumerate(texts)]}, "at": 60.0}
    way["script"]["steerer"] = [{"text": "Answer: 11.95", "id": "steered-0"}]

    def run(person: Person, way: Mapping[str, Any]) -> tuple[Case, dict[str, Any]]:
        order = Order("order-19", tmp_path, way)
        recovery: Recovery = replace(order.recovery, escalator=person)
        if mode == "sync":
            case = recovery.run(*order.given, run_id="order-99")
        else:
            case = asyncio.run(recovery.arun(*order.given, run_id="order-99"))
        return case, order.gave(case)

    first, gave = run(Person(APPROVE), way)
    assert first.outcome is not None
    assert first.outcome.status == "human"
    assert gave["accounts"]
    if change != "as it is":
        with sqlite3.connect(tmp_path / "budget.sqlite") as connection:
            held = "SELECT id, record FROM rfx_holds WHERE id LIKE 'order-99/%' AND record IS NOT NULL"
            rows = connection.execute(held).fetchall()
            assert {x.split("/")[2] for x, _ in rows if x.count("/") == 3} == {"sample", "tool", "verify", "escalate"}
            for name, record in rows:
                later = _record_of_later(name, json.loads(record), change)
                connection.execute("UPDATE rfx_holds SET record = ? WHERE id = ?", (json.dumps(later).encode(), name))
    person = Person(REJECT)
    second, again = run(person, {"script": {}, "at": 70.0})
    assert (again["asked"], again["accounts"], person.asked) == (0, {}, 1)
    assert plain(second.outcome) == plain(first.outcome)  # the first answer stands
    assert second.ask == first.ask
    assert_same(
        {key: again["case"][key] for key in ("spent", "attempts", "rollouts", "holds")},
        {key: gave["case"][key] for key in ("spent", "attempts", "rollouts", "holds")},
    )


def _record_of_later(name: str, record: Any, change: str) -> Any:
    """A record of the store as a later version writes it."""
    if change == "higher":
        return {**record, "schema": record["schema"] + 1}
    if name.endswith("/answer"):
        return widened(load(Outcome, record), record)
    kind = GIVES[name.split("/")[2]]
    values = [widened(load(kind, x), x) for x in record["values"]]
    return {**record, "values": values, "spent": {**record["spent"], "watts": 7}, "later": [1]}


def test_an_outcome_of_a_later_version_is_read() -> None:
    outcome, case = LATER["outcome"], LATER["case"]
    state = {"outcome": widened(outcome, plain(outcome)), "recovery": _as_later(dump(case)), "later": 1}
    assert outcome_of(state) == outcome
    assert plain(case_of(state)) == plain(case)


# What cannot be read.

GARBAGE: dict[str, Callable[[Any], Any]] = {
    "a list": lambda case: [1, 2],
    "a number": lambda case: 7,
    "nothing": lambda case: {},
    "no text": lambda case: {**case, "rollouts": [{"id": "r0"}]},
    "another status": lambda case: {**case, "outcome": {"status": "sold"}},
    "another ask": lambda case: {**case, "ask": 7},
    "no decisions": lambda case: {**case, "decisions": []},
}
garbled = pytest.mark.parametrize("garbage", GARBAGE)
MORE = {"sampler": [{"text": f"Answer: {i}", "id": f"more-{i}"} for i in range(20)]}
GOES_ON = {
    "resample": {"do": "go on", "script": MORE, "at": 60.0},
    "paused": {"do": "resume", "reply": APPROVE, "script": MORE, "at": 60.0},
}
unreadable_threads = pytest.mark.parametrize(
    ("name", "channel"),
    [
        ("alone-resample", "recovery"),
        ("alone-paused", "recovery"),
        ("shared-paused", "recovery"),
        ("parent-resample", "recovery"),
        ("parent-paused", "recovery"),
        ("behind-resample", "recovery"),
        ("behind-paused", "recovery"),
    ],
)


def assert_unreadable(outcome: Outcome) -> None:
    """It is the outcome of what cannot be read, and says to a person what to do."""
    assert (outcome.status, outcome.reason, outcome.ok, outcome.text) == ("unresolved", "unreadable", False, None)
    assert re.search("cannot read .*start the step again", outcome.sentence)


def invoked(opened: Opened, given: Any, mode: str) -> Any:
    """What the graph gives."""
    if mode == "sync":
        return opened.compiled.invoke(given, opened.config, durability="sync")
    return asyncio.run(opened.compiled.ainvoke(given, opened.config, durability="sync"))


@both
@garbled
@unreadable_threads
def test_an_unreadable_case_ends_its_thread(name: str, channel: str, garbage: str, mode: str, tmp_path: Path) -> None:
    way = GOES_ON[name.split("-")[1]]
    opened = Opened(name, changed(name, channel, GARBAGE[garbage]), tmp_path, way)
    before = accounts(opened.store) if opened.store is not None else {}
    gave = invoked(opened, opened.given(way), mode)
    assert_unreadable(outcome_of(gave))
    state = opened.compiled.get_state(opened.config)
    assert (state.next, state.interrupts, opened.model.requests) == ((), (), [])
    if name.startswith("alone"):  # the case is left as it was, for a version that can read it
        assert state.values["recovery"] == GARBAGE[garbage](_recovery(name))
        assert case_of(gave).outcome is not None or garbage == "no decisions"
    else:
        assert "unresolved" in state.values.get("filed", "unresolved")
    if opened.store is not None:
        assert parts.changed(before, accounts(opened.store)) == {}
        opened.store.close()


def _recovery(name: str) -> Any:
    saver = memory_of(name)
    return _values(saver.get_tuple({"configurable": {"thread_id": name}}))["recovery"]


@both
@pytest.mark.parametrize("garbage", ["a list", "no text"])
@pytest.mark.parametrize("name", ["behind-resample", "behind-paused"])
def test_an_unreadable_case_behind_a_node_raises_where_no_key_takes_it(
    name: str, garbage: str, mode: str, tmp_path: Path
) -> None:
    way, entry, saver = GOES_ON[name.split("-")[1]], THREADS[name]["parts"], changed(name, "recovery", GARBAGE[garbage])
    options = parts.options_of(entry, way["script"], now=MANIFEST["clock"] + 60)
    model = parts.Model(MORE["sampler"])
    opened = Opened(name, saver, tmp_path, way)
    recovery = Recovery(model, **{"temperature": 0.6} | options)
    opened.compiled = parts.behind(recovery, entry["says"]).compile(checkpointer=saver)
    with pytest.raises(Unresolved, match="start the step again") as raised:
        invoked(opened, opened.given(way), mode)
    assert_unreadable(raised.value.case.outcome)
    assert model.requests == []


@both
@garbled
@pytest.mark.parametrize("name", ["alone-finished", "alone-human"])
def test_an_unreadable_case_of_an_earlier_run_is_left_alone(name: str, garbage: str, mode: str, tmp_path: Path) -> None:
    (again,) = (x for x in THREADS[name]["then"] if x["name"] == "again")
    opened = Opened(name, changed(name, "recovery", GARBAGE[garbage]), tmp_path, again)
    gave = invoked(opened, opened.given(again), mode)
    assert_same(gave["outcome"], again["gives"]["stands"]["outcome"])
    assert_same(summary(case_of(gave)), again["gives"]["stands"]["case"])
    assert len(opened.model.requests) == len(again["gives"]["asked"])


OPEN_GARBAGE: dict[str, Callable[[Any], Any]] = {
    "a list": lambda kept: [1, 2],
    "a number": lambda kept: 7,
    "no message": lambda kept: {key: value for key, value in kept.items() if key != "message"} | {"case": 7},
    "no marks": lambda kept: {key: value for key, value in kept.items() if key != "marks"} | {"case": 7},
    "no case": lambda kept: {key: value for key, value in kept.items() if key != "case"},
    "no rollouts": lambda kept: {**kept, "case": {**kept["case"], "rollouts": []}},
    **{
        f"case: {name}": lambda kept, change=change: {**kept, "case": change(kept["case"])}
        for name, change in GARBAGE.items()
    },
}


@both
@pytest.mark.parametrize("on_unresolved", ["return", "raise"])
@pytest.mark.parametrize("garbage", OPEN_GARBAGE)
def test_an_unreadable_open_case_ends_the_agents_question(
    garbage: str, on_unresolved: str, mode: str, tmp_path: Path
) -> None:
    name = "agent-paused"
    way = {**GOES_ON["paused"], "script": {"chat": [{"text": "11,85 €", "id": "new-1"}]}}
    way["parts"] = {"middleware": {"interrupts": True, "on_unresolved": on_unresolved}}
    opened = Opened(name, changed(name, "rfx_open", OPEN_GARBAGE[garbage]), tmp_path, way)
    if on_unresolved == "return":
        last = invoked(opened, opened.given(way), mode)["messages"][-1]
        state = opened.compiled.get_state(opened.config)
        assert (state.next, state.values.get("rfx_open")) == ((), None)
        assert (last.text, last.id) == ("11,75 €", "said-3")
        assert last.response_metadata["rfx"]["outcome"] == "unresolved"
        assert state.values["rfx_thread"]["unresolved"] == 1
    else:
        with pytest.raises(Unresolved, match="start the step again") as raised:
            invoked(opened, opened.given(way), mode)
        assert_unreadable(raised.value.case.outcome)
    assert opened.model.asked == 0
    # The thread goes on with the next thing that the user says.
    asks = parts.input_of("agent", {"asks": "Nochmal, bitte?", "id": "asked-3"})
    assert invoked(opened, asks, mode)["messages"][-1].text == "11,85 €"
    assert opened.compiled.get_state(opened.config).values.get("rfx_open") is None


@pytest.mark.parametrize("given", [[1, 2], 7, None, {}, {"step": 5}, {"step": {"messages": []}}])
def test_what_is_no_case_is_named(given: Any) -> None:
    with pytest.raises(StateError, match=r"cannot read a Case of schema .* start the step again"):
        load(Case, given)
