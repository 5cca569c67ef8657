"""``rfx collect``: failures of a model, measured, steered and recorded."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import typer

from rfx_agent.cli.collect_show import CollectView, rates, summary
from rfx_agent.cli.options import Json, Screen, reported
from rfx_agent.lab.problems.files import Judge, from_jsonl

if TYPE_CHECKING:
    from rfx_agent.lab.collect.plan import Plan
    from rfx_agent.lab.dataset import Dataset
    from rfx_agent.lab.problems.problem import Problem

__all__ = ["collect"]

_TOP_K = 100
_ALPHA = 0.7
_LIFTED = 1.0


_Dtype: TypeAlias = Literal["float32", "bfloat16", "float16"]


def collect(
    out: Annotated[Path, typer.Argument(help="Folder of the dataset and of its journal.", show_default=False)],
    specialist: Annotated[
        str, typer.Option(help="The model that fails: a known name, a GGUF file, a model folder or a Hub id.")
    ] = "qwen2.5-coder-0.5b",
    ancestor: Annotated[
        str | None, typer.Option(help="The model it is compared and mixed with; 'none' goes without.")
    ] = "qwen2.5-coder-1.5b",
    reasoning_gym: Annotated[
        str | None,
        typer.Option(help="'default', or generators of reasoning-gym: gen1,gen2.", show_default="default"),
    ] = None,
    per_generator: Annotated[int, typer.Option(min=1, help="Problems of each generator.")] = 10,
    problems: Annotated[
        Path | None, typer.Option(help="Problems of your own: JSON lines with id, prompt or messages, and expected.")
    ] = None,
    verifier: Annotated[Judge, typer.Option(help="What judges the answers to your own problems.")] = "exact",
    draws: Annotated[int, typer.Option(min=1, help="Retries of a failing problem.")] = 8,
    attempts: Annotated[int, typer.Option(min=1, help="Attempts of the tool and of each decoding operator.")] = 4,
    scored: Annotated[int, typer.Option(min=1, help="Failed draws of a problem that both models measure.")] = 4,
    failures: Annotated[
        int | None, typer.Option(min=1, help="Stop screening at so many failing problems.", show_default="all")
    ] = None,
    operators: Annotated[
        str | None, typer.Option(help="Decoding operators: op1,op2, or 'none'.", show_default="all")
    ] = None,
    tool: Annotated[bool, typer.Option(help="Try programs that the model writes, in the sandbox Monty.")] = True,
    dtype: Annotated[_Dtype, typer.Option(help="What sampling and steering compute in.")] = "float32",
    score_dtype: Annotated[_Dtype, typer.Option(help="What scoring computes in.")] = "float32",
    device: Annotated[
        str | None, typer.Option(help="PyTorch's device.", show_default="cuda if there, else cpu")
    ] = None,
    temperature: Annotated[float, typer.Option(help="Decode temperature, also of the features.")] = 0.6,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens per completion.")] = 256,
    seed: Annotated[int, typer.Option(help="Seed of the problems and of every draw.")] = 0,
    concurrency: Annotated[int, typer.Option(min=1, help="Attempts in flight at once; also the rows of a batch.")] = 16,
    finish: Annotated[
        bool, typer.Option("--finish", help="Write the files from what is recorded, and do nothing else.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Collect a dataset of failures; started again, it goes on where it was stopped or killed.

    Problems that fail one draw are drawn again, given to the tool, measured by both models, and steered. OUT then
    holds rollouts.parquet and failures.parquet; rfx calibrate, simulate, audit and report read the second.
    """
    console = Screen(stderr=as_json, soft_wrap=True)
    try:
        with reported():
            from rfx_agent.lab.collect import collector as lab

            if finish:
                found = lab.finish(out)
            else:
                if reasoning_gym is not None and problems is not None:
                    raise typer.BadParameter("--reasoning-gym and --problems exclude each other")
                chosen, about = _problems(reasoning_gym, per_generator, problems, verifier, seed)
                plan = _plan(
                    chosen,
                    specialist,
                    None if ancestor in (None, "none") else ancestor,
                    tool=tool,
                    operators=_split(operators),
                    dtype=dtype,
                    score_dtype=score_dtype,
                    device=device,
                    concurrency=concurrency,
                    draws=draws,
                    attempts=attempts,
                    scored=scored,
                    failures=failures,
                    temperature=temperature,
                    tool_temperature=temperature,
                    max_tokens=max_tokens,
                    seed=seed,
                    extras={"problems": about},
                )
                with CollectView(console) as view:
                    found = lab.collect(plan, out, progress=view.show)
    except KeyboardInterrupt:
        note = "stopped; the same command goes on from here, and --finish writes what is there"
        Screen(stderr=True, soft_wrap=True).print(f"rfx: {note}", style="yellow")
        raise typer.Exit(130) from None
    summary(console, found)
    if as_json:
        typer.echo(json.dumps(_result(found)))


