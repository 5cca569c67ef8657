"""What the lab's readers share: their error, and libraries that are only loaded when they are needed."""

from __future__ import annotations

import importlib
from typing import Any, Literal, TypeAlias

from rfx_agent._errors import ConfigError, RfxError

__all__ = ["BadRow", "OnBad", "ProfileError", "check_on_bad", "need"]

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


def need(module: str, extra: str) -> Any:
    """The module, imported now.

    Raises:
        ConfigError: it is not installed; names the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        name = module.split(".")[0]
        raise ConfigError(f"{name} is not installed; install it with: pip install 'rfx-agent[{extra}]'") from error


def check_on_bad(on_bad: str) -> None:
    """Refuse what is neither of the two ways.

    Raises:
        ConfigError: another ``on_bad``.
    """
    if on_bad not in ("raise", "skip"):
        raise ConfigError(f"on_bad is {on_bad!r}; choose 'raise' or 'skip'")
