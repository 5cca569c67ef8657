"""Records as plain values: what is left out, what is ignored, what is refused, and the number of the schema."""

from dataclasses import MISSING, fields, is_dataclass, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rfx_agent import Case, ConfigError, Outcome, RetryBudget, Rollout, Step, Verdict
from rfx_agent.bill import Operation, PlainRetry
from rfx_agent.budgets.step import Ledger
from rfx_agent.case import Ask, Attempt, Decision, Diagnosis
from rfx_agent.codec import SCHEMA, dump, load, plain
from rfx_agent.errors import StateError
from rfx_agent.evidence.tables import TopLogprobs
from rfx_agent.records import Spend, Usage

TEXTS = st.text(max_size=20)
COUNTS = st.integers(0, 9)
ROLLOUTS = st.builds(
    Rollout,
    text=TEXTS,
    id=TEXTS,
    round=st.none() | COUNTS,
    remedy=st.sampled_from(["retry", "tool", "my_own"]),
    usage=st.builds(Usage, COUNTS, COUNTS, COUNTS),
    verdict=st.none() | st.builds(Verdict, st.booleans(), answer=st.none() | TEXTS, feedback=st.none() | TEXTS),
    features=st.none() | st.dictionaries(TEXTS, st.floats(allow_nan=False)),
    kind=st.sampled_from([None, "cut", "wrong"]),
)
SPENDS = st.builds(Spend, attempts=COUNTS, tokens=COUNTS, usd=st.floats(0, 9))
CASES = st.builds(
    Case,
    step=st.builds(lambda t, e, k: Step.of(t, expected=e, task=k), TEXTS, st.none() | TEXTS | st.sets(COUNTS), TEXTS),
    ledger=st.builds(
        Ledger,
        budget=st.builds(RetryBudget, attempts=st.none() | COUNTS),
        spent=SPENDS,
        by_model=st.dictionaries(TEXTS, SPENDS, max_size=2),
    ),
    rollouts=st.lists(ROLLOUTS, max_size=3).map(tuple),
    attempts=st.lists(st.builds(Attempt, remedy=TEXTS, misses=COUNTS, note=TEXTS), max_size=2).map(tuple),
    diagnosis=st.none() | st.builds(Diagnosis, step_id=TEXTS, cost=st.dictionaries(TEXTS, SPENDS, max_size=2)),
    decisions=st.lists(st.builds(Decision, route=TEXTS, remedy=st.none() | TEXTS), max_size=2).map(tuple),
    ask=st.none() | st.builds(Ask, opened=st.floats(0, 9)),
    outcome=st.none() | st.builds(Outcome, st.just("unconfirmed"), text=TEXTS, confidence=st.floats(0, 1)),
    notes=st.lists(TEXTS, max_size=2).map(tuple),
    operations=st.lists(st.builds(Operation, st.just("tool"), SPENDS, TEXTS, TEXTS, COUNTS), max_size=2).map(tuple),
    plain_retry=st.none() | st.builds(PlainRetry, st.tuples(st.floats(0.1, 9), st.floats(0.1, 9)), SPENDS, COUNTS),
)


@given(CASES)
def test_what_is_written_is_read_back(case: Case) -> None:
    assert dump(case)["schema"] == SCHEMA
    assert load(Case, dump(case)) == case
    assert load(Case, plain(case)) == case


@given(CASES)
def test_unknown_fields_are_ignored_at_every_level(case: Case) -> None:
    def more(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: more(item) for key, item in value.items()} | {"from_a_later_version": {"x": [1]}}
        return [more(item) for item in value] if isinstance(value, (list, tuple)) else value

    written = dump(case)
    grown = more({key: value for key, value in written.items() if key != "step"}) | {"step": written["step"]}
    for free in ("by_model", "features", "cost"):  # mappings with names of the user's, where nothing is unknown
        for holder in (grown.get("ledger", {}), grown.get("diagnosis") or {}, *grown.get("rollouts", ())):
            if isinstance(holder.get(free), dict):
                holder[free].pop("from_a_later_version", None)
    assert load(Case, grown) == case


def test_a_word_that_only_a_later_version_knows_is_read_as_nothing_said() -> None:
    case = Case(
        Step.of("q", id="s"),
        rollouts=(Rollout("a", kind="cut", verdict=Verdict(False)), Rollout("b", kind="wrong")),
        attempts=(Attempt("retry", kind="cut"),),
        diagnosis=Diagnosis("s", evidence="one_model", kind="wrong"),
        decisions=(Decision("resample", evidence="one_model", regime="stochastic"), Decision("accept")),
        ask=Ask(1.0, default="approve"),
    )
    later = dump(case)
    found: dict[tuple[str, ...], dict[str, Any]] = {
        ("kind",): later["rollouts"][0] | {},
        ("evidence", "regime"): later["decisions"][0] | {},
        ("default",): later["ask"] | {},
    }
    for names, record in found.items():
        record.update(dict.fromkeys(names, "word_of_version_9"))
    changed = later | {
        "rollouts": [found["kind",], later["rollouts"][1]],
        "decisions": (found["evidence", "regime"], later["decisions"][1]),
        "ask": found["default",],
    }
    assert load(Case, changed) == replace(
        case,
        rollouts=(replace(case.rollouts[0], kind=None), case.rollouts[1]),
        decisions=(Decision("resample"), Decision("accept")),
        ask=Ask(1.0),
    )
    with pytest.raises(StateError, match="holds"):
        load(Case, changed | {"holds": "many"})
    with pytest.raises(StateError, match=r"ask\.default"):  # no word
        load(Case, later | {"ask": {"opened": 1.0, "default": 3}})


