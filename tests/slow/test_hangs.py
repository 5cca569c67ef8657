"""What hangs, is cancelled or steers the graph in mid-call: broken off, accounted for, and never an answer."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from langgraph.errors import GraphInterrupt
from scenarios import STEP

from rfx_agent import Case, FunctionVerifier, Recovery, RetryBudget, Rollout, SampleResult, Verdict
from rfx_agent.engine import drive as drive_module
from rfx_agent.engine.drive import Call, drive, drive_async
from rfx_agent.records import Spend
from rfx_agent.testing import ScriptedSampler, ScriptedTool, ScriptedVerifier


@pytest.fixture
def freed() -> Iterator[threading.Event]:
    """What hangs waits for this, so that no thread outlives its test."""
    event = threading.Event()
    yield event
    event.set()


class HangingVerifier(ScriptedVerifier):
    """Never answers about one text."""

    instant = False

    def __init__(self, texts: list[str], hangs: str, freed: threading.Event) -> None:
        super().__init__(texts)
        self._hangs, self._freed = hangs, freed

    def verify(self, step: Any, rollout: Rollout, *, peers: Any = ()) -> Verdict:
        if rollout.text == self._hangs:
            self._freed.wait(30)
        return super().verify(step, rollout, peers=peers)

    async def averify(self, step: Any, rollout: Rollout, *, peers: Any = ()) -> Verdict:
        while rollout.text == self._hangs and not self._freed.is_set():
            await asyncio.sleep(0.01)
        return super().verify(step, rollout, peers=peers)


def run(recovery: Recovery, candidate: str | None) -> Case:
    return recovery.run(STEP, candidate)


def arun(recovery: Recovery, candidate: str | None) -> Case:
    return asyncio.run(recovery.arun(STEP, candidate))


ways = pytest.mark.parametrize("way", [run, arun])


@ways
def test_a_verifier_that_hangs_accepts_nothing_and_the_step_goes_on(
    way: Callable[..., Case], freed: threading.Event
) -> None:
    verifier = HangingVerifier(["41", "42"], "41", freed)
    recovery = Recovery(sampler=ScriptedSampler(["40", "42", "1"]), verifier=verifier, verdict_seconds=0.05)
    case = way(recovery, "41")
    assert case.outcome is not None
    assert (case.outcome.status, case.outcome.text) == ("rescued", "42")
    first = case.rollouts[0].verdict
    assert first is not None
    assert not first.passed
    assert first.reason.startswith("not judged: scripted: it did not end within 0.05 s")


@ways
def test_a_tool_that_hangs_is_a_miss_of_the_tool(way: Callable[..., Case], freed: threading.Event) -> None:
    class HangingTool(ScriptedTool):
        bound = Spend(tool_seconds=0.01)

        def run(self, source: str) -> Any:
            freed.wait(30)

        async def arun(self, source: str) -> Any:
            while not freed.is_set():
                await asyncio.sleep(0.01)

    recovery = Recovery(
        sampler=ScriptedSampler(["40", "43", "44"], last="6*7"),
        verifier=ScriptedVerifier(["42"]),
        tool=HangingTool({}),
        budget=RetryBudget(samples=6),
        extra_samples=3,
    )
    case = way(recovery, "41")
    assert case.outcome is not None
    assert not case.outcome.ok
    assert any("it did not end within" in note for note in case.notes)
    assert case.tally("tool")[1] == 0
    assert case.ledger.reserved == Spend()
    assert case.ledger.spent.tool_seconds > 0


@ways
def test_a_model_that_hangs_is_left_when_the_step_has_no_time_left(
    way: Callable[..., Case], freed: threading.Event
) -> None:
    class HangingSampler(ScriptedSampler):
        def sample(self, request: Any) -> SampleResult:
            freed.wait(30)
            return super().sample(request)

        async def asample(self, request: Any) -> SampleResult:
            while not freed.is_set():
                await asyncio.sleep(0.01)
            return super().sample(request)

    recovery = Recovery(
        sampler=HangingSampler(["42"]),
        verifier=ScriptedVerifier(["42"]),
        budget=RetryBudget(seconds=0.1),
        extra_samples=3,
    )
    case = way(recovery, "41")
    assert case.outcome is not None
    assert (case.outcome.status, case.outcome.reason) == ("unresolved", "budget:seconds")
    spent = case.ledger.spent
    assert spent.samples == 3  # nobody knows what it cost: all that was reserved
    assert case.ledger.reserved == Spend()


def test_a_call_with_a_limit_has_the_callers_context() -> None:
    import contextvars

    name = contextvars.ContextVar("name", default="nobody")
    name.set("caller")

    def flow() -> Any:
        (reply,) = yield (Call(name.get, asyncio.sleep, limit=5.0),)
        return reply.value

    assert drive(flow()) == "caller"


def test_an_own_timeout_is_no_limit_that_passed() -> None:
    async def fails() -> None:
        raise TimeoutError("mine")

    def flow() -> Any:
        (reply,) = yield (Call(time.sleep, fails, limit=5.0),)
        return reply.error

    assert str(asyncio.run(drive_async(flow()))) == "mine"


def cleaning(done: list[str]) -> Any:
    """A flow that is broken off in its first call, cleans up with a second, and lets the error go on."""

    def interrupts() -> None:
        raise GraphInterrupt(())

    async def ainterrupts() -> None:
        raise GraphInterrupt(())

    async def aclean() -> None:
        done.append("cleaned")

    try:
        yield (Call(interrupts, ainterrupts),)
    except GraphInterrupt:
        yield (Call(lambda: done.append("cleaned"), aclean),)
        raise


@pytest.mark.parametrize("drives", [drive, lambda flow: asyncio.run(drive_async(flow))])
def test_a_flow_that_is_broken_off_can_clean_up(drives: Any) -> None:
    done: list[str] = []
    with pytest.raises(GraphInterrupt):
        drives(cleaning(done))
    assert done == ["cleaned"]


def test_a_task_that_is_cancelled_cleans_up_and_stays_cancelled() -> None:
    done: list[str] = []

    async def hang() -> None:
        await asyncio.sleep(30)

    async def aclean() -> None:
        done.append("cleaned")

    def flow() -> Any:
        try:
            yield (Call(time.sleep, hang),)
        except asyncio.CancelledError:
            yield (Call(print, aclean),)
            raise

    async def main() -> None:
        task = asyncio.ensure_future(drive_async(flow()))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert done == ["cleaned"]


@ways
def test_requests_are_capped_and_the_amplification_is_told(way: Callable[..., Case]) -> None:
    """A sampler whose transport needed three requests for each draw."""

    class Insisting(ScriptedSampler):
        max_calls = 3

        def sample(self, request: Any) -> SampleResult:
            got = super().sample(request)
            return replace(got, usage=replace(got.usage, calls=3 * request.n))

        async def asample(self, request: Any) -> SampleResult:
            return self.sample(request)

    recovery = Recovery(
        sampler=Insisting([], last="40"),
        verifier=ScriptedVerifier(["42"]),
        budget=RetryBudget(calls=20),
        extra_samples=3,
        concurrency=4,
    )
    case = way(recovery, "41")
    spent = case.ledger.spent
    assert spent.calls == 18  # three draws, then as many of a round of four as are sure to fit, and no third round
    assert case.amplification == spent.calls / spent.asked == 9.0
    assert case.outcome is not None
    assert (case.outcome.status, case.outcome.reason) == ("unresolved", "budget:calls")
    assert Recovery(sampler=Insisting([]), verifier=ScriptedVerifier(["42"])).run(STEP, "42").amplification is None


def test_threads_of_callers_that_ended_go_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drive_module, "_IDLE", 0.2)
    recovery = Recovery(ScriptedSampler([], last="7"), FunctionVerifier(lambda text: text == "7"))
    start = threading.Barrier(24)

    def caller() -> None:
        start.wait(30)
        assert recovery.run("3 + 4?").outcome.text == "7"

    callers = [threading.Thread(target=caller) for _ in range(24)]
    for one in callers:
        one.start()
    for one in callers:
        one.join(60)
    ends = time.monotonic() + 30
    while any(x.name == "rfx-call" for x in threading.enumerate()):
        assert time.monotonic() < ends
        time.sleep(0.05)
    assert recovery.run("3 + 4?").outcome.text == "7"


def test_of_many_calls_that_hung_few_threads_are_left() -> None:
    def slow(text: str) -> bool:
        time.sleep(0.5)
        return False

    budget = RetryBudget(samples=1, attempts=1)
    recovery = Recovery(
        ScriptedSampler([], last="7"), FunctionVerifier(slow), verdict_seconds=0.01, budget=budget, concurrency=1
    )
    for _ in range(30):
        recovery.run("3 + 4?", "8")
    time.sleep(2)
    assert sum(x.name == "rfx-call" for x in threading.enumerate()) <= 8
