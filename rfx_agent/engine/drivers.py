"""Two drivers of one flow. They differ only by ``await``, and by how calls that may run at once are run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from rfx_agent._errors import is_control_flow
from rfx_agent.engine._threads import TimedOut, within

__all__ = ["Call", "Flow", "Reply", "TimedOut", "drive", "drive_async", "resumed"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call:
    """One thing to be done outside: the same function, sync and async, with its arguments.

    Attributes:
        limit: seconds after which it is broken off, or None. A sync call with a limit runs on a thread of its own,
            with the caller's context; one that hangs keeps that thread.
    """

    run: Callable[..., Any]
    arun: Callable[..., Awaitable[Any]]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    limit: float | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of a call: a value or an error, and the wall-clock seconds it took."""

    value: Any
    error: Exception | None
    seconds: float


Flow: TypeAlias = Generator[tuple[Call, ...], tuple[Reply, ...], T]
"""A flow yields calls that may run at once, and is sent their replies in the same order.

What steers the graph or cancels the task is thrown into it where it waits; the calls that it then yields are made
before that goes on, so that it can give back what it had reserved.
"""


def drive(flow: Flow[T]) -> T:
    """Run ``flow``, blocking; the calls of one yield run one after the other."""
    try:
        calls = next(flow)
        while True:
            try:
                replies = tuple([_perform(call) for call in calls])
            except BaseException as error:  # noqa: BLE001  # the flow raises it again
                calls = flow.throw(error)
            else:
                calls = flow.send(replies)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]  # a Flow[T] returns T


async def drive_async(flow: Flow[T]) -> T:
    """Run ``flow`` on the running event loop; the calls of one yield run concurrently."""
    try:
        calls = next(flow)
        while True:
            try:
                replies = await _gather(calls)
            except BaseException as error:  # noqa: BLE001  # the flow raises it again
                calls = flow.throw(error)
            else:
                calls = flow.send(replies)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]  # a Flow[T] returns T


def resumed(flow: Flow[T], replies: tuple[Reply, ...] | None) -> Flow[T]:
    """``flow``, sent ``replies`` for its first calls, which were made already; None where none was."""
    if replies is None:
        return (yield from flow)
    next(flow)
    error: BaseException | None = None
    try:
        while True:
            calls = flow.send(replies) if error is None else flow.throw(error)
            try:
                replies, error = (yield calls), None
            except GeneratorExit:
                flow.close()
                raise
            except BaseException as thrown:  # noqa: BLE001  # the flow raises it again
                error = thrown
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
        if call.limit is None:
            value, failed = call.run(*call.args, **call.kwargs), None
        else:
            value, failed = within(call.limit, call.run, *call.args, **call.kwargs), None
    except Exception as error:  # handed to the flow, which knows what it means
        if is_control_flow(error):
            raise
        value, failed = None, error
    return Reply(value, failed, time.perf_counter() - started)


async def _aperform(call: Call) -> Reply:
    started = time.perf_counter()
    scope = asyncio.timeout(call.limit)
    failed: Exception | None = None
    try:
        async with scope:
            value = await call.arun(*call.args, **call.kwargs)
    except Exception as error:  # handed to the flow, which knows what it means
        if is_control_flow(error):
            raise
        late = call.limit is not None and scope.expired() and isinstance(error, TimeoutError)
        value, failed = None, TimedOut(call.limit or 0) if late else error
    return Reply(value, failed, time.perf_counter() - started)
