"""Agents of ``create_agent`` with tools and a subagent under one budget, in a process of their own, and the server that
bills them.

    python tests/budget_agents.py SERVER STORE RUNS SEED
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import itertools
import json
import os
import random
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, convert_to_openai_messages
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.tools import tool
from langchain_core.utils.function_calling import convert_to_openai_tool

from rfx_agent import BudgetMiddleware, SharedBudget, Window, budget_of
from rfx_agent.budgets.at import store_at

CAPS = {"tokens": 6_000, "calls": 40}
MOST = 60_000  # tokens that all runs may spend together
WRITES = 60


class Billing:
    """A server of OpenAI's format that never comes to an end: it calls tools, and bills what it reads and writes.

    Attributes:
        billed: tokens by run, which a request names as its ``user``, whether anybody waits for the answer or not.
    """

    def __init__(self) -> None:
        self.billed: Counter[str] = Counter()
        self._lock, self._numbers = threading.Lock(), itertools.count()
        self._rng = random.Random(7)  # noqa: S311  # not secrets
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: Any) -> None:
                pass

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
                message, usage = server.answer(body)
                with contextlib.suppress(OSError):  # nobody waits any more
                    self.say(message, usage) if not body.get("stream") else self.stream(message, usage)

            def say(self, message: Any, usage: Any) -> None:
                choice = {"index": 0, "finish_reason": "stop", "message": message}
                raw = json.dumps({"id": "c", "object": "chat.completion", "choices": [choice], "usage": usage}).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def stream(self, message: Any, usage: Any) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Connection", "close")
                self.end_headers()
                calls = [{**call, "index": i} for i, call in enumerate(message["tool_calls"])]
                deltas = [{"content": f"{word} "} for word in message["content"].split()]
                for delta in [*deltas, {"tool_calls": calls}]:
                    self.event({"choices": [{"index": 0, "delta": delta}]})
                self.event({"choices": [], "usage": usage})
                self.wfile.write(b"data: [DONE]\n\n")
                self.close_connection = True

            def event(self, made: Any) -> None:
                self.wfile.write(f"data: {json.dumps(made)}\n\n".encode())
                self.wfile.flush()

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.place = f"127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> Billing:
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def answer(self, body: dict[str, Any]) -> tuple[Any, Any]:
        """What is answered, and what it costs: a token for every three bytes read, and as many words as it says."""
        read = len(json.dumps([m.get("content") for m in body["messages"]])) // 3 + len(json.dumps(body["tools"])) // 3
        with self._lock:
            wrote = self._rng.randint(WRITES // 2, min(WRITES, body["max_tokens"]))
            names = [x["function"]["name"] for x in body["tools"]]
            chosen = self._rng.choices(names, k=self._rng.choice((1, 1, 2)))
            calls = [
                {"id": f"c{next(self._numbers)}", "type": "function", "function": {"name": name, "arguments": "{}"}}
                for name in chosen
            ]
            self.billed[body["user"]] += read + wrote
            pause = self._rng.uniform(0.001, 0.01)
        time.sleep(pause)
        usage = {"prompt_tokens": read, "completion_tokens": wrote, "total_tokens": read + wrote}
        return {"role": "assistant", "content": "well " * 5, "tool_calls": calls}, usage


class Wire(BaseChatModel):
    """Asks that server, whole or as a stream."""

    place: str
    user: str
    max_tokens: int = WRITES

    @property
    def _llm_type(self) -> str:
        return "wire"

    def bind_tools(self, tools: Any, **_: Any) -> Any:
        return self.bind(tools=[convert_to_openai_tool(x) for x in tools])

    def _asked(self, messages: Any, tools: Any, *, stream: bool) -> http.client.HTTPResponse:
        body = {"messages": convert_to_openai_messages(messages), "tools": tools, "user": self.user, "stream": stream}
        connection = http.client.HTTPConnection(self.place, timeout=60)
        connection.request("POST", "/v1/chat/completions", json.dumps({**body, "max_tokens": self.max_tokens}))
        return connection.getresponse()

    def _generate(
        self, messages: Any, stop: Any = None, run_manager: Any = None, *, tools: Any = (), **_: Any
    ) -> ChatResult:
        made = json.load(self._asked(messages, tools, stream=False))
        message = made["choices"][0]["message"]
        said = AIMessage(message["content"], tool_calls=_calls(message["tool_calls"]), usage_metadata=_usage(made))
        return ChatResult(generations=[ChatGeneration(message=said)])

    def _stream(
        self, messages: Any, stop: Any = None, run_manager: Any = None, *, tools: Any = (), **_: Any
    ) -> Iterator[ChatGenerationChunk]:
        for line in self._asked(messages, tools, stream=True):
            if not line.startswith(b"data: {"):
                continue
            made = json.loads(line[6:])
            delta = made["choices"][0]["delta"] if made["choices"] else {}
            calls: Any = [
                {"name": x["function"]["name"], "args": x["function"]["arguments"], "id": x["id"], "index": x["index"]}
                for x in delta.get("tool_calls", ())
            ]
            usage = _usage(made) if "usage" in made else None
            chunk = AIMessageChunk(delta.get("content", ""), tool_call_chunks=calls, usage_metadata=usage)
            yield ChatGenerationChunk(message=chunk)


def _calls(calls: Any) -> Any:
    return [
        {"name": x["function"]["name"], "args": json.loads(x["function"]["arguments"]), "id": x["id"]} for x in calls
    ]


def _usage(made: Any) -> Any:
    usage = made["usage"]
    read, wrote = usage["prompt_tokens"], usage["completion_tokens"]
    return {"input_tokens": read, "output_tokens": wrote, "total_tokens": read + wrote}


def model_of(place: str, user: str) -> Any:
    """LangChain's own class where it is installed, for which the server is OpenAI's; else ours."""
    try:
        from langchain_openai import ChatOpenAI
    except ImportError:
        return Wire(place=place, user=user)
    settings: dict[str, Any] = {"max_tokens": WRITES, "stream_usage": True, "model_kwargs": {"user": user}}
    extra = {"extra_body": {"max_tokens": WRITES}}
    return ChatOpenAI(model="wire", base_url=f"http://{place}/v1", api_key="none", max_retries=0, **settings, **extra)  # type: ignore[arg-type]


def agent_of(place: str, shared: SharedBudget, user: str) -> Any:
    """An agent with a tool, and a subagent that has the budget of the whole."""
    model = model_of(place, user)

    @tool
    def look() -> str:
        """Look."""
        return "nothing " * 20

    sub = create_agent(model, [look], middleware=[BudgetMiddleware({"calls": 4})])

    @tool
    def ask() -> str:
        """Ask another agent."""
        return str(sub.invoke({"messages": [HumanMessage("Look for me.")]})["messages"][-1].text)

    return create_agent(model, [look, ask], middleware=[BudgetMiddleware(CAPS, shared=shared)])


async def left(agent: Any, given: Any, after: float) -> None:
    """A run that is cancelled."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(agent.ainvoke(given), after)


