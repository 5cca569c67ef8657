"""A chat-completions server that bills every token it worked for, whether or not anybody got the answer.

Standard library only. ``python server.py`` prints its port and serves on loopback until standard input is closed. It
speaks enough of OpenAI's protocol for its SDK, streaming included. One word is one token. How many words an answer has
depends on its prompt and on nothing else, so that every peer is given the same answers.

An answer that is whole is billed when the work is done, also to a client that is gone by then. A stream is billed word
by word; when its client is gone, the server stops writing and bills no more. A lost reply (``lose``) is billed, and
then its connection is closed without a byte, as a proxy in between does that restarts.

Tools: where a request offers tools and its prompt asks for ``steps N``, the server calls the tools in turn until there
are N tool results, and answers then.

``POST /set`` changes the settings and forgets the counts; ``GET /count`` is what was counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
import sys
from typing import Any

READ, WRITTEN = 1_000, 4_000  # billionths of a US dollar a token: $1 and $4 a million
_PIECE = 10  # words of one piece of a stream
_STEPS = re.compile(r"steps (\d+)")


def chance(*names: object) -> float:
    """A number in [0, 1) that is the same for the same names."""
    return int(hashlib.sha256("/".join(map(str, names)).encode()).hexdigest()[:8], 16) / 2**32


def text_of(message: dict[str, Any]) -> str:
    """The text of a message, whose content may be a list of parts."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else " ".join(str(x.get("text", "")) for x in content)


class Server:
    """Counts what it works for."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.set({})

    def set(self, settings: dict[str, Any]) -> None:
        """Change the settings, forget the counts."""
        self.latency: float = settings.get("latency", 0.0)
        self.lose: float = settings.get("lose", 0.0)
        self.tries: dict[str, int] = {}
        self.counts = dict.fromkeys(
            ("requests", "answered", "lost", "read", "written", "tokens", "nano_usd", "in_flight_most"), 0
        )

    def bill(self, read: int, written: int) -> None:
        """Charge for work that is done."""
        self.counts["read"] += read
        self.counts["written"] += written
        self.counts["tokens"] += read + written
        self.counts["nano_usd"] += read * READ + written * WRITTEN

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                method, path, _ = head[0].split(" ")
                headers = {k.lower(): v.strip() for k, _, v in (x.partition(":") for x in head[1:])}
                raw = await reader.readexactly(int(headers.get("content-length", 0)))
                if path.endswith("/chat/completions"):
                    self.in_flight += 1
                    self.counts["in_flight_most"] = max(self.counts["in_flight_most"], self.in_flight)
                    try:
                        if not await self.complete(json.loads(raw), reader, writer):
                            break
                    finally:
                        self.in_flight -= 1
                elif (method, path) == ("POST", "/set"):
                    self.set(json.loads(raw))
                    await send(writer, b"{}")
                elif (method, path) == ("GET", "/count"):
                    await send(writer, json.dumps({**self.counts, "in_flight": self.in_flight}).encode())
                else:
                    await send(writer, b"{}", status="404 Not Found")
        writer.close()

    async def complete(self, body: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; false where the connection is to be closed."""
        prompt = " ".join(text_of(x) for x in body["messages"])
        tries = self.tries[prompt] = self.tries.get(prompt, 0) + 1
        self.counts["requests"] += 1
        read, most = len(prompt.split()), int(body.get("max_completion_tokens") or body.get("max_tokens") or 100)
        written = min(most, 20 + int(chance("written", prompt) * (most - 19)))
        call = called(body)
        if body.get("stream"):
            await self.stream(body, reader, writer, (read, written), call)
            return False
        await asyncio.sleep(self.latency)
        self.bill(read, written)
        if chance("lose", prompt, tries) < self.lose:
            self.counts["lost"] += 1
            return False
        message = {"role": "assistant", "content": " ".join(["word"] * written), **call}
        choice = {"index": 0, "finish_reason": "tool_calls" if call else "stop", "message": message}
        reply = {"id": "x", "object": "chat.completion", "created": 1, "model": body["model"], "choices": [choice]}
        await send(writer, json.dumps(reply | {"usage": usage_of(read, written)}).encode())
        self.counts["answered"] += 1
        return True

    async def stream(
        self,
        body: dict[str, Any],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        tokens: tuple[int, int],
        call: dict[str, Any],
    ) -> None:
        """Write pieces until there is nothing more or nobody there."""
        read, written = tokens
        head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
        writer.write(head.encode())
        base = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}

        async def event(**more: Any) -> None:
            writer.write(f"data: {json.dumps(base | more)}\n\n".encode())
            await writer.drain()

        self.bill(read, 0)
        for done in range(0, written, _PIECE):
            await asyncio.sleep(self.latency * _PIECE / written)
            if reader.at_eof() or writer.is_closing():
                return
            words = min(_PIECE, written - done)
            self.bill(0, words)
            delta = {"role": "assistant", "content": "word " * words}
            await event(choices=[{"index": 0, "delta": delta, "finish_reason": None}])
        if call:
            calls = [{"index": i, **x} for i, x in enumerate(call["tool_calls"])]
            await event(choices=[{"index": 0, "delta": {"tool_calls": calls}, "finish_reason": None}])
        await event(choices=[{"index": 0, "delta": {}, "finish_reason": "tool_calls" if call else "stop"}])
        if (body.get("stream_options") or {}).get("include_usage"):
            await event(choices=[], usage=usage_of(read, written))
        writer.write(b"data: [DONE]\n\n")
        await writer.drain()
        self.counts["answered"] += 1


def called(body: dict[str, Any]) -> dict[str, Any]:
    """The tool call of the answer, where there is one to be made."""
    tools = [x["function"]["name"] for x in body.get("tools") or ()]
    first = next((text_of(x) for x in body["messages"] if x["role"] == "user"), "")
    steps = int(found[1]) if (found := _STEPS.search(first)) else 0
    had = sum(x["role"] == "tool" for x in body["messages"])
    if not tools or had >= steps:
        return {}
    name = tools[had % len(tools)]
    function = {"name": name, "arguments": json.dumps({"question": f"{first.split(' steps ')[0]} part {had}"})}
    return {"tool_calls": [{"id": f"call_{had}", "type": "function", "function": function}]}


def usage_of(read: int, written: int) -> dict[str, int]:
    """As OpenAI reports it."""
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


async def send(writer: asyncio.StreamWriter, raw: bytes, status: str = "200 OK") -> None:
    """One JSON reply."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
    writer.write(head.encode() + raw)
    await writer.drain()


async def main() -> None:
    """Serve until standard input is closed."""
    server = await asyncio.start_server(Server().serve, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
