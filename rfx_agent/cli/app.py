"""The commands of ``rfx``."""

from __future__ import annotations

import asyncio
import json
import time
from importlib.metadata import version
from typing import Annotated

import typer

from rfx_agent.cli import lab
from rfx_agent.cli.budget import budget
from rfx_agent.cli.collect import collect
from rfx_agent.cli.demo import TOP_LOGPROBS, demo_recovery, live_tasks, run_tasks
from rfx_agent.cli.evidence import evidence
from rfx_agent.cli.judge import judge_check
from rfx_agent.cli.models import BaseUrl, Model, sampler_of
from rfx_agent.cli.options import Json, Screen, reported
from rfx_agent.cli.problems import problems as generate
from rfx_agent.cli.show import DemoView
from rfx_agent.cli.simulate import simulate

__all__ = ["app"]

app = typer.Typer(
    help="Diagnose failed reasoning steps, route them, and rescue them under a budget.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,  # locals may hold an API key
)
for _command in (lab.calibrate, lab.audit, lab.report, lab.extract, simulate, collect, evidence, judge_check):
    app.command()(_command)
app.add_typer(budget, name="budget")


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
    problems: Annotated[int, typer.Option(min=1, help="How many problems to generate, or of a replay to choose.")] = 10,
    seed: Annotated[
        int, typer.Option(help="Seed of the problems and of every draw; of a replay, of their choice.")
    ] = 7,
    base_url: BaseUrl = None,
    model: Model = None,
    replay: Annotated[
        bool, typer.Option("--replay", help="Rollouts of the collected dataset: no model is started.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a real model on reasoning problems, and recover its failures beside plain retry.

    Every problem whose first draw fails goes through the recovery graph, and through plain retry with the same
    tokens. With a server of your own, the key is read from OPENAI_API_KEY.
    """
    console = Screen(stderr=as_json, soft_wrap=False)
    view = DemoView(console)
    with reported():
        if replay and base_url:
            raise typer.BadParameter("--replay takes no server")
        if replay:
            from rfx_agent.cli.replay import replay_tasks
            from rfx_agent.cli.tape import load_replay

            tape = load_replay()
            name, tasks = tape.model, replay_tasks(tape, problems=problems, seed=seed)
        else:
            sampler = sampler_of(base_url, model, top_logprobs=TOP_LOGPROBS, progress=view.fetching)
            name, tasks = sampler.name, live_tasks(demo_recovery(sampler, seed=seed), generate(problems, seed))
        started = time.perf_counter()
        with view.running(name, tasks, replay=replay):
            # A replay waits for nothing, and one at a time its rows come in the same order on every machine.
            report = asyncio.run(run_tasks(tasks, concurrency=1 if replay else 4, on_done=view.done))
        seconds = time.perf_counter() - started
    view.summary(report, seconds)
    if as_json:
        result = {"model": name, "seed": seed, "replay": replay, "seconds": round(seconds, 1)}
        typer.echo(json.dumps(result | report.as_dict()))
