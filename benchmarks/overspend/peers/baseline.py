"""The baselines: a counter and OpenAI's SDK, about fifteen lines each.

``check``: look, call, add what it cost. ``reserve``: add the most that the call can cost, take it back where that is
over the cap, call, correct to what it cost. Both keep the counter behind a lock in one process, and in a Redis, with
INCRBY, between several. What failed or was left half way is counted as ``reserve`` has set it aside; ``check`` cannot
know it. The SDK is at its defaults: it retries twice.
"""

from __future__ import annotations

import threading
from typing import Any

import redis
from asks import Asks
from worker import Abandoned, Peer, Refused, main


class Memory:
    """A counter behind a lock."""

    def __init__(self) -> None:
        self.value, self.lock = 0, threading.Lock()

    def get(self) -> int:
        return self.value

    def add(self, amount: int) -> int:
        with self.lock:
            self.value += amount
            return self.value


class Shared:
    """A counter in a Redis."""

    def __init__(self, url: str) -> None:
        self.redis = redis.Redis.from_url(url, max_connections=1000)

    def get(self) -> int:
        return int(self.redis.get("spent") or 0)

    def add(self, amount: int) -> int:
        return int(self.redis.incrby("spent", amount))


async def opened(plan: dict[str, Any]) -> Peer:
    """A call is a check or a reservation, the SDK's call, and a correction."""
    asks = Asks(plan)
    counter = Shared(plan["redis"]) if plan["shared"] else Memory()
    cap, most = asks.units(plan["cap"]), asks.units(plan["most"])

    if plan["variant"] == "check":

        def before() -> None:
            if counter.get() >= cap:
                raise Refused

        def after(cost: int) -> None:
            counter.add(cost)

    else:

        def before() -> None:
            if counter.add(most) > cap:
                counter.add(-most)
                raise Refused

        def after(cost: int) -> None:
            counter.add(cost - most)

    async def acall(prompt: str, leave: bool) -> str:
        before()
        text, usage = await asks.aask(prompt, leave)
        if usage is None:
            raise Abandoned
        after(asks.cost(usage))
        return text

    def call(prompt: str, leave: bool) -> str:
        before()
        text, usage = asks.ask(prompt, leave)
        if usage is None:
            raise Abandoned
        after(asks.cost(usage))
        return text

    async def bare(prompt: str, leave: bool) -> str:
        return (await asks.aask(prompt, leave))[0]

    async def spent() -> float:
        return asks.amount(counter.get())

    return Peer(acall=acall, call=call, bare=bare, spent=spent)


if __name__ == "__main__":
    main(opened)
