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
    Verdict,
    Window,
    with_recovery,
)
from rfx_agent.adapters.attempts import together
from rfx_agent.errors import SamplerError, VerifierError
from rfx_agent.events import Event, Reserved
from rfx_agent.evidence.tables import TopLogprobs
from rfx_agent.ports import Scorer
from rfx_agent.testing import ScriptedSampler, ScriptedVerifier
from rfx_agent.verifiers import AllOf, AnyOf, Cascade


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


class Paid(Judge):
    """Says yes as an opinion and costs 150 tokens, or raises what it is given."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__(["6"])
        self._error, self.name = error, "refused" if error else "paid"

    def verify(self, step: Any, rollout: Rollout, *, peers: Any = ()) -> Any:
        if self._error is not None:
            raise self._error
        return Verdict(True, weak=True, usage=Usage(100, 50, 1))

    async def averify(self, step: Any, rollout: Rollout, *, peers: Any = ()) -> Any:
        return self.verify(step, rollout)


@pytest.mark.parametrize("panel", [AllOf, AnyOf, Cascade])
@pytest.mark.parametrize("call", [lambda r: r.run("q", "6"), lambda r: asyncio.run(r.arun("q", "6"))])
def test_a_verdict_that_is_lost_with_its_panel_is_charged(panel: Any, call: Any) -> None:
    store = MemoryStore()
    shared = SharedBudget(store=store, limits=(Window(scope="global", unit="tokens", most=100_000, per="hour"),))
    refused = SamplerError("slow down", status=429, calls=1)
    verifier = panel(Paid(), Paid(refused))
    with pytest.raises(VerifierError, match="slow down"):
        call(Recovery(ScriptedSampler([]), verifier, shared=shared))
    (account,) = store.accounts()
    assert (account.spent, account.reserved) == (150, 0)


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


class Down(Judge):
    """A judge whose answers are lost, or refused with a status."""

    def __init__(self, error: SamplerError) -> None:
        super().__init__(["7"])
        self._error = error

    def verify(self, step: Any, rollout: Rollout, *, peers: Any = ()) -> Any:
        raise self._error

    async def averify(self, step: Any, rollout: Rollout, *, peers: Any = ()) -> Any:
        raise self._error


@pytest.mark.parametrize(
    ("error", "tokens"),
    [
        (SamplerError("cut", calls=2, lost=2), 300),
        (SamplerError("cut", calls=1), 150),
        (SamplerError("busy", calls=1, status=503), 0),
        (SamplerError("refused", calls=0, lost=0), 0),
    ],
    ids=lambda x: str(x),
)
def test_a_verdict_whose_answer_was_lost_is_charged(error: SamplerError, tokens: int) -> None:
    store = MemoryStore()
    shared = SharedBudget(store=store, limits=(Window(scope="global", unit="tokens", most=100_000, per="hour"),))
    with pytest.raises(VerifierError):
        Recovery(ScriptedSampler([], last="6"), Down(error), shared=shared).run("What is 3 + 4?", "6")
    assert [(x.spent, x.reserved) for x in store.accounts()] == [(tokens, 0)]


class Unread(Scorer):
    """An ancestor whose answer is lost."""

    name = "ancestor"

    def score(self, step: Any, rollouts: Any) -> Any:
        raise SamplerError("cut", calls=1, lost=1)

    async def ascore(self, step: Any, rollouts: Any) -> Any:
        raise SamplerError("cut", calls=1, lost=1)


def test_scores_whose_answer_was_lost_are_charged() -> None:
    budget = RetryBudget(samples=1, attempts=1)
    spent = []
    for scorer in (None, Unread()):
        table = TopLogprobs.from_rows([[("6", -0.1), ("7", -2.4)]], ["6"])
        draw = Rollout("6", tokens=("6",), logprobs=table, usage=Usage(9, 1, 1))
        sampler = ScriptedSampler([], last=draw)
        recovery = Recovery(sampler, ScriptedVerifier(["7"]), scorer=scorer, budget=budget)
        spent.append(recovery.run("What is 3 + 4?").ledger.spent.tokens)
    assert spent[1] > spent[0]


class Shouting(ScriptedSampler):
    """A sampler of somebody else's, whose error quotes all that its server said."""

    def sample(self, request: Any) -> Any:
        raise SamplerError("no\n\x1b[31mmodel\u2028\u202e" * 100_000, calls=1, lost=0)


def test_what_a_server_says_is_one_short_line_in_a_case() -> None:
    case = Recovery(Shouting([]), ScriptedVerifier(["7"])).run("What is 3 + 4?", "6")
    for text in (case.blocked, case.outcome.sentence, *case.notes, *(x.note for x in case.attempts)):
        assert len(text) < 1_100
        assert text.isprintable()
    long = case.note("a\nb" * 100_000)
    assert len(long.notes[-1]) <= 1_000
    assert long.note("a\nb" * 100_000).notes == long.notes
