"""The webhook against a loopback receiver that fails in the ways that real ones do."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from servers import dripping_server, unused_port

from rfx_agent.errors import ConfigError, NotifyError
from rfx_agent.escalation import webhook
from rfx_agent.escalation.notify import Notifier
from rfx_agent.escalation.webhook import Webhook, verify_signature

SECRET = "whsec-0123456789"  # noqa: S105  # a test's
PATH = "/services/T000/B000/s3cr3tpath?token=t0k3n&x=%C3%A9"
CASE = {"action_requests": [{"name": "accept_answer"}], "rfx": {"reason": "über \ud800 alles"}}
both = pytest.mark.parametrize("how", ["sync", "async"])


@dataclass
class Got:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """Answers the i-th request (from 0) with the status that ``reply`` gives: 0 hangs up, and -1 says nothing."""

    reply: Callable[[int], int]
    got: list[Got] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def __enter__(self) -> Receiver:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: Any) -> None:
                pass

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.got.append(Got(self.command, self.path, dict(self.headers), body))
                status = outer.reply(len(outer.got) - 1)
                if status <= 0:
                    if status < 0:
                        outer.over.wait(10)
                    self.close_connection = True
                    return
                self.send_response(status)
                self.send_header("Location", outer.url + "/elsewhere")
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"ok")

            def do_GET(self) -> None:
                outer.got.append(Got(self.command, self.path, dict(self.headers), b""))

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *args: object) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pause between two tries, and no proxy of the machine that tests."""
    monkeypatch.setattr(webhook, "_PAUSE", 0)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def receive() -> Iterator[Callable[..., Receiver]]:
    open_: list[Receiver] = []

    def make(*statuses: int) -> Receiver:
        """One that answers with ``statuses`` in turn, and with the last from then on."""
        open_.append(Receiver(lambda i: statuses[min(i, len(statuses) - 1)]).__enter__())
        return open_[-1]

    yield make
    for one in open_:
        one.__exit__()


def tell(hook: Webhook, how: str, key: str = "run-1:0", case: Any = CASE) -> None:
    if how == "sync":
        hook.notify(case, key=key)
    else:
        asyncio.run(hook.anotify(case, key=key))


# --- what is sent


@both
def test_a_case_is_posted_as_json_with_its_key(receive: Any, how: str) -> None:
    server = receive(204)
    hook = Webhook(server.url + PATH, headers={"X-Team": "on-call", "Content-Type": "text/plain"})
    assert isinstance(hook, Notifier)
    tell(hook, how)
    (got,) = server.got
    assert (got.method, got.path) == ("POST", PATH)
    assert json.loads(got.body) == {"type": "rfx.escalation", "key": "run-1:0", "case": CASE}
    assert got.headers["Idempotency-Key"] == "run-1:0"
    assert got.headers["Content-Type"] == "application/json"
    assert got.headers["X-Team"] == "on-call"
    assert got.headers["Host"] == server.url.removeprefix("http://")
    assert not [name for name in got.headers if name.lower().startswith("x-rfx") or name.lower() == "authorization"]


@both
def test_a_name_and_a_password_of_the_url_are_sent_as_such(receive: Any, how: str) -> None:
    server = receive(200)
    tell(Webhook(server.url.replace("//", "//me:p%40ss@") + PATH), how)
    assert server.got[0].headers["Authorization"] == "Basic " + base64.b64encode(b"me:p@ss").decode()
    assert server.got[0].path == PATH


