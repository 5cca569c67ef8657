"""What more than one command has: options, and how it says that it failed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from rfx_agent._errors import RfxError

if TYPE_CHECKING:
    from rfx_agent.lab._common import OnBad

__all__ = ["Bad", "Engine", "Json", "reported"]

Json = Annotated[bool, typer.Option("--json", help="One JSON object as the last line of standard output.")]


class Engine(StrEnum):
    """What runs the batches of a large job."""

    threads = "threads"
    ray = "ray"


class Bad(StrEnum):
    """What a malformed row does."""

    fail = "raise"
    skip = "skip"

    @property
    def way(self) -> OnBad:
        """The same for the lab's readers."""
        return "skip" if self is Bad.skip else "raise"


@contextmanager
def reported(console: Console) -> Iterator[None]:
    """End the command with status 1 on one of our errors, its message on ``console`` and no traceback."""
    try:
        yield
    except RfxError as error:
        console.print(f"rfx: {error}", style="red", markup=False, highlight=False)
        raise typer.Exit(1) from None
