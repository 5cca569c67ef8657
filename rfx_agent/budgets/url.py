"""What every URL of a store must be, so that no part of a password is read as anything else."""

from __future__ import annotations

import re

from rfx_agent.errors import ConfigError

__all__ = ["check_escaped"]


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