@both
def test_a_proxy_of_the_environment_is_used(receive: Any, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = receive(200)
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    tell(Webhook("http://hooks.example.test" + PATH), how)
    assert proxy.got[0].path == "http://hooks.example.test" + PATH
    assert proxy.got[0].headers["Host"] == "hooks.example.test"


@pytest.mark.parametrize(
    ("key", "sent"),
    [
        ("a b", "a%20b"),
        ("thread:é", "thread:%C3%A9"),
        ("x\r\nX-Evil: 1", "x%0D%0AX-Evil:%201"),
        ("50%", "50%25"),
        ("~!#$&'()*+,-./:;<=>?@[]^_`{|}\"\\", "~!#$&'()*+,-./:;<=>?@[]^_`{|}\"\\"),
    ],
)
def test_a_key_is_one_line_of_ascii_in_the_header_and_itself_in_the_body(receive: Any, key: str, sent: str) -> None:
    server = receive(200)
    tell(Webhook(server.url), "sync", key)
    assert server.got[0].headers["Idempotency-Key"] == sent
    assert "X-Evil" not in server.got[0].headers
    assert json.loads(server.got[0].body)["key"] == key


@both
@pytest.mark.parametrize("case", [{"x": float("nan")}, {"x": object()}, {"x": b"y"}])
def test_a_case_that_is_no_json_is_not_sent(receive: Any, how: str, case: Any) -> None:
    server = receive(200)
    with pytest.raises(NotifyError, match="not JSON"):
        tell(Webhook(server.url), how, case=case)
    assert server.got == []


# --- the signature


@both
def test_a_receiver_can_tell_who_sent_it(receive: Any, how: str) -> None:
    server = receive(200)
    tell(Webhook(server.url, secret=SECRET), how)
    (got,) = server.got
    assert got.headers["X-Rfx-Signature"].startswith("sha256=")
    assert verify_signature(got.body, got.headers, SECRET)
    assert verify_signature(got.body, {name.upper(): value for name, value in got.headers.items()}, SECRET)
    assert not verify_signature(got.body, got.headers, SECRET + "x")
    assert not verify_signature(got.body + b" ", got.headers, SECRET)
    later = str(int(got.headers["X-Rfx-Timestamp"]) + 1)
    assert not verify_signature(got.body, got.headers | {"X-Rfx-Timestamp": later}, SECRET)
    for name in ("X-Rfx-Timestamp", "X-Rfx-Signature"):
        assert not verify_signature(got.body, {k: v for k, v in got.headers.items() if k != name}, SECRET)
        for bad in ("", "-1", "é", "²", "9" * 400, "sha256=", "nan"):
            assert not verify_signature(got.body, got.headers | {name: bad}, SECRET)


def test_a_signature_is_the_one_that_is_documented() -> None:
    # printf '1700000000.{}' | openssl dgst -sha256 -hmac key
    assert webhook._signature("1700000000", b"{}", "key") == (
        "sha256=9d713ed406bb7076d4123f0dc2c39d2df5c654ed4b0cd56b52c8b4c940bd63ae"
    )


def test_an_old_request_is_refused() -> None:
    now = int(time.time())
    for age, tolerance, fits in [
        (0, 300, True),
        (250, 300, True),
        (400, 300, False),
        (-400, 300, False),
        (400, 500, True),
    ]:
        stamp = str(now - age)
        headers = {"X-Rfx-Timestamp": stamp, "X-Rfx-Signature": webhook._signature(stamp, b"{}", SECRET)}
        assert verify_signature(b"{}", headers, SECRET, tolerance=tolerance) == fits


# --- failures


@both
@pytest.mark.parametrize("fault", [500, 503, 599, 0])
def test_what_may_pass_is_tried_again_with_the_same_key(receive: Any, how: str, fault: int) -> None:
    server = receive(fault, fault, 200)
    tell(Webhook(server.url, secret=SECRET), how)
    assert len(server.got) == 3
    assert len({(got.body, got.headers["Idempotency-Key"], got.headers["X-Rfx-Signature"]) for got in server.got}) == 1


@both
@pytest.mark.parametrize(("fault", "says"), [(503, "HTTP status 503 in 3 tries"), (0, "RemoteProtocolError")])
def test_what_does_not_pass_is_an_error_after_three_tries(receive: Any, how: str, fault: int, says: str) -> None:
    server = receive(fault)
    with pytest.raises(NotifyError, match=says) as caught:
        tell(Webhook(server.url + PATH), how)
    assert len(server.got) == 3
    assert str(caught.value).startswith(f"webhook {server.url}: ")


@both
@pytest.mark.parametrize("status", [301, 302, 307, 308, 400, 401, 404, 410, 429])
def test_a_redirect_and_a_refusal_are_final(receive: Any, how: str, status: int) -> None:
    server = receive(status)
    with pytest.raises(NotifyError, match=f"HTTP status {status}$"):
        tell(Webhook(server.url), how)
    assert [(got.method, got.path) for got in server.got] == [("POST", "/")]


@both
def test_a_receiver_that_says_nothing_is_an_error(receive: Any, how: str) -> None:
    server = receive(-1)
    with pytest.raises(NotifyError, match=r"could not be reached \(ReadTimeout\) in 3 tries"):
        tell(Webhook(server.url, timeout=0.2), how)


@both
def test_a_receiver_that_is_not_there_is_an_error(how: str) -> None:
    with pytest.raises(NotifyError, match=r"ConnectError: .* in 3 tries"):
        tell(Webhook(f"http://127.0.0.1:{unused_port()}{PATH}"), how)


def test_a_cancelled_task_is_cancelled(receive: Any) -> None:
    server = receive(-1)

    async def main() -> None:
        task = asyncio.create_task(Webhook(server.url).anotify(CASE, key="k"))
        while not server.got:
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert len(server.got) == 1


# --- secrets


@both
@pytest.mark.parametrize("status", [200, 302, 403, 500, 0, None])
def test_secrets_are_nowhere(receive: Any, how: str, status: int | None, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    url = receive(status).url if status is not None else f"http://127.0.0.1:{unused_port()}"
    key = "s3cr3theader"
    hook = Webhook(url.replace("//", "//me:p4ssw0rd@") + PATH, secret=SECRET, headers={"X-Key": key})
    shown = repr(hook) + str(hook)
    try:
        tell(hook, how)
        assert status == 200
    except NotifyError as error:
        assert status != 200
        while error is not None:  # and what a reporter of errors would show of it
            shown += "".join(traceback.format_exception(error)) + repr(error) + repr(vars(error))
            error = error.__cause__ or error.__context__  # type: ignore[assignment]
    shown += "".join(f"{record.getMessage()} {record.args}" for record in caplog.records)
    assert url in shown
    assert ("HTTP Request: POST" in shown) == bool(status)  # the client does log
    for hidden in ("s3cr3tpath", "t0k3n", "services", SECRET, "p4ssw0rd", key):
        assert hidden not in shown


# --- parameters


@pytest.mark.parametrize(
    "url",
    [
        "",
        None,
        "hooks.example.com/s3cr3tpath",
        "ftp://hooks.example.com/s3cr3tpath",
        "file:///s3cr3tpath",
        "https:///s3cr3tpath",
        "https://hooks.example.com:99999/s3cr3tpath",
        "https://hooks.example.com:x/s3cr3tpath",
        "https://hooks.example.com/s3cr3tpath\n",
        "https://hooks.example.com/ s3cr3tpath",
        "https://[::1/s3cr3tpath",
    ],
)
def test_a_url_that_cannot_work_fails_at_once_and_is_not_told(url: Any) -> None:
    with pytest.raises(ConfigError, match="webhook: url is no http or https URL") as caught:
        Webhook(url)
    assert "s3cr3tpath" not in "".join(traceback.format_exception(caught.value))
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"secret": ""}, "secret is empty"),
        ({"secret": b"x"}, "secret is empty or no text"),
        ({"timeout": 0}, "timeout is 0"),
        ({"timeout": float("inf")}, "timeout is inf"),
        ({"timeout": True}, "timeout is True"),
        ({"headers": {"X-Key": "s3cr3t\r\nX-Evil: 1"}}, "headers has 'X-Key'"),
        ({"headers": {"X-Key": "é"}}, "headers has 'X-Key'"),
        ({"headers": {"X-Key": 3}}, "headers has 'X-Key'"),
    ],
)
def test_parameters_that_cannot_work_fail_at_once(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        Webhook("https://hooks.example.com/x", **options)
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://hooks.slack.com/services/T/B/x", "https://hooks.slack.com"),
        ("HTTPS://Hooks.Example.com:8443?x=1#y", "https://hooks.example.com:8443"),
        ("http://[::1]:80/x", "http://[::1]"),
    ],
)
def test_its_repr_tells_the_host_alone(url: str, origin: str) -> None:
    assert repr(Webhook(url)) == f"Webhook({origin!r}, signed=False, timeout=10)"


def test_importing_it_loads_no_client() -> None:
    code = (
        "import sys, rfx_agent.escalation.webhook; "
        "print([name for name in ('httpx', 'httpx2', 'tenacity', 'openai') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", done.stderr


@both
def test_a_head_that_drips_ends_in_time(how: str) -> None:
    with dripping_server() as url:
        before = time.monotonic()
        with pytest.raises(NotifyError, match="ReadTimeout"):
            tell(Webhook(url, timeout=0.4), how)
    assert time.monotonic() - before < 5  # three tries, and their pauses
