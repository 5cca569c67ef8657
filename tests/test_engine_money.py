"""What a first verdict, a broken port and a draw that steers the graph cost and leave behind."""

import asyncio
import time
from typing import Any

import pytest

from rfx_agent import (
    MemoryStore,
    Price,
    Recovery,
    RetryBudget,
    Rollout,
    SharedBudget,
    Unresolved,
    Usage,
    Window,
    with_recovery,
)
from rfx_agent.adapters.attempts import together
from rfx_agent.events import Event, Reserved
from rfx_agent.testing import ScriptedSampler, ScriptedVerifier


class Judge(ScriptedVerifier):
    """Costs model calls; hangs where it is told to."""

    instant = False

    def __init__(self, passes: list[str], seconds: float = 0.0) -> None:
        super().__init__(passes)
        self._seconds = seconds

    def bound(self, step: Any, rollout: Rollout) -> Usage:
        return Usage(100, 50, 2)

    def verify(self, step: Any, rollout: Rollout, *, peers: Any = ()) -> Any:
        time.sleep(self._seconds)
        return super().verify(step, rollout, peers=peers)

    async def averify(self, step: Any, rollout: Rollout, *, peers: Any = ()) -> Any:
        await asyncio.sleep(self._seconds)
        return super().verify(step, rollout, peers=peers)


@pytest.mark.parametrize(
    "call", [lambda w: w.invoke("q"), lambda w: asyncio.run(w.ainvoke("q"))], ids=["sync", "async"]
)
def test_a_first_verdict_that_hangs_is_charged_in_full_and_told(call: Any) -> None:
    seen: list[Event] = []
    wrapped = with_recovery(
        lambda _: "6",
        verifier=Judge(["7"], seconds=0.3),
        verdict_seconds=0.02,
        budget=RetryBudget(attempts=0, calls=2),
        price=Price(prompt=1e4, completion=1e4),
        on_event=seen.append,
    )
    with pytest.raises(Unresolved) as raised:
        call(wrapped)
    spent = raised.value.case.ledger.spent
    assert (spent.tokens, spent.usd, spent.calls) == (150, 1.5, 2)
    assert [x.purpose for x in seen if isinstance(x, Reserved)][:1] == ["verify"]


class Broken(ScriptedSampler):
    def sample(self, request: Any) -> Any:
        return None


def test_a_port_that_gives_rubbish_leaves_nothing_reserved() -> None:
    store = MemoryStore()
    shared = SharedBudget(store=store, limits=(Window(scope="global", unit="tokens", most=100_000, per="hour"),))
    with pytest.raises(AttributeError):
        Recovery(Broken([]), ScriptedVerifier(["7"]), shared=shared).run("What is 3 + 4?", "6")
    (account,) = store.accounts()
    assert account.reserved == 0
    assert account.spent > 0


def test_where_one_run_steers_the_graph_the_others_are_cancelled() -> None:
    done: list[int] = []

    async def slow(n: int) -> None:
        await asyncio.sleep(0.1)
        done.append(n)

    async def steers(_: int) -> None:
        raise KeyError("steered")

    async def main() -> None:
        with pytest.raises(KeyError):
            await together([slow(1), steers(2), slow(3)], None)
        await asyncio.sleep(0.2)

    asyncio.run(main())
    assert done == []


def test_no_more_runs_than_the_limit_at_once() -> None:
    now, most = 0, 0

    async def one(n: int) -> int:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        now -= 1
        return n

    assert asyncio.run(together([one(n) for n in range(6)], 2)) == list(range(6))
    assert most == 2
