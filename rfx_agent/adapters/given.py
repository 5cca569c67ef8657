"""What every way in takes: a ``Recovery``, or a verifier and the options to make one of."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from rfx_agent.accepted import SamplerLike, ToolLike, VerifierLike
from rfx_agent.checks import among
from rfx_agent.errors import ConfigError
from rfx_agent.recovery import AgentOptions, Options, Recovery

__all__ = [
    "AgentOptions",
    "OnUnresolved",
    "Options",
    "SamplerLike",
    "ToolLike",
    "VerifierLike",
    "checked_function",
    "checked_unresolved",
    "plain",
    "recovery_of",
]

OnUnresolved = Literal["raise", "return"]
"""What becomes of a failure that nothing rescued: ``Unresolved`` is raised, or the failed answer is returned."""


_FACTORY = "a function from the run's context to a Recovery"
_NAMES = (*Options.__annotations__, "verifier", "sampler", "tool", "budget")
_INTERRUPTS = (
    "interrupts is no parameter here, because a resume would run it again from its top; to ask a person use "
    "add_recovery(..., interrupts=True), or give an escalator="
)


def recovery_of(
    where: Callable[..., Any],
    recovery: Any,
    named: Mapping[str, Any],
    options: Mapping[str, Any],
    *,
    factory: bool = False,
) -> Any:
    """The recovery that a way in was given, or made of its verifier and its options.

    Args:
        where: the way in, for messages; what its signature names can be meant by a misspelt option.
        recovery: what stands in the place of a ``Recovery``; None where there is none.
        named: the parameters of ``Recovery`` that the way in names; None is not given.
        options: the others.
        factory: whether a function from the run's context to a ``Recovery`` will do too.

    Raises:
        ConfigError: neither or both are given, or a name is none of theirs.
    """
    who = where.__name__
    for name in options:
        if name not in _NAMES:
            raise ConfigError(_unknown(who, name, list(inspect.signature(where).parameters)))
    given = {name: value for name, value in named.items() if value is not None} | dict(options)
    listed = ", ".join(f"{name}=" for name in given)
    if recovery is None:
        if "verifier" not in given:
            raise ConfigError(
                f"{who}: verifier is missing; give a Recovery, or verifier=, such as verifier=MathVerifier()"
            )
        return Recovery(**given)
    if isinstance(recovery, Recovery):
        if given:
            raise ConfigError(
                f"{who}: a Recovery and {listed} are given; give one of them, or change "
                "the recovery: dataclasses.replace(recovery, ...)"
            )
        return recovery
    if factory and callable(recovery) and not isinstance(recovery, type) and not hasattr(recovery, "verify"):
        if given:
            raise ConfigError(f"{who}: {_FACTORY} and {listed} are given; give them to the Recovery that it makes")
        return recovery
    more = f", or {_FACTORY}" if factory else ""
    raise ConfigError(f"{who}: recovery is {recovery!r}; give a Recovery{more}; a verifier goes by name: verifier=...")


def checked_unresolved(who: str, given: Any) -> OnUnresolved:
    """``on_unresolved``, checked."""
    value: OnUnresolved = among(f"{who}: on_unresolved", given, ("raise", "return"))
    return value


def checked_function(who: str, given: Any, like: str) -> None:
    """Raise ``ConfigError`` on what is neither None nor a plain function, such as ``like``."""
    if given is not None and not callable(given):
        raise ConfigError(f"{who} is {given!r}; give a function, such as {like}")
    plain(who, given)


def plain(who: str, given: Any) -> None:
    """Raise ``ConfigError`` on an async function: what it is to give is needed on the spot."""
    if any(inspect.iscoroutinefunction(f) for f in (given, getattr(given, "__call__", None))):  # noqa: B004  # see above
        raise ConfigError(f"{who} is an async function; give a plain one")


def _unknown(who: str, name: str, own: Sequence[str]) -> str:
    if name == "interrupts":
        return f"{who}: {_INTERRUPTS}"
    known = sorted({*own, *_NAMES} - {"options", "args", "kwargs", "self"})
    near = difflib.get_close_matches(name, known, n=1)
    meant = f"do you mean {near[0]}=? " if near else ""
    return f"{who}: there is no parameter {name!r}; {meant}Its parameters are {', '.join(known)}"
