"""A loopback model server that breaks in many ways, and keeps the provider's own bill of what it really worked for.

It speaks OpenAI's chat completions. A prompt asks for a sum and names a ticket, so that each request is known by its
run. What a request gets is a matter of the seed, the ticket and how many requests the ticket has made.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import random
import re
import select
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote

from benchmarks.fault_kinds import ALL_LOST, BODIES, FAULTS, HTML, JSON, RAW, STATUSES, TRANSPORT

__all__ = ["BAD_WORDS", "FAULTS", "OWN_CLIENT", "Billed", "FaultServer", "spelled_keys", "sum_in", "tokens_of"]

OWN_CLIENT = "x-own-client"  # a header of requests that do not come by a client of rfx_agent
BAD_WORDS = ("mishap", "elsewhere")  # in every error's text, and in every answer that is not the server's own
_MOST_SILENT = 12.0  # seconds until the server itself gives up a client that waits
_ASKED = re.compile(r"ticket ([a-z]{12}): what is (\d+) plus (\d+)\?", re.IGNORECASE)
_TOKENS = re.compile(r"[A-Za-z]{1,6}|\d{1,3}|[^\sA-Za-z\d]")
_PER_MESSAGE, _PER_PROMPT = 4, 3  # tokens of the chat template


def tokens_of(text: str) -> int:
    """Tokens of a text by the server's own tokenizer."""
    return len(_TOKENS.findall(text))


def sum_in(text: str) -> tuple[str, int] | None:
    """The ticket and the sum that a prompt asks for, or None."""
    found = _ASKED.search(text)
    return None if found is None else (found[1], int(found[2]) + int(found[3]))


def spelled_keys(key: str) -> tuple[str, ...]:
    """``key`` as the server writes it into its errors."""
    return key, quote(key, safe=""), base64.b64encode(key.encode()).decode(), "".join(f"\\u{ord(c):04x}" for c in key)


@dataclass(frozen=True, slots=True)
class Billed:
    """One request, and what the provider bills for it.

    Attributes:
        ticket: of its run.
        phase: what the run was doing when it came in, as the server was told.
        model: that was asked.
        tokens: read and written; 0 where the server did not work.
        fault: what was wrong with the response, "" where nothing was.
        own: whether it came by a client of the user's own, as a chat model has one.
    """

    ticket: str
    phase: int
    model: str
    tokens: int
    fault: str
    own: bool


