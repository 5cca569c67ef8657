"""Processes that start in milliseconds: forked from one that has imported everything and opened nothing.

A worker is killed with SIGKILL some hundred times; importing LangGraph and OpenAI's SDK each time would take a second
and more. A fork server has them loaded, and no database, thread or socket that a child could inherit by mistake.
"""

from __future__ import annotations

import multiprocessing

__all__ = ["CONTEXT"]

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["benchmarks.chaos.warm"])
