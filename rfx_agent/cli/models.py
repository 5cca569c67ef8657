"""The model that a command asks: the embedded one, or one on a server of the user's."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from rfx_agent.ports import Sampler
from rfx_agent.samplers.weights.sources import Progress

__all__ = ["BaseUrl", "Model", "sampler_of"]

BaseUrl = Annotated[str | None, typer.Option(help="An OpenAI-compatible server in place of the embedded model.")]
Model = Annotated[str | None, typer.Option(help="The model's name on that server.")]


def sampler_of(
    base_url: str | None,
    model: str | None,
    *,
    top_logprobs: int | None,
    concurrency: int = 4,
    progress: Progress | None = None,
) -> Sampler:
    """The sampler; the key to a server is read from OPENAI_API_KEY. Its library is loaded here and not before."""
    if (base_url is None) != (model is None):
        raise typer.BadParameter("--base-url and --model go together")
    if model is not None:
        from rfx_agent.samplers.openai.sampler import OpenAISampler

        key = os.environ.get("OPENAI_API_KEY", "none")  # local servers often ask for none
        return OpenAISampler(model, base_url=base_url, api_key=key, top_logprobs=top_logprobs)
    from rfx_agent.samplers.local import LocalSampler

    sampler = LocalSampler(parallel=concurrency, top_logprobs=top_logprobs, progress=progress)
    if progress is not None:
        sampler.start()  # what it fetches is shown before anything else is
    return sampler
