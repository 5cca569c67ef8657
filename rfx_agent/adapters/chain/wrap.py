"""Any chain with recovery behind it: the same input and output types, and a failed step is recovered on the way."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Literal, TypeVar, overload

from langchain_core.exceptions import OutputParserException
from langchain_core.runnables import Runnable
from langchain_core.runnables.base import coerce_to_runnable
from pydantic import ValidationError

from rfx_agent.adapters.attempts import RETRACT
from rfx_agent.adapters.chain.plan import Plan, Retracted
from rfx_agent.adapters.chain.runnable import RecoveredRunnable
from rfx_agent.adapters.texts import as_text
from rfx_agent.checks import among
from rfx_agent.engine.run import Run
from rfx_agent.engine.settings import Settings
from rfx_agent.errors import ConfigError
from rfx_agent.ports import Sampler, Verifier
from rfx_agent.records import Step

__all__ = ["RETRACT", "RecoveredRunnable", "Retracted", "with_recovery"]

In = TypeVar("In")
Out = TypeVar("Out")


@overload
def with_recovery(
    runnable: Runnable[In, Out] | Callable[[In], Out],
    *,
    verifier: Verifier,
    stream: Literal["speculative"],
    on_retract: None = None,
    **options: Any,
) -> RecoveredRunnable[In, Out | Retracted]: ...


@overload
def with_recovery(
    runnable: Callable[[In], Awaitable[Out]], *, verifier: Verifier, **options: Any
) -> RecoveredRunnable[In, Out]: ...


@overload
def with_recovery(
    runnable: Callable[[Iterator[In]], Iterator[Out]] | Callable[[AsyncIterator[In]], AsyncIterator[Out]],
    *,
    verifier: Verifier,
    **options: Any,
) -> RecoveredRunnable[In, Out]: ...


@overload
def with_recovery(
    runnable: Runnable[In, Out] | Callable[[In], Out],
    *,
    verifier: Verifier,
    sampler: Sampler | None = None,
    restore: Callable[[str], Out] | None = None,
    prompt: Callable[[In], str | Step] | None = None,
    revise: Callable[[In, str], In] | None = None,
    text: Callable[[Out], str] = as_text,
    failures: tuple[type[Exception], ...] = ...,
    name: str = "with_recovery",
    stream: Literal["accepted", "speculative"] = "accepted",
    on_retract: Callable[[Retracted], None] | None = None,
    **options: Any,
) -> RecoveredRunnable[In, Out]: ...


def with_recovery(
    runnable: Any,
    *,
    verifier: Verifier,
    sampler: Sampler | None = None,
    restore: Callable[[str], Any] | None = None,
    prompt: Callable[[Any], str | Step] | None = None,
    revise: Callable[[Any, str], Any] | None = None,
    text: Callable[[Any], str] = as_text,
    failures: tuple[type[Exception], ...] = (OutputParserException, ValidationError),
    name: str = "with_recovery",
    stream: Literal["accepted", "speculative"] = "accepted",
    on_retract: Callable[[Retracted], None] | None = None,
    **options: Any,
) -> RecoveredRunnable[Any, Any]:
    """``runnable`` with recovery behind it.

    The first run is the caller's own call: it asks no budget, and where its output passes ``verifier`` nothing more
    happens. One that fails is run again, diagnosed and routed under ``budget``; what comes back in the end is an
    output that passed, or ``Unresolved`` with the whole case.

    The call is one run named ``name``, and the attempts are its children, tagged ``retry:attempt:2`` and so on from
    the second one. An attempt whose output was rejected is a run that succeeded; one that raised keeps its error on
    the runs inside it, and the call's own run has an error only where the call raises.

    Streams give the attempt that was accepted, in its own chunks, once it was accepted. Streaming callback handlers
    (``astream_events``, ``astream_log``, LangGraph's ``messages`` mode) see that attempt only; tracers see them all.
    With ``stream="speculative"`` the first attempt's chunks go out as they come. If it fails, a custom event
    ``rfx.retract`` with the fields of ``Retracted`` goes to the callbacks before anything else does; a plain stream
    has no such channel, so there ``on_retract`` is called, or else a ``Retracted`` is yielded among the chunks.

    Args:
        runnable: a chain, a chat model, or a plain callable, sync, async or a generator.
        verifier: judges the output as text.
        sampler: the model that drives ``tool``; the chain itself is what is sampled again.
        restore: makes an output from a text that no run of the chain produced (a tool's result, a person's
            answer). By default strings and messages are made; other types need it.
        prompt: the step, or its prompt, from the chain's input; by default the input's messages or the input as text.
        revise: makes the input of a revision from the chain's input and the text that is to stand behind its prompt.
            By default text, messages and mappings that hold the prompt as one of their values are understood; of any
            other input there is no revision.
        text: what the verifier reads of an output: by default a string as it is, a message's text, anything else
            as JSON.
        failures: exceptions of the chain that are failed answers, not a chain out of order: such a run is judged as
            failed and the chain is run again. Any other exception ends the step; for those of the network put
            ``with_retry`` inside.
        name: of the run.
        stream: ``accepted`` or ``speculative``.
        on_retract: called when a speculative stream's first attempt failed, before the next chunk.
        options: further parameters of ``Recovery``, such as ``tool``, ``budget``, ``policy`` or ``on_event``.

    Raises:
        ConfigError: on parameters that cannot work, or not together.
    """
    chain: Runnable[Any, Any] = coerce_to_runnable(runnable)
    if options.get("tool") is not None and sampler is None:
        raise ConfigError("with_recovery: tool is set but sampler is None; give the model that is to drive it")
    among("with_recovery: stream", stream, ("accepted", "speculative"))
    if on_retract is not None and stream != "speculative":
        raise ConfigError("with_recovery: on_retract is set, but only stream='speculative' retracts anything")
    if not isinstance(failures, tuple) or not all(isinstance(f, type) and issubclass(f, Exception) for f in failures):
        raise ConfigError(f"with_recovery: failures is {failures!r}; give a tuple of exception classes")
    settings = Settings(sampler, verifier, **options)
    plan = Plan(
        chain, Run.of(settings), restore, prompt, revise, text, failures, name, stream == "speculative", on_retract
    )
    return RecoveredRunnable(plan)
