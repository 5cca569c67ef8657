"""Where a graph's nodes get their recovery from, and how its events reach LangGraph's custom stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from langchain_core.runnables import run_in_executor
from langgraph.config import get_stream_writer
from langgraph.runtime import get_runtime

from rfx_agent.checks import shown
from rfx_agent.engine.settings import Settings
from rfx_agent.errors import ConfigError, RfxError
from rfx_agent.events import Event, as_record
from rfx_agent.recovery import Recovery

__all__ = ["Given", "Source", "streaming", "task_id", "tell", "thread_id"]

Given: TypeAlias = Recovery | Callable[[Any], Recovery]
"""A ``Recovery``, or a function that makes one of a run's context (None where the run has none)."""


class Source:
    """The ``Recovery`` of the node that is running: the one given, or what a factory makes of the run's context.

    A factory is called in every node of every run, so it should give the same object for the same context. In async
    runs it is called in a thread, because building a recovery may read files.

    Args:
        given: the recovery, or the factory.
        where: who asks, for messages.

    Raises:
        ConfigError: ``given`` is neither; later, a factory that gives something else.
    """

    def __init__(self, given: Given, *, where: str) -> None:
        if not isinstance(given, Recovery) and (isinstance(given, type) or not callable(given)):
            raise ConfigError(
                f"{where}: recovery is {given!r}; give a rfx_agent.Recovery, or a function from context to one"
            )
        self._where = where
        self.fixed = given if isinstance(given, Recovery) else None
        self._make = None if isinstance(given, Recovery) else given

    def get(self) -> Recovery:
        """The recovery of the run that this is called in."""
        return self.fixed if self.fixed is not None else self._made(_context())

    async def aget(self) -> Recovery:
        """Do what ``get`` does, without blocking the event loop."""
        if self.fixed is not None:
            return self.fixed
        made: Recovery = await run_in_executor(None, self._made, _context())
        return made

    def _made(self, context: Any) -> Recovery:
        assert self._make is not None  # noqa: S101  # there is no fixed one
        try:
            recovery = self._make(context)
        except RfxError:
            raise
        except Exception as error:
            raise ConfigError(
                f"{self._where}: {self._make!r}, given in the place of a Recovery, broke on the run's context "
                f"({type(context).__name__}): {type(error).__name__}: {error}; a verifier goes by name: verifier=..."
            ) from error
        if not isinstance(recovery, Recovery):
            raise ConfigError(
                f"{self._where}: {self._make!r}, given in the place of a Recovery, returned {shown(recovery)}; let it "
                "make a Recovery of the run's context; a verifier goes by name: verifier=..."
            )
        return recovery


def tell(record: dict[str, Any]) -> None:
    """Write ``record`` to the custom stream of the graph that is running, where there is one."""
    if (write := _writer()) is not None:
        write(record)


def streaming(settings: Settings) -> Callable[[Event], None]:
    """A hook that writes events to the custom stream of the graph that is running, and then to the settings' own."""
    hook = settings.on_event

    def told(event: Event) -> None:
        try:
            if (write := _writer()) is not None:
                write(as_record(event))
        finally:
            if hook is not None:
                hook(event)

    return told


def task_id() -> str:
    """The id of LangGraph's task that this is called in, or "" outside of one."""
    return str(getattr(_info(), "task_id", None) or "")


def thread_id() -> str:
    """The id of the thread that this is called in, or ""."""
    return str(getattr(_info(), "thread_id", None) or "")


def _info() -> Any:
    try:
        return get_runtime().execution_info
    except (RuntimeError, KeyError, AttributeError):
        return None


# A node may be called on its own, outside a graph, as tests do; then there is no stream and no context.
def _writer() -> Callable[[Any], None] | None:
    try:
        return get_stream_writer()
    except (RuntimeError, KeyError):
        return None


def _context() -> Any:
    try:
        return get_runtime().context
    except (RuntimeError, KeyError, AttributeError):
        return None
