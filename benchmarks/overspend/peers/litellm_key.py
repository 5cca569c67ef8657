"""What LiteLLM's proxy loads from its configuration: whose key it is and what its budget is, and LiteLLM's counting.

The proxy reads virtual keys from a database through Prisma, whose engine is a program that pip does not install. A key
that the proxy gets from ``custom_auth`` has the same budget, reservation and counter in Redis. Without the database
the proxy does not start its own cost tracking, which corrects a reservation to what the call cost; it is started here.
"""

from __future__ import annotations

from typing import Any

from litellm.proxy._types import UserAPIKeyAuth
from litellm.proxy.hooks.proxy_track_cost_callback import _ProxyDBLogger

tracker = _ProxyDBLogger()


async def the_key(_: Any, api_key: str) -> UserAPIKeyAuth:
    """The key ``<name>-<cap in US dollars>``; without a cap for the bare call."""
    cap = api_key.rpartition("-")[2]
    return UserAPIKeyAuth(api_key=api_key, token=api_key, max_budget=float(cap) if cap != "none" else None)
