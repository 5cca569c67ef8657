"""A loopback server that speaks the wire formats of five providers, and the LangChain classes that talk to it."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

__all__ = ["KEY", "PROVIDERS", "Server", "of"]

KEY = "test-key-that-nobody-may-see"
PROMPT, ANSWER, THOUGHT = 11, 7, 40  # tokens that each answer reports


def _openai(text: str, stop: str, more: dict[str, Any]) -> Any:
    usage = {"prompt_tokens": PROMPT, "completion_tokens": ANSWER, "total_tokens": PROMPT + ANSWER}
    message = {"role": "assistant", "content": text, **more}
    choice = {"index": 0, "finish_reason": stop, "message": message}
    return {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}


def _responses(text: str, stop: str, more: dict[str, Any]) -> Any:
    said = {"type": "output_text", "text": text, "annotations": []}
    message = {"type": "message", "id": "m1", "role": "assistant", "status": "completed", "content": [said]}
    usage = {
        "input_tokens": PROMPT,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": ANSWER + THOUGHT,
        "output_tokens_details": {"reasoning_tokens": THOUGHT},
        "total_tokens": PROMPT + ANSWER + THOUGHT,
    }
    made = {"id": "r", "object": "response", "created_at": 1, "model": "m", "status": "completed", "usage": usage}
    made |= {"output": [{"type": "reasoning", "id": "rs", "summary": []}, message], "tools": [], "tool_choice": "auto"}
    return made | {"parallel_tool_calls": True} | more


def _anthropic(text: str, stop: str, more: dict[str, Any]) -> Any:
    content = more.get("content") or [{"type": "text", "text": text}]
    made = {"id": "m", "type": "message", "role": "assistant", "model": "m", "content": content, "stop_reason": stop}
    return made | {"stop_sequence": None, "usage": {"input_tokens": PROMPT, "output_tokens": ANSWER}}


def _ollama(text: str, stop: str, more: dict[str, Any]) -> Any:
    made = {"model": "m", "created_at": "2026-01-01T00:00:00Z", "message": {"role": "assistant", "content": text}}
    return made | {"done": True, "done_reason": stop, "prompt_eval_count": PROMPT, "eval_count": ANSWER} | more


def _gemini(text: str, stop: str, more: dict[str, Any]) -> Any:
    candidate = {"content": {"role": "model", "parts": [{"text": text}]}, "finishReason": stop, "index": 0}
    usage = {"promptTokenCount": PROMPT, "candidatesTokenCount": ANSWER, "totalTokenCount": PROMPT + ANSWER}
    return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "m"} | more


def _bedrock(text: str, stop: str, more: dict[str, Any]) -> Any:
    usage = {"inputTokens": PROMPT, "outputTokens": ANSWER, "totalTokens": PROMPT + ANSWER}
    message = {"role": "assistant", "content": [{"text": text}]}
    return {"output": {"message": message}, "stopReason": stop, "usage": usage, "metrics": {"latencyMs": 1}}


# A part of the path → what an answer looks like, and how it ends well.
_FORMATS: dict[str, tuple[Callable[[str, str, dict[str, Any]], Any], str]] = {
    "/responses": (_responses, "stop"),
    "/chat/completions": (_openai, "stop"),
    "/v1/messages": (_anthropic, "end_turn"),
    "/api/chat": (_ollama, "stop"),
    "enerateContent": (_gemini, "STOP"),
    "/converse": (_bedrock, "end_turn"),
}


class Server:
    """Gives ``texts`` in turn, the last one again and again; refuses parameters; keeps the bodies that it was sent."""

    def __init__(
        self,
        *texts: str,
        refuses: Sequence[str] = (),
        said: str = "Unsupported parameter: '{}' is not supported with this model.",
        stop: str = "",
        **more: Any,
    ) -> None:
        self.texts, self.refuses, self.said, self.stop, self.more = [*texts] or ["42"], refuses, said, stop, more
        self.bodies: list[dict[str, Any]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: Any) -> None:
                pass

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
                status, made = server.answer(self.path, body)
                raw = json.dumps(made).encode() + b"\n"
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> Server:
        Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        self.bodies.append(flat := _flat(body))
        for name in self.refuses:
            if flat.get(name) is not None:
                said = self.said.format(name)
                error = {"message": said, "type": "invalid_request_error", "code": "invalid", "param": name}
                return 400, {"message": said} if "/converse" in path else {"error": error}
        made, well = next(form for part, form in _FORMATS.items() if part in path)
        text = self.texts.pop(0) if len(self.texts) > 1 else self.texts[0]
        return 200, made(text, self.stop or well, self.more)

    @property
    def temperatures(self) -> list[Any]:
        return [body.get("temperature") for body in self.bodies]


def _flat(body: dict[str, Any]) -> dict[str, Any]:
    """A body with what some providers nest: options, generationConfig, inferenceConfig."""
    nested = [body.get(name) or {} for name in ("options", "generationConfig", "inferenceConfig")]
    return {name: value for part in (body, *nested) for name, value in part.items()}


# Class → its package, and how it is made for a server.
PROVIDERS: dict[str, tuple[str, Callable[[str], dict[str, Any]]]] = {
    "ChatOpenAI": (
        "langchain_openai",
        lambda url: {"model": "gpt-4o-mini", "base_url": f"{url}/v1", "api_key": KEY, "max_retries": 0},
    ),
    "ChatAnthropic": (
        "langchain_anthropic",
        lambda url: {"model": "claude-3-5-haiku-latest", "base_url": url, "api_key": KEY, "max_retries": 0},
    ),
    "ChatGoogleGenerativeAI": (
        "langchain_google_genai",
        lambda url: {"model": "gemini-2.5-flash", "base_url": url, "google_api_key": KEY, "max_retries": 1},
    ),
    "ChatOllama": ("langchain_ollama", lambda url: {"model": "qwen3", "base_url": url}),
    "ChatBedrockConverse": (
        "langchain_aws",
        lambda url: {
            "model": "anthropic.claude-3-haiku-20240307-v1:0",
            "region_name": "us-east-1",
            "endpoint_url": url,
            "aws_access_key_id": "id",
            "aws_secret_access_key": KEY,
        },
    ),
}


def of(name: str, server: Server, **more: Any) -> Any:
    """A chat model of the class ``name`` that talks to ``server``; skips the test where its package is missing."""
    package, arguments = PROVIDERS[name]
    pytest.importorskip(package)
    return getattr(importlib.import_module(package), name)(**{**arguments(server.url), **more})
