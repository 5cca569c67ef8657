"""A sampler that is left alone for a while after it failed too often, around any other."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator

from rfx_agent._closing import AsyncClosing
from rfx_agent._extras import need
from rfx_agent._forks import Lock
from rfx_agent.accepted import SamplerLike, sampler_of
from rfx_agent.checks import MOST_SECONDS, number, whole
from rfx_agent.errors import CircuitOpen, ConfigError, SamplerError
from rfx_agent.ports import Sampler
from rfx_agent.records import SampleRequest, SampleResult
from rfx_agent.samplers.openai.secrets import redact

__all__ = ["CircuitBreaker"]

_LIMIT = 300


class CircuitBreaker(AsyncClosing, Sampler):
    """Stops asking a model that keeps failing, so that runs end with a reason and not after every timeout.

    It is closed at first, and lets every request through. After ``failures`` transient failures in a row (timeouts,
    429, 5xx, lost connections) it is open: for ``seconds`` each request ends at once in ``CircuitOpen``, and nothing
    is sent. Then it is half open: one request goes through, and the others end in ``CircuitOpen`` until that one is
    answered. A success closes the breaker; a failure opens it again.

    It opens too where a model fails now and again: when at least ``share`` of the last ``window`` requests were
    transient failures.

    A result with any rollout is a success, whatever its notes say. A failure that is not transient (a refused
    request, a bad key) and a cancelled call say nothing of the model: they are not counted, do not end a row of
    failures, and leave a half-open breaker to the next request. Nor is counted what a request brings that was sent
    before the breaker last opened.

    Args:
        sampler: the model. Its transport's own retries are within one request: they are over before it has failed.
        failures: transient failures in a row that open the breaker, 1 or more.
        seconds: how long it then stays open, above 0.
        share: of the last ``window`` requests, the share of transient failures that opens the breaker too, in (0, 1];
            None for failures in a row alone.
        window: requests that ``share`` is of, 2 or more.
        name: for records and messages; by default the sampler's.

    Raises:
        ConfigError: a parameter that cannot work; ``circuitbreaker`` is not installed.

    Make one for each model and share it: one instance serves any number of runs, threads and event loops. What it has
    counted lives in the process. Closing it closes the sampler.

    Example:
        >>> from rfx_agent.testing import ScriptedSampler
        >>> CircuitBreaker(ScriptedSampler(["fine"]), failures=3).state
        'closed'
    """

    def __init__(
        self,
        sampler: SamplerLike,
        *,
        failures: int = 5,
        seconds: float = 30.0,
        share: float | None = 0.5,
        window: int = 20,
        name: str | None = None,
    ) -> None:
        self._sampler = sampler_of(sampler, where="CircuitBreaker: sampler")
        self._failures = whole("CircuitBreaker: failures", failures, least=1)
        self._seconds = number("CircuitBreaker: seconds", seconds, above=0, most=MOST_SECONDS)
        self._share = None if share is None else number("CircuitBreaker: share", share, above=0)
        if self._share is not None and self._share > 1:
            raise ConfigError(f"CircuitBreaker: share is {share!r}; give a share of at most 1, or None")
        self._last: deque[bool] = deque(maxlen=whole("CircuitBreaker: window", window, least=2))
        self.name = name or self._sampler.name
        self.continues_prefix = self._sampler.continues_prefix
        self.takes_temperature = self._sampler.takes_temperature
        self.max_calls, self.takes_max_tokens = self._sampler.max_calls, self._sampler.takes_max_tokens
        self.takes_revision, self.drives_tools = self._sampler.takes_revision, self._sampler.drives_tools
        # The library counts, and tells the three states apart on the monotonic clock. The lock, the one probe, and what
        # neither counts nor ends a row are ours: measured, circuitbreaker 2.1, aiobreaker 1.2 and purgatory 3.0 let 8
        # of 8 concurrent requests through when half open, pybreaker 1.4 runs threads one after the other and has no
        # asyncio, and to each of them a refused request is a success. Without any library this file has 5 lines more.
        library = need("circuitbreaker", "production")
        self._states = library.CircuitBreaker(self._failures, self._seconds, SamplerError, self.name)
        # Reentrant: a task that nobody waits for may be collected, and so end its request, while this thread holds it.
        self._lock = Lock(threading.RLock)
        self._openings = 0
        self._often = ""  # why it opened, where that was the share
        self._probed = False

    def __repr__(self) -> str:
        return f"CircuitBreaker({self._sampler!r}, failures={self._failures}, seconds={self._seconds:g})"

    @property
    def state(self) -> str:
        """``"closed"``, ``"open"``, or ``"half_open"``."""
        with self._lock:
            return str(self._states.state)

    def sample(self, request: SampleRequest) -> SampleResult:
        """Draw ``request.n`` completions; blocks.

        Raises:
            CircuitOpen: the model is not asked now; nothing was sent.
            SamplerError: as the sampler raises it.
        """
        with self._watched():
            return self._sampler.sample(request)

    async def asample(self, request: SampleRequest) -> SampleResult:
        """Do what ``sample`` does, without blocking the event loop."""
        with self._watched():
            return await self._sampler.asample(request)

    def close(self) -> None:
        """Close the sampler, where it can be closed."""
        if (close := getattr(self._sampler, "close", None)) is not None:
            close()

    async def aclose(self) -> None:
        """Do what ``close`` does, and close what the sampler has open in the running event loop."""
        if (aclose := getattr(self._sampler, "aclose", None)) is not None:
            await aclose()
        else:
            self.close()

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """One request: let through or not, and counted when it has ended."""
        sent, probe = self._admit()
        failure: SamplerError | None = None
        passed = False
        try:
            yield
            passed = True
        except SamplerError as error:
            # An open breaker within is no news: nothing was sent.
            failure = error if error.transient and not isinstance(error, CircuitOpen) else None
            raise
        finally:  # however it ends, a cancelled task or an interrupt included: a probe is over then
            with self._lock:
                if probe:
                    self._probed = False
                if sent == self._openings:
                    self._count(failure, passed=passed)

    def _admit(self) -> tuple[int, bool]:
        """How often the breaker has been open so far, and whether this request is the probe."""
        with self._lock:
            state = self._states.state
            if state == "closed":
                return self._openings, False
            if state == "half_open" and not self._probed:
                self._probed = True
                return self._openings, True
            row, last, probed = self._states.failure_count, self._states.last_failure, state == "half_open"
            # Of a probe nobody knows when it ends; should it fail, this is when the next one goes through.
            waits = self._seconds if probed else float(self._states.open_remaining)
        again = f"it is asked again in {waits:g} s"
        when = f"one request tries it now; should that fail too, {again}" if probed else again
        times = f"{row} times in a row" if row > 1 else "once"
        if self._often:
            times = self._often
        raise CircuitOpen(
            f"{self.name!r} failed {times} and is left alone; {when}. The last failure: {last}", seconds=waits
        )

    def _count(self, failure: SamplerError | None, *, passed: bool) -> None:
        if passed:
            self._last.append(False)
            self._states.reset()
        elif failure is not None:
            self._last.append(True)
            # Not the failure itself: its traceback would keep a prompt and its connection alive.
            told = SamplerError(redact(str(failure))[:_LIMIT])
            self._states.__exit__(SamplerError, told, None)
            self._often = ""
            if self._states.state == "closed" and self._too_often():
                self._often = f"{sum(self._last)} times in its last {len(self._last)} requests"
                while self._states.state == "closed":
                    self._states.__exit__(SamplerError, told, None)
            if self._states.state != "closed":
                self._openings += 1
                self._last.clear()

    def _too_often(self) -> bool:
        full = len(self._last) == self._last.maxlen
        return full and self._share is not None and sum(self._last) >= self._share * len(self._last)
