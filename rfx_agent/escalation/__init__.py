"""A case before a person: what they are shown, what they may answer, and what the answer does.

The request and the replies have the shapes of LangChain's human-in-the-loop middleware (one ``HITLRequest``, answered
by ``{"decisions": [...]}``), so that inboxes which show those can show and answer these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rfx_agent._lazy import lazily
from rfx_agent.escalation.notify import Notifier
from rfx_agent.escalation.reply import EXPIRED, HumanReply, apply_reply
from rfx_agent.escalation.request import ACTION, payload, proposed

if TYPE_CHECKING:
    from rfx_agent.escalation.overdue import aclose_overdue, close_overdue
    from rfx_agent.escalation.webhook import Webhook

__all__ = [
    "ACTION",
    "EXPIRED",
    "HumanReply",
    "Notifier",
    "Webhook",
    "aclose_overdue",
    "apply_reply",
    "close_overdue",
    "payload",
    "proposed",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "Webhook": "webhook",
        "aclose_overdue": "overdue",
        "close_overdue": "overdue",
    },
)