def main(place: str, url: str, runs: int, seed: int) -> None:
    """Run agents, one after the other and in each way, and say how each ended."""
    rng = random.Random(seed)  # noqa: S311  # not secrets
    given = {"messages": [HumanMessage("Find it.")]}
    limits = (Window("global", "tokens", MOST, per="day"),)
    shared = SharedBudget(store=store_at(url, timeout=60.0), limits=limits, seconds=600.0)
    loop = asyncio.new_event_loop()  # one for all: LangChain's clients are kept, and belong to one
    for i in range(runs):
        agent = agent_of(place, shared, f"{os.getpid()}-{i}-{uuid.uuid4().hex[:6]}")
        way = rng.choice(("invoke", "ainvoke", "stream", "messages", "left", "cancelled"))
        result: Any = None
        if way == "invoke":
            result = agent.invoke(given)
        elif way == "ainvoke":
            result = loop.run_until_complete(agent.ainvoke(given))
        elif way == "stream":
            result = list(agent.stream(given, stream_mode="values"))[-1]
        elif way == "messages":
            result = {"messages": [m for m, _ in agent.stream(given, stream_mode="messages")]}
        elif way == "left":
            stream = agent.stream(given, stream_mode="messages")
            for _ in range(rng.randint(1, 30)):
                next(stream, None)
            stream.close()
        else:
            loop.run_until_complete(left(agent, given, rng.uniform(0.01, 0.2)))
        outcome = None if result is None else budget_of(result)
        ended = {"way": way, "status": outcome and outcome.status, "after": outcome and outcome.after}
        sys.stdout.write(json.dumps(ended) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
