"""Which remedies a deployment has."""

from __future__ import annotations

from rfx_agent.engine.settings import Settings
from rfx_agent.ports import Remedy
from rfx_agent.remedies.extend import Extend
from rfx_agent.remedies.retry import LocalTemp, Retry
from rfx_agent.remedies.revise import Revise
from rfx_agent.remedies.steer import Steer
from rfx_agent.remedies.tool import Tool

__all__ = ["chosen", "default_remedies"]


def default_remedies() -> tuple[Remedy, ...]:
    """What a deployment has that names no remedies. To add one: ``remedies=[*default_remedies(), Delegate(model)]``.

    Example:
        >>> [remedy.name for remedy in default_remedies()]
        ['retry', 'extend', 'revise', 'local_temp']
    """
    return Retry(), Extend(), Revise(), LocalTemp()


def chosen(settings: Settings) -> dict[str, Remedy]:
    """The remedies of a deployment by name: those given, its ``tool``, and each decode of its ``steerer``."""
    given = list(default_remedies() if settings.remedies is None else settings.remedies)
    names = {remedy.name for remedy in given}
    if settings.tool is not None and "tool" not in names:
        given.append(Tool(settings.tool))
    operators = settings.steerer.operators if settings.steerer is not None else ()
    given += [Steer(operator) for operator in operators if settings.remedies is None or operator not in names]
    return {remedy.name: remedy for remedy in given}
