"""The user's own chain, node or agent as a sampler: a draw is one more run of it on the same input."""

from __future__ import annotations

import asyncio
import copy
import inspect
import itertools
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Sequence
from contextvars import Context
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from langchain_core.exceptions import OutputParserException
from langchain_core.runnables import RunnableConfig, ensure_config, patch_config
from langchain_core.runnables.config import (
    get_async_callback_manager_for_config,
    get_callback_manager_for_config,
    set_config_context,
)
from pydantic import ValidationError

from rfx_agent.adapters.reported import Reported
from rfx_agent.adapters.texts import flawed
from rfx_agent.errors import ConfigError, RfxError, SamplerError, SamplerTimeout, is_control_flow
from rfx_agent.ports import Sampler
from rfx_agent.records import Rollout, SampleRequest, SampleResult, Usage, Verdict
from rfx_agent.samplers.openai.provider_errors import map_error, tries
from rfx_agent.samplers.usage import LOST, of_lost

__all__ = [
    "CALLS_TOOLS",
    "FAILURES",
    "RETRACT",
    "Again",
    "Attempts",
    "Made",
    "Thing",
    "checked_failures",
    "in_context",
    "response_id",
    "tag",
    "together",
]

RETRACT = "rfx.retract"
"""Name of the custom event that retracts what was streamed of a failed attempt."""
FAILURES: tuple[type[Exception], ...] = (OutputParserException, ValidationError)
"""Exceptions of a chain or a node that are failed answers by default."""
CALLS_TOOLS = Verdict(False, reason="it calls tools, and is no answer", kind="no_answer")
"""The flaw of a run that goes on instead of answering."""
T = TypeVar("T")

_NOSTREAM = "nostream"  # LangGraph's tag for model calls that stream_mode "messages" leaves out


@dataclass(slots=True)
class Made:
    """What one run of a thing gave.

    Attributes:
        rollout: the run as the engine sees it; None where it gave no answer, and so is no draw.
        output: what the caller gets if this run is chosen.
        flaw: the verdict on a rollout that cannot stand, whatever its text; None where the verifier is asked.
        error: what the thing raised; without a rollout it means that the thing itself is out of order.
        usage: what the run used.
        lost: calls of models that were lost in a run that is out of order; they are not in ``usage``.
        gone: what those are charged; None where no model was heard of.
    """

    rollout: Rollout | None = None
    output: Any = None
    flaw: Verdict | None = None
    error: Exception | None = None
    usage: Usage = field(default_factory=lambda: Usage(calls=1))
    lost: int = 0
    gone: Usage | None = None

    @classmethod
    def broken(cls, error: Exception, again: Again) -> Made:
        """What came of a run that raised ``error``, and so is out of order."""
        heard = again.reported
        if heard.calls:
            used = heard.usage(lost=False)
            return cls(error=error, usage=used, lost=heard.lost, gone=heard.gone)
        lost = tries(error)[1]
        return cls(error=error, lost=1 if lost is None else lost)


@dataclass(frozen=True, slots=True)
class Again:
    """One further run that is to be made.

    Attributes:
        number: of the run, from 1; the caller's own is the first.
        request: what the engine asks for; nothing for the caller's own run.
        index: of the run within the request, from 0.
        reported: counts the tokens of the models inside the run, where its config is passed on.
    """

    number: int
    request: SampleRequest = SampleRequest(({"role": "user", "content": ""},))
    index: int = 0
    reported: Reported = field(default_factory=Reported)

    def __post_init__(self) -> None:
        self.reported.cap = self.request.max_tokens

    def config(self, *, sync: bool) -> RunnableConfig:
        """The configuration that is active here, for a run that is tagged and streams no tokens to the user."""
        config = ensure_config()
        manager: Any = (get_callback_manager_for_config if sync else get_async_callback_manager_for_config)(config)
        manager.add_tags([tag(self.number), _NOSTREAM], inherit=True)
        manager.add_handler(self.reported, inherit=True)
        return patch_config(config, callbacks=manager)


