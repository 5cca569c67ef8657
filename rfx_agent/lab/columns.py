"""Which column of a profile is what. Names decide; a further column of numbers is the rates of a remedy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rfx_agent.lab.common import FEATURES, KINDS, REMEDIES, ProfileError, in_columns
from rfx_agent.lab.rows import IDENTIFIERS, as_number
from rfx_agent.records import REMEDY_NAME, Kind

if TYPE_CHECKING:
    import polars as pl

__all__ = ["COUNT", "Columns", "columns_of"]

COUNT = "n_failed_rollouts"

_BESIDE = ("_attempts", "_tokens")
_KIND = "kind_"
# What a dataset says of a failure or of a rollout; no remedy has such a name.
_OTHERS = frozenset(
    {
        *("prompt", "expected", "reference", "generator", "remedy", "operator", "attempt", "source", "seed"),
        *("temperature", "text", "answer", "passed", "score", "finish_reason", "seconds", "start", "junction", "peak"),
        *("error", "kind"),
    }
)


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns that are understood, by what they are.

    Attributes:
        features: trajectory features.
        rates: remedies; each column holds the share of its attempts that passed.
        attempts, tokens: the remedies that have ``<remedy>_attempts`` and ``<remedy>_tokens`` beside them.
        kinds: the kinds of failure that have a share, ``kind_<kind>``.
    """

    features: tuple[str, ...]
    rates: tuple[str, ...]
    attempts: tuple[str, ...]
    tokens: tuple[str, ...]
    kinds: tuple[Kind, ...]

    @property
    def counts(self) -> tuple[str, ...]:
        """The columns of whole numbers, ``COUNT`` first."""
        return (COUNT, *(f"{name}_attempts" for name in self.attempts))

    @property
    def amounts(self) -> tuple[str, ...]:
        """The columns of ``tokens``."""
        return tuple(f"{name}_tokens" for name in self.tokens)

    @property
    def shares(self) -> tuple[str, ...]:
        """The columns of ``kinds``."""
        return tuple(f"{_KIND}{kind}" for kind in self.kinds)

    @property
    def numbers(self) -> tuple[str, ...]:
        """All columns of numbers."""
        return (*self.counts, *self.features, *self.rates, *self.amounts, *self.shares)


def columns_of(pl: Any, frame: pl.LazyFrame, source: Path, *, typed: bool) -> Columns:
    """What the columns of ``frame`` are.

    A remedy's rates are in a column that has one of the names that always are remedies' (``lab.common.REMEDIES``), or
    has ``<name>_attempts`` or ``<name>_tokens`` beside it, or holds numbers under a name of [a-z0-9_] that means
    nothing else: no identifier, no feature, no column of a dataset, no ending ``_attempts`` or ``_tokens``, no
    beginning ``kind_``. Text, and a name that no remedy can have, is left alone.

    Args:
        pl: Polars.
        frame: the file.
        source: its name, for messages.
        typed: whether text is text; else a column holds numbers if at least half of its values are numbers.

    Raises:
        ProfileError: columns that are missing or of the wrong type, or that cannot be what their name says.
    """
    schema = dict(frame.collect_schema())
    features = _features(schema, source)
    given = in_columns(name for name in schema if name not in (*IDENTIFIERS, COUNT, *features, *_OTHERS))
    rest = [name for name in given if not name.endswith(_BESIDE) and not name.startswith(_KIND)]
    sure = {name for name in rest if name in REMEDIES or any(f"{name}{end}" in schema for end in _BESIDE)}
    if unnamed := [name for name in rest if name in sure and not REMEDY_NAME.fullmatch(name)]:
        why = f"column {unnamed[0]!r} has attempts or tokens beside it and no remedy's name; rename it to [a-z0-9_]"
        raise ProfileError(f"{source}: {why}", column=unnamed[0])
    kinds = tuple(kind for kind in KINDS if f"{_KIND}{kind}" in schema)
    odd = [name for name in given if name.startswith(_KIND) and name.removeprefix(_KIND) not in KINDS]
    asked = [name for name in rest if name not in sure and REMEDY_NAME.fullmatch(name)]
    outside = _outside(pl, frame, [n for n in (*asked, *odd) if schema[n].is_numeric() or _text(pl, schema[n], typed)])
    for name, share in outside.items():
        if name in odd:
            why = f"{name.removeprefix(_KIND)!r} is not a kind of failure; choose among {', '.join(KINDS)}"
        elif share > 0.5:
            why = (
                "most of its numbers lie outside [0, 1], and a column of numbers under a name of [a-z0-9_] that means "
                "nothing else is read as the rescue rates of a remedy of that name; drop it, or write its name with a "
                "capital letter to have it left alone"
            )
        else:
            continue
        raise ProfileError(f"{source}: column {name!r}: {why}", column=name)
    rates = tuple(name for name in rest if name in sure or name in outside)
    attempts, tokens = (tuple(n for n in rates if f"{n}{end}" in schema) for end in _BESIDE)
    columns = Columns(features, rates, attempts, tokens, kinds)
    _check_types(pl, schema, columns, source)
    return columns


def _features(schema: Mapping[str, Any], source: Path) -> tuple[str, ...]:
    """The features that are there; all of a kind of evidence, or none."""
    missing = [name for name in (*IDENTIFIERS, COUNT) if name not in schema]
    for names in FEATURES.values():
        there = [name for name in names if name in schema]
        missing += [name for name in names if there and name not in there]
    if missing:
        why = f"columns {missing} are missing; the file has {list(schema)}"
        if any(missing[0] in names for names in FEATURES.values()):
            why += " (features of one kind come together, or not at all)"
        raise ProfileError(f"{source}: {why}", column=missing[0])
    return tuple(name for names in FEATURES.values() for name in names if name in schema)


def _text(pl: Any, kind: Any, typed: bool) -> bool:
    return not typed and kind == pl.String


def _outside(pl: Any, frame: pl.LazyFrame, names: Sequence[str]) -> dict[str, float]:
    """Of those of ``names`` that hold numbers, the share of the numbers that lies outside [0, 1]."""
    if not names:
        return {}
    wanted = []
    for i, name in enumerate(names):
        raw, value = pl.col(name).cast(pl.String).str.strip_chars(), as_number(pl, name)
        wanted += [
            (raw.is_not_null() & (raw != "")).sum().alias(f"{i} given"),
            value.is_not_null().sum().alias(f"{i} numbers"),
            ((value < 0) | (value > 1)).sum().alias(f"{i} outside"),
        ]
    (found,) = frame.select(wanted).collect(engine="streaming").to_dicts()
    return {
        name: found[f"{i} outside"] / found[f"{i} numbers"]
        for i, name in enumerate(names)
        if found[f"{i} numbers"] and 2 * found[f"{i} numbers"] >= found[f"{i} given"]
    }


def _check_types(pl: Any, schema: Mapping[str, Any], columns: Columns, source: Path) -> None:
    for name in columns.numbers:
        if not (schema[name].is_numeric() or schema[name] == pl.String):
            raise ProfileError(f"{source}: column {name!r} is of type {schema[name]}; give numbers", column=name)
    for name in IDENTIFIERS:
        if not (schema[name].is_integer() or schema[name] in (pl.String, pl.Categorical)):
            raise ProfileError(f"{source}: column {name!r} is of type {schema[name]}; give text", column=name)
