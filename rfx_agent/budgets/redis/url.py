"""The URL of a Redis, and what of it may be shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

from rfx_agent._extras import need
from rfx_agent.budgets.url import check_escaped, hidden, scheme_of
from rfx_agent.errors import ConfigError

__all__ = ["SCHEMES", "Place", "place_of"]

SCHEMES = ("redis", "rediss", "unix")
_HOW = "give redis://user:password@host:6379/0, rediss://... for TLS, or unix:///path/of/redis.sock"
# What the store decides itself: what it sends is bytes, once, on a connection that tells it when it breaks.
_OURS = (
    *("decode_responses", "encoding", "encoding_errors", "health_check_interval", "max_connections", "protocol"),
    *("retry_on_error", "retry_on_timeout", "socket_connect_timeout", "socket_timeout", "timeout"),
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a Redis is.

    Attributes:
        connection: the class of its connections.
        options: of its connections, as ``redis.Connection`` takes them; with the password.
        shown: the URL without secrets.
        secrets: what must be in no text.
    """

    connection: Any
    options: Mapping[str, Any] = field(repr=False)
    shown: str
    secrets: tuple[str, ...] = field(repr=False)

    def clean(self, text: str) -> str:
        """``text`` without secrets."""
        return hidden(text, self.secrets)


def place_of(url: str) -> Place:
    """Read a URL.

    Raises:
        ConfigError: none that a store can be made of, or redis-py is not installed.
    """
    scheme = scheme_of(url, who="redis store", how=_HOW)
    if scheme not in SCHEMES:
        raise ConfigError(f"redis store: the URL is for {scheme!r}; {_HOW}")
    check_escaped(url, who="redis store", how=_HOW)
    connections: Any = need("redis.connection", "redis")
    try:
        options = connections.parse_url(url)
        parts = urlsplit(url)
        port = parts.port
    except (ValueError, TypeError):
        # Without the error and without the URL: both may show a password that was written in the wrong place.
        raise ConfigError(f"redis store: the {scheme} URL cannot be read; {_HOW}") from None
    if scheme == "unix" and not options.get("path"):
        raise ConfigError(f"redis store: the unix URL names no socket; {_HOW}")
    database = parts.path.strip("/") if scheme != "unix" else ""
    if database and not database.isdecimal():
        raise ConfigError(f"redis store: what follows the host is not the number of a database; {_HOW}")
    for name in _OURS:
        if name in options:
            raise ConfigError(f"redis store: the URL sets {name}, which is the store's to decide; leave it out")
    kind = options.get("connection_class", connections.Connection)
    try:
        kind(**_plain(options))
    except Exception as error:  # noqa: BLE001  # whatever an option of a driver raises
        raise ConfigError(
            f"redis store: redis-py does not take what the URL has after the '?': {type(error).__name__}; {_HOW}"
        ) from None
    user = f"{options['username']}@" if options.get("username") else ""
    if scheme == "unix":
        shown = f"unix://{user}{options['path']}"
    else:
        shown = f"{scheme}://{user}{parts.hostname or 'localhost'}:{port or 6379}/{options.get('db', 0)}"
    secrets = {options.get("password"), parts.password, options.get("ssl_password")} - {None, ""}
    secrets |= {quote(x, safe="") for x in secrets}
    return Place(
        options.get("connection_class", connections.Connection),
        _plain(options),
        shown,
        tuple(sorted(secrets, key=len, reverse=True)),
    )


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != "connection_class"}
