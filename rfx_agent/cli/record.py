"""Rollouts recorded from a model and given back: the same requests get the same answers, and nothing else does."""

from __future__ import annotations

import gzip
import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rfx_agent._errors import ConfigError, SamplerError
from rfx_agent._types import Rollout, SampleRequest, SampleResult, Usage
from rfx_agent.features import TopLogprobs
from rfx_agent.ports import Sampler

__all__ = ["RecordingSampler", "ReplaySampler", "load_recording", "save_recording"]

_TOP = 10  # log-probabilities kept per position, as many as the demo asks for


def _key(request: SampleRequest) -> str:
    return hashlib.sha256(json.dumps(asdict(request), sort_keys=True, default=str).encode()).hexdigest()[:24]


class RecordingSampler:
    """Passes requests on to ``inner`` and keeps what came back, for ``save_recording``."""

    def __init__(self, inner: Sampler) -> None:
        self._inner = inner
        self.name = inner.name
        self.continues_prefix = inner.continues_prefix
        self.entries: dict[str, dict[str, Any]] = {}

    def sample(self, request: SampleRequest) -> SampleResult:
        """Ask the model."""
        return self._keep(request, self._inner.sample(request))

    async def asample(self, request: SampleRequest) -> SampleResult:
        """Ask the model."""
        return self._keep(request, await self._inner.asample(request))

    def _keep(self, request: SampleRequest, result: SampleResult) -> SampleResult:
        self.entries[_key(request)] = {
            "usage": asdict(result.usage),
            "rollouts": [_packed(x, request.want_logprobs) for x in result.rollouts],
        }
        return result


class ReplaySampler:
    """Gives back what was recorded.

    Args:
        name: the model that was recorded.
        entries: as ``load_recording`` gives them.
        continues_prefix: whether the recorded model took a prefix.
    """

    def __init__(self, name: str, entries: dict[str, dict[str, Any]], *, continues_prefix: bool) -> None:
        self.name = name
        self.continues_prefix = continues_prefix
        self._entries = entries

    def sample(self, request: SampleRequest) -> SampleResult:
        """The recorded result of the same request.

        Raises:
            SamplerError: when this request was never recorded.
        """
        if (entry := self._entries.get(_key(request))) is None:
            raise SamplerError(
                f"{self.name}: the recording has no such request; run it live, without --replay, "
                "or with the problems and the seed that were recorded"
            )
        rollouts = tuple(_unpacked(x, request.temperature) for x in entry["rollouts"])
        return SampleResult(rollouts, Usage(**entry["usage"]))

    async def asample(self, request: SampleRequest) -> SampleResult:
        """The same."""
        return self.sample(request)


def save_recording(path: Path, sampler: RecordingSampler, about: dict[str, Any]) -> None:
    """Write what ``sampler`` kept, with ``about`` (seed, problems, weights) in front."""
    body = {
        "about": about | {"model": sampler.name, "continues_prefix": sampler.continues_prefix},
        "entries": sampler.entries,
    }
    part = path.with_name(path.name + ".part")
    # No time stamp inside, so that the same recording is the same file.
    with part.open("wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed:
        packed.write(json.dumps(body, separators=(",", ":"), sort_keys=True).encode())
    part.replace(path)


def load_recording(path: Path) -> tuple[ReplaySampler, dict[str, Any]]:
    """The sampler that replays ``path``, and what the recording says of itself.

    Raises:
        ConfigError: when the file is not such a recording.
    """
    try:
        with gzip.open(path, "rb") as packed:
            body = json.load(packed)
        about = body["about"]
        replay = ReplaySampler(about["model"], body["entries"], continues_prefix=about["continues_prefix"])
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"replay: {path} cannot be read as a recording: {error}") from error
    return replay, about


def _packed(rollout: Rollout, with_table: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "text": rollout.text,
        "response_id": rollout.response_id,
        "finish_reason": rollout.finish_reason,
        "usage": asdict(rollout.usage),
    }
    table = rollout.logprobs
    if with_table and table is not None and table.space == "ids":  # digests of texts are not worth their bytes
        entry["tokens"] = list(rollout.tokens or ())
        entry["taken"] = [int(x) for x in table.taken]
        entry["ids"] = [[int(x) for x in row[:_TOP]] for row in table.ids]
        entry["logprobs"] = [[round(float(x), 3) for x in row[:_TOP]] for row in table.logprobs]
    return entry


def _unpacked(entry: dict[str, Any], temperature: float) -> Rollout:
    table = None
    if entry.get("taken"):
        rows = [
            list(zip(ids, values, strict=True)) for ids, values in zip(entry["ids"], entry["logprobs"], strict=True)
        ]
        table = TopLogprobs.from_rows(rows, entry["taken"])
    return Rollout(
        entry["text"],
        response_id=entry["response_id"],
        temperature=temperature,
        finish_reason=entry["finish_reason"],
        usage=Usage(**entry["usage"]),
        tokens=tuple(entry["tokens"]) if entry.get("tokens") else None,
        logprobs=table,
    )