def _problems(
    gym: str | None, per_generator: int, path: Path | None, verifier: Judge, seed: int
) -> tuple[tuple[Problem, ...], dict[str, Any]]:
    """The problems, and where they come from."""
    if path is not None:
        return from_jsonl(path, verifier=verifier), {"source": "file", "file": path.name, "verifier": verifier}
    from rfx_agent.lab.problems.gym import from_gym

    names = None if gym in (None, "default") else _split(gym)
    about = {"generators": gym or "default", "per_generator": per_generator, "seed": seed}
    return from_gym(names, per_generator=per_generator, seed=seed), {"source": "reasoning_gym", **about}


def _plan(
    problems: tuple[Problem, ...],
    specialist: str,
    ancestor: str | None,
    *,
    tool: bool,
    operators: tuple[str, ...] | None,
    dtype: _Dtype,
    score_dtype: _Dtype,
    device: str | None,
    concurrency: int,
    **options: Any,
) -> Plan:
    from rfx_agent.lab.collect.plan import Plan
    from rfx_agent.samplers.transformers.model import CausalModel
    from rfx_agent.samplers.transformers.sampler import TransformersSampler
    from rfx_agent.samplers.transformers.scorer import TransformersScorer
    from rfx_agent.samplers.transformers.steerer import TransformersSteerer
    from rfx_agent.tools.program import ProgramTool

    @cache
    def model(weights: str, kind: str) -> CausalModel:
        return CausalModel(weights, dtype=kind, device=device)

    def who(weights: str) -> dict[str, str]:
        return {"name": weights, "sha256": model(weights, dtype).digest, "dtype": dtype, "score_dtype": score_dtype}

    own = model(specialist, dtype)
    steerer: Any = None
    scorers: tuple[Any, Any] = (None, None)
    if ancestor is not None:
        if operators != ():
            steerer = TransformersSteerer(
                own, model(ancestor, dtype), alpha=_ALPHA, lifted_temperature=_LIFTED, max_rows=concurrency
            )
        # Both tables of a rollout come from one kind of pass, or rounding would pass for drift: a decode that was
        # batched with others is not a prefill to the last digit.
        scoring = model(specialist, score_dtype)
        scorers = (
            TransformersScorer(scoring, top_k=_TOP_K),
            TransformersScorer(model(ancestor, score_dtype), specialist=scoring, top_k=_TOP_K),
        )
    return Plan(
        problems=problems,
        sampler=TransformersSampler(own, top_k=_TOP_K, max_rows=concurrency),
        tool=ProgramTool(sandbox="monty") if tool else None,
        steerer=steerer,
        operators=operators,
        scorers=scorers,
        concurrency=concurrency,
        specialist=who(specialist),
        ancestor=None if ancestor is None else who(ancestor),
        settings={"alpha": _ALPHA, "lifted_temperature": _LIFTED, "top_k": _TOP_K},
        **options,
    )


def _split(names: str | None) -> tuple[str, ...] | None:
    if names is None:
        return None
    return () if names == "none" else tuple(name.strip() for name in names.split(",") if name.strip())


def _result(found: Dataset) -> dict[str, Any]:
    about = found.provenance
    return {
        "folder": str(found.folder),
        "failures": len(found),
        "rollouts": found.rollouts.num_rows,
        "screened": about["screened"],
        "partial": about["partial"],
        "remedies": rates(found),
    }
