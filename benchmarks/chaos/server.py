"""A chat-completions server that breaks on purpose, and counts what it really served.

It speaks enough of OpenAI's protocol for its SDK, on loopback, in a process of its own. What it does with a request
depends on the seed, the run that the prompt names and the number of the request within that run, and on nothing
else, so that a fault comes back when a run is repeated. No answer to a run whose name begins with ``hard`` is right.
``GET /truth`` is what it counted; ``POST /set`` changes
``Settings``; ``POST /reset`` forgets the counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.chaos.processes import CONTEXT

__all__ = ["ERROR_TEXT", "FAULTS", "FIRST_SEED", "Server", "Settings", "running"]

ERROR_TEXT = "Error: upstream timeout"
"""What a gateway says in place of an answer, with status 200. It must never be returned as one."""

FAULTS = (
    "silence",  # no answer, until the client gives up
    "status_429",  # with Retry-After and retry-after-ms
    "status_500",
    "status_503",
    "dropped_before",  # the connection is closed before a byte of the reply
    "dropped_after",  # and after the reply's headers
    "truncated",  # in the middle of the body
    "garbage",  # a body that is no JSON
    "not_completion",  # JSON, and no completion
    "error_text",  # an error's text as the content, with status 200
    "no_choices",
    "fewer_choices",  # than n
)
_PAID = frozenset({"dropped_after", "truncated", "garbage"})  # the model had answered before the reply broke

FIRST_SEED = 1 + 7919
"""Of the first request of a run whose recovery has seed 1: its own first draw, where it asks for one completion."""

_RUN = re.compile(r"run ([\w.:-]+):")
_SUM = re.compile(r"What is (\d+) plus (\d+)\?")
_REASONS = {200: "OK", 404: "Not Found", 429: "Too Many Requests", 500: "Internal Server Error"}


@dataclass(frozen=True, slots=True)
class Settings:
    """How the server behaves.

    Attributes:
        seed: of everything that it draws.
        right: probability that a completion is right.
        runs: probability that a program for the tool runs.
        latency: mean seconds before a reply, exponentially distributed and cut at four times that.
        faults: probability by name, of ``FAULTS``; the sum is at most 1.
    """

    seed: int = 0
    right: float = 0.35
    runs: float = 0.8
    latency: float = 0.005
    faults: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (unknown := set(self.faults) - set(FAULTS)) or sum(self.faults.values()) > 1:
            raise ValueError(f"faults is {self.faults!r}; give probabilities by name ({unknown or 'sum above 1'})")


class _Broken:
    """Runs one server. Tokens are one a word, as far as anybody counts them here."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.reset()

    def reset(self) -> None:
        self.counts: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def truth(self) -> dict[str, Any]:
        """Counts in all and by run: ``requests``, ``answered`` (a whole completion went out), ``completions`` and
        ``tokens`` in those, ``first_tokens`` of first draws among them, ``wasted`` (tokens of replies that broke on
        the way), and each fault."""
        total: Counter[str] = Counter()
        for counts in self.counts.values():
            total.update(counts)
        return {"total": dict(total), "runs": {run: dict(counts) for run, counts in self.counts.items()}}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, TimeoutError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                method, path, _ = head[0].split(" ")
                headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:])}
                raw = await reader.readexactly(int(headers.get("content-length", 0)))
                if path.endswith("/chat/completions"):
                    if not await self._complete(json.loads(raw), reader, writer):
                        break
                else:
                    await _send(writer, *self._control(method, path, raw))
        writer.close()

    def _control(self, method: str, path: str, raw: bytes) -> tuple[int, bytes]:
        if (method, path) == ("GET", "/truth"):
            return 200, json.dumps(self.truth()).encode()
        if (method, path) == ("POST", "/set"):
            self.settings = Settings(**(asdict(self.settings) | json.loads(raw)))
            return 200, b"{}"
        if (method, path) == ("POST", "/reset"):
            self.reset()
            return 200, b"{}"
        return 404, b"{}"

    async def _complete(self, body: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer, or break; false where the connection is to be closed."""
        prompt = "\n".join(str(m.get("content", "")) for m in body["messages"])
        named = _RUN.search(prompt)
        run = named[1] if named else ""
        counts = self.counts[run]
        counts["requests"] += 1
        number = counts["requests"]
        draw = random.Random(f"{self.settings.seed}/{run}/{number}")  # noqa: S311  # a seed makes it the same again
        fault = self._fault(draw.random())
        await asyncio.sleep(min(draw.expovariate(1 / max(self.settings.latency, 1e-9)), 4 * self.settings.latency))
        reply = self._reply(body, prompt, f"{run}/{number}", draw, fault)
        tokens, raw = reply["usage"]["total_tokens"], json.dumps(reply).encode()
        if fault:
            counts[fault] += 1
            counts["wasted"] += tokens if fault in _PAID else 0
        if fault == "silence":
            await asyncio.wait_for(reader.read(1), 60)
            return False
        if fault == "dropped_before":
            return False
        if fault in ("dropped_after", "truncated"):
            await _send(writer, 200, raw, cut=0 if fault == "dropped_after" else len(raw) // 2)
            return False
        if fault is not None and fault.startswith("status_"):
            error = {"error": {"message": f"{fault} on purpose", "type": "server_error", "code": None}}
            wait = {"Retry-After": "1", "retry-after-ms": "40"} if fault == "status_429" else {}
            await _send(writer, int(fault[-3:]), json.dumps(error).encode(), wait)
            return True
        if fault == "garbage":
            raw = b"<html>" + raw[1:]
        elif fault == "not_completion":
            raw = b'{"status": "ok", "result": [1, 2, 3]}'
        else:
            counts["answered"] += 1
            counts["completions"] += len(reply["choices"])
            counts["tokens"] += tokens
            counts["first_tokens"] += tokens if body.get("seed") == FIRST_SEED and "n" not in body else 0
        await _send(writer, 200, raw)
        return True

    def _fault(self, u: float) -> str | None:
        for name, probability in self.settings.faults.items():
            if u < probability:
                return name
            u -= probability
        return None

    def _reply(
        self, body: dict[str, Any], prompt: str, name: str, draw: random.Random, fault: str | None
    ) -> dict[str, Any]:
        asked = _SUM.search(prompt)
        a, b = (int(asked[1]), int(asked[2])) if asked else (0, 0)
        program = "Reply with a program" in prompt
        n = int(body.get("n", 1))
        if fault == "no_choices":
            n = 0
        elif fault == "fewer_choices":
            n = max(1, n // 2)
        hard = "run hard" in prompt
        texts = [
            ERROR_TEXT if fault == "error_text" else self._text(a, b, draw, program=program, hard=hard)
            for _ in range(n)
        ]
        written = [len(text.split()) + draw.randrange(8) for text in texts]
        read = len(prompt.split())
        done = sum(min(count, int(body.get("max_tokens", 512))) for count in written)
        return {
            "id": f"{'program' if program else 'draw'}/{name}",
            "object": "chat.completion",
            "created": 0,
            "model": body.get("model", ""),
            "choices": [
                {"index": i, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
                for i, text in enumerate(texts)
            ],
            "usage": {"prompt_tokens": read, "completion_tokens": done, "total_tokens": read + done},
        }

    def _text(self, a: int, b: int, draw: random.Random, *, program: bool, hard: bool) -> str:
        if program:
            return f"add {a} {b}" if draw.random() < self.settings.runs and not hard else f"ad {a}"
        right = draw.random() < self.settings.right and not hard
        return f"The answer is {a + b if right else a + b + draw.randrange(1, 40)}"


async def _send(
    writer: asyncio.StreamWriter,
    status: int,
    raw: bytes,
    headers: Mapping[str, str] | None = None,
    *,
    cut: int | None = None,
) -> None:
    lines = {"Content-Type": "application/json", "Content-Length": str(len(raw)), **(headers or {})}
    head = f"HTTP/1.1 {status} {_REASONS.get(status, 'Status')}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in lines.items()) + "\r\n"
    writer.write(head.encode() + (raw if cut is None else raw[:cut]))
    await writer.drain()


class Server:
    """A running server, as its clients see it."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.base_url = f"{self.url}/v1"

    def truth(self) -> dict[str, Any]:
        """See ``_Broken.truth``."""
        with urllib.request.urlopen(f"{self.url}/truth", timeout=30) as reply:  # noqa: S310  # loopback
            found: dict[str, Any] = json.load(reply)
            return found

    def set(self, **settings: Any) -> None:
        """Change ``Settings`` from the next request on."""
        self._post("set", settings)

    def reset(self) -> None:
        """Forget what was counted."""
        self._post("reset", {})

    def _post(self, what: str, body: dict[str, Any]) -> None:
        request = urllib.request.Request(f"{self.url}/{what}", json.dumps(body).encode(), method="POST")  # noqa: S310  # loopback
        urllib.request.urlopen(request, timeout=30).close()  # noqa: S310


@contextlib.contextmanager
def running(settings: Settings | None = None) -> Iterator[Server]:
    """A server in a process of its own, gone with the block."""
    ours, theirs = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_main, args=(theirs, asdict(settings or Settings())), daemon=True)
    process.start()
    try:
        if not ours.poll(60):
            raise TimeoutError("the chaos server did not start within 60 s")
        yield Server(ours.recv())
    finally:
        process.kill()
        process.join()


def _main(pipe: Connection, settings: dict[str, Any]) -> None:
    async def main() -> None:
        broken = _Broken(Settings(**settings))
        server = await asyncio.start_server(broken.serve, "127.0.0.1", 0, backlog=1024)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