class Thing(ABC):
    """Something of the user's that gives an answer and can be run again.

    Attributes:
        name: for records and messages.
        takes_temperature: whether a run honours ``SampleRequest.temperature``.
        takes_max_tokens: whether a run honours ``SampleRequest.max_tokens``.
        takes_revision: whether ``SampleRequest.revision`` can be added to its input.
        failures: exceptions of the thing that are failed answers, not a thing out of order.
    """

    name: str
    takes_temperature: bool = False
    takes_max_tokens: bool = False
    takes_revision: bool = False
    failures: tuple[type[Exception], ...] = ()

    @abstractmethod
    def run(self, again: Again) -> Any:
        """One more run."""

    @abstractmethod
    async def arun(self, again: Again) -> Any:
        """Do what ``run`` does, without blocking the event loop."""

    @abstractmethod
    def made(self, output: Any, again: Again) -> Made:
        """What a run gave."""

    def failed(self, error: Exception, again: Again) -> Made:
        """What a run came to that raised ``error``: a failed answer, or a thing that is out of order."""
        if not isinstance(error, self.failures):
            return Made.broken(error, again)
        usage = again.reported.usage()
        said = getattr(error, "llm_output", None)
        text = said if isinstance(said, str) else ""
        rollout = Rollout(text, "r0", response_id=response_id(again.number), usage=usage)
        return Made(rollout, flaw=flawed(error), error=error, usage=usage)

    def driver(self) -> Sampler | None:
        """The model that writes a tool's input, or None where there is none."""
        return None

    def on(self, other: Sampler) -> Thing | None:
        """The same thing with ``other`` for its model; None where the thing's model is its own matter."""
        return None

    def run_all(self, runs: Sequence[Again]) -> list[Made]:
        """Several runs. One after the other, because a thing need not be safe to run in several threads."""
        return [self.tried(again) for again in runs]

    async def arun_all(self, runs: Sequence[Again]) -> list[Made]:
        """Several runs at once, under the config's ``max_concurrency``."""
        limit = ensure_config().get("max_concurrency")
        return await together([self.atried(again) for again in runs], limit)

    def tried(self, again: Again) -> Made:
        """One more run; an exception is a value, except one that steers LangGraph."""
        try:
            output = self.run(again)
        except Exception as error:
            if is_control_flow(error):
                raise
            return self.failed(error, again)
        return self.made(output, again)

    async def atried(self, again: Again) -> Made:
        """Do what ``tried`` does, without blocking the event loop."""
        try:
            output = await self.arun(again)
        except Exception as error:
            if is_control_flow(error):
                raise
            return self.failed(error, again)
        return self.made(output, again)