def test_an_unknown_word_in_any_field_of_words_leaves_the_case_readable() -> None:
    spent = Spend(tokens=7)
    case = Case(
        Step.of("q", id="s"),
        Ledger(spent=spent),
        rollouts=(Rollout("a", kind="cut", verdict=Verdict(False, kind="wrong")),),
        attempts=(Attempt("retry", kind="cut"),),
        diagnosis=Diagnosis("s", evidence="one_model", kind="wrong"),
        decisions=(Decision("resample", evidence="one_model", regime="stochastic"),),
        ask=Ask(1.0, default="approve"),
        outcome=Outcome("rescued", text="a", sentence="Rescued."),
        operations=(Operation("tool", spent, "tool", "m"),),
    )
    found = set()

    def changed(record: Any) -> Any:
        """``record`` as plain values, with an unknown word in each field that takes one of some words."""
        if isinstance(record, (list, tuple)):
            return [changed(x) for x in record]
        if not is_dataclass(record) or isinstance(record, type):
            return record
        made = {}
        for name, hint in get_type_hints(type(record)).items():
            if words(hint):
                found.add((type(record), name))
            if hasattr(record, name) and name in {f.name for f in fields(record)}:
                unknown = words(hint) and (type(record), name) != (Outcome, "status")  # it has no default
                made[name] = "word_of_version_9" if unknown else changed(getattr(record, name))
        return made

    read = load(Case, changed(case))
    all_records = records(Case, set()) - {TopLogprobs}  # never written
    assert found == {(c, n) for c in all_records for n, hint in get_type_hints(c).items() if words(hint)}
    assert read.outcome is not None
    assert (read.outcome.status, read.outcome.sentence) == ("rescued", "Rescued.")
    with pytest.raises(StateError, match=r"outcome\.status"):
        load(Case, changed(case) | {"outcome": {"status": "word_of_version_9"}})
    assert read.operations == (Operation("other", spent, "tool", "m"),)
    assert read.bill.spent == read.ledger.spent == spent


def words(hint: Any) -> bool:
    """Whether a field takes one of some words."""
    return get_origin(hint) is Literal or any(get_origin(x) is Literal for x in get_args(hint))


@pytest.mark.parametrize("mode", ["python", "json"])
def test_numbers_of_numpy_become_pythons_own(mode: Any) -> None:
    made = plain(
        Case(
            Step.of("q", expected=np.float32(0.5)),
            Ledger(RetryBudget(seconds=np.float64(60.5))),
            rollouts=(
                Rollout("a", verdict=Verdict(np.bool_(True), score=np.float32(0.5))),  # type: ignore[arg-type]
                Rollout("b", features={"spread": np.float64(0.25)}),
            ),
            decisions=(Decision("resample", posterior={"retry": (np.float64(1.5), np.int64(2))}),),
            ask=Ask(np.float64(3.5)),
        ),
        mode=mode,
    )

    def kinds(value: Any) -> set[type]:
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
        return {type(value)}.union(*map(kinds, inner))

    assert type(made["step"].pop("expected")) is (np.float32 if mode == "python" else float)  # may be any object
    assert kinds(made) <= {dict, list, tuple, str, int, float, bool}
    assert made["rollouts"][0]["verdict"] == {"passed": True, "score": 0.5}
    assert made["ask"] == {"opened": 3.5}


def records(kind: Any, seen: set[Any]) -> set[Any]:
    """Every record class that a case is made of."""
    for argument in (kind, *getattr(kind, "__args__", ())):
        if is_dataclass(argument) and argument not in seen:
            seen.add(argument)
            for hint in get_type_hints(argument).values():
                records(hint, seen)
        elif argument is not kind:
            records(argument, seen)
    return seen


def test_few_fields_have_no_default() -> None:
    """A field without one is a field that no later version may drop."""
    found = records(Case, set())
    needed = {f"{c.__name__}.{n}" for c in found - {TopLogprobs} for n in _needed(c)}  # never written
    assert needed == {
        *("Case.step", "Step.messages", "Rollout.text", "Verdict.passed", "Attempt.remedy", "Decision.route"),
        *("Diagnosis.step_id", "Ask.opened", "Outcome.status", "PlainRetry.posterior"),
    }


def _needed(kind: Any) -> list[str]:
    return [f.name for f in fields(kind) if f.init and f.default is MISSING and f.default_factory is MISSING]


def test_the_names_of_schema_1_are_read() -> None:
    case = load(
        Case,
        {
            "step": {"messages": [{"role": "user", "content": "q"}], "reference": "5", "id": "s"},
            "rollouts": [{"text": "a", "operator": "tool"}, {"text": "b"}],
            "attempts": [{"operator": "tool", "asked": 1, "got": 1}],
            "decisions": [{"route": "tool_verify", "operator": "tool", "regime": "structural"}],
        },
    )
    assert case.step.expected == "5"
    assert [x.remedy for x in (*case.rollouts, *case.attempts, *case.decisions)] == ["tool", "retry", "tool", "tool"]


@pytest.mark.parametrize(
    ("data", "place"),
    [
        (3, "the whole value"),
        ([], "the whole value"),
        ({}, "step"),
        ({"schema": 9, "step": {"messages": []}}, "step"),
        ({"step": {"messages": [{"role": "user", "content": "q"}]}, "rollouts": 3}, "rollouts"),
        ({"step": {"messages": [{"role": "user", "content": "q"}]}, "rollouts": [{"id": "r0"}]}, "rollouts.0.text"),
    ],
)
def test_what_is_no_case_names_the_place(data: Any, place: str) -> None:
    with pytest.raises(StateError, match=rf"cannot read a Case of .* with schema {SCHEMA}: {place}.*; start the"):
        load(Case, data)
    with pytest.raises(ConfigError):
        load(Case, data)
