"""Libraries of the extras: imported when they are needed, and named with the extra when they are not there."""

from __future__ import annotations

import importlib
import os
import sys
import threading
from typing import Any

from rfx_agent.errors import ConfigError

__all__ = ["need", "need_patient"]

_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
_loading = threading.Lock()


def need(module: str, extra: str) -> Any:
    """The module, imported now.

    Raises:
        ConfigError: it is not installed; names the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise ConfigError(f"{name} is not installed; pip install 'rfx-agent[{extra}]'") from error


def need_patient(module: str, extra: str) -> Any:
    """A module that brings OpenMP, imported so that its threads sleep while they wait for each other, not spin.

    Spinning is a little faster on an idle machine. On a busy one it starves the very thread that is waited for: with
    two threads on two cores and other work beside, 4 tokens/s instead of 55. OpenMP reads this when it is loaded, so
    it is set for the import only; a program that imported the module before, or that sets OpenMP's variables itself,
    keeps what it has.

    Raises:
        ConfigError: as ``need``.
    """
    if module in sys.modules or any(variable in os.environ for variable in _WAITING):
        return need(module, extra)
    with _loading:
        os.environ[_WAITING[0]] = "PASSIVE"
        try:
            return need(module, extra)
        finally:
            os.environ.pop(_WAITING[0], None)