class Attempts(Sampler):
    """Draws of one step by running its thing again. The thing decides what else of a request it honours.

    The first run is the caller's own call: its outcome is the candidate, and no budget is asked for it. A request for
    a tool's input goes to the model that drives the tool.

    Attributes:
        outputs: what each run gave that may stand, by response id. Copies of one response are one.
        flaws: why a run cannot stand, by response id.
        made: every run, in order.
    """

    runs_again = True

    def __init__(self, thing: Thing) -> None:
        self._of(thing)
        self.outputs: dict[str, Any] = {}
        self.flaws: dict[str, Verdict] = {}
        self.made: list[Made] = []
        self._texts: dict[str, str] = {}
        self._numbers = itertools.count(1)

    def _of(self, thing: Thing) -> None:
        self.name, self.takes_temperature = thing.name, thing.takes_temperature
        self.takes_max_tokens, self.takes_revision = thing.takes_max_tokens, thing.takes_revision
        self.drives_tools = thing.driver() is not None
        self._thing = thing

    def on(self, other: Sampler) -> Sampler:
        """``other``, asked through the thing where that takes another model; its runs are kept with these."""
        thing = self._thing.on(other)
        if thing is None:
            return other
        attempts = copy.copy(self)
        attempts._of(thing)
        return attempts

    def again(self, request: SampleRequest) -> list[Again]:
        """The runs that ``request`` takes, numbered."""
        return [Again(next(self._numbers), request, i) for i in range(request.n)]

    def take(self, made: Made) -> Made:
        """Keep what a run gave under its response id."""
        self.made.append(made)
        if made.rollout is not None:
            key, text = made.rollout.response_id or response_id(len(self.made)), made.rollout.text
            if self._texts.setdefault(key, text) != text:  # an id that is set by the user says nothing of the response
                key = f"{key}:{len(self.made)}"
            if made.rollout.response_id != key:
                made.rollout = replace(made.rollout, response_id=key)
            if made.flaw is not None:
                self.flaws.setdefault(key, made.flaw)
            else:
                self.outputs.setdefault(key, made.output)
        return made

    def first(self, made: Made) -> Made:
        """Keep the caller's own run."""
        next(self._numbers)
        return self.take(made)

    def sample(self, request: SampleRequest) -> SampleResult:
        """``request.n`` more runs, or a tool's input."""
        if request.purpose == "tool_input":
            again = Again(len(self.made) + 1, request)
            with set_config_context(again.config(sync=True)) as context:
                return context.run(self._driver().sample, request)
        return self._result(request, self._thing.run_all(self.again(request)))

    async def asample(self, request: SampleRequest) -> SampleResult:
        """Do what ``sample`` does, without blocking the event loop."""
        if request.purpose == "tool_input":
            again = Again(len(self.made) + 1, request)
            with set_config_context(again.config(sync=False)) as context:
                written: SampleResult = await in_context(self._driver().asample(request), context)
                return written
        return self._result(request, await self._thing.arun_all(self.again(request)))

    def _driver(self) -> Sampler:
        driver = self._thing.driver()
        if driver is None:
            raise ConfigError(f"recovery: {self.name} has a tool and no model to drive it; give a sampler")
        return driver

    def _result(self, request: SampleRequest, runs: Sequence[Made]) -> SampleResult:
        rollouts, notes, spent = [], [], Usage()
        errors: list[tuple[Exception, RfxError]] = []
        for made in map(self.take, runs):
            spent += made.usage
            if made.rollout is not None:
                rollouts.append(made.rollout)
            elif made.error is not None:
                failure = self.failure(made.error)
                errors.append((made.error, failure))
                notes.append(str(failure))
            else:
                notes.append(f"{self.name} was run again and gave no answer")
        lost = sum(made.lost for made in runs)
        gone = [of_lost(request, made.lost) if made.gone is None else made.gone for made in runs]
        if errors and not rollouts:
            error, failure = errors[0]
            if isinstance(failure, SamplerError):
                heard = all(made.gone is not None or not made.lost for made in runs)
                failure.calls, failure.lost = spent.calls, -(-lost // request.n)
                failure.usage = sum(gone, spent) if heard else None
            if failure is error:
                raise failure
            raise failure from error
        notes += [LOST] if lost else []
        return SampleResult(tuple(rollouts), sum(gone, spent), tuple(dict.fromkeys(notes)))

    def failure(self, error: Exception) -> RfxError:
        """``error`` of the thing, as the engine knows errors; without the key that its provider may have echoed."""
        if isinstance(error, RfxError):
            return error
        told = map_error(error)
        make = SamplerTimeout if isinstance(told, SamplerTimeout) else SamplerError
        return make(f"{self.name}: {told}", status=told.status, transient=told.transient, calls=told.calls)


def checked_failures(who: str, given: Any) -> None:
    """Check that ``given`` is a tuple of exception classes; else raise ``ConfigError``."""
    if not isinstance(given, tuple) or not all(isinstance(f, type) and issubclass(f, Exception) for f in given):
        raise ConfigError(f"{who}: failures is {given!r}; give a tuple of exception classes")


def response_id(number: int) -> str:
    """The response id of a run that has none of its own, by its number."""
    return f"run:{number}"


def tag(number: int) -> str:
    """The tag of a run by its number, as LangChain's retry tags its attempts."""
    return f"retry:attempt:{number}"


async def together(works: Sequence[Coroutine[Any, Any, T]], limit: int | None) -> list[T]:
    """The results of ``works``, of which at most ``limit`` run at once. Where one raises, the others are cancelled."""
    room = asyncio.Semaphore(limit or len(works) or 1)

    async def one(work: Coroutine[Any, Any, T]) -> T:
        async with room:
            return await work

    tasks = [asyncio.create_task(one(work)) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task, work in zip(tasks, works, strict=True):
            task.cancel()
            if inspect.getcoroutinestate(work) == inspect.CORO_CREATED:
                work.close()  # its turn had not come


async def in_context(work: Coroutine[Any, Any, Any], context: Context) -> Any:
    """``work`` as a task in ``context``."""
    return await asyncio.create_task(work, context=context)
