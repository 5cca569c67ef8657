"""What more than one command has: options, how it says that it failed, and how it shows what is untrusted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rfx_agent.errors import RfxError
from rfx_agent.fence import visible
from rfx_agent.lab.common import OnBad

__all__ = ["BadRows", "Engine", "Json", "Screen", "plain", "reported", "table", "warn"]

_SHOWN = 5  # malformed rows that are named one by one


Json = Annotated[bool, typer.Option("--json", help="One JSON object as the last line of standard output.")]
BadRows = Annotated[OnBad, typer.Option(help="What a malformed row does: end the command, or be skipped and named.")]
Engine: TypeAlias = Literal["threads", "ray"]


class Screen(Console):
    """A console that shows text as it is: no markup, no emoji codes, and nothing that a terminal would obey."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """See ``Console``; what is printed and each cell of a table come here."""
        return super().render_str(visible(text), **options)


@contextmanager
def reported() -> Iterator[Console]:
    """A console on standard error. One of our errors, or a file's, is a line there, and ends the command with 1."""
    console = Screen(stderr=True, soft_wrap=True)
    try:
        yield console
    except RfxError as error:
        why = str(error)
    except OSError as error:
        why = f"{error.filename or ''}: {error.strerror or error}"
    else:
        return
    console.print(f"rfx: {why}", style="red")
    raise typer.Exit(1)


def warn(console: Console, path: Path, bad: Sequence[tuple[int, str]]) -> None:
    """Name the rows that were skipped."""
    for row, why in bad[:_SHOWN]:
        console.print(f"skipped: {path} row {row}: {plain(why, 200)}", style="yellow")
    if len(bad) > _SHOWN:
        console.print(f"skipped: {len(bad)} rows in all", style="yellow")


def table(title: str, *headings: str, left: int = 1) -> Table:
    """An empty table: its first ``left`` columns are for names, the others for figures."""
    made = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, heading in enumerate(headings):
        made.add_column(heading, justify="left" if i < left else "right", overflow="fold")
    return made


def plain(text: str, limit: int = 24) -> str:
    """``text`` on one line, without anything a terminal would obey."""
    clean = "".join(c if c.isprintable() else " " for c in text)
    clean = " ".join(clean.split())
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"
