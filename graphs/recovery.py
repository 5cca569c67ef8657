"""The recovery graph on its own, configured by an assistant's settings and by the environment (see ``settings``).

Input: ``{"step": {"messages": [...], "expected": "42"}}``, optionally with ``candidate``, the text that failed. A step
may be a prompt alone where the verifier needs nothing to compare with.
"""

from __future__ import annotations

from graphs.settings import Settings, recovery_of
from rfx_agent import recovery_graph

graph = recovery_graph(recovery_of, context_schema=Settings, interrupts=True)
