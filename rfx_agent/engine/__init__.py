"""The loop: flows that yield calls and receive replies, and two short drivers, sync and async.

Nothing here knows LangGraph. The graph's nodes are the flows ``diagnose``, ``resample``, ``tool_verify`` and
``steer``; ``Recovery.run`` strings them together for use without a graph.
"""

from rfx_agent.engine.drivers import Call, Flow, Reply, drive, drive_async, resumed
from rfx_agent.engine.flows import diagnose, recover, resample, steer, tool_verify
from rfx_agent.engine.people import answer_human
from rfx_agent.engine.recovery import Escalation, Recovery
from rfx_agent.engine.verdicts import verdict_call

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
    "resumed",
    "steer",
    "tool_verify",
    "verdict_call",
]