@dataclass
class FaultServer:
    """Serves ``/v1/chat/completions`` on a loopback port while it is entered.

    Attributes:
        seed: of everything that it draws.
        share: of the responses that are faulty.
        phase: given a ticket, what its run is doing.
        right: share of the answers that are right.
        faults: those that occur.
        bill: every request so far.
        elsewhere: tickets of prompts that were sent on to another host.
        unplanned: tickets of requests that a busy machine may have made late, or that came again without a fault.
    """

    seed: int = 0
    share: float = 0.35
    phase: Callable[[str], int] = lambda _: 0
    right: float = 0.4
    faults: tuple[str, ...] = FAULTS
    patience: float = 1.0
    bill: list[Billed] = field(default_factory=list)
    elsewhere: Counter[str] = field(default_factory=Counter)
    unplanned: set[str] = field(default_factory=set)

    def __enter__(self) -> FaultServer:
        self._lock, self._seen = threading.Lock(), Counter[str]()
        self.working = 0
        self._stop = threading.Event()
        self._servers = [_listening(self, _Handler), _listening(self, _Elsewhere)]
        self.base_url = f"http://127.0.0.1:{self._servers[0].server_port}/v1"
        self.other_url = f"http://localhost:{self._servers[1].server_port}/v1/chat/completions"
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def settled(self) -> None:
        """Wait until no request is under way."""
        until = time.monotonic() + 2 * _MOST_SILENT
        while self.working and time.monotonic() < until:
            time.sleep(0.05)

    def take(
        self, body: dict[str, Any], again: bool, *, own: bool
    ) -> tuple[str, str, dict[str, Any] | None, random.Random]:
        """The ticket of a request, its fault, and a good answer to it; it is billed."""
        prompt = "\n".join(_text(m.get("content")) for m in body["messages"])
        asked = sum_in(prompt)
        ticket, right = asked or ("", 0)
        phase = self.phase(ticket)
        with self._lock:
            at, self._seen[ticket] = self._seen[ticket], self._seen[ticket] + 1
        chance = random.Random(f"{self.seed}/{ticket}/{at}")  # noqa: S311  # reproducible
        # A client that is not ours takes the second answer for that to its next request, and nobody behind it can tell.
        faults = tuple(x for x in self.faults if x != "second_response" or not own)
        fault = chance.choice(faults) if faults and chance.random() < self.share else ""
        n, cap = body.get("n") or 1, body.get("max_tokens") or body.get("max_completion_tokens") or 96
        read = _PER_PROMPT + sum(_PER_MESSAGE + tokens_of(_text(m.get("content"))) for m in body["messages"])
        good = self._good(body, prompt, right, read, cap, n, chance)
        worked = TRANSPORT.get(fault, STATUSES[fault][2] if fault in STATUSES else True)
        written = cap * n if fault in ALL_LOST else good["usage"]["completion_tokens"]
        with self._lock:
            if again and not any(x.ticket == ticket and x.fault for x in self.bill):
                self.unplanned.add(ticket)
            self.bill.append(Billed(ticket, phase, body["model"], (read + written) if worked else 0, fault, own))
        return ticket, fault, good, chance

    def _good(
        self, body: dict[str, Any], prompt: str, right: int, read: int, cap: int, n: int, chance: random.Random
    ) -> dict[str, Any]:
        choices, written, thought = [], 0, 0
        for index in range(n):
            message: dict[str, Any] = {"role": "assistant", "content": ""}
            total = right if chance.random() < self.right else right + chance.randint(1, 9)
            kind, reason = chance.random(), "stop"
            if body["model"] == "judge":
                message["content"] = _judgement(prompt, right)
            elif "python" in prompt.lower():
                message["content"] = f"```python\nprint({right if chance.random() < 0.7 else total})\n```"
            elif kind < 0.1:
                message["content"], reason = "Adding step by step, " * cap, "length"
            else:
                said = "逐步把两个数字相加。" if kind > 0.9 else "Adding the two numbers step by step."
                message["content"] = f"{said} Answer: {total}"
                if kind < 0.2:
                    message["reasoning_content"] = "First the ones, then the tens, and so on."
            hidden = tokens_of(message.get("reasoning_content", ""))
            used = cap if reason == "length" else hidden + tokens_of(message["content"])
            if reason == "length":
                message["content"] = " ".join(_TOKENS.findall(message["content"])[:cap])
            written, thought = written + used, thought + hidden
            choices.append({"index": index, "message": message, "finish_reason": reason, "logprobs": None})
        details = {"reasoning_tokens": thought}
        usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
        return {
            "id": f"chat-{chance.getrandbits(48):012x}",
            "object": "chat.completion",
            "created": 1,
            "model": body["model"],
            "choices": choices,
            "usage": {**usage, "completion_tokens_details": details},
        }


def _judgement(prompt: str, right: int) -> str:
    nonce = re.findall(r'"id": "([0-9a-f]+)"', prompt)[-1]
    said = re.findall(r"Answer: (\d+)", prompt) or re.findall(r"^\| (\d+)\s*$", prompt, re.MULTILINE)
    good = bool(said) and int(said[-1]) == right
    score, verdict = (10, "pass") if good else (1, "fail")
    return json.dumps({"id": nonce, "reasoning": "I added them.", "score": score, "verdict": verdict})


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content or "")


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    of: FaultServer

    def handle_error(self, *_: Any) -> None:
        """Clients that go away are part of it."""

    def shutdown_request(self, request: Any) -> None:
        """Close at once: a reset is not to be announced by the end of the stream."""
        self.close_request(request)


