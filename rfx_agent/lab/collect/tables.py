"""What the journal keeps of a failed draw so that it can be measured and steered later, packed into bytes."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from rfx_agent.evidence.features import TopLogprobs
from rfx_agent.records import Rollout, Verdict

__all__ = ["pack", "unpack"]


def pack(rollout: Rollout) -> bytes | None:
    """Token ids, token texts and the top-K table of ``rollout``; None where the sampler gave none of them.

    Values come back exactly: they are kept in float32 only where that loses nothing, as for a model that computes
    in float32.
    """
    arrays: dict[str, npt.NDArray[Any]] = {}
    if rollout.prompt_ids is not None:
        arrays["prompt_ids"] = np.array(rollout.prompt_ids, dtype=np.int64)
    if rollout.tokens is not None:
        arrays["tokens"] = np.frombuffer(json.dumps(rollout.tokens).encode(), dtype=np.uint8)
    table = rollout.logprobs
    if table is not None:
        small = table.logprobs.astype(np.float32)
        exact = bool((small == table.logprobs).all())
        narrow = bool(table.ids.max(initial=0) < 2**31)
        arrays["ids"] = table.ids.astype(np.int32) if narrow else table.ids
        arrays["logprobs"] = small if exact else table.logprobs
        arrays["taken"] = table.taken
        arrays["space"] = np.array(table.space)
    if not arrays:
        return None
    out = io.BytesIO()
    np.savez_compressed(out, allow_pickle=False, **arrays)
    return out.getvalue()


def unpack(record: Mapping[str, Any], raw: bytes | None, *, junction: int | None, peak: int | None) -> Rollout:
    """The failed draw again, from its record and what ``pack`` gave."""
    arrays: dict[str, Any] = {}
    if raw is not None:
        with np.load(io.BytesIO(raw), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    table = None
    if "taken" in arrays:
        space = str(arrays["space"])
        table = TopLogprobs(
            arrays["ids"], arrays["logprobs"], arrays["taken"], space="tokens" if space == "tokens" else "ids"
        )
    return Rollout(
        text=record["text"],
        id=f"r{record['attempt']}",
        temperature=record["temperature"],
        finish_reason=record["finish_reason"],
        prompt_ids=tuple(arrays["prompt_ids"].tolist()) if "prompt_ids" in arrays else None,
        tokens=tuple(json.loads(arrays["tokens"].tobytes())) if "tokens" in arrays else None,
        logprobs=table,
        verdict=Verdict(False, answer=record["answer"], score=record["score"]),
        junction=junction,
        peak=peak,
        start=record["start"],
    )
