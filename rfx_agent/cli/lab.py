"""The lab's commands: ``calibrate``, ``audit``, ``report``, ``extract``. Each is registered by ``cli.app``."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from rfx_agent.cli.lab_show import (
    accuracy_table,
    counts_table,
    finite,
    kinds_lines,
    population_table,
    regime_table,
)
from rfx_agent.cli.options import BadRows, Engine, Json, Screen, plain, reported, warn

__all__ = ["audit", "calibrate", "extract", "report"]

_Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
_Input = Annotated[Path, typer.Argument(help="Failure profiles: CSV or Parquet.")]


def calibrate(
    source: Annotated[Path, typer.Argument(help="Failure profiles (CSV, Parquet) or an event log (JSON lines).")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where Calibration.load will read it.")] = None,
    merge: Annotated[list[Path] | None, typer.Option(help="Another calibration to merge in; repeatable.")] = None,
    check: Annotated[
        Path | None, typer.Option(help="A new batch: say whether it drifted from SOURCE; exit code 3 if it did.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Only this model.")] = None,
    task: Annotated[str | None, typer.Option(help="Only this task.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the calibration, as decisions will cite it.")] = None,
    on_bad: BadRows = "raise",
    seed: _Seed = 0,
    as_json: Json = False,
) -> None:
    """Population statistics and a prior of every remedy per model, task and kind of evidence, with intervals.

    Of a log, it also counts how often each remedy rescued after each kind of failure, with and without being told
    what is wrong, over all tasks and for each.

    With one model and task OUTPUT is a file. With several it is a folder, one file each, unless --merge or --name
    asks for a mixture of them all.
    """
    with reported() as err:
        from rfx_agent.evidence.calibration import Calibration
        from rfx_agent.lab import calibrate as lab

        found, bad = lab.read_any(source, on_bad=on_bad)
        warn(err, source, bad)
        chosen = [p for p in found if model in (None, p.model) and task in (None, p.task)]
        if not chosen:
            raise typer.BadParameter(f"{source} has no failures of model {model!r} on task {task!r}")
        each = [lab.calibrate(p) for p in chosen]
        others = [Calibration.load(path) for path in merge or ()]
        result: dict[str, Any] = {"populations": [lab.intervals(p, seed=seed) for p in chosen], "files": []}
        mixed = bool(others or name)
        if mixed:
            each = [lab.merge_all([*each, *others], name=name or "+".join(dict.fromkeys(c.name for c in each)))]
        if output is not None:
            result["files"] = [str(path) for path in _save(each, output, folder=len(each) > 1)]
        drifts = _drifts(lab, chosen, check, on_bad, err) if check is not None else []
        result["drift"] = [{"model": m, "task": t, **dataclasses.asdict(d)} for m, t, d in drifts]
    out = Screen(stderr=as_json)
    for population in result["populations"]:
        out.print(population_table(population))
        if (counts := counts_table(population)) is not None:
            out.print(counts)
    for m, t, drift in drifts:
        style = {"drifted": "red", "stable": "green"}.get(drift.verdict)
        out.print(f"{plain(m)} on {plain(t)}: {drift.sentence}", style=style)
    for path in result["files"]:
        out.print(f"wrote {path}")
    if as_json:
        typer.echo(json.dumps(finite(result)))
    if any(d.verdict == "drifted" for _, _, d in drifts):
        raise typer.Exit(3)


def audit(
    profile: _Input,
    folds: Annotated[int, typer.Option(min=2, help="Folds of the cross-validations.")] = 5,
    repeats: Annotated[int, typer.Option(min=1, help="Times the folds are drawn anew.")] = 3,
    on_bad: BadRows = "raise",
    seed: _Seed = 0,
    as_json: Json = False,
) -> None:
    """Failure topography: regimes, clusters, and how well the features tell models and regimes apart."""
    with reported() as err:
        from rfx_agent.lab.audit import audit as run
        from rfx_agent.lab.profiles import read_profile

        data = read_profile(profile, on_bad=on_bad)
        warn(err, profile, data.bad_rows)
        found = run(data, folds=folds, repeats=repeats, seed=seed)
    out = Screen(stderr=as_json)
    out.print(regime_table(found))
    for line in kinds_lines(found):
        out.print(line)
    questions = [(f"{what} from the features", found["separability"][what]) for what in ("model", "method")]
    if found["regimes"] is not None:
        questions += [("stochastic or structural", found["regimes"])]
        questions += [("the same without the failure count", found["regimes"]["without_count"])]
    out.print(accuracy_table(questions))
    for note in found["notes"]:
        out.print(f"note: {note}")
    if as_json:
        typer.echo(json.dumps(finite(found)))


def report(
    profile: _Input,
    output: Annotated[Path, typer.Option("--output", "-o", help="The HTML file.")] = Path("report.html"),
    orders: Annotated[int, typer.Option(min=1, help="Orders that the policies are replayed in.")] = 20,
    on_bad: BadRows = "raise",
    seed: _Seed = 0,
) -> None:
    """One self-contained HTML page: regimes, the feature plane, policies, calibration, budget use."""
    with reported() as err:
        from rfx_agent.lab.profiles import read_profile
        from rfx_agent.lab.report import write_report

        data = read_profile(profile, on_bad=on_bad)
        warn(err, profile, data.bad_rows)
        write_report(data, output, title=profile.name, orders=orders, seed=seed)
    Screen().print(f"wrote {output}")


def extract(
    source: Annotated[Path, typer.Argument(help="Parquet of token log-probabilities, one row per rollout.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Parquet of features, one row per rollout.")],
    engine: Annotated[Engine, typer.Option(help="Threads of this machine, or a Ray cluster.")] = "threads",
    workers: Annotated[int | None, typer.Option(min=1, help="Threads or Ray tasks at once.")] = None,
    temperature: Annotated[float, typer.Option(help="Decode temperature of the features.")] = 0.6,
    on_bad: BadRows = "raise",
    as_json: Json = False,
) -> None:
    """Trajectory features of every rollout in a Parquet file, in bounded memory."""
    with reported() as err:
        from rfx_agent.lab.scale import extract as run

        done = run(source, output, engine=engine, workers=workers, temperature=temperature, on_bad=on_bad)
        warn(err, source, done.bad_rows)
    summary = {"rollouts": done.rollouts, "tokens": done.tokens, "bad_rows": len(done.bad_rows), "output": str(output)}
    Screen(stderr=as_json).print(f"wrote {output}: {done.rollouts} rollouts, {done.tokens} tokens")
    if as_json:
        typer.echo(json.dumps(summary))


def _save(calibrations: list[Any], output: Path, *, folder: bool) -> list[Path]:
    if not folder:
        calibrations[0].save(output)
        return [output]
    if output.exists() and not output.is_dir():
        raise typer.BadParameter(
            f"there are {len(calibrations)} populations and {output} is a file: give a folder, "
            "choose with --model and --task, or mix them with --name"
        )
    output.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for calibration in calibrations:
        stem = "".join(c if c.isalnum() or c in "-_." else "_" for c in calibration.name).lstrip(".") or "calibration"
        path = output / f"{stem}.json"
        if path in written:
            raise typer.BadParameter(f"two populations would be written to {path}; choose one with --model and --task")
        calibration.save(path)
        written.append(path)
    return written


def _drifts(lab: Any, chosen: list[Any], check: Path, on_bad: BadRows, err: Console) -> list[tuple[str, str, Any]]:
    batches, bad = lab.read_any(check, on_bad=on_bad)
    warn(err, check, bad)
    known = {(p.model, p.task): lab.calibrate(p) for p in chosen}
    found = [(b.model, b.task, lab.check(known[b.model, b.task], b)) for b in batches if (b.model, b.task) in known]
    if not found:
        raise typer.BadParameter(f"{check} shares no model and task with the calibration: {sorted(known)}")
    return found