def _listening(of: FaultServer, handler: type[BaseHTTPRequestHandler]) -> _Listener:
    server = _Listener(("127.0.0.1", 0), handler)
    server.of = of
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return server


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Listener

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        of, started = self.server.of, time.monotonic()
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        of.working += 1
        try:
            again = self.headers.get("x-stainless-retry-count", "0") != "0"
            ticket, fault, good, chance = of.take(body, again, own=OWN_CLIENT in self.headers)
            with contextlib.suppress(OSError):
                self._respond(fault, good, chance)
            if not fault and time.monotonic() - started > of.patience / 3:
                of.unplanned.add(ticket)
        finally:
            of.working -= 1

    def _respond(self, fault: str, good: Any, chance: random.Random) -> None:
        if fault in STATUSES:
            self._status(fault)
        elif fault in BODIES:
            self._send(json.dumps(BODIES[fault](good)).encode())
        elif fault in RAW:
            kind, change = RAW[fault]
            self._send(change(json.dumps(good).encode()), kind=kind)
        elif fault:
            self._transport(fault, json.dumps(good).encode())
        else:
            time.sleep(chance.random() * 0.01)
            self._send(json.dumps(good).encode())

    def _status(self, fault: str) -> None:
        status, headers, _ = STATUSES[fault]
        if fault == "redirect":
            headers = {"location": self.server.of.other_url}
        if fault == "502_html":
            self._send(HTML.format("Bad Gateway").encode(), status=status, kind="text/html")
            return
        key = self.headers.get("authorization", "").removeprefix("Bearer ")
        said = f"a mishap: status {status}"
        if fault == "401_key_echo":
            said = f"a mishap: the key is refused: {' or '.join(spelled_keys(key))}"
        error = {"error": {"message": said, "type": "mishap", "code": fault, "param": None}}
        self._send(json.dumps(error).encode(), status=status, headers=headers)

    def _send(
        self, raw: bytes, *, status: int = 200, kind: str = JSON, length: int | None = None, **more: dict[str, str]
    ) -> None:
        headers = {"content-type": kind, "content-length": str(len(raw) if length is None else length)}
        lines = [f"{name}: {value}" for name, value in {**headers, **more.get("headers", {})}.items()]
        self.wfile.write("\r\n".join([f"HTTP/1.1 {status} X", *lines, "", ""]).encode("latin-1") + raw)
        self.wfile.flush()

    def _transport(self, fault: str, raw: bytes) -> None:
        self.close_connection = True
        if fault.startswith("timeout"):
            self._silent()
        elif fault in ("reset_before_work", "reset_after_work"):
            self._reset()
        elif fault == "reset_after_headers":
            self._send(b"", length=len(raw))
            self._reset(after=0.05)
        elif fault == "reset_in_body":
            self._send(raw[: len(raw) // 2], length=len(raw))
            self._reset(after=0.05)
        elif fault == "short_body":
            self._send(raw[: len(raw) // 2], length=len(raw))
        elif fault == "broken_chunks":
            head = f"HTTP/1.1 200 OK\r\ncontent-type: {JSON}\r\ntransfer-encoding: chunked\r\n\r\n"
            self.wfile.write(head.encode() + b"10\r\n" + raw[:16] + b"\r\nmishap\r\n" + raw[16:])
        elif fault == "slow_trickle":
            self._send(b"", length=len(raw))
            for at in range(len(raw)):
                self.wfile.write(raw[at : at + 1])
                if self._gone(0.1):
                    return
        elif fault == "huge_body":
            self._send(b"", length=400 * 2**20)
            for _ in range(400):
                self.wfile.write(b" " * 2**20)
        elif fault == "gzip_bomb":
            self._send(_bomb(), headers={"content-encoding": "gzip"})
        elif fault == "gzip_lie":
            self._send(raw, headers={"content-encoding": "gzip"})
        elif fault == "second_response":
            self.close_connection = False
            extra = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "from elsewhere"}}]}
            head, more = f"HTTP/1.1 200 OK\r\ncontent-type: {JSON}\r\ncontent-length: ", json.dumps(extra).encode()
            first = f"{head}{len(raw)}\r\n\r\n".encode() + raw
            self.wfile.write(first + f"{head}{len(more)}\r\n\r\n".encode() + more)

    def _silent(self) -> None:
        until = time.monotonic() + _MOST_SILENT
        while time.monotonic() < until and not self._gone(0.1):
            pass

    def _gone(self, seconds: float) -> bool:
        """Whether the client went away within ``seconds``, or the server stops."""
        readable, _, _ = select.select([self.connection], [], [], seconds)
        if self.server.of._stop.is_set():
            return True
        return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)

    def _reset(self, after: float = 0.0) -> None:
        time.sleep(after)  # or what was sent before it would be lost with it
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class _Elsewhere(_Handler):
    """Another host, to which a redirect leads: no prompt is to come here, and nothing from here is to be believed."""

    def do_POST(self) -> None:
        asked = sum_in(self.rfile.read(int(self.headers["content-length"])).decode())
        self.server.of.elsewhere[asked[0] if asked else ""] += 1
        said = {"role": "assistant", "content": "from elsewhere. Answer: 0"}
        self._send(json.dumps({"id": "other", "choices": [{"index": 0, "message": said}]}).encode())


def _bomb() -> bytes:
    if not _BOMB:
        _BOMB.append(gzip.compress(b" " * (256 * 2**20), 9))
    return _BOMB[0]


_BOMB: list[bytes] = []
