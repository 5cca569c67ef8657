"""Telling a URL that a case waits for a person."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from rfx_agent._http import prepare, tls_context
from rfx_agent.checks import MOST_SECONDS, number
from rfx_agent.errors import ConfigError, NotifyError

__all__ = ["Webhook", "verify_signature"]

_TRIES = 3
_PAUSE = 0.25  # seconds before the second try; twice that before the third
_PLAIN = "".join(chr(code) for code in range(33, 127) if chr(code) != "%")


@dataclass(frozen=True, slots=True)
class _Fault:
    """Why a try failed, in words without secrets, and whether another may not."""

    said: str
    passing: bool


@dataclass(frozen=True, slots=True)
class _Parcel:
    body: bytes
    headers: Mapping[str, str]


class Webhook:
    """Posts a case to a URL when it is opened, as ``Escalation(notify=Webhook(url))``.

    The body is JSON: ``{"type": "rfx.escalation", "key": key, "case": payload}``, with ``payload`` as
    ``escalation.payload`` describes it. Any status from 200 to 299 is a success; the answer's body is not read, and a
    redirect is not followed. A connection that fails, a timeout and a status from 500 on are tried twice more. So a
    receiver may be told more than once: of the same case always with the same ``key``, in the header
    ``Idempotency-Key`` too (percent-encoded where it is not plain ASCII).

    With a ``secret`` each request is signed. The header ``X-Rfx-Timestamp`` holds the Unix time in seconds, and
    ``X-Rfx-Signature`` holds ``sha256=`` and the hexadecimal HMAC-SHA256, with the secret as key, of the timestamp, a
    full stop, and the body as it was received. A receiver computes the same, compares in constant time, and refuses
    a timestamp that is far from its own clock: see ``verify_signature``.

    The client is ``httpx2``, which ``openai`` brings, and the tries are counted by ``tenacity``, which
    ``langchain-core`` brings. The environment's proxies are used. Of the URL only scheme, host and port ever stand in
    messages and in the client's logs, because with many receivers the rest of it is the password.

    Args:
        url: of the receiver, http or https.
        secret: to sign with; None does not sign.
        timeout: seconds that the head of the receiver's answer may take, per try.
        headers: further headers of every request, such as ``{"Authorization": ...}``.

    Raises:
        ConfigError: a parameter that cannot work.

    One instance serves any number of threads and event loops at once, and holds no connection between two cases.
    """

    def __init__(
        self,
        url: str,
        *,
        secret: str | None = None,
        timeout: float = 10.0,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        if secret is not None and not (isinstance(secret, str) and secret):
            raise ConfigError("webhook: secret is empty or no text; give a text, or None not to sign")
        number("webhook: timeout", timeout, above=0, unit="seconds", most=MOST_SECONDS)
        for name, value in (headers or {}).items():
            if not all(isinstance(x, str) and x.isascii() and x.isprintable() for x in (name, value)):
                raise ConfigError(f"webhook: headers has {name!r} that is no line of ASCII; give texts that are")
        self._origin, self._target, self._login = _parts(url)
        self._secret = secret
        self._timeout = float(timeout)
        self._headers = dict(headers or {})

    def __repr__(self) -> str:
        return f"Webhook({self._origin!r}, signed={self._secret is not None}, timeout={self._timeout:g})"

    def notify(self, payload: Mapping[str, Any], *, key: str) -> None:
        """Post ``payload``; blocks.

        Args:
            payload: what the person will be shown; JSON.
            key: of the case, the same each time it is told.

        Raises:
            NotifyError: the receiver could not be reached or did not take it, in any of three tries; or ``payload``
                is not JSON.
        """
        import httpx2
        import tenacity

        parcel = self._parcel(payload, key)
        with httpx2.Client(**self._settings(asynchronous=False)) as client:

            def post() -> _Fault | None:
                try:
                    with client.stream("POST", self._origin, **self._request(parcel)) as response:
                        return _fault_of(response.status_code)
                except httpx2.TransportError as error:
                    return _lost(error)

            self._check(tenacity.Retrying(**_policy())(post))

    async def anotify(self, payload: Mapping[str, Any], *, key: str) -> None:
        """Do what ``notify`` does, without blocking the event loop."""
        await asyncio.to_thread(_prepare)
        import httpx2
        import tenacity

        parcel = self._parcel(payload, key)
        async with httpx2.AsyncClient(**self._settings(asynchronous=True)) as client:

            async def post() -> _Fault | None:
                try:
                    async with client.stream("POST", self._origin, **self._request(parcel)) as response:
                        return _fault_of(response.status_code)
                except httpx2.TransportError as error:
                    return _lost(error)

            self._check(await tenacity.AsyncRetrying(**_policy())(post))

    def _settings(self, *, asynchronous: bool) -> dict[str, Any]:
        from rfx_agent._network import transport

        inner = transport(asynchronous=asynchronous)
        more = {"verify": tls_context()} if inner is None else {"transport": inner}
        return {"timeout": self._timeout, "follow_redirects": False, "auth": self._login} | more

    def _request(self, parcel: _Parcel) -> dict[str, Any]:
        # The client logs the URL that it is given: the path goes beside it, as the target of the request's first line.
        return {"content": parcel.body, "headers": parcel.headers, "extensions": {"target": self._target}}

    def _parcel(self, payload: Mapping[str, Any], key: str) -> _Parcel:
        try:
            told = {"type": "rfx.escalation", "key": key, "case": payload}
            body = json.dumps(told, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise NotifyError(f"webhook {self._origin}: the case is not JSON: {error}") from error
        headers = {
            "User-Agent": "rfx-agent",
            **self._headers,
            "Content-Type": "application/json",
            "Idempotency-Key": quote(key, safe=_PLAIN),
        }
        if self._secret is not None:
            stamp = str(int(time.time()))
            headers |= {"X-Rfx-Timestamp": stamp, "X-Rfx-Signature": _signature(stamp, body, self._secret)}
        return _Parcel(body, headers)

    def _check(self, fault: _Fault | None) -> None:
        if fault is not None:
            tries = f" in {_TRIES} tries" if fault.passing else ""
            raise NotifyError(f"webhook {self._origin}: {fault.said}{tries}")


def verify_signature(body: bytes, headers: Mapping[str, str], secret: str, *, tolerance: float = 300.0) -> bool:
    """Whether a request that was received comes from a ``Webhook`` with ``secret``.

    Args:
        body: as it was received, before it is parsed.
        headers: of the request; their names in any case.
        secret: the webhook's.
        tolerance: most seconds between the request's clock and this one; an older request may be a repeated one.
    """
    given = {name.lower(): value for name, value in headers.items()}
    stamp = given.get("x-rfx-timestamp", "")
    if not (stamp.isascii() and stamp.isdigit() and len(stamp) < 16) or abs(time.time() - int(stamp)) > tolerance:
        return False
    signature = given.get("x-rfx-signature", "").encode(errors="replace")
    return hmac.compare_digest(signature, _signature(stamp, body, secret).encode())


def _signature(stamp: str, body: bytes, secret: str) -> str:
    return "sha256=" + hmac.new(secret.encode(), stamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def _parts(url: str) -> tuple[str, bytes, tuple[str, str] | None]:
    """What may be told of ``url``, the target of the request, and the name and password in it."""
    import httpx2

    made = None
    if isinstance(url, str) and url.isprintable() and " " not in url:
        try:
            made = httpx2.URL(url)
        except httpx2.InvalidURL:  # its message quotes the URL
            made = None
    if made is None or made.scheme not in ("http", "https") or not made.host or (made.port or 1) > 65535:
        # Not the value received: what is wrong with it may be where its password stands.
        raise ConfigError("webhook: url is no http or https URL; give one such as 'https://hooks.example.com/...'")
    login = (made.username, made.password) if made.userinfo else None
    origin = httpx2.URL(scheme=made.scheme, host=made.host, port=made.port)
    return str(origin).rstrip("/"), made.raw_path, login


def _prepare() -> None:
    """What takes long where it was not done before: the imports, the trusted certificates."""
    import tenacity  # noqa: F401

    prepare()
    tls_context()


def _policy() -> dict[str, Any]:
    import tenacity

    return {
        "stop": tenacity.stop_after_attempt(_TRIES),
        "wait": tenacity.wait_exponential(multiplier=_PAUSE),
        "retry": tenacity.retry_if_result(lambda fault: fault is not None and fault.passing),
        "retry_error_callback": lambda state: state.outcome.result() if state.outcome else None,
    }


def _fault_of(status: int) -> _Fault | None:
    return None if 200 <= status < 300 else _Fault(f"it answered with HTTP status {status}", passing=status >= 500)


def _lost(error: Exception) -> _Fault:
    # Of most of these the text may quote a header or the URL; a connection's says why there is none.
    kind = type(error).__name__
    return _Fault(f"{kind}: {error}" if kind == "ConnectError" else f"it could not be reached ({kind})", passing=True)
