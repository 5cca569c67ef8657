"""Cases that nobody answered in time. Nothing waits for a deadline: whoever looks next applies the default, once."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Command

from rfx_agent.escalation.reply import EXPIRED

__all__ = ["aclose_overdue", "close_overdue"]


def close_overdue(
    graph: CompiledStateGraph[Any, Any, Any, Any],
    config: RunnableConfig,
    *,
    clock: Callable[[], float] = time.time,
) -> bool:
    """Apply the default to the cases of a thread whose deadline has passed; for a sweep over the threads that wait.

    The recovery's own clock has the last word: a case that it does not find overdue is asked about again. With a
    shared budget the first answer stands, so that a person who answers at the same moment and the sweep cannot both
    be heard.

    Args:
        graph: the recovery graph, or a graph that it is a part of, with its checkpointer.
        config: of the thread.
        clock: Unix time in seconds.

    Returns:
        Whether there was a case to close. The graph has then gone on as after an answer.
    """
    expired = _expired(graph.get_state(config).interrupts, clock())
    if expired:
        graph.invoke(Command(resume=expired), config)
    return bool(expired)


async def aclose_overdue(
    graph: CompiledStateGraph[Any, Any, Any, Any],
    config: RunnableConfig,
    *,
    clock: Callable[[], float] = time.time,
) -> bool:
    """Do what ``close_overdue`` does, without blocking the event loop."""
    expired = _expired((await graph.aget_state(config)).interrupts, clock())
    if expired:
        await graph.ainvoke(Command(resume=expired), config)
    return bool(expired)


def _expired(interrupts: Any, now: float) -> dict[str, Any]:
    """A reply for each of our interrupts that is overdue, by the interrupt's id."""
    replies = {}
    for interrupt in interrupts:
        about = interrupt.value.get("rfx") if isinstance(interrupt.value, dict) else None
        deadline = about.get("deadline") if isinstance(about, dict) else None
        if isinstance(deadline, str) and datetime.fromisoformat(deadline).timestamp() < now:
            replies[interrupt.id] = EXPIRED
    return replies
