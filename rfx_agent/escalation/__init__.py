"""A case before a person: what they are shown, what they may answer, and what the answer does.

The request and the replies have the shapes of LangChain's human-in-the-loop middleware (one ``HITLRequest``, answered
by ``{"decisions": [...]}``), so that inboxes which show those can show and answer these.
"""

from __future__ import annotations

from rfx_agent.escalation.notify import Notifier
from rfx_agent.escalation.reply import EXPIRED, HumanReply, apply_reply
from rfx_agent.escalation.request import ACTION, payload, proposed

__all__ = ["ACTION", "EXPIRED", "HumanReply", "Notifier", "apply_reply", "payload", "proposed"]
