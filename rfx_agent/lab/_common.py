"""What the lab's readers share: their error, and what they do with a bad row."""

from __future__ import annotations

from typing import Literal, TypeAlias

from rfx_agent._errors import ConfigError, RfxError

__all__ = ["BadRow", "OnBad", "ProfileError", "check_on_bad"]

BadRow: TypeAlias = tuple[int, str]
"""Number of a malformed row, counted from 1 after any header, and what is wrong with it."""

OnBad: TypeAlias = Literal["raise", "skip"]


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


def check_on_bad(on_bad: str) -> None:
    """Refuse what is neither of the two ways.

    Raises:
        ConfigError: another ``on_bad``.
    """
    if on_bad not in ("raise", "skip"):
        raise ConfigError(f"on_bad is {on_bad!r}; choose 'raise' or 'skip'")
