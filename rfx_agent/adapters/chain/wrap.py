"""Any chain with recovery behind it: the same input and output types, and a failed step is recovered on the way."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Generic, Literal, TypeAlias, TypeVar, Unpack, overload

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
    checked_function,
    checked_unresolved,
    plain,
    recovery_of,
)
from rfx_agent.adapters.texts import checked_reading
from rfx_agent.budgets.step import RetryBudget
from rfx_agent.checks import among, shown
from rfx_agent.engine.run import Run
from rfx_agent.errors import ConfigError
from rfx_agent.recovery import Recovery

__all__ = ["RETRACT", "RecoveredRunnable", "Retracted", "with_recovery"]

In = TypeVar("In")
Out = TypeVar("Out")


Special: TypeAlias = (
    Callable[[In], Awaitable[Out]]
    | Callable[[Iterator[In]], Iterator[Out]]
    | Callable[[AsyncIterator[In]], AsyncIterator[Out]]
)
"""A coroutine function or a generator, whose own types are not those of the chain that it makes."""


class ChainOptions(Options, Generic[In, Out], total=False):
    """Parameters of ``with_recovery``, as its docstring says."""

    verifier: VerifierLike | None
    sampler: SamplerLike | None
    tool: ToolLike | None
    budget: RetryBudget | None
    prompt: str | Callable[[In], Any] | None
    answer: str | Callable[[Out], str] | None
    expected: str | Callable[[In], Any] | None
    on_unresolved: OnUnresolved
    restore: Callable[[str], Out] | None
    revise: Callable[[In, str], In] | None
    failures: tuple[type[Exception], ...]
    name: str | None


@overload
def with_recovery(
    runnable: Runnable[In, Out],
    recovery: Recovery | None = None,
    *,
    stream: Literal["speculative"],
    on_retract: None = None,
    **options: Unpack[ChainOptions[In, Out]],
) -> RecoveredRunnable[In, Out | Retracted]: ...


@overload
def with_recovery(
    runnable: Runnable[In, Out],
    recovery: Recovery | None = None,
    *,
    stream: Literal["accepted", "speculative"] = "accepted",
    on_retract: Callable[[Retracted], None] | None = None,
    **options: Unpack[ChainOptions[In, Out]],
) -> RecoveredRunnable[In, Out]: ...


@overload
def with_recovery(
    runnable: Special[In, Out],
    recovery: Recovery | None = None,
    *,
    stream: Literal["speculative"],
    on_retract: None = None,
    **options: Unpack[ChainOptions[In, Out]],
) -> RecoveredRunnable[In, Out | Retracted]: ...


@overload
def with_recovery(
    runnable: Special[In, Out],
    recovery: Recovery | None = None,
    *,
    stream: Literal["accepted", "speculative"] = "accepted",
    on_retract: Callable[[Retracted], None] | None = None,
    **options: Unpack[ChainOptions[In, Out]],
) -> RecoveredRunnable[In, Out]: ...


@overload
def with_recovery(
    runnable: Callable[[In], Out],
    recovery: Recovery | None = None,
    *,
    stream: Literal["speculative"],
    on_retract: None = None,
    **options: Unpack[ChainOptions[In, Out]],
) -> RecoveredRunnable[In, Out | Retracted]: ...


@overload
def with_recovery(
    runnable: Callable[[In], Out],
    recovery: Recovery | None = None,
    *,
    stream: Literal["accepted", "speculative"] = "accepted",
    on_retract: Callable[[Retracted], None] | None = None,
    **options: Unpack[ChainOptions[In, Out]],
) -> RecoveredRunnable[In, Out]: ...


def with_recovery(
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
    name: str | None = None,
    stream: Literal["accepted", "speculative"] = "accepted",
    on_retract: Callable[[Retracted], None] | None = None,
    **options: Unpack[Options],
) -> RecoveredRunnable[Any, Any]:
    """``runnable`` with recovery behind it.

    The first run is the caller's own call: it asks no budget, and where its output passes ``verifier`` nothing more
    happens. One that fails is run again, diagnosed and routed under ``budget``; what comes back in the end is an
    output that passed, or ``Unresolved`` with the whole case.

    An exception of the chain's own passes through as it is, so that ``with_retry``, ``with_fallbacks`` and
    ``try``-``except`` around it see it, unless it is one of ``failures``. In a further attempt it is a note of the
    case, and the cause of ``Unresolved`` where that is raised.

    In every other way the result is as the chain: its types, schemas, graph, configurable fields and attributes. A
    batch is one batch of the chain's, and then each failed output is recovered. What a method makes of the chain
    (``bind_tools``) has recovery too.

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
            ``Step``; by default the input's messages, or the input as text; anything else as JSON, with
            ``str`` for values that JSON lacks. For ``template | model`` it is the formatted prompt.
        answer: what the verifier reads of an output: a key of it, or a function to text. By default a string as it
            is, a message's text, the last of the ``messages`` of an agent's state, anything else as JSON. A message
            that calls tools is no answer and passes on, as in an agent; ``answer="tool_calls"`` has the calls judged,
            as JSON.
        expected: what the verifier compares with: a key of the input, or a function of it. No model sees it.
        on_unresolved: whether a failure that nothing rescued raises ``Unresolved``, or returns the best output that
            failed; in a message ``response_metadata["rfx"]`` says so. Where no run gave an output it always raises.
        restore: makes an output from a text that no run of the chain produced (a tool's result, a person's
            answer). By default strings and messages are made; other types need it.
        revise: makes the input of a revision from the chain's input and the text to be appended to its prompt.
            By default text, messages and mappings that hold the prompt as one of their values are understood; of any
            other input there is no revision.
        failures: exceptions of the chain that are failed answers, not a chain out of order: such a run is judged as
            failed and the chain is run again. For those of the network put ``with_retry`` inside.
        name: of the runnable and of its runs. By default it has the chain's, and a run is named ``with_recovery``.
        stream: ``accepted`` or ``speculative``.
        on_retract: called when a speculative stream's first attempt failed, before the next chunk.
        options: further parameters of ``Recovery``, such as ``remedies``, ``on_event`` or ``policy``.

    Raises:
        ConfigError: on parameters that cannot work, or not together.

    Example:
        >>> from rfx_agent import FunctionVerifier, with_recovery
        >>> answers = iter(["forty", "42"])
        >>> chain = with_recovery(lambda question: next(answers), verifier=FunctionVerifier(str.isdigit))
        >>> chain.invoke("What is 6 times 7?")
        '42'
    """
    chain = _chain(runnable)
    named = {"verifier": verifier, "sampler": sampler, "tool": tool, "budget": budget}
    settings: Recovery = recovery_of(with_recovery, recovery, named, options)
    if settings.tool is not None and settings.sampler is None:
        raise ConfigError("with_recovery: tool is set but sampler is None; give the model that is to drive it")
    for what, reading in (("prompt", prompt), ("answer", answer), ("expected", expected)):
        checked_reading(f"with_recovery: {what}", reading)
        plain(f"with_recovery: {what}", reading)
    checked_function("with_recovery: restore", restore, "Answer.model_validate_json")
    checked_function("with_recovery: revise", revise, "lambda value, addition: ...")
    checked_function("with_recovery: on_retract", on_retract, "lambda retracted: ...")
    if name is not None and not (isinstance(name, str) and name):
        raise ConfigError(f"with_recovery: name is {name!r}; give a text, such as 'solver', or leave it out")
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
            name=name,
            speculative=stream == "speculative",
            on_retract=on_retract,
        )
    )


def _chain(runnable: Any) -> Runnable[Any, Any]:
    try:
        return coerce_to_runnable(runnable)  # type: ignore[no-any-return]  # of a value of any type
    except TypeError as error:
        raise ConfigError(
            f"with_recovery: runnable is {shown(runnable)}; give a chain, a chat model or a function"
            f"{', such as what its compile() returns' if hasattr(runnable, 'compile') else ''}"
        ) from error
