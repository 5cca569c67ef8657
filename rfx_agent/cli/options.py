"""Options that more than one command has."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["Engine"]


class Engine(StrEnum):
    """What runs the batches of a large job."""

    threads = "threads"
    ray = "ray"
