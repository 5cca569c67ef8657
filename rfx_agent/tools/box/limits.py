"""What every process of the OS sandbox does first: read what it is given, and give up what it does not need."""

from __future__ import annotations

import json
import os
import resource
from typing import Any

__all__ = ["described", "settle", "source_line"]


def settle() -> dict[str, Any]:
    """The settings from standard input, which is empty afterwards; limits that nothing here can raise again."""
    with os.fdopen(0, "rb", closefd=False) as given:
        settings: dict[str, Any] = json.loads(given.read())
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    if not settings["prints"]:  # until here a message on standard error was bubblewrap's or Python's own
        os.dup2(null, 2)
    if settings["channel"] != 3:
        os.dup2(settings["channel"], 3)
    os.closerange(4, 256)
    memory, seconds = settings["memory"], settings["cpu"]
    for what, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, settings["disk"]),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_NPROC, 64),  # threads; processes cannot be made at all
        (resource.RLIMIT_SIGPENDING, 64),  # timers, too
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (most, most))
    return settings


def source_line(error: BaseException, filename: str) -> int | None:
    """The line of ``filename`` in which ``error`` was raised, or None."""
    if isinstance(error, SyntaxError) and error.filename == filename:
        return error.lineno
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == filename:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def described(error: BaseException, limit: int = 500) -> str:
    """Kind and message of ``error``, whatever its own ``__str__`` does."""
    try:
        text = str(error.msg if isinstance(error, SyntaxError) else error)
    except BaseException:  # noqa: BLE001  # it is the program's
        text = ""
    if isinstance(error, MemoryError):
        text = text or "it needs more memory than it has"
    name = type(error).__name__
    return (f"{name}: {text}" if text else name)[:limit]
