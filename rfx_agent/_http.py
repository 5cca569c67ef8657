"""What our HTTP clients share: the first one of a process takes some 20 ms for the trusted certificates alone."""

from __future__ import annotations

import asyncio
import contextlib
import os
from functools import cache, lru_cache
from typing import Any

__all__ = ["prepare", "tls_context"]


def tls_context(*, trust_env: bool = True) -> Any:
    """An ``ssl.SSLContext`` of the client's defaults, made once for each setting of the environment.

    Args:
        trust_env: whether ``SSL_CERT_FILE`` and ``SSL_CERT_DIR`` count.
    """
    return _made(trust_env, os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))


@lru_cache(maxsize=8)
def _made(trust_env: bool, *_environment: str | None) -> Any:
    import httpx2

    return httpx2.create_ssl_context(trust_env=trust_env)


@cache
def prepare() -> None:
    """What an async client would import while the event loop waits; on a thread without one."""
    import httpx2  # noqa: F401

    with contextlib.suppress(ImportError):
        import anyio

        asyncio.run(anyio.sleep(0))
