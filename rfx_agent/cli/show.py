"""What a person sees in the terminal. Model output is untrusted: no markup, no control characters, cut to size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from rfx_agent.case import Case
from rfx_agent.cli.demo import Asked, Failure, Report
from rfx_agent.cli.options import plain, table
from rfx_agent.tools.sandbox import Sandbox

__all__ = ["DemoView"]

_COLUMNS = (
    ("problem", 16),
    ("failed answers", 17),
    ("regime", 12),
    ("outcome", 13),
    ("tokens", 7),
    ("retry", 8),
)


class DemoView:
    """Progress, one row per failure as it ends, and the comparison."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._download: Progress | None = None
        self._progress: Progress | None = None
        self._replay = False

    def fetching(self, done: int, total: int, source: str) -> None:
        """Show the weights being fetched; called with bytes."""
        if self._download is None:
            self._download = Progress(
                TextColumn("fetching weights from {task.description}"),
                BarColumn(),
                DownloadColumn(),
                console=self._console,
            )
            self._download.add_task(source, total=total)
            self._download.start()
        self._download.update(self._download.task_ids[0], completed=done, total=total, description=source)
        if done >= total:
            self._download.stop()
            self._download = None

    @contextmanager
    def running(self, model: str, problems: Sequence[Asked], *, replay: bool) -> Iterator[None]:
        """The progress bar, with the header of the rows above it."""
        if self._download is not None:  # a fetch that ended early, as from a cache
            self._download.stop()
        self._replay = replay
        how = "recorded rollouts of" if replay else "live on"
        families = ", ".join(dict.fromkeys(p.family for p in problems))
        self._console.print(
            Text(f"{len(problems)} problems", style="bold"), f"({plain(families, 200)}), {how}", end=" "
        )
        self._console.print(Text(plain(model, 60), style="bold"))
        if replay:
            self._console.print("calibrated on the same dataset; verdicts are the recorded ones", style="dim")
        self._console.print("below each failure: the route taken, and the features (* a proxy)", style="dim")
        self._console.print(f"programs run in {Sandbox.what}", style="dim")
        self._row([Text(name, style="bold") for name, _ in _COLUMNS])
        progress = Progress(
            TextColumn("problems"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=self._console
        )
        with progress:
            progress.add_task("problems", total=len(problems))
            self._progress = progress
            yield
        self._progress = None

    def done(self, problem: Asked, failure: Failure | None) -> None:
        """One problem ended: two lines for a failure, what happened and what it rests on."""
        if failure is not None:
            self._row(_cells(failure))
            self._console.print(Text(f"  {_evidence(failure)}", style="dim"))
        if self._progress is not None:
            self._progress.advance(self._progress.task_ids[0])

    def summary(self, report: Report, seconds: float) -> None:
        """The comparison on the same failures."""
        figures = report.as_dict()
        failed, retry, recovery = figures["failures"], figures["retry"], figures["recovery"]
        at = (
            "with fewer tokens for retry where its recorded draws ran out"
            if retry["cut_short"]
            else "at the same tokens"
        )
        title = f"{failed} failures, the same failed draws, {at}"
        arms = table(title, "", "rescued", "attempts", "tokens", "put before a person")
        arms.add_row("plain retry", f"{retry['rescued']} of {failed}", *_figures(retry), "–")
        arms.add_row(
            "recovery graph", f"{recovery['rescued']} of {failed}", *_figures(recovery), str(recovery["escalated"])
        )
        self._console.print()
        self._console.print(arms)
        by_family = ", ".join(
            f"{name} {f['recovery']}/{f['failures']} (retry {f['retry']})" for name, f in figures["families"].items()
        )
        routes = ", ".join(f"{name} {count}" for name, count in recovery["routes"].items())
        self._console.print(f"rescued by the recovery graph: {by_family}" if by_family else "nothing failed")
        if routes:
            self._console.print(f"routes taken: {routes}")
        if cut := retry["cut_short"]:
            why = "the recorded draws ran out" if self._replay else "the model could not be reached"
            self._console.print(f"plain retry had fewer tokens on {cut} of {failed}: {why}")
        how = "replayed; nothing was sampled" if self._replay else "every figure was measured in this run"
        self._console.print(f"{seconds:.0f} s; {how}", style="dim")

    def _row(self, cells: list[Text]) -> None:
        grid = Table.grid(padding=(0, 1))
        for _, width in _COLUMNS:
            grid.add_column(width=width, overflow="fold")
        grid.add_row(*cells)
        self._console.print(grid)


def _figures(arm: dict[str, int]) -> tuple[str, str]:
    return f"{arm['attempts']:,}", f"{arm['tokens']:,}"


def _cells(failure: Failure) -> list[Text]:
    case = failure.recovery
    regime = next((d.regime for d in case.decisions if d.regime), None)
    cut = bool(case.failed) and all(x.kind == "cut" for x in case.failed)
    rescued = case.outcome is not None and case.outcome.status == "rescued"
    words = plain(case.outcome.answer or "", 11) if rescued and case.outcome is not None else _ended(failure)
    again = failure.retry.outcome is not None and failure.retry.outcome.status == "rescued"
    return [
        Text(plain(failure.problem.family, 16)),
        Text(_answers(case), style="red"),
        Text((regime or ("cut off" if cut else "an extra draw")).replace("_", " ")),
        Text(f"{'✓' if rescued else '✗'} {words}", style="green" if rescued else "yellow"),
        Text(f"{case.ledger.spent.tokens:,}", justify="right"),
        Text("✓" if again else "✗", style="green" if again else "red"),
    ]


def _ended(failure: Failure) -> str:
    if failure.escalated:
        return "a person"
    outcome = failure.recovery.outcome
    return "unresolved" if outcome is None else plain(outcome.reason, 11)


def _answers(case: Case) -> str:
    counts = Counter(plain(x.answer or "none", 10) for x in case.draws() if not x.passed)
    text = ", ".join(f"{answer}×{n}" if n > 1 else answer for answer, n in counts.most_common(4))
    return plain(text, 34)


def _evidence(failure: Failure) -> str:
    """The route taken and the features, by name; a star marks a proxy."""
    case = failure.recovery
    path = " → ".join(failure.path) or "no remedy needed"
    if case.diagnosis is None:
        return path
    features = case.diagnosis.features or {}
    values = ", ".join(f"{_short(name)} {value:.2f}" for name, value in features.items())
    kind = case.diagnosis.evidence.replace("_", "-")
    return f"{path}; {kind} evidence" + (f": {values}" if values else "")


def _short(name: str) -> str:
    base = name.removesuffix("_proxy")
    return base.removeprefix("logit_") + ("*" if base != name else "")
