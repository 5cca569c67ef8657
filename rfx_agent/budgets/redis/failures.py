"""What went wrong with a Redis: whether it may be tried again, and in which words it is reported. Needs redis-py."""

from __future__ import annotations

from typing import Any

from rfx_agent._extras import need
from rfx_agent.budgets.backend import Failure, Unknown
from rfx_agent.budgets.redis.url import Place
from rfx_agent.errors import StoreError

__all__ = ["elsewhere", "failure_of", "refusal"]

_redis: Any = need("redis.exceptions", "redis")
# Replies of a server that is starting, or that is not the primary any more: the URL may lead to the new one.
_ELSEWHERE = ("READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "LOADING", "BUSY ")
_REMEDIES = (
    ("OOM", "raise its maxmemory, or delete what is old: rfx budget prune URL"),
    ("MISCONF", "free space on its disk"),
    ("NOPERM", "let this user run SCRIPT, EVALSHA, INFO and TIME, and read and write the keys of the prefix"),
    ("NOAUTH", "give a URL with a password"),
    ("MOVED", "this is one node of a Redis Cluster, and another has these budgets: give the URL of that one"),
    ("WRONGTYPE", "another program has a key of that name: give another prefix"),
)
_NAMES = {
    "OutOfMemoryError": "OOM",
    "NoPermissionError": "NOPERM",
    "MovedError": "MOVED",
    "AuthenticationError": "NOAUTH",
    "ReadOnlyError": "READONLY",
    "MasterDownError": "MASTERDOWN",
    "ClusterDownError": "CLUSTERDOWN",
    "TryAgainError": "TRYAGAIN",
    "BusyLoadingError": "LOADING",
}


def elsewhere(error: Exception) -> bool:
    """Whether a reply says that this server cannot do it now, whatever is asked."""
    return _said(error).startswith(_ELSEWHERE)


def refusal(error: Exception, place: Place) -> StoreError:
    """A reply that says that one request cannot be done."""
    made = StoreError(_message(error, place))
    made.__cause__ = error
    return made


def failure_of(error: Exception, place: Place) -> Failure:
    """What ``error`` means: what to tell the user, and whether to try again."""
    inner = error.__cause__ if isinstance(error, Unknown) else error
    if isinstance(inner, StoreError):
        message, lost = str(inner), False
    else:
        raised = inner if isinstance(inner, Exception) else error
        message = _message(raised, place)
        broken = isinstance(raised, (_redis.ConnectionError, _redis.TimeoutError, OSError))
        denied = isinstance(raised, (_redis.AuthenticationError, _redis.AuthorizationError))
        lost = elsewhere(raised) or (broken and not denied)
    if isinstance(error, Unknown):
        message += " (after it was sent: it may have been done)"
    failure = Failure(place.clean(message), error, again=lost, lost=lost, alone=False)
    failure.__cause__ = inner
    return failure


def _said(error: Exception) -> str:
    """The reply with the word that it begins with, which redis-py takes off where it has a class for it."""
    text, word = str(error), _NAMES.get(type(error).__name__, "")
    return text if not word or text.startswith(word) else f"{word} {text}"


def _message(error: Exception, place: Place) -> str:
    said = _said(error).strip() or type(error).__name__
    remedy = next((f"; {remedy}" for word, remedy in _REMEDIES if said.startswith(word)), "")
    return place.clean(f"{place.shown}: {'; '.join(x.strip() for x in said.splitlines()[:2])}{remedy}")
