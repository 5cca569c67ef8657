"""The loop: flows that yield calls and receive replies, and two short drivers, sync and async.

Nothing here knows LangGraph. The graph's nodes are the flows ``diagnose``, ``resample``, ``tool_verify`` and
``steer``; ``Recovery.run`` strings them together for use without a graph.
"""

from rfx_agent.engine.drivers import Call, Flow, Reply, drive, drive_async
from rfx_agent.engine.flows import answer_human, diagnose, recover, resample, steer, tool_verify
from rfx_agent.engine.recovery import Escalation, Recovery

__all__ = [
    "Call",
    "Escalation",
    "Flow",
    "Recovery",
    "Reply",
    "answer_human",
    "diagnose",
    "drive",
    "drive_async",
    "recover",
    "resample",
    "steer",
    "tool_verify",
]
