"""What the lab's files share: names and columns, bad rows, lines that are read, files that are whole."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar, get_args

from rfx_agent.checks import among
from rfx_agent.errors import RfxError
from rfx_agent.evidence.features import ONE_MODEL, TWO_MODEL
from rfx_agent.records import Evidence, Kind

__all__ = [
    "FEATURES",
    "KINDS",
    "REMEDIES",
    "BadRow",
    "OnBad",
    "ProfileError",
    "check_on_bad",
    "in_columns",
    "read_lines",
    "whole_file",
]

T = TypeVar("T")

REMEDIES = (
    *("retry", "local_temp", "sparse_steer", "sparse_steer_random", "dense_steer", "tool"),
    *("extend", "revise", "delegate", "human"),
)
"""Remedies that come first among the columns of a profile and of a dataset. Any other may follow them."""

KINDS: tuple[Kind, ...] = get_args(Kind)
"""How a rollout may fail; ``kind_<kind>`` is the column of its share."""

FEATURES: Mapping[Evidence, tuple[str, ...]] = {"two_model": TWO_MODEL, "one_model": ONE_MODEL}
"""Names of the features of each kind of evidence that has any."""

BadRow: TypeAlias = tuple[int, str]
"""Number of a malformed row, counted from 1 after any header, and what is wrong with it."""

OnBad: TypeAlias = Literal["raise", "skip"]

_LONGEST = 1 << 20  # bytes of a line


class ProfileError(RfxError, ValueError):
    """A profile or an event log that cannot be read; names the file.

    Attributes:
        row: number of the malformed row, or None where the whole file is at fault.
        column: its column, or None.
    """

    def __init__(self, message: str, *, row: int | None = None, column: str | None = None) -> None:
        self.row = row
        self.column = column
        super().__init__(message)


def in_columns(names: Iterable[str]) -> list[str]:
    """``names`` without repeats, in the order of their columns: those of ``REMEDIES`` first."""
    given = dict.fromkeys(names)
    return [*(name for name in REMEDIES if name in given), *(name for name in given if name not in REMEDIES)]


def check_on_bad(on_bad: OnBad) -> None:
    """Refuse what is neither of the two ways.

    Raises:
        ConfigError: another ``on_bad``.
    """
    among("on_bad", on_bad, get_args(OnBad))


def read_lines(
    path: str | os.PathLike[str], parse: Callable[[bytes], T | str], *, on_bad: OnBad, what: str
) -> tuple[list[T], list[BadRow]]:
    """What ``parse`` makes of each line of a file, and what is wrong with the others; blank lines are left out.

    Args:
        path: the file; a line without end is not taken into memory.
        parse: gives the row, or as a text the field and what is wrong with it.
        on_bad: ``raise`` at the first malformed line, or ``skip`` them all and name each.
        what: what a line is to hold, for the message.

    Raises:
        ProfileError: a file that cannot be read, no usable line, or a malformed one; names its number and field.
        ConfigError: another ``on_bad``.
    """
    check_on_bad(on_bad)
    good: list[T] = []
    bad: list[BadRow] = []
    source = os.fspath(path)
    try:
        with Path(path).open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(_LONGEST + 1), b""), 1):
                found: T | str
                if len(line) > _LONGEST:
                    found, rest = f"line: longer than {_LONGEST} bytes", line
                    while rest and not rest.endswith(b"\n"):
                        rest = file.readline(_LONGEST)
                elif line.strip():
                    found = parse(line)
                else:
                    continue
                if not isinstance(found, str):
                    good.append(found)
                elif on_bad == "skip":
                    bad.append((number, found))
                else:
                    why = f"{source}: line {number}: {found}; mend it, or skip such lines (on_bad='skip')"
                    raise ProfileError(why, row=number, column=found.split(":", 1)[0])
    except OSError as error:
        raise ProfileError(f"{source}: {error.strerror or error}") from error
    if not good:
        raise ProfileError(f"{source}: no usable line; give at least one {what}")
    return good, bad


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """A new file to write. It replaces ``target`` at the end; after an error it is removed."""
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    os.close(handle)
    part = Path(name)
    try:
        yield part
        part.chmod(0o644)  # temporary files are private
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
