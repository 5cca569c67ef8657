"""What every URL of a store must be, and how it is refused: no message repeats what may hold a password."""

from __future__ import annotations

import re
from collections.abc import Iterable

from rfx_agent.errors import ConfigError

__all__ = ["check_escaped", "hidden", "scheme_of"]

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,39}")


def hidden(text: str, secrets: Iterable[str]) -> str:
    """``text`` with ``***`` in place of each of ``secrets``."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return text


def scheme_of(url: object, *, who: str, how: str) -> str:
    """What stands before the ``://`` of a URL.

    Raises:
        ConfigError: ``url`` is not a URL. Its text is not repeated: it may be a DSN, or most of a URL, with a password.
    """
    if not isinstance(url, str):
        raise ConfigError(f"{who}: url is of type {type(url).__name__}; it is a text, {how}")
    scheme, mark, _ = url.partition("://")
    if mark and _SCHEME.fullmatch(scheme):
        return scheme
    if not url.strip():
        shape = "an empty text"
    elif re.search(r"\w\s*=", scheme):
        shape = "pairs of name=value, as in a DSN"
    elif mark:
        shape = "a text with more than a scheme before its '://'"
    else:
        shape = "a text without '://'"
    raise ConfigError(f"{who}: url is {shape}, and not a URL; {how}")


def check_escaped(url: str, *, who: str, how: str) -> None:
    """Refuse the URL of a server in which a password may not be escaped: what follows its ``@`` would be the host,
    which messages show.

    Raises:
        ConfigError: there is an ``@`` in a place where it ends no password.
    """
    rest = url.partition("://")[2]
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    if rest.count("@") > authority.count("@") or authority.count("@") > 1:
        raise ConfigError(
            f"{who}: the URL cannot be read: an '@' stands where no user and password end. In a name, a password or a "
            f"parameter write %40 for @, %2F for /, %3F for ? and %23 for #; {how}"
        )
