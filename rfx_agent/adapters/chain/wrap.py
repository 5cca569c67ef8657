"""Any chain with recovery behind it: the same input and output types, and a failed step is recovered on the way."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Literal, TypeVar, Unpack, overload

from langchain_core.runnables import Runnable
from langchain_core.runnables.base import coerce_to_runnable

from rfx_agent.adapters.attempts import FAILURES, RETRACT, checked_failures
from rfx_agent.adapters.chain.plan import Plan, Retracted
from rfx_agent.adapters.chain.runnable import RecoveredRunnable
from rfx_agent.adapters.given import (
    OnUnresolved,
    Options,
    SamplerLike,
    ToolLike,
    VerifierLike,
    checked_unresolved,
    recovery_of,
)
from rfx_agent.adapters.texts import checked_reading
from rfx_agent.budgets.step import RetryBudget
from rfx_agent.checks import among
from rfx_agent.engine.run import Run
from rfx_agent.errors import ConfigError
from rfx_agent.recovery import Recovery

__all__ = ["RETRACT", "RecoveredRunnable", "Retracted", "with_recovery"]

In = TypeVar("In")
Out = TypeVar("Out")


@overload
def with_recovery(
    runnable: Runnable[In, Out] | Callable[[In], Out],
    recovery: Recovery | None = None,
    *,
    verifier: VerifierLike | None = None,
    stream: Literal["speculative"],
    on_retract: None = None,
    **options: Any,
) -> RecoveredRunnable[In, Out | Retracted]: ...


@overload
def with_recovery(
    runnable: Callable[[In], Awaitable[Out]],
    recovery: Recovery | None = None,
    *,
    verifier: VerifierLike | None = None,
    **options: Any,
) -> RecoveredRunnable[In, Out]: ...


@overload
def with_recovery(
    runnable: Callable[[Iterator[In]], Iterator[Out]] | Callable[[AsyncIterator[In]], AsyncIterator[Out]],
    recovery: Recovery | None = None,
    *,
    verifier: VerifierLike | None = None,
    **options: Any,
) -> RecoveredRunnable[In, Out]: ...


@overload
def with_recovery(
    runnable: Runnable[In, Out] | Callable[[In], Out],
    recovery: Recovery | None = None,
    *,
    verifier: VerifierLike | None = None,
    sampler: SamplerLike | None = None,
    tool: ToolLike | None = None,
    budget: RetryBudget | None = None,
    prompt: str | Callable[[In], Any] | None = None,
    answer: str | Callable[[Out], str] | None = None,
    expected: str | Callable[[In], Any] | None = None,
    on_unresolved: OnUnresolved = "raise",
    restore: Callable[[str], Out] | None = None,
    revise: Callable[[In, str], In] | None = None,
    failures: tuple[type[Exception], ...] = ...,
    name: str = "with_recovery",
    stream: Literal["accepted", "speculative"] = "accepted",
    on_retract: Callable[[Retracted], None] | None = None,
    **options: Unpack[Options],
) -> RecoveredRunnable[In, Out]: ...


def with_recovery(  # type: ignore[misc]  # the overloads above name the options of their own alone
    runnable: Any,
    recovery: Recovery | None = None,
    *,
    verifier: VerifierLike | None = None,
    sampler: SamplerLike | None = None,
    tool: ToolLike | None = None,
    budget: RetryBudget | None = None,
    prompt: str | Callable[[Any], Any] | None = None,
    answer: str | Callable[[Any], str] | None = None,
    expected: str | Callable[[Any], Any] | None = None,
    on_unresolved: OnUnresolved = "raise",
    restore: Callable[[str], Any] | None = None,
    revise: Callable[[Any, str], Any] | None = None,
    failures: tuple[type[Exception], ...] = FAILURES,
    name: str = "with_recovery",
    stream: Literal["accepted", "speculative"] = "accepted",
    on_retract: Callable[[Retracted], None] | None = None,
    **options: Unpack[Options],
) -> RecoveredRunnable[Any, Any]:
    """``runnable`` with recovery behind it.

    The first run is the caller's own call: it asks no budget, and where its output passes ``verifier`` nothing more
    happens. One that fails is run again, diagnosed and routed under ``budget``; what comes back in the end is an
    output that passed, or ``Unresolved`` with the whole case.

    An exception of the chain's own passes through, so that ``with_retry`` and ``with_fallbacks`` around it see it.

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
        recovery: what to verify and spend; its sampler drives the tool. Or give ``verifier`` and what else differs
            from ``Recovery``'s defaults by name.
        verifier: judges the output as text.
        sampler: the model that drives ``tool``; the chain itself is what is sampled again.
        tool: what ``tool_verify`` runs.
        budget: caps on one call.
        prompt: the key of the input that holds the prompt, or a function from the input to text, messages or a
            ``Step``; by default the input's messages, or the input as text.
        answer: what the verifier reads of an output: a key of it, or a function to text. By default a string as it
            is, a message's text, anything else as JSON.
        expected: what the verifier compares with: a key of the input, or a function of it. No model sees it.
        on_unresolved: whether a failure that nothing rescued raises ``Unresolved``, or returns the best output that
            failed; in a message ``response_metadata["rfx"]`` says so.
        restore: makes an output from a text that no run of the chain produced (a tool's result, a person's
            answer). By default strings and messages are made; other types need it.
        revise: makes the input of a revision from the chain's input and the text that is to stand behind its prompt.
            By default text, messages and mappings that hold the prompt as one of their values are understood; of any
            other input there is no revision.
        failures: exceptions of the chain that are failed answers, not a chain out of order: such a run is judged as
            failed and the chain is run again. For those of the network put ``with_retry`` inside.
        name: of the run.
        stream: ``accepted`` or ``speculative``.
        on_retract: called when a speculative stream's first attempt failed, before the next chunk.
        options: further parameters of ``Recovery``, such as ``remedies``, ``on_event`` or ``policy``.

    Raises:
        ConfigError: on parameters that cannot work, or not together.
    """
    chain: Runnable[Any, Any] = coerce_to_runnable(runnable)
    named = {"verifier": verifier, "sampler": sampler, "tool": tool, "budget": budget}
    settings: Recovery = recovery_of(with_recovery, recovery, named, options)
    if settings.tool is not None and settings.sampler is None:
        raise ConfigError("with_recovery: tool is set but sampler is None; give the model that is to drive it")
    for what, reading in (("prompt", prompt), ("answer", answer), ("expected", expected)):
        checked_reading(f"with_recovery: {what}", reading)
    checked_unresolved("with_recovery", on_unresolved)
    checked_failures("with_recovery", failures)
    among("with_recovery: stream", stream, ("accepted", "speculative"))
    if on_retract is not None and stream != "speculative":
        raise ConfigError("with_recovery: on_retract is set, but only stream='speculative' retracts anything")
    return RecoveredRunnable(
        Plan(
            chain,
            Run.of(settings),
            prompt=prompt,
            answer=answer,
            expected=expected,
            returns=on_unresolved == "return",
            restore=restore,
            revise=revise,
            failures=failures,
            run_name=name,
            speculative=stream == "speculative",
            on_retract=on_retract,
        )
    )
