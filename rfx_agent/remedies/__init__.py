"""What may turn a failure into a verified success: one remedy a file.

``Recovery(remedies=[...])`` takes any number of them; ``rfx_agent.ports.Remedy`` is their base class, and ``Custom``
the way to write one without knowing the engine.
"""

from rfx_agent.ports import Remedy
from rfx_agent.remedies.chosen import chosen, default_remedies
from rfx_agent.remedies.custom import Custom
from rfx_agent.remedies.delegate import Delegate
from rfx_agent.remedies.extend import Extend
from rfx_agent.remedies.retry import LocalTemp, Retry
from rfx_agent.remedies.revise import Revise
from rfx_agent.remedies.steer import Steer
from rfx_agent.remedies.tool import Tool

__all__ = [
    "Custom",
    "Delegate",
    "Extend",
    "LocalTemp",
    "Remedy",
    "Retry",
    "Revise",
    "Steer",
    "Tool",
    "chosen",
    "default_remedies",
]
