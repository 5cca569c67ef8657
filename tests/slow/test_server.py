"""The real ``langgraph dev`` on loopback, driven by the real ``langgraph_sdk`` client: assistants, interrupts, stream.

The model behind it is a loopback server that speaks OpenAI's API, so no weights are needed. Proxies that lead nowhere
are set for the server, so nothing in it reaches beyond the machine.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import Answer, ChatServer, choice, completion, unused_port

sdk = pytest.importorskip("langgraph_sdk")
pytest.importorskip("langgraph_api", reason="langgraph-cli[inmem] is not installed")

ROOT = Path(__file__).parents[2]
LANGGRAPH = Path(sys.executable).parent / "langgraph"
QUIET = {
    "LANGSMITH_TRACING": "false",
    "LANGGRAPH_CLI_NO_ANALYTICS": "1",
    "LANGGRAPH_NO_VERSION_CHECK": "true",
    "HTTP_PROXY": "http://127.0.0.1:9",
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "ALL_PROXY": "http://127.0.0.1:9",
    "NO_PROXY": "127.0.0.1,localhost",
    "PYTHONDONTWRITEBYTECODE": "1",
    "RFX_API_KEY": "the-deployments-key",
}
STEP = {"messages": [{"role": "user", "content": "What is 6 times 7?"}], "expected": "42"}
WRONG = ["40", "40", "44"]


def reply(body: dict[str, Any], i: int) -> Answer:
    """Wrong answers, and a program where one is asked for; right ones at the temperature 1.5, so that it shows."""
    n = body.get("n", 1)
    if "program" in body["messages"][-1]["content"].lower():
        return Answer(body=completion(choice("```python\nanswer = 6 * 7\n```"), name=f"cmpl-{i}"))
    texts = ["Answer: 42"] * n if body["temperature"] == 1.5 else [f"Answer: {x}" for x in (WRONG * n)[:n]]
    return Answer(body=completion(*map(choice, texts), name=f"cmpl-{i}"))


@pytest.fixture(scope="module")
def model() -> Iterator[ChatServer]:
    with ChatServer(reply) as server:
        yield server


@pytest.fixture(scope="module")
def url(model: ChatServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A running ``langgraph dev``, in a directory of its own, with the repository's graphs."""
    home = tmp_path_factory.mktemp("served")
    config = json.loads((ROOT / "langgraph.json").read_text())
    config["graphs"] = {name: str(ROOT / path) for name, path in config["graphs"].items()}
    config |= {"dependencies": [str(ROOT)], "disable_persistence": True}
    (home / "langgraph.json").write_text(json.dumps(config))
    port = unused_port()
    arguments = ["dev", "--no-browser", "--no-reload", "--host", "127.0.0.1", "--port", str(port)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RFX_", "LANG"))}
    environment |= QUIET | {"RFX_BASE_URLS": model.base_url}
    with (home / "log").open("w+") as log:
        process = subprocess.Popen(
            [str(LANGGRAPH), *arguments, "--n-jobs-per-worker", "2"],
            cwd=home,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            base = f"http://127.0.0.1:{port}"
            wait(base, process, home / "log")
            yield base
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            print((home / "log").read_text()[-20_000:])  # noqa: T201  # pytest shows it where a test failed


def wait(base: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 180
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(f"{base}/ok", timeout=5) as response:  # noqa: S310  # our own loopback URL
                if response.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            pass
        if process.poll() is not None:
            break
        time.sleep(0.1)
    pytest.fail(f"langgraph dev did not start (exit code {process.poll()}):\n{log.read_text()[-8000:]}")


@pytest.fixture(scope="module")
def client(url: str) -> Any:
    return sdk.get_sync_client(url=url, api_key=None)


@pytest.fixture(scope="module")
def context(model: ChatServer) -> dict[str, Any]:
    draws = {"samples": 3, "extra_samples": 3}
    return {"base_url": model.base_url, "model": "fake", "tool": False, "policy": "fixed"} | draws


@pytest.fixture(scope="module")
def assistant(client: Any, context: dict[str, Any]) -> str:
    made = client.assistants.create("recovery", context=context, name="three draws")
    return str(made["assistant_id"])


def drive(client: Any, assistant: str, thread: str, **given: Any) -> list[Any]:
    """The parts of one streamed run."""
    modes = ["custom", "updates", "values"]
    return list(client.runs.stream(thread, assistant, stream_mode=modes, stream_subgraphs=True, **given))


def told(parts: list[Any]) -> list[dict[str, Any]]:
    return [part.data for part in parts if part.event.split("|")[0] == "custom"]


def asked(client: Any, thread: str) -> dict[str, Any]:
    """The value of the one interrupt that the thread waits at."""
    (one,) = client.threads.get(thread)["interrupts"].values()
    return dict(one[0]["value"])


def test_the_configuration_is_valid_for_dev_and_for_build(tmp_path: Path) -> None:
    said = ""
    for command in (["validate"], ["dockerfile", str(tmp_path / "Dockerfile")]):
        done = subprocess.run(
            [str(LANGGRAPH), *command], cwd=ROOT, env=os.environ | QUIET, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        said += done.stdout
    assert "is valid. (2 graphs found)" in said
    assert "-e ." in (tmp_path / "Dockerfile").read_text()


def test_assistants_are_listed_with_the_form_of_their_settings(client: Any) -> None:
    listed = {a["graph_id"]: a for a in client.assistants.search()}
    assert {"recovery", "solver"} <= set(listed)
    for graph in ("recovery", "solver"):
        schema = client.assistants.get_schemas(listed[graph]["assistant_id"])["context_schema"]
        fields = schema["properties"]
        assert {"model", "base_url", "verifier", "policy", "remedies", "samples", "tokens"} <= set(fields)
        assert {"extra_samples", "concurrency", "temperature"} <= set(fields)
        assert fields["verifier"]["enum"] == ["exact", "math", "regex", "agreement"]
        assert fields["policy"]["enum"] == ["default", "fixed", "learned"]
        assert all("title" in f and "description" in f and "default" in f for f in fields.values())
        assert "the-deployments-key" not in json.dumps(schema)


DECISIONS = {
    "approve": ({"type": "approve"}, "human", "Answer: 40"),
    "edit": ({"type": "edit", "edited_action": {"name": "accept_answer", "args": {"answer": "42"}}}, "human", "42"),
    "reject": ({"type": "reject", "message": "ask the vendor"}, "rejected", None),
    "respond": ({"type": "respond", "message": "it is 42"}, "human", "it is 42"),
}


@pytest.mark.parametrize("kind", DECISIONS)
def test_a_run_stops_at_a_person_and_goes_on_with_their_decision(
    client: Any, model: ChatServer, assistant: str, kind: str
) -> None:
    decision, status, text = DECISIONS[kind]
    thread = client.threads.create()["thread_id"]
    before = len(model.bodies)
    parts = drive(client, assistant, thread, input={"step": STEP, "candidate": "Answer: 41"})
    names = [event["type"] for event in told(parts)]
    assert names[0] == "rfx.judged"
    assert names[-3:] == ["rfx.decided", "rfx.reserved", "rfx.escalated"]
    (sampled,) = [event for event in told(parts) if event["type"] == "rfx.sampled"]
    assert (sampled["got"], sampled["model"], sampled["tag"]) == (3, "fake", "retry:attempt:1")
    assert any("__interrupt__" in part.data for part in parts if part.event.split("|")[0] == "updates")
    request = asked(client, thread)
    assert request["action_requests"][0]["args"] == {"answer": "40"}
    paid = len(model.bodies)
    assert paid > before

    # A reply that does not fit is asked for again.
    drive(client, assistant, thread, command={"resume": {"decisions": [{"type": "shrug"}]}})
    assert "decisions" in asked(client, thread)["error"]

    parts = drive(client, assistant, thread, command={"resume": {"decisions": [decision]}})
    assert [event["type"] for event in told(parts)] == ["rfx.finished"]
    state = client.threads.get_state(thread)
    assert state["next"] == []
    outcome = state["values"]["outcome"]
    assert (outcome["status"], outcome.get("text"), outcome["reason"]) == (status, text, f"human:{kind}")
    assert len(model.bodies) == paid  # nothing was restarted
    (finished,) = told(parts)
    assert {"text", "answer", "sentence"}.isdisjoint(finished["outcome"])  # what a person said is nobody's event


def test_an_assistants_settings_reach_the_model(client: Any, model: ChatServer, context: dict[str, Any]) -> None:
    made = client.assistants.create("recovery", context=context | {"temperature": 1.5, "max_tokens": 77})
    before = len(model.bodies)
    thread = client.threads.create()["thread_id"]
    parts = drive(client, made["assistant_id"], thread, input={"step": STEP, "candidate": "Answer: 41"})
    assert client.threads.get_state(thread)["values"]["outcome"]["status"] == "rescued"
    assert told(parts)[-1]["outcome"]["by"] == "retry"
    sent = model.bodies[before]
    assert (sent["model"], sent["temperature"], sent["max_tokens"]) == ("fake", 1.5, 77)
    assert model.headers[before]["authorization"] == "Bearer the-deployments-key"


@pytest.mark.parametrize("verifier", ["exact", "math", "regex"])
def test_programs_and_every_verifier_run_beside_the_event_loop(
    client: Any, context: dict[str, Any], verifier: str
) -> None:
    """The server refuses calls that block its loop; these start processes and wait for them."""
    change = {"verifier": verifier, "pattern": r"\b42\b", "tool": True, "remedies": ["tool"], "samples": 4}
    made = client.assistants.create("recovery", context=context | change)
    thread = client.threads.create()["thread_id"]
    parts = drive(client, made["assistant_id"], thread, input={"step": STEP, "candidate": "Answer: 41"})
    assert not [part.data for part in parts if part.event == "error"]
    outcome = client.threads.get_state(thread)["values"]["outcome"]
    assert (outcome["status"], outcome["by"], outcome["answer"]) == ("rescued", "tool", "42")


def test_the_solver_runs_with_recovery_behind_its_node(client: Any, model: ChatServer, context: dict[str, Any]) -> None:
    made = client.assistants.create("solver", context=context)
    thread = client.threads.create()["thread_id"]
    question = {"question": "What is 6 times 7?", "expected": "42"}
    parts = drive(client, made["assistant_id"], thread, input=question)
    assert told(parts)[-1]["type"] == "rfx.escalated"
    assert {part.event.split("|")[1].split(":")[0] for part in parts if part.event.startswith("custom")} == {"recover"}
    paid = len(model.bodies)
    edit = DECISIONS["edit"][0]
    drive(client, made["assistant_id"], thread, command={"resume": {"decisions": [edit]}})
    values = client.threads.get_state(thread)["values"]
    assert (values["answer"], values["outcome"]["status"]) == ("42", "human")
    assert len(model.bodies) == paid


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"temperature": 9}, "temperature is 9"),
        ({"verifier": "regex"}, "give the pattern"),
        ({"api_key_env": "HOME"}, "api_key_env is 'HOME'"),
        ({"base_url": "http://127.0.0.1:1/v1"}, "RFX_BASE_URLS"),
    ],
)
def test_settings_that_cannot_work_are_told_to_the_client(
    client: Any, context: dict[str, Any], change: dict[str, Any], why: str
) -> None:
    made = client.assistants.create("recovery", context=context | change)
    thread = client.threads.create()["thread_id"]
    parts = drive(client, made["assistant_id"], thread, input={"step": STEP, "candidate": "Answer: 41"})
    (error,) = [part.data for part in parts if part.event == "error"]
    assert error["error"] == "ConfigError"
    assert why in error["message"]


def test_nothing_is_left_in_the_repository(client: Any) -> None:
    assert client.assistants.count() > 2
    assert not (ROOT / ".langgraph_api").exists()
