"""A small WSGI service that has used everything before it forks: a sampler, a sandbox, a store, a verifier's helper.

``gunicorn --preload preload_app:app`` imports it in the parent. ``RFX_TEST_URL`` is the model server, and
``RFX_TEST_PLACE`` a folder of its own.
"""

import asyncio
import gc
import json
import os
import re
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from rfx_agent import (
    FunctionVerifier,
    MathVerifier,
    OpenAISampler,
    ProgramTool,
    Recovery,
    Rollout,
    SharedBudget,
    SQLStore,
    Step,
    Verdict,
    Window,
)
from rfx_agent.telemetry import Telemetry

PLACE = Path(os.environ["RFX_TEST_PLACE"])


class Filed(SpanExporter):
    """Notes each span's process in a file; it is exported by a thread."""

    def export(self, spans: Iterable[ReadableSpan]) -> SpanExportResult:
        with (PLACE / "spans").open("a") as file:
            file.write("".join(f"{os.getpid()}\n" for _ in spans))
        return SpanExportResult.SUCCESS


def judged(step: Step, rollout: Rollout) -> Verdict:
    """Whether the answer is the right one to this step's question, and to no other."""
    found = re.search(r"ticket (\w+): what is (\d+) plus (\d+)", str(step.messages))
    assert found is not None
    right = str(int(found[2]) + int(found[3]))
    if rollout.remedy == "tool":
        return Verdict(rollout.text == right, answer=rollout.text)
    if found[1] not in rollout.text:
        FOREIGN.append(f"to {found[1]}: {rollout.text}")
    return Verdict(MATH.verify(Step.of("?", expected=right), rollout).passed, answer=rollout.text)


FOREIGN: list[str] = []
"""Answers to other questions that a draw of this process has read."""
MATH = MathVerifier()
SAMPLER = OpenAISampler("m", base_url=os.environ["RFX_TEST_URL"], api_key="none-at-all", max_retries=1)
TOOL = ProgramTool()
STORE = SQLStore(f"sqlite:///{PLACE / 'budget.db'}")
SHARED = SharedBudget(store=STORE, limits=(Window("global", "tokens", 10**9, per="day"),))
TRACES = TracerProvider()
TRACES.add_span_processor(BatchSpanProcessor(Filed(), schedule_delay_millis=200))
RECOVERY = Recovery(
    SAMPLER, FunctionVerifier(judged), tool=TOOL, shared=SHARED, on_event=Telemetry(tracer_provider=TRACES)
)


def asked(ticket: str, one: int, other: int, *, asynchronous: bool) -> dict[str, Any]:
    """The answer to one question, and what was noted on the way to it."""
    question = f"ticket {ticket}: what is {one} plus {other}?"
    case = asyncio.run(RECOVERY.arun(question)) if asynchronous else RECOVERY.run(question)
    notes = [*case.notes, *(x.note for x in case.attempts if not x.got)]
    return {"text": case.outcome.text, "pid": os.getpid(), "notes": notes, "foreign": FOREIGN}


def works() -> dict[str, Any]:
    """What each part says in this process."""
    spans = PLACE / "spans"
    return {
        "pid": os.getpid(),
        "sandbox": TOOL.run("print(6 * 7)").answer,
        "math": MATH.verify(Step.of("?", expected="1/2"), Rollout("Answer: 0.5")).passed,
        "store": STORE.keep(f"of-{os.getpid()}", "kept"),
        "spans": spans.exists() and f"{os.getpid()}\n" in spans.read_text(),
        "threads": sorted({thread.name.rsplit("-", 1)[0].rsplit("_", 1)[0] for thread in threading.enumerate()}),
    }


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """``/ask?ticket=...&one=...&other=...&async=1`` and ``/works``."""
    given = {name: values[0] for name, values in parse_qs(environ["QUERY_STRING"]).items()}
    if environ["PATH_INFO"] == "/works":
        said: dict[str, Any] = works()
    else:
        said = asked(given["ticket"], int(given["one"]), int(given["other"]), asynchronous="async" in given)
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(said).encode()]


# The warm-up: threads, sandboxes, the helper, the store's writer and, at last, connections that are idle in the parent.
assert works()["sandbox"] == "42"
assert asked("parentloop", 33, 44, asynchronous=True)["text"] == "77"
with ThreadPoolExecutor(8) as pool:
    told = list(pool.map(lambda i: asked(f"parent{i}", 2 * i, 22, asynchronous=False), range(16)))
assert not FOREIGN and all(x["text"] for x in told)  # noqa: PT018  # no test
gc.freeze()  # or each worker, as it ends, has the collector go through all that its parent imported
