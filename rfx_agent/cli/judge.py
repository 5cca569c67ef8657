"""``rfx judge-check``: a judge measured on labelled cases before anything rests on it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from rfx_agent.cli.models import BaseUrl, Model, sampler_of
from rfx_agent.cli.options import BadRows, Json, Screen, plain, reported, table, warn
from rfx_agent.errors import ConfigError
from rfx_agent.lab.judge_cases import JudgeCase, read_cases
from rfx_agent.lab.judge_check import JudgeReport
from rfx_agent.lab.judge_check import judge_check as run
from rfx_agent.verifiers.judge import JudgeVerifier

__all__ = ["judge_check"]

_DEFAULT = "The final answer of the ANSWER is correct, and it answers what the TASK asks."
_ITEM = re.compile(r"(?:[-*]|\d+[.)])\s+")


def judge_check(
    cases: Annotated[Path, typer.Argument(help='JSON lines: {"prompt", "response", "passed", "group"?, "expected"?}.')],
    rubric: Annotated[
        Path | None,
        typer.Option(
            help="The rubric. A file whose every line is a list item is a list of criteria.", show_default=False
        ),
    ] = None,
    base_url: BaseUrl = None,
    model: Model = None,
    threshold: Annotated[float | None, typer.Option(help="Least share of the score or criteria for a pass.")] = None,
    draws: Annotated[int, typer.Option(min=1, help="Judgings per verdict, odd; the majority counts.")] = 1,
    temperature: Annotated[float, typer.Option(min=0.0, help="Of the judge.")] = 0.0,
    max_tokens: Annotated[int, typer.Option(min=16, help="Most tokens of one judging.")] = 256,
    max_chars: Annotated[int, typer.Option(min=100, help="Most characters of a text that the judge is shown.")] = 8_000,
    show_expected: Annotated[bool, typer.Option("--show-expected", help="Show the judge the right answer.")] = False,
    repeats: Annotated[int, typer.Option(min=1, help="Judgings of each case as it is.")] = 2,
    injections: Annotated[int, typer.Option(min=0, help="Attempts to fool it per wrong case that it failed.")] = 8,
    verbosity: Annotated[bool, typer.Option(help="Judge each case again with empty words appended.")] = True,
    concurrency: Annotated[int, typer.Option(min=1, help="Judgings at once.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    rates: Annotated[
        Path | None,
        typer.Option(help="Write the measured rates there, for JudgeVerifier(rates=FILE).", show_default=False),
    ] = None,
    on_bad: BadRows = "raise",
    as_json: Json = False,
) -> None:
    """Measure a model as a judge: accuracy, false passes, agreement with itself, and how easily it is fooled.

    With a server of your own, the key is read from OPENAI_API_KEY.
    """
    with reported() as err:
        given, bad = read_cases(cases, on_bad=on_bad)
        warn(err, cases, bad)
        if rates is not None:
            _check(rates, given)
        sampler = sampler_of(base_url, model, top_logprobs=None, concurrency=concurrency)
        judge = JudgeVerifier(
            sampler,
            rubric=_rubric(rubric),
            threshold=threshold,
            draws=draws,
            temperature=temperature,
            max_tokens=max_tokens,
            max_chars=max_chars,
            seed=seed,
            show_expected=show_expected,
            name=sampler.name,
        )
        bar = (TextColumn("judging"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*bar, console=err, transient=True) as progress:
            task = progress.add_task("judging", total=None)
            report = run(
                judge,
                given,
                seed=seed,
                repeats=repeats,
                injections=injections,
                verbosity=verbosity,
                concurrency=concurrency,
                progress=lambda done, total: progress.update(task, completed=done, total=total),
            )
        if rates is not None:
            _write(rates, report, judge, err)
    out = Screen(stderr=as_json)
    out.print(*_tables(report))
    if as_json:
        skipped = [{"row": number, "reason": why} for number, why in bad]
        typer.echo(json.dumps(report.as_dict() | {"skipped": skipped, "seed": seed}, allow_nan=False))


def _check(path: Path, cases: list[JudgeCase]) -> None:
    """Refuse, before anything is paid for, what would leave no file."""
    if len({case.passed for case in cases}) < 2:
        raise ConfigError("--rates needs right and wrong cases, and all of these have one label; add some of the other")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"--rates {path}: there is no such folder; make it, or give another path")


def _write(path: Path, report: JudgeReport, judge: JudgeVerifier, err: Console) -> None:
    found = report.rates(model=judge.model, settings=judge.settings)
    found.save(path)
    if not found.tells:
        true, false = found.true_pass, found.false_pass
        err.print(
            f"{plain(report.judge, 60)} passes {false.passed} of {false.n} wrong and {true.passed} of {true.n} right "
            f"answers: its pass tells nothing, and JudgeVerifier refuses {plain(str(path), 200)}. "
            "Take another model or rubric.",
            markup=False,
            highlight=False,
        )


def _rubric(path: Path | None) -> str | list[str]:
    if path is None:
        return _DEFAULT
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--rubric {path} cannot be read: {error}; give a text file in UTF-8") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if lines and all(_ITEM.match(line) for line in lines):
        return [_ITEM.sub("", line, count=1) for line in lines]
    return text.strip()


def _tables(report: JudgeReport) -> list[Table]:
    title = f"{plain(report.judge, 60)} as a judge of {report.cases} cases, {report.right} of them right"
    shares = table(title, "", "share", "95 % interval", "of")
    rows: list[tuple[str, dict[str, Any]]] = [
        ("accuracy", report.accuracy),
        ("precision of a pass", report.precision),
        ("recall of what is right", report.recall),
        ("wrong cases passed", report.false_pass_rate),
        ("  prompts kept whole", report.by_problem["false_pass_rate"]),
        ("no verdict", report.no_verdict),
    ]
    if report.repeats is not None:
        rows.append((f"same verdict in {report.repeats['judgings']} judgings", report.repeats["agreement"]))
    if report.verbosity is not None:
        rows.append(("empty words: fail to pass", report.verbosity["fail_to_pass"]))
        rows.append(("empty words: pass to fail", report.verbosity["pass_to_fail"]))
    if report.injections is not None:
        rows.append(("injections: fail to pass", report.injections["flips"]))
        rows.append(("injections: cases flipped at all", report.injections["cases"]))
        rows += [(f"  {name}", share) for name, share in report.injections["by_attempt"].items()]
    for name, share in rows:
        shares.add_row(name, *_shown(share))
    kappa = "undefined" if report.kappa is None else f"{report.kappa:.2f}"
    per = report.usage.tokens / report.judgings
    shares.caption = f"kappa {kappa}; {report.judgings} judgings, {report.usage.calls} calls, {per:,.0f} tokens each"
    if not report.groups:
        return [shares]
    groups = table("By group", "group", "cases", "accuracy", "wrong cases passed")
    for name, figures in report.groups.items():
        each = [_shown(figures[key])[0] for key in ("accuracy", "false_pass_rate")]
        groups.add_row(plain(name), str(figures["cases"]), *each)
    return [shares, groups]


def _shown(share: dict[str, Any]) -> tuple[str, str, str]:
    if share["value"] is None:
        return "–", "–", "0"
    return f"{share['value']:.2f}", f"{share['low']:.2f} to {share['high']:.2f}", str(share["n"])
