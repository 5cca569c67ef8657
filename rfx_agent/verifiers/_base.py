"""What the verifiers share."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rfx_agent._types import Rollout, Step, Verdict

__all__ = ["PureVerifier", "ThreadedVerifier", "clip", "shorten"]


def clip(text: str, limit: int = 200) -> str:
    """``text`` for a reason: cut, because it may quote a megabyte of model output."""
    return text if len(text) <= limit else text[:limit] + "…"


def shorten(answer: str, limit: int = 1000) -> str:
    """A rejected answer as it is kept: verdicts live in checkpoints, and equal answers must stay equal."""
    if len(answer) <= limit:
        return answer
    return f"{answer[:limit]}… [sha256 {hashlib.sha256(answer.encode(errors='replace')).hexdigest()[:16]}]"


class PureVerifier:
    """A verifier that only computes, and quickly: both sides run the same code in place."""

    name: str
    needs_peers: bool = False

    def verify(self, step: Step, rollout: Rollout, *, peers: Sequence[Rollout] = ()) -> Verdict:
        """Judge ``rollout``."""
        raise NotImplementedError

    async def averify(self, step: Step, rollout: Rollout, *, peers: Sequence[Rollout] = ()) -> Verdict:
        """The same; it waits for nothing."""
        return self.verify(step, rollout, peers=peers)


class ThreadedVerifier(PureVerifier):
    """A verifier that may take a while: the async side runs it in a thread."""

    async def averify(self, step: Step, rollout: Rollout, *, peers: Sequence[Rollout] = ()) -> Verdict:
        """The same, without blocking the event loop."""
        return await asyncio.to_thread(self.verify, step, rollout, peers=peers)
