"""The ways in which ``fault_server`` breaks a response."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["ALL_LOST", "BODIES", "FAULTS", "HTML", "JSON", "RAW", "STATUSES", "TRANSPORT"]

JSON = "application/json"
STATUSES: dict[str, tuple[int, dict[str, str], bool]] = {  # status, headers, whether the server had worked
    "429_retry_after": (429, {"retry-after": "0.05"}, False),
    "429_bare": (429, {}, False),
    "429_far": (429, {"retry-after": "3600"}, False),
    "500_before_work": (500, {}, False),
    "500_after_work": (500, {}, True),
    "502_html": (502, {}, True),
    "503": (503, {"retry-after": "0"}, False),
    "504_after_work": (504, {}, True),
    "400": (400, {}, False),
    "401_key_echo": (401, {}, False),
    "413": (413, {}, False),
    "redirect": (307, {}, False),
}
HTML = "<html><head><title>{0}</title></head><body>a mishap of the gateway: {0}</body></html>"


def _usage(**claims: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda good: {**good, "usage": {**good["usage"], **claims}}


def _choice(**fields: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda good: {**good, "choices": [{**one, **fields} for one in good["choices"]]}


def _said(**fields: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda good: {
        **good,
        "choices": [{**one, "message": {**one["message"], **fields}} for one in good["choices"]],
    }


BODIES: dict[str, Callable[[dict[str, Any]], Any]] = {  # what stands in the place of a good body
    "usage_missing": lambda good: {k: v for k, v in good.items() if k != "usage"},
    "usage_zero": _usage(prompt_tokens=0, completion_tokens=0, total_tokens=0),
    "usage_negative": _usage(prompt_tokens=-7, completion_tokens=-300, total_tokens=-307),
    "usage_huge": _usage(prompt_tokens=4 * 10**18, completion_tokens=10**9, total_tokens=1e300),
    "usage_text": _usage(prompt_tokens="many", completion_tokens="a few", total_tokens=None),
    "usage_list": lambda good: {**good, "usage": [good["usage"]]},
    "wrong_model": lambda good: {**good, "model": "somebody-else/model"},
    "duplicate_choices": lambda good: {**good, "choices": [good["choices"][0]] * (len(good["choices"]) + 2)},
    "empty_choices": lambda good: {**good, "choices": []},
    "null_choices": lambda good: {**good, "choices": None},
    "null_message": _choice(message=None),
    "text_message": _choice(message="a mishap"),
    "content_number": _said(content=42),
    "bad_logprobs": _choice(logprobs={"content": [{"token": 5, "logprob": "low", "top_logprobs": "none"}]}),
    "nan_logprobs": _choice(logprobs={"content": [{"token": "A", "logprob": float("nan"), "top_logprobs": []}]}),
    "finish_reason_object": _choice(finish_reason={"why": ["a mishap"] * 20_000}),
    "huge_id": lambda good: {**good, "id": "x" * 2_000_000},
    "list_body": lambda good: [good],
    "error_in_200": lambda _: {"error": {"message": "a mishap of the model server", "code": 500}},
    "error_beside_choices": lambda good: {**good, "choices": None, "error": "a mishap in mid-answer"},
}
RAW: dict[str, tuple[str, Callable[[bytes], bytes]]] = {  # content type, and what becomes of the good body's bytes
    "truncated_json": (JSON, lambda raw: raw[: len(raw) // 2]),
    "html": ("text/html", lambda _: HTML.format("please log in").encode()),
    "empty_body": (JSON, lambda _: b""),
    "wrong_content_type": ("text/plain; charset=latin-1", lambda raw: raw),
    "streamed_error": (
        "text/event-stream",
        lambda _: b'data: {"error": {"message": "a mishap in the stream"}}\n\ndata: [DONE]\n\n',
    ),
    "invalid_utf8": (JSON, lambda raw: raw.replace(b"Adding", b"\xff\xfe\xc3(Adding", 1)),
    "half_character": (JSON, lambda raw: raw.replace(b"Adding", b"\\ud800Adding", 1)),
    "deep_nesting": (JSON, lambda _: b'{"choices":' + b"[" * 100_000),
}
TRANSPORT = {  # whether the server had worked
    "timeout_before_work": False,
    "timeout_after_work": True,
    "reset_before_work": False,
    "reset_after_work": True,
    "reset_after_headers": True,
    "reset_in_body": True,
    "short_body": True,
    "broken_chunks": True,
    "slow_trickle": True,
    "huge_body": True,
    "gzip_bomb": True,
    "gzip_lie": True,
    "second_response": True,
}
FAULTS: tuple[str, ...] = (*STATUSES, *BODIES, *RAW, *TRANSPORT)
ALL_LOST = frozenset(  # of the requests worked for, those of which the client cannot read what was written
    {*TRANSPORT, *RAW, *(name for name, (*_, worked) in STATUSES.items() if worked)}
    - {"wrong_content_type", "invalid_utf8", "half_character", "slow_trickle", "second_response"}
    | {"empty_choices", "null_choices", "null_message", "text_message", "list_body", "error_in_200"}
    | {"error_beside_choices"}
)
