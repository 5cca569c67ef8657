"""Verifier made of the user's own function."""

from __future__ import annotations

import asyncio
import inspect
import math
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rfx_agent.checks import flags, shown
from rfx_agent.engine.drive import within
from rfx_agent.errors import ConfigError, VerifierError
from rfx_agent.records import Rollout, Step, Verdict
from rfx_agent.verifiers.answers import canonical, stated_answer
from rfx_agent.verifiers.base import NamedVerifier, aside, shorten
from rfx_agent.verifiers.rates import RatesLike, loaded_rates

__all__ = ["FunctionVerifier"]

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class FunctionVerifier(NamedVerifier):
    """Asks ``fn``, a function or coroutine function, whether a rollout passes.

    With one positional parameter ``fn`` receives the text behind any thinking; with two, the step and the rollout.
    Parameters with a default do not count unless there are no others. It returns a ``bool``, or a ``Verdict`` for
    everything else it wants to say. A number is refused: whether 0.7 passes is for ``fn`` to say, in ``Verdict.score``.

    A plain function runs in a thread under an async driver, and a coroutine function runs to its end under a sync
    one, in a loop of its own. What ``fn`` raises is passed on.

    Args:
        fn: the function.
        name: what the verifier is called in records; by default the function's name.
        weak: whether a pass is no proof (see ``Verdict.weak``); a ``Verdict`` that ``fn`` returns is left as it is
            unless this is true.
        rates: of a weak one, the shares of right and of wrong answers that it passes, as measured, or the path of a
            file of them (``rfx_agent.lab.judge_rates.rates_of`` makes one).
        partial: whether a pass proves only a part, such as the form of an answer (``Verifier.partial``).

    Raises:
        ConfigError: a parameter that cannot work.

    Example:
        >>> from rfx_agent.records import Rollout, Step
        >>> FunctionVerifier(lambda text: text.isdigit()).verify(Step.of("3 + 4?"), Rollout("7")).passed
        True
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        *,
        name: str | None = None,
        weak: bool = False,
        rates: RatesLike | None = None,
        partial: bool = False,
    ) -> None:
        if not callable(fn):
            raise ConfigError(f"FunctionVerifier: fn is {shown(fn)}; give a function of (text) or of (step, rollout)")
        super().__init__(name if name is not None else str(getattr(fn, "__name__", type(fn).__name__)))
        flags("FunctionVerifier", weak=weak, partial=partial)
        self.fn = fn
        self.weak = weak
        self.partial = partial
        self.rates = loaded_rates("FunctionVerifier", rates)
        if rates is not None and not weak:
            raise ConfigError("FunctionVerifier: rates is set and weak is False; a proof has none, so give weak=True")
        self._arity = _arity(fn)
        self._async = inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(fn, "__call__", None))  # noqa: B004

    def verify(self, step: Step, rollout: Rollout, *, peers: Sequence[Rollout] = ()) -> Verdict:
        """Judge ``rollout``.

        Raises:
            VerifierError: ``fn`` returned neither a bool nor a ``Verdict``.
        """
        value = self._call(step, rollout)
        if inspect.isawaitable(value):
            value = _run(value)
        return self._verdict(value, rollout)

    async def averify(self, step: Step, rollout: Rollout, *, peers: Sequence[Rollout] = ()) -> Verdict:
        """Do what ``verify`` does, without blocking the event loop."""
        value = self._call(step, rollout) if self._async else await asyncio.to_thread(self._call, step, rollout)
        if inspect.isawaitable(value):
            value = await value
        return await aside(len(rollout.text), self._verdict, value, rollout)

    def _call(self, step: Step, rollout: Rollout) -> Any:
        return self.fn(rollout.said) if self._arity == 1 else self.fn(step, rollout)

    def _verdict(self, value: Any, rollout: Rollout) -> Verdict:
        if isinstance(value, Verdict):
            return value if value.weak or not self.weak else replace(value, weak=True)
        if isinstance(value, bool | np.bool_):
            stated = stated_answer(rollout.said)
            answer = None if stated is None else canonical(stated, casefold=False)  # fn may care about case
            if value:
                return Verdict(True, answer=answer, reason=f"accepted by {self.name}", weak=self.weak)
            return Verdict(False, answer=shorten(answer), reason=f"rejected by {self.name}", weak=self.weak)
        hint = "; return a Verdict with score=" if isinstance(value, int | float) and not math.isnan(value) else ""
        raise VerifierError(
            f"{self.name}: returned {type(value).__name__}; return a bool or a Verdict{hint}", rollout=rollout
        )


def _arity(fn: Callable[..., Any]) -> int:
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"FunctionVerifier: fn is {shown(fn)} and has no readable signature; wrap it in a function of (text)"
        ) from error
    needed = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    if needed:
        raise ConfigError(f"FunctionVerifier: fn needs the keywords {needed}; bind them with functools.partial")
    positional = [p for p in parameters if p.kind in _POSITIONAL]
    required = [p for p in positional if p.default is p.empty]
    if not positional and any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return 2
    count = len(required) or min(len(positional), 1)
    if count not in (1, 2):
        raise ConfigError(
            f"FunctionVerifier: fn takes {count} positional parameters; give one of (text) or of (step, rollout)"
        )
    return count


def _run(awaitable: Awaitable[Any]) -> Any:
    async def main() -> Any:
        return await awaitable

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(main())
    # A sync driver on a thread with a running loop (a notebook): the coroutine gets a loop on another thread.
    return within(threading.TIMEOUT_MAX, asyncio.run, main())
