"""Two drivers of one flow. They differ only by ``await``, and by how calls that may run at once are run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from rfx_agent._errors import is_control_flow

__all__ = ["Call", "Flow", "Reply", "drive", "drive_async"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call:
    """One thing to be done outside: the same function, sync and async, with its arguments."""

    run: Callable[..., Any]
    arun: Callable[..., Awaitable[Any]]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of a call: a value or an error, and the wall-clock seconds it took."""

    value: Any
    error: Exception | None
    seconds: float


Flow: TypeAlias = Generator[tuple[Call, ...], tuple[Reply, ...], T]
"""A flow yields calls that may run at once, and is sent their replies in the same order."""


def drive(flow: Flow[T]) -> T:
    """Run ``flow``, blocking; the calls of one yield run one after the other."""
    try:
        calls = next(flow)
        while True:
            calls = flow.send(tuple([_perform(call) for call in calls]))
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]  # a Flow[T] returns T


async def drive_async(flow: Flow[T]) -> T:
    """Run ``flow`` on the running event loop; the calls of one yield run concurrently."""
    try:
        calls = next(flow)
        while True:
            calls = flow.send(await _gather(calls))
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]  # a Flow[T] returns T


async def _gather(calls: tuple[Call, ...]) -> tuple[Reply, ...]:
    if len(calls) == 1:  # the usual case needs no task
        return (await _aperform(calls[0]),)
    tasks = [asyncio.ensure_future(_aperform(call)) for call in calls]
    try:
        return tuple(await asyncio.gather(*tasks))
    finally:
        for task in tasks:  # one was cancelled or steers the graph: leave nothing running behind it
            task.cancel()


def _perform(call: Call) -> Reply:
    started = time.perf_counter()
    try:
        value, failed = call.run(*call.args, **call.kwargs), None
    except Exception as error:  # handed to the flow, which knows what it means
        if is_control_flow(error):
            raise
        value, failed = None, error
    return Reply(value, failed, time.perf_counter() - started)


async def _aperform(call: Call) -> Reply:
    started = time.perf_counter()
    try:
        value, failed = await call.arun(*call.args, **call.kwargs), None
    except Exception as error:  # handed to the flow, which knows what it means
        if is_control_flow(error):
            raise
        value, failed = None, error
    return Reply(value, failed, time.perf_counter() - started)
