"""Loopback servers that stand for providers in tests: chat completions as told, and a small Hub."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = [
    "Answer",
    "ChatServer",
    "HubServer",
    "choice",
    "completion",
    "dripping_server",
    "entry",
    "silent_server",
    "unused_port",
]


@dataclass(frozen=True)
class Answer:
    """What to send: a status and a body; ``cut`` closes the connection after so many bytes of it;
    ``pause`` sends it byte by byte, with so many seconds between; ``reason`` stands beside the status."""

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None
    delay: float = 0.0
    pause: float = 0.0
    reason: str | None = None

    def raw(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


class _Quiet(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def answer(self, answer: Answer, *, body: bool = True) -> None:
        time.sleep(answer.delay)
        raw = answer.raw()
        self.send_response(answer.status, answer.reason)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(raw)), **answer.headers}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # a client that timed out has gone
            for part in [raw[i : i + 1] for i in range(len(raw))] if answer.pause else [raw]:
                self.wfile.write(part[: answer.cut] if body else b"")
                time.sleep(answer.pause)
        if answer.cut is not None:
            self.close_connection = True


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients that go away are part of the tests


class _Running:
    """A server in a thread, stopped on exit."""

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        self._server = _Server(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Any:
        self._thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class ChatServer(_Running):
    """``/v1/chat/completions``; ``reply(body, i)`` says what the i-th request (from 0) gets.

    Attributes:
        bodies: the bodies received, in order of arrival.
        headers: their headers, in lower case.
        paths: their paths, with the query.
    """

    def __init__(self, reply: Callable[[dict[str, Any], int], Answer]) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        lock = threading.Lock()
        outer = self

        class Handler(_Quiet):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    at = len(outer.bodies)
                    outer.bodies.append(body)
                    outer.paths.append(self.path)
                    outer.headers.append({name.lower(): value for name, value in self.headers.items()})
                self.answer(reply(body, at))

        super().__init__(Handler)

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"


def entry(token: str, top: Sequence[tuple[str, float]], *, ids: Mapping[str, int] | None = None) -> dict[str, Any]:
    """One token's entry with its alternatives; with llama.cpp's ``id`` fields when ``ids`` is given."""

    def one(text: str, logprob: float) -> dict[str, Any]:
        made = {"token": text, "bytes": list(text.encode()), "logprob": logprob}
        return made | ({} if ids is None else {"id": ids[text]})

    return one(token, dict(top).get(token, -9.0)) | {"top_logprobs": [one(*pair) for pair in top]}


def choice(
    text: str | None,
    *,
    index: int = 0,
    entries: Sequence[Mapping[str, Any]] | None = None,
    finish_reason: str = "stop",
    **message: Any,
) -> dict[str, Any]:
    """One choice of a completion; by default with one entry per word when ``entries`` is None."""
    if entries is None and text:
        words = [word if i == 0 else f" {word}" for i, word in enumerate(text.split(" "))]
        entries = [entry(word, [(word, -0.5), ("other", -1.5)]) for word in words]
    return {
        "index": index,
        "finish_reason": finish_reason,
        "logprobs": {"content": list(entries)} if entries else None,
        "message": {"role": "assistant", "content": text, **message},
    }


def completion(
    *choices: Mapping[str, Any], name: str = "cmpl", prompt: int | None = 7, tokens: int | None = None
) -> dict[str, Any]:
    """A completion of ``choices``; its usage counts their entries or words unless ``tokens`` says otherwise."""
    numbered = [dict(one, index=i) for i, one in enumerate(choices)]
    counted = sum(_tokens(one) for one in numbered)
    usage = {"prompt_tokens": prompt, "completion_tokens": counted if tokens is None else tokens}
    return {
        "id": name,
        "object": "chat.completion",
        "created": 0,
        "model": "fake",
        "choices": numbered,
        "usage": usage if prompt is not None else None,
    }


def _tokens(one: Mapping[str, Any]) -> int:
    if one.get("logprobs"):
        return len(one["logprobs"]["content"])
    return len(str(one["message"]["content"] or "").split())


class HubServer(_Running):
    """A Hugging Face Hub with one file: enough for ``hf_hub_download``.

    Attributes:
        served: times that the whole file was asked for; a probe asks for one byte.
    """

    def __init__(self, content: bytes, *, status: int = 200, cut: int | None = None) -> None:
        self.served = 0
        outer = self
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": "0" * 40,
            "Content-Type": "application/octet-stream",
        }

        class Handler(_Quiet):
            def do_HEAD(self) -> None:
                self.answer(Answer(status, content, headers), body=False)

            def do_GET(self) -> None:
                # The client asks for more than the file, such as what the endpoint can do.
                if "/resolve/" not in self.path:
                    self.answer(Answer(404, {}))
                    return
                if self.headers.get("Range") != "bytes=0-0":
                    outer.served += 1
                self.answer(Answer(status, content, headers, cut))

        super().__init__(Handler)


@contextlib.contextmanager
def dripping_server(pause: float = 0.05, whole: bytes = b"", drip: bytes = b"a") -> Iterator[str]:
    """The URL of a server whose answers never end: after ``whole`` comes ``drip``, again and again.

    By default they never get beyond their head.
    """
    begins = b"HTTP/1.1 200 OK\r\n" + (whole or b"X-Padding: ")

    class Handler(_Quiet):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            with contextlib.suppress(ConnectionError):
                for part in [begins] + [drip] * 400:
                    self.wfile.write(part)
                    time.sleep(pause)
            self.close_connection = True

    with _Running(Handler) as server:
        yield server.url


@contextlib.contextmanager
def silent_server() -> Iterator[str]:
    """A URL whose server accepts connections and never answers."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=16)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.close()


def unused_port() -> int:
    """A loopback port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
