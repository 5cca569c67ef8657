"""The commands of ``rfx``."""

from __future__ import annotations

import asyncio
import json
import os
import time
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from rfx_agent._errors import RfxError
from rfx_agent.cli import lab
from rfx_agent.cli.collect import collect
from rfx_agent.cli.demo import TOP_LOGPROBS, demo_recovery, run_demo
from rfx_agent.cli.evidence import evidence
from rfx_agent.cli.judge import judge_check
from rfx_agent.cli.problems import problems as generate
from rfx_agent.cli.record import RecordingSampler, load_recording, save_recording
from rfx_agent.cli.show import DemoView
from rfx_agent.cli.simulate import simulate
from rfx_agent.ports import Sampler

__all__ = ["app"]

app = typer.Typer(
    help="Diagnose failed reasoning steps, route them, and rescue them under a budget.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,  # locals may hold an API key
)
for _command in (lab.calibrate, lab.audit, lab.report, lab.extract, simulate, collect, evidence, judge_check):
    app.command()(_command)
_RECORDING = Path(__file__).with_name("demo.json.gz")


def _version(show: bool) -> None:
    if show:
        typer.echo(f"rfx_agent {version('rfx-agent')}")
        raise typer.Exit


@app.callback()
def _main(
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Diagnose failed reasoning steps, route them, and rescue them under a budget."""


@app.command()
def demo(
    problems: Annotated[int, typer.Option(min=1, help="How many problems to generate.")] = 10,
    seed: Annotated[int, typer.Option(help="Seed of the problems and of every draw.")] = 7,
    base_url: Annotated[
        str | None, typer.Option(help="An OpenAI-compatible server in place of the embedded model.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The model's name on that server.")] = None,
    replay: Annotated[
        bool, typer.Option("--replay", help="Recorded rollouts of the embedded model: no model is started.")
    ] = False,
    record: Annotated[
        Path | None, typer.Option(help="Write the model's rollouts to this file, for --replay.", hidden=True)
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object as the last line of standard output.")
    ] = False,
) -> None:
    """Run a real model on reasoning problems, and recover its failures beside plain retry.

    Every problem whose first draw fails goes through the recovery graph, and through plain retry with the same
    tokens. With a server of your own, the key is read from OPENAI_API_KEY.
    """
    console = Console(stderr=as_json, soft_wrap=False)
    view = DemoView(console)
    try:
        if replay and (base_url or record):
            raise typer.BadParameter("--replay takes no server and records nothing")
        if (base_url is None) != (model is None):
            raise typer.BadParameter("--base-url and --model go together")
        about: dict[str, Any] = {"seed": seed, "problems": problems}
        sampler: Sampler
        if replay:
            sampler, about = load_recording(_RECORDING)
            seed, problems = about["seed"], min(problems, about["problems"])
        elif base_url is not None and model is not None:
            from rfx_agent.backends.openai import OpenAISampler

            key = os.environ.get("OPENAI_API_KEY", "none")  # local servers often ask for none
            sampler = OpenAISampler(model, base_url=base_url, api_key=key, top_logprobs=TOP_LOGPROBS)
        else:
            from rfx_agent.backends.local import LocalSampler

            sampler = LocalSampler(top_logprobs=TOP_LOGPROBS, progress=view.fetching)
            sampler.start()
        kept = RecordingSampler(sampler) if record is not None else None
        recovery = demo_recovery(kept or sampler, seed=seed)
        chosen = generate(problems, seed)
        started = time.perf_counter()
        with view.running(sampler.name, chosen, replay=replay):
            report = asyncio.run(run_demo(recovery, chosen, parallel=4, on_done=view.done))
        seconds = time.perf_counter() - started
        if kept is not None and record is not None:
            save_recording(record, kept, about)
    except RfxError as error:
        Console(stderr=True).print(f"rfx: {error}", style="red", markup=False, highlight=False)
        raise typer.Exit(1) from None
    view.summary(report, seconds)
    if as_json:
        result = {"model": sampler.name, "seed": seed, "replay": replay, "seconds": round(seconds, 1)}
        typer.echo(json.dumps(result | report.as_dict()))
