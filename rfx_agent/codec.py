"""Records as plain values and back: for checkpoints, stores, events and logs.

What is written carries the number of its schema. A reader ignores fields that it does not know, and fills in those that
are missing or hold a word that only a later version knows, so that neighbouring versions read each other. A case whose
outcome has a status that is such a word is not read. ``load`` renames what an older schema called differently.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from rfx_agent.case import Case, Outcome
from rfx_agent.errors import StateError
from rfx_agent.records import Step

__all__ = ["SCHEMA", "dump", "load", "load_case", "plain", "unreadable"]

SCHEMA = 2
"""Number of the schema that this version writes. Version 0.1 wrote schema 1, without a number."""

T = TypeVar("T")


def plain(record: Any, *, mode: Literal["python", "json"] = "python") -> dict[str, Any]:
    """``record``, a dataclass, as plain values. Fields that hold their default are left out.

    With ``mode="json"`` tuples become lists, and what JSON does not know is an error. By default both stay as they
    are: what a step is compared with may be any object.

    Example:
        >>> from rfx_agent.records import Usage
        >>> plain(Usage(prompt_tokens=7))
        {'prompt_tokens': 7}
    """
    # Compared with a walk over dataclasses.fields, pydantic needs half the time to write a case of nine rollouts, and
    # a tenth to read it (0.05 ms each); building the adapter takes 15 ms, once, when the first case is written.
    write = _adapter(type(record)).dump_python  # type: ignore[arg-type]  # classes are hashable
    # What a port gave is written as it is; ``load`` says what is wrong with it.
    made: dict[str, Any] = write(record, mode=mode, exclude_defaults=True, warnings=False, fallback=_native)
    if mode == "python":
        for key, value in made.items():
            if key not in ("step", "expected"):
                made[key] = _native(value)
    if mode == "python" and isinstance(record, Step | Case):  # what a step is compared with may be any object
        step, written = (record, made) if isinstance(record, Step) else (record.step, made["step"])
        if "expected" in written:
            written["expected"] = step.expected
    return made


def dump(record: Any) -> dict[str, Any]:
    """``record`` as a mapping of plain values that JSON can hold, with a schema number; ``load`` reads it back."""
    return {"schema": SCHEMA, **plain(record)}


def load(cls: type[T], data: Any) -> T:
    """The record that ``dump`` or ``plain`` wrote, in this version or in the one before.

    Args:
        cls: the record's class.
        data: a mapping of plain values.

    Raises:
        StateError: ``data`` is no such record; names the class, the field and what stands there.
    """
    if isinstance(data, Mapping) and (renamed := _RENAMED.get(cls.__name__)) is not None:
        data = renamed(data)
    read = _adapter(cls).validate_python  # type: ignore[arg-type]  # classes are hashable
    try:
        try:
            made: T = read(data)
        except ValidationError as error:
            made = read(_without_unknown(data, error))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole value"
        schema = data.get("schema", "none") if isinstance(data, Mapping) else "none"
        raise StateError(
            f"state: cannot read a {cls.__name__} of schema {schema} with schema {SCHEMA}: {place}: {first['msg']}; "
            "start the step again, or resume it with the version that wrote it"
        ) from error
    return made


def load_case(data: Any, *, answered: bool = False) -> Case:
    """A case that was under way, as a node takes it from a state.

    Args:
        data: a mapping of plain values.
        answered: whether it must hold an answer, as a case of an agent does.

    Raises:
        StateError: it is no case, or nothing was decided about it yet.
    """
    case = load(Case, data)
    if not case.decisions or (answered and not case.rollouts):
        raise StateError("state: cannot read a Case: it has no decision, or no answer; start the step again")
    return case


def unreadable(error: StateError) -> Case:
    """What a case comes to that this version cannot read: its outcome says why, and what a person can do."""
    outcome = Outcome("unresolved", reason="unreadable", sentence=f"Unresolved: {error}.")
    return Case(Step.of("(the case cannot be read)"), outcome=outcome)


def _native(value: Any) -> Any:
    """``value`` with numpy's numbers as Python's own: a verifier's score may be one, and no checkpoint takes it."""
    kind = type(value)
    if kind in _NATIVE:
        return value
    if kind is dict:
        for key, one in value.items():
            if type(one) not in _NATIVE:
                value[key] = _native(one)
    elif kind is tuple or kind is list:
        return kind(map(_native, value)) if any(type(one) not in _NATIVE for one in value) else value
    elif kind.__module__ == "numpy" and not getattr(value, "shape", None):
        return value.item()
    return value


_NATIVE = frozenset({str, int, float, bool, type(None)})


def _without_unknown(data: Any, error: ValidationError) -> Any:
    """``data`` without the words that this version does not know, such as a new kind: their fields get the defaults."""
    for one in error.errors(include_url=False):
        if one["type"] == "literal_error" and isinstance(one["input"], str):
            data = _without(data, one["loc"])
    return data


def _without(data: Any, place: tuple[int | str, ...]) -> Any:
    if isinstance(data, Mapping) and place[0] in data:
        rest = {key: value for key, value in data.items() if key != place[0]}
        return rest if len(place) == 1 else {**rest, place[0]: _without(data[place[0]], place[1:])}
    if isinstance(data, (list, tuple)) and isinstance(place[0], int) and len(place) > 1:
        return [_without(x, place[1:]) if i == place[0] else x for i, x in enumerate(data)]
    return data


@cache
def _adapter(cls: Any) -> TypeAdapter[Any]:
    return TypeAdapter(cls)


def _rename(old: str, new: str) -> Callable[[Any], Any]:
    def renamed(data: Any) -> Any:
        if not isinstance(data, Mapping) or old not in data or new in data:
            return data
        return {(new if key == old else key): value for key, value in data.items()}

    return renamed


_step = _rename("reference", "expected")
_remedy = _rename("operator", "remedy")


def _each(data: Mapping[str, Any], key: str, renamed: Callable[[Any], Any]) -> dict[str, Any]:
    items = data.get(key)
    return {key: [renamed(x) for x in items]} if isinstance(items, (list, tuple)) else {}


def _case(data: Any) -> Any:
    if "schema" in data:
        return data
    lists = [_each(data, key, _remedy) for key in ("rollouts", "attempts", "decisions")]
    return {**data, **lists[0], **lists[1], **lists[2], "step": _step(data.get("step"))}


def _sample_result(data: Any) -> Any:
    return {**data, **_each(data, "rollouts", _remedy)}


def _decided(data: Any) -> Any:
    return {**data, "decision": _remedy(data.get("decision"))}


# What schema 1 called differently, by the class that is read. A step may be written by hand, without a number.
_RENAMED: Mapping[str, Callable[[Any], Any]] = {
    "Attempt": _remedy,
    "Case": _case,
    "Decided": _decided,
    "Decision": _remedy,
    "Rollout": _remedy,
    "SampleResult": _sample_result,
    "Sampled": _remedy,
    "Step": _step,
}
