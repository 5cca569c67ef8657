"""A service that forks after it has used everything: no worker reads another's answer, and all parts work in each."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from servers import Answer, ChatServer, choice, completion, unused_port

pytest.importorskip("gunicorn")
pytest.importorskip("math_verify")
pytest.importorskip("opentelemetry.sdk")
pytest.importorskip("sqlalchemy")

TESTS = Path(__file__).parents[1]
WORKERS, REQUESTS = 4, 200


def answered(body: dict[str, Any], i: int) -> Answer:
    """An answer to the question of this body: of every second ticket a wrong one, and then a program."""
    said = json.dumps(body["messages"])
    ticket, one, other = re.findall(r"ticket (\w+): what is (\d+) plus (\d+)", said)[0]
    total = int(one) + int(other)
    if "python" in said.lower():
        return Answer(body=completion(choice(f"```python\nprint({one} + {other})\n```")))
    return Answer(body=completion(choice(f"For {ticket} it is so. Answer: {total + int(one) % 2}")), delay=0.005)


@pytest.fixture(scope="module", params=["sync", "gthread"])
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Any]]:
    """The URL of a service of four workers, and its process, which leads a session of its own."""
    place, port = tmp_path_factory.mktemp("service"), unused_port()
    with ChatServer(answered) as models:
        given = {"RFX_TEST_URL": models.base_url, "RFX_TEST_PLACE": str(place), "PYTHONUNBUFFERED": "1"}
        threads = ["--threads", "4"] if request.param == "gthread" else []
        command = [sys.executable, "-m", "gunicorn", "--preload", "-w", str(WORKERS), "-k", request.param, *threads]
        command += ["-b", f"127.0.0.1:{port}", "--timeout", "120", "--graceful-timeout", "60", "preload_app:app"]
        with (place / "log").open("wb") as log:
            service = subprocess.Popen(
                command, env={**os.environ, **given}, cwd=TESTS, stderr=log, stdout=log, start_new_session=True
            )
        try:
            _until_up(port, service, place / "log")
            yield f"http://127.0.0.1:{port}", service
        finally:
            if service.poll() is None:
                os.killpg(service.pid, signal.SIGKILL)
                service.wait()


def _until_up(port: int, service: Any, log: Path) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        assert service.poll() is None, log.read_text()
        try:
            socket.create_connection(("127.0.0.1", port)).close()  # quick: idle connections are kept for 5 seconds
        except OSError:
            time.sleep(0.05)
        else:
            return
    pytest.fail(f"the service did not start: {log.read_text()}")


def got(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url, timeout=120) as answer:  # noqa: S310  # our own service
        read: dict[str, Any] = json.load(answer)
        return read


def test_each_request_has_its_own_answer(service: tuple[str, Any]) -> None:
    url, _ = service
    dice = random.Random(5)  # noqa: S311  # a test's dice
    asks = [(f"t{i}x{dice.getrandbits(40):x}", dice.randint(100, 999), dice.randint(100, 999)) for i in range(REQUESTS)]

    def ask(at: int) -> tuple[dict[str, Any], tuple[str, int, int]]:
        ticket, one, other = asks[at]
        side = "&async=1" if at % 3 == 0 else ""
        return got(f"{url}/ask?ticket={ticket}&one={one}&other={other}{side}"), asks[at]

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, range(REQUESTS)))
    # A program's answer is the sum alone; a model's names the ticket too.
    others = [x for x in answers if not _own(*x)]
    assert others == []
    assert {text for said, _ in answers for text in said["foreign"]} == set()
    notes = {note for said, _ in answers for note in said["notes"]}
    assert {note for note in notes if not note.startswith("program: it did not end")} == set()  # on a busy machine
    assert len({said["pid"] for said, _ in answers}) == WORKERS
    assert any(said["text"].isdigit() for said, _ in answers)  # the sandbox was used
    assert any("it is so" in said["text"] for said, _ in answers)


def _own(said: dict[str, Any], asked: tuple[str, int, int]) -> bool:
    text, (ticket, one, other) = said["text"] or "", asked
    return text == str(one + other) or (ticket in text and text.endswith(str(one + other)))


def test_all_parts_work_in_each_worker(service: tuple[str, Any]) -> None:
    url, _ = service
    seen: dict[int, dict[str, Any]] = {}
    until = time.monotonic() + 60
    while time.monotonic() < until and not (len(seen) == WORKERS and all(x["spans"] for x in seen.values())):
        said = got(f"{url}/works")
        seen[said["pid"]] = said
    assert len(seen) == WORKERS
    for said in seen.values():
        assert (said["sandbox"], said["math"], said["store"], said["spans"]) == ("42", True, "kept", True)


def test_it_ends_within_ten_seconds_and_leaves_nothing(service: tuple[str, Any]) -> None:
    """Run last: the service of this module is over then."""
    _, process = service
    begun = time.monotonic()
    process.terminate()
    assert process.wait(timeout=10) == 0
    left = _of_session(process.pid)
    while left and time.monotonic() < begun + 10:
        time.sleep(0.1)
        left = _of_session(process.pid)
    assert left == []


def _of_session(leader: int) -> list[str]:
    """What still runs in the session of ``leader``: its helpers and sandboxes are in it too."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.getsid(int(entry.name)) == leader:
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                found += [] if state == "Z" else [(entry / "cmdline").read_text().replace("\0", " ")]
        except OSError:
            continue  # it has just ended
    return found
