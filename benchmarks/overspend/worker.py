"""What every peer's worker does: runs, call after call, until its peer refuses; standard library only.

A peer is a file of ``peers/``. It says in ``opened(plan)`` how its stack is set up and gives a ``Peer``: how one call
is made under the cap, and how one is made by the same stack without it. This file makes the calls, in threads or in one
event loop, and appends one line to a file per call, so that a killed worker leaves what it had done.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TEXT = "Say in some words what you think of the numbers of this year and of the next one and why"


class Refused(Exception):
    """The peer's limit refused the call: no request went out."""


class Abandoned(Exception):
    """The reader of a stream went away in the middle of it."""


@dataclass
class Peer:
    """One peer's stack.

    Attributes:
        call: a prompt and whether to abandon the stream half way; gives the text, or raises ``Refused``. None where the
            peer has no such way.
        acall: the same, async.
        bare: the same stack's call without the limit; async.
        spent: what the peer's own store says was spent and is set aside, in the unit of the cap; None where it
            does not say.
        close: async, at the end: what is still to be written.
    """

    acall: Callable[[str, bool], Awaitable[str]]
    call: Callable[[str, bool], str] | None = None
    bare: Callable[[str, bool], Awaitable[str]] | None = None
    spent: Callable[[], Awaitable[float | None]] | None = None
    close: Callable[[], Awaitable[Any]] | None = None


def prompt_of(run: str, number: int) -> str:
    """The prompt of one call."""
    return f"run {run} call {number}: {_TEXT}"


def usd_of(read: int, written: int) -> float:
    """What the server charges: the price that peers are told."""
    return (read * 1.0 + written * 4.0) / 1e6


async def joined(pieces: AsyncIterator[str], leave: bool) -> str:
    """The text of a stream; ``Abandoned`` after the second piece where its reader leaves."""
    text, number = "", 0
    async for piece in pieces:
        text, number = text + piece, number + 1
        if leave and number == 2:
            raise Abandoned
    return text


class Log:
    """Lines appended to one file."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def write(self, **line: Any) -> None:
        """One line, whole."""
        os.write(self._file, json.dumps(line).encode() + b"\n")


class Worker:
    """Does the runs of a plan."""

    def __init__(self, plan: dict[str, Any], peer: Peer) -> None:
        self.plan, self.peer, self.log = plan, peer, Log(plan["out"])

    def ended(self, run: str, number: int, begun: float, got: Any) -> bool:
        """Write down how a call ended; whether the run goes on."""
        line = {"run": run, "call": number, "seconds": time.perf_counter() - begun}
        if isinstance(got, Refused):
            self.log.write(**line, was="refused")
            return False
        if isinstance(got, Abandoned):
            self.log.write(**line, was="abandoned")
            return True
        if isinstance(got, BaseException):
            self.log.write(**line, was="error", why=f"{type(got).__name__}: {got}"[:300])
            return True
        # Counted from the text that came back, not from anybody's usage: one word is one token.
        read = len(prompt_of(run, number).split())
        self.log.write(**line, was="answered", read=read, written=len(got.split()))
        return True

    def leaves(self, number: int) -> bool:
        """Whether the reader of this call goes away in the middle."""
        every = self.plan.get("abandon", 0)
        return bool(every) and number % every == every - 1

    async def arun(self, run: str, first: int) -> None:
        for number in range(first, self.plan["calls"]):
            begun = time.perf_counter()
            try:
                got: Any = await self.peer.acall(prompt_of(run, number), self.leaves(number))
            except Exception as error:  # noqa: BLE001  # whatever a peer raises is written down
                got = error
            if not self.ended(run, number, begun, got):
                return
        self.log.write(run=run, was="done")

    def run(self, run: str, first: int) -> None:
        for number in range(first, self.plan["calls"]):
            begun = time.perf_counter()
            try:
                got: Any = self.peer.call(  # type: ignore[misc]
                    prompt_of(run, number), self.leaves(number)
                )
            except Exception as error:  # noqa: BLE001  # whatever a peer raises is written down
                got = error
            if not self.ended(run, number, begun, got):
                return
        self.log.write(run=run, was="done")

    async def timed(self) -> None:
        """Calls in turn, with the limit and without it, one after the other; the server answers at once."""
        for number in range(self.plan["calls"]):
            for way, ask in (("bare", self.peer.bare or self.peer.acall), ("limited", self.peer.acall)):
                begun = time.perf_counter()
                await ask(prompt_of(f"{way}{number // 4}", number), False)
                self.log.write(was=way, seconds=time.perf_counter() - begun)

    async def all(self) -> None:
        """The plan's mode."""
        mode = self.plan["mode"]
        if mode == "timed":
            await self.timed()
        elif mode == "threads":
            made = [threading.Thread(target=self.run, args=x) for x in self.plan["runs"]]
            for thread in made:
                thread.start()
            while any(thread.is_alive() for thread in made):
                await asyncio.sleep(0.05)  # a peer's own background work goes on in this loop
        else:
            await asyncio.gather(*(self.arun(*x) for x in self.plan["runs"]))
        if self.peer.close is not None:
            await self.peer.close()


def main(opened: Callable[[dict[str, Any]], Awaitable[Peer]]) -> None:
    """Fork a worker for each plan whose file is named; the peer's modules are loaded once, before."""
    workers = []
    for path in sys.argv[1:]:
        pid = os.fork()
        if not pid:
            try:
                asyncio.run(work(path, opened))
            except BaseException:  # noqa: BLE001  # it must not go on as its parent
                traceback.print_exc()
                os._exit(1)
            os._exit(0)  # a peer's background threads keep nobody waiting
        workers.append(pid)
    failed = [pid for pid in workers if os.waitpid(pid, 0)[1] not in (0, 9)]  # 9: killed, as the scenario has it
    sys.exit(bool(failed))


async def work(path: str, opened: Callable[[dict[str, Any]], Awaitable[Peer]]) -> None:
    """One worker: says that it is ready, begins when all are told to."""
    plan = json.loads(Path(path).read_text())
    peer = await opened(plan)
    worker = Worker(plan, peer)
    worker.log.write(was="ready", pid=os.getpid())
    while not Path(plan["go"]).exists():
        await asyncio.sleep(0.02)
    await worker.all()
    if peer.spent is not None:
        worker.log.write(was="spent", value=await peer.spent(), at=time.time())
