"""The circuit breaker: around scripted samplers on a clock of its own, and around a real one on loopback."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sampler_conformance import PROMPT, SamplerConformance, ask
from servers import Answer, ChatServer, choice, completion, unused_port

from rfx_agent.errors import CircuitOpen, ConfigError, SamplerError, SamplerTimeout
from rfx_agent.ports import Sampler
from rfx_agent.records import Rollout, SampleRequest, SampleResult, Usage
from rfx_agent.samplers.breaker import CircuitBreaker
from rfx_agent.samplers.openai.sampler import OpenAISampler
from rfx_agent.testing import ScriptedSampler

library: Any = pytest.importorskip("circuitbreaker")
both = pytest.mark.parametrize("how", ["sync", "async"])
REQUEST = SampleRequest(PROMPT)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """What the library reads in place of the monotonic clock."""
    made = Clock()
    monkeypatch.setattr(library, "monotonic", made)
    return made


def busy(status: int = 503) -> SamplerError:
    return SamplerError("InternalServerError: busy", status=status, transient=True, calls=1)


class Interrupted(ScriptedSampler):
    """Raises what is not an ``Exception`` too."""

    def sample(self, request: SampleRequest) -> SampleResult:
        if self._texts and not isinstance(self._texts[0], (str, Exception)):
            raise self._texts.pop(0)  # type: ignore[misc]
        return super().sample(request)


class Held(Sampler):
    """A sampler whose requests wait until they are told how to end; ``asked`` counts them."""

    name = "held"

    def __init__(self) -> None:
        self.asked = 0
        self.ends: list[Callable[[BaseException | None], None]] = []

    def sample(self, request: SampleRequest) -> SampleResult:
        done = threading.Event()
        told: list[BaseException | None] = []
        self.asked += 1

        def end(error: BaseException | None) -> None:
            told.append(error)
            done.set()

        self.ends.append(end)
        assert done.wait(10)
        return self._end(told[0])

    async def asample(self, request: SampleRequest) -> SampleResult:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self.asked += 1

        def end(error: BaseException | None) -> None:
            tell = future.set_result if error is None else future.set_exception
            loop.call_soon_threadsafe(tell, error)  # type: ignore[arg-type]

        self.ends.append(end)
        await future
        return self._end(None)

    def _end(self, error: BaseException | None) -> SampleResult:
        if error is not None:
            raise error
        return SampleResult((Rollout("fine"),), Usage(1, 1, 1))


def fail(breaker: CircuitBreaker, how: str, times: int = 1) -> None:
    for _ in range(times):
        with pytest.raises(SamplerError) as caught:
            ask(breaker, REQUEST, how)
        assert not isinstance(caught.value, CircuitOpen)


# --- the port


def honest(body: dict[str, Any], i: int) -> Answer:
    made = [choice(f"red green {j}") for j in range(body.get("n", 1))]
    kept = made if body.get("logprobs") else [one | {"logprobs": None} for one in made]
    return Answer(body=completion(*kept, name=f"c{i}"))


@pytest.fixture
def serve() -> Iterator[Callable[..., tuple[ChatServer, CircuitBreaker]]]:
    open_: list[Any] = []

    def make(reply: Callable[[dict[str, Any], int], Answer], **options: Any) -> tuple[ChatServer, CircuitBreaker]:
        server = ChatServer(reply).__enter__()
        rest = {name: options.pop(name) for name in ("failures", "seconds") if name in options}
        sampler = OpenAISampler("fake", base_url=server.base_url, max_retries=0, **options)
        open_.extend([server, CircuitBreaker(sampler, **rest)])
        return server, open_[-1]

    yield make
    for one in reversed(open_):
        one.__exit__(None, None, None)


class TestConformance(SamplerConformance):
    @pytest.fixture(params=[False, True], ids=["plain", "continues"])
    def sampler(self, request: Any, serve: Any) -> Any:
        return serve(honest, continues_prefix=request.param)[1]

    @pytest.fixture
    def dead_sampler(self) -> Any:
        return CircuitBreaker(OpenAISampler("m", base_url=f"http://127.0.0.1:{unused_port()}/v1", max_retries=0))


def test_the_ports_members_are_the_samplers_and_no_others_are_there() -> None:
    plain = CircuitBreaker(ScriptedSampler([]))
    assert isinstance(plain, Sampler)
    assert (plain.name, CircuitBreaker(plain, name="mine").name) == ("scripted", "mine")
    assert (plain.continues_prefix, plain.takes_temperature, plain.max_calls) == (False, True, 1)
    assert not hasattr(plain, "requests")
    inner = ScriptedSampler([], continues_prefix=True)
    inner.takes_temperature, inner.max_calls = False, 4
    wrapped = CircuitBreaker(inner)
    assert (wrapped.continues_prefix, wrapped.takes_temperature, wrapped.max_calls) == (True, False, 4)
    assert CircuitBreaker(OpenAISampler("m", base_url="http://127.0.0.1/v1", max_retries=3)).max_calls == 8


@both
def test_a_sampler_that_derives_from_nothing_is_wrapped_too(how: str) -> None:
    class Bare:
        name = "bare"
        max_calls = 3

        def sample(self, request: SampleRequest) -> SampleResult:
            return SampleResult((Rollout("fine"),), Usage(1, 1, 1))

    breaker = CircuitBreaker(Bare())  # type: ignore[arg-type]
    assert (breaker.name, breaker.max_calls, breaker.takes_temperature) == ("bare", 3, True)
    assert ask(breaker, REQUEST, how).rollouts[0].text == "fine"


def test_closing_it_closes_the_sampler(serve: Any) -> None:
    _, breaker = serve(honest)
    with breaker:
        ask(breaker, REQUEST, "sync")
    with pytest.raises(SamplerError, match="closed"):
        ask(breaker, REQUEST, "sync")
    assert breaker.state == "closed"  # of the breaker: the sampler was closed by its owner, it did not fail
    _, breaker = serve(honest)

    async def main() -> None:
        async with breaker:
            await breaker.asample(REQUEST)

    asyncio.run(main())
    with pytest.raises(SamplerError, match="closed"):
        ask(breaker, REQUEST, "async")
    bare = CircuitBreaker(ScriptedSampler([], last="x"))  # nothing to close
    bare.close()
    asyncio.run(bare.aclose())
    assert ask(bare, REQUEST, "sync").rollouts


# --- opening and closing


@both
def test_it_opens_after_so_many_failures_and_asks_once_when_the_time_is_over(clock: Clock, how: str) -> None:
    inner = ScriptedSampler([busy(), busy(), busy(), busy(), "fine", "more"])
    breaker = CircuitBreaker(inner, failures=3, seconds=30)
    fail(breaker, how, 3)
    assert breaker.state == "open"
    clock.now += 29.5
    with pytest.raises(CircuitOpen) as caught:
        ask(breaker, REQUEST, how)
    assert (len(inner.requests), caught.value.seconds, caught.value.calls) == (3, 1.0, 0)
    assert caught.value.transient
    clock.now += 0.5
    assert breaker.state == "half_open"
    fail(breaker, how)  # the probe
    assert breaker.state == "open"
    clock.now += 29.9
    with pytest.raises(CircuitOpen, match="failed 4 times in a row"):
        ask(breaker, REQUEST, how)
    clock.now += 0.1
    assert ask(breaker, REQUEST, how).rollouts[0].text == "fine"
    assert breaker.state == "closed"
    assert ask(breaker, REQUEST, how).rollouts[0].text == "more"
    assert len(inner.requests) == 6


@both
def test_the_message_names_the_model_the_row_the_last_failure_and_the_wait(clock: Clock, how: str) -> None:
    echo = SamplerError("APITimeoutError: late, Bearer sk-0123456789abcdef" + "x" * 999, transient=True)
    breaker = CircuitBreaker(ScriptedSampler([busy(), echo]), failures=2, seconds=30, name="gpt")
    fail(breaker, how, 2)
    with pytest.raises(CircuitOpen) as caught:
        ask(breaker, REQUEST, how)
    said = str(caught.value)
    for part in ("'gpt'", "2 times in a row", "in 30 s", "APITimeoutError: late"):
        assert part in said
    assert "0123456789" not in "".join(traceback.format_exception(caught.value))
    assert len(said) < 500


@both
def test_a_success_ends_a_row(clock: Clock, how: str) -> None:
    breaker = CircuitBreaker(ScriptedSampler([busy(), busy(), "fine", busy(), busy(), "fine"]), failures=3)
    fail(breaker, how, 2)
    ask(breaker, REQUEST, how)
    fail(breaker, how, 2)
    ask(breaker, REQUEST, how)
    assert breaker.state == "closed"


@both
@pytest.mark.parametrize(
    "error",
    [
        SamplerError("BadRequestError: no", status=400),
        SamplerError("RateLimitError: no more quota", status=429),
        ConfigError("prefix was given"),
        CircuitOpen("another breaker", seconds=3),
        asyncio.CancelledError(),
        KeyboardInterrupt(),
    ],
)
def test_what_says_nothing_of_the_model_neither_counts_nor_ends_a_row(clock: Clock, how: str, error: Any) -> None:
    breaker = CircuitBreaker(Interrupted([busy(), error, busy(), error, error, "fine"]), failures=2)

    def meet() -> None:
        with pytest.raises(type(error)):
            ask(breaker, REQUEST, how)

    fail(breaker, how)
    meet()
    assert breaker.state == "closed"
    fail(breaker, how)
    assert breaker.state == "open"
    clock.now += 30
    meet()  # a probe that told nothing leaves it to the next
    assert breaker.state == "half_open"
    meet()
    assert ask(breaker, REQUEST, how).rollouts
    assert breaker.state == "closed"


@both
@pytest.mark.parametrize("error", [busy(429), busy(500), SamplerTimeout("late", transient=True), busy(0)])
def test_every_transient_failure_counts(clock: Clock, how: str, error: SamplerError) -> None:
    breaker = CircuitBreaker(ScriptedSampler([error]), failures=1)
    fail(breaker, how)
    with pytest.raises(CircuitOpen, match="failed once"):
        ask(breaker, REQUEST, how)


@both
def test_a_part_of_what_was_asked_is_a_success(serve: Any, how: str) -> None:
    broken = Answer(500, {"error": {"message": "no"}})
    server, breaker = serve(lambda body, i: honest(body, i) if i % 3 == 0 else broken, max_n=1, failures=1)
    for _ in range(2):
        result = ask(breaker, SampleRequest(PROMPT, n=3), how)
        assert len(result.rollouts) == 1
        assert any("2 of 3 draws did not come" in note for note in result.notes)
    assert len(server.bodies) == 6


@both
def test_a_real_server_is_left_alone(serve: Any, clock: Clock, how: str) -> None:
    well = False

    def reply(body: dict[str, Any], i: int) -> Answer:
        return honest(body, i) if well else Answer(503, {"error": {"message": "busy"}})

    server, breaker = serve(reply, failures=2)
    fail(breaker, how, 2)
    for _ in range(3):
        with pytest.raises(CircuitOpen, match=r"InternalServerError.*busy"):
            ask(breaker, REQUEST, how)
    assert len(server.bodies) == 2
    well = True
    clock.now += 30
    assert ask(breaker, REQUEST, how).rollouts
    assert len(server.bodies) == 3


# --- many at once


def test_one_probe_goes_through_whatever_asks(clock: Clock) -> None:
    """Threads and event loops share the breaker: of all that ask while it is half open, one is sent."""
    held = Held()
    breaker = CircuitBreaker(held, failures=1, seconds=30)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(breaker.sample, REQUEST)
        _until(lambda: held.asked == 1)
        held.ends.pop()(busy())
        with pytest.raises(SamplerError):
            first.result(30)
    clock.now += 30
    refused, start = [], threading.Barrier(16)

    def rush(how: str) -> SampleResult | None:
        start.wait(30)
        try:
            return ask(breaker, REQUEST, how)
        except CircuitOpen as error:
            refused.append(error)
            return None

    with ThreadPoolExecutor(16) as pool:
        jobs = [pool.submit(rush, "async" if i % 2 else "sync") for i in range(16)]
        _until(lambda: len(refused) == 15 and held.asked == 2)
        assert all(error.seconds == 30 and "one request tries it now" in str(error) for error in refused)
        with pytest.raises(CircuitOpen):
            asyncio.run(breaker.asample(REQUEST))
        held.ends.pop()(None)
        assert sum(job.result(30) is not None for job in jobs) == 1
    assert (held.asked, breaker.state) == (2, "closed")


def _until(done: Callable[[], bool]) -> None:
    """Wait for other threads; a test that hangs fails."""
    tick = threading.Event()
    for _ in range(10_000):
        if done():
            return
        tick.wait(0.001)
    raise AssertionError("it did not come to that")


def test_a_cancelled_probe_leaves_the_next_one_through(clock: Clock) -> None:
    held = Held()
    breaker = CircuitBreaker(held, failures=1)

    async def main() -> None:
        async def begin() -> asyncio.Task[SampleResult]:
            task = asyncio.create_task(breaker.asample(REQUEST))
            await asyncio.sleep(0)
            return task

        task = await begin()
        held.ends.pop()(busy())
        with pytest.raises(SamplerError):
            await task
        clock.now += 30
        probe = await begin()
        with pytest.raises(CircuitOpen):
            await breaker.asample(REQUEST)
        probe.cancel()
        with pytest.raises(asyncio.CancelledError):
            await probe
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(breaker.asample(REQUEST), 0)
        again = await begin()
        held.ends.pop()(None)
        assert (await again).rollouts

    asyncio.run(main())
    assert breaker.state == "closed"


def test_a_probe_that_nobody_waits_for_does_not_hold_the_breaker(clock: Clock) -> None:
    held = Held()
    breaker = CircuitBreaker(held, failures=1)
    breaker._count(busy(), passed=False)
    clock.now += 30

    async def main() -> None:
        lost = breaker.asample(REQUEST)
        lost.send(None)  # under way
        with pytest.raises(CircuitOpen):
            await breaker.asample(REQUEST)
        with breaker._lock:  # collected while this thread holds it: the lock lets it in
            del lost
            gc.collect()
        task = asyncio.create_task(breaker.asample(REQUEST))
        await asyncio.sleep(0)
        held.ends.pop()(None)
        assert (await task).rollouts

    asyncio.run(main())


def test_what_was_sent_before_it_opened_does_not_count_after(clock: Clock) -> None:
    held = Held()
    breaker = CircuitBreaker(held, failures=2, seconds=30)

    async def main() -> None:
        tasks = [asyncio.create_task(breaker.asample(REQUEST)) for _ in range(5)]
        await asyncio.sleep(0)
        for end in held.ends[:2]:
            end(busy())
        await asyncio.wait(tasks[:2])
        assert breaker.state == "open"
        clock.now += 20
        held.ends[2](busy())  # does not keep it open for longer
        held.ends[3](None)  # does not close it
        await asyncio.wait(tasks[2:4])
        assert breaker.state == "open"
        clock.now += 10
        assert breaker.state == "half_open"
        probe = asyncio.create_task(breaker.asample(REQUEST))
        await asyncio.sleep(0)
        held.ends[4](busy())  # does not speak for the probe
        await asyncio.wait(tasks)
        with pytest.raises(CircuitOpen):
            await breaker.asample(REQUEST)
        held.ends[5](None)
        await probe
        assert breaker.state == "closed"
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(main())


def test_failures_of_many_threads_are_all_counted(clock: Clock) -> None:
    breaker = CircuitBreaker(ScriptedSampler([busy() for _ in range(400)]), failures=400, share=None)
    start = threading.Barrier(8)

    def run() -> None:
        start.wait(30)
        fail(breaker, "sync", 50)

    with ThreadPoolExecutor(8) as pool:
        for job in [pool.submit(run) for _ in range(8)]:
            job.result(30)
    with pytest.raises(CircuitOpen, match="failed 400 times"):
        ask(breaker, REQUEST, "sync")


def test_no_prompt_is_kept_alive_by_the_last_failure(clock: Clock) -> None:
    breaker = CircuitBreaker(ScriptedSampler([busy()]), failures=1)
    fail(breaker, "sync")
    kept = breaker._states.last_failure
    assert kept.__traceback__ is None
    assert kept.__cause__ is None


# --- parameters


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"sampler": object()}, "sampler is"),
        ({"sampler": ScriptedSampler}, "sampler is"),
        ({"failures": 0}, "failures is 0"),
        ({"failures": True}, "failures is True"),
        ({"failures": 2.0}, "failures is 2.0"),
        ({"seconds": 0}, "seconds is 0"),
        ({"seconds": float("inf")}, "seconds is inf"),
        ({"seconds": "9"}, "seconds is '9'"),
    ],
)
def test_parameters_that_cannot_work_fail_at_once(given: dict[str, Any], says: str) -> None:
    settings = {"sampler": ScriptedSampler([])} | given
    with pytest.raises(ConfigError, match=says):
        CircuitBreaker(settings.pop("sampler"), **settings)


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "circuitbreaker", None)
    with pytest.raises(ConfigError, match=r"rfx-agent\[production\]"):
        CircuitBreaker(ScriptedSampler([]))


def test_importing_it_loads_no_library() -> None:
    code = "import sys, rfx_agent.samplers.breaker; print('circuitbreaker' in sys.modules, 'openai' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"], done.stderr


def test_its_repr_holds_what_it_was_made_with() -> None:
    made = CircuitBreaker(OpenAISampler("m", base_url="http://127.0.0.1/v1", api_key="sk-secret-0123"), failures=2)
    assert repr(made) == "CircuitBreaker(OpenAISampler('m', name='m'), failures=2, seconds=30)"


def test_a_model_that_fails_every_second_time_is_left_alone(clock: Clock) -> None:
    breaker = CircuitBreaker(ScriptedSampler([busy() if i % 2 else "7" for i in range(40)]))
    for _ in range(10):
        ask(breaker, REQUEST, "sync")
        fail(breaker, "sync")
    with pytest.raises(CircuitOpen, match="10 times in its last 20 requests"):
        ask(breaker, REQUEST, "sync")


@pytest.mark.parametrize(("share", "window"), [(0, 20), (1.5, 20), ("half", 20), (0.5, 1), (0.5, 2.5)])
def test_a_share_and_a_window_that_cannot_work_are_refused(share: Any, window: Any) -> None:
    with pytest.raises(ConfigError, match=r"CircuitBreaker: (share|window)"):
        CircuitBreaker(ScriptedSampler(["7"]), share=share, window=window)
