"""Which sandbox runs what a model wrote: Monty, or a CPython in bubblewrap."""

from __future__ import annotations

from typing import Literal, TypeAlias

from rfx_agent.checks import shown
from rfx_agent.errors import ConfigError
from rfx_agent.tools.os_sandbox import OSSandbox
from rfx_agent.tools.sandbox import Sandbox

__all__ = ["BETTER", "AnySandbox", "SandboxName", "best_sandbox", "sandbox_of"]

BETTER = "sandbox='bubblewrap' or OSSandbox(), once bubblewrap is installed (apt-get install bubblewrap)"
"""What a person can do about what Monty lacks."""

SandboxName: TypeAlias = Literal["monty", "bubblewrap"]
AnySandbox: TypeAlias = Sandbox | OSSandbox


def sandbox_of(value: AnySandbox | SandboxName, *, who: str) -> AnySandbox:
    """A sandbox, or the one of that name with its default limits; made now, so that it is probed now.

    Raises:
        ConfigError: it is neither, or it does not work here.

    Example:
        >>> sandbox_of("monty", who="ProgramTool").name
        'monty'
    """
    if isinstance(value, (Sandbox, OSSandbox)):
        return value
    if value == "monty":
        return Sandbox()
    if value == "bubblewrap":
        return OSSandbox()
    raise ConfigError(f"{who}: sandbox is {shown(value)}; give 'monty', 'bubblewrap', a Sandbox or an OSSandbox")


def best_sandbox() -> AnySandbox:
    """A CPython in bubblewrap where that works, else Monty; its ``name`` says which."""
    try:
        return OSSandbox()
    except ConfigError:
        return Sandbox()
