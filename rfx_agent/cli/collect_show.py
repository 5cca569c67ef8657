"""What is seen of a collection: its progress, and what it gave."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from rfx_agent.cli.options import plain, table

if TYPE_CHECKING:
    from rfx_agent.lab.collect.run import Progress
    from rfx_agent.lab.dataset import Dataset

__all__ = ["CollectView", "rates", "summary"]

_OFTEN = 60.0  # seconds between two lines where there is no terminal


class CollectView:
    """A bar on a terminal; elsewhere a line at each phase, and one a minute."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Bar | None = None
        self._task: Any = None
        self._phase, self._told = "", 0.0

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[say]}"),
            )
            self._bar = Bar(*columns, console=self._console)
            self._task = self._bar.add_task("screen", total=None, say="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, at: Progress) -> None:
        """Take in where the collection stands."""
        say = f"{at.failing} failing"
        say += f", {at.errors} errors" if at.errors else ""
        say += f", {_clock(at.elapsed)} elapsed"
        say += f", about {_clock(at.left)} left" if at.left is not None else ""
        if self._bar is not None:
            self._bar.update(self._task, description=at.phase, completed=at.done, total=at.total, say=say)
        elif at.phase != self._phase or at.elapsed - self._told >= _OFTEN:
            self._phase, self._told = at.phase, at.elapsed
            self._console.print(f"{at.phase}: {at.done}/{at.total}, {say}")


def rates(found: Dataset) -> dict[str, dict[str, Any]]:
    """Attempts and rescues per remedy; the screening draw is no attempt."""
    tally: dict[str, dict[str, Any]] = {}
    columns = ("remedy", "attempt", "passed", "error")
    for remedy, attempt, passed, error in zip(*(found.rollouts[c].to_pylist() for c in columns), strict=True):
        if remedy == "retry" and attempt == 0:
            continue
        one = tally.setdefault(remedy, {"attempts": 0, "rescued": 0, "errors": 0})
        one["attempts"] += 1
        one["rescued"] += passed
        one["errors"] += error is not None
    return tally


def summary(console: Console, found: Dataset) -> None:
    """What the dataset holds."""
    screened = found.provenance["screened"].values()
    asked, failed = sum(s["problems"] for s in screened), sum(s["failed"] for s in screened)
    title = f"{len(found)} failing problems: {failed} of {asked} screened failed"
    made = table(title, "remedy", "attempts", "rescued", "rate", "errors")
    for remedy, one in rates(found).items():
        rate = f"{one['rescued'] / one['attempts']:.1%}"
        made.add_row(remedy, str(one["attempts"]), str(one["rescued"]), rate, str(one["errors"]))
    console.print(made)
    if partial := found.provenance["partial"]:
        console.print(f"{partial} failing problems are not complete and are left out", style="yellow")
    for note, count in found.provenance["notes"].items():
        console.print(f"note, {count} times: {plain(note, 160)}")
    console.print(f"wrote {found.folder}")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
