"""``rfx evidence``: what a collected dataset says, with intervals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markdown import Markdown

from rfx_agent.cli.options import Json, Screen, reported
from rfx_agent.fence import visible

__all__ = ["evidence"]


def evidence(
    dataset: Annotated[Path, typer.Argument(help="Folder that rfx collect wrote.", show_default=False)],
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Markdown on standard output, as for a file.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the resamples and of the halved attempts.")] = 0,
    draws: Annotated[int, typer.Option(min=100, help="Resamples behind each interval.")] = 2000,
    as_json: Json = False,
) -> None:
    """Rescue per remedy, the paper's rule against each, what draws and features predict: with 95 % intervals."""
    if as_json and as_markdown:
        raise typer.BadParameter("--json and --markdown are two formats; choose one")
    with reported():
        from rfx_agent.lab.evidence.figures import evidence as run
        from rfx_agent.lab.evidence.text import markdown

        figures = run(dataset, seed=seed, draws=draws)
    if as_json:
        typer.echo(json.dumps(figures, allow_nan=False))
    elif as_markdown:
        typer.echo(visible(markdown(figures)), nl=False)
    else:
        Screen().print(Markdown(visible(markdown(figures))))
