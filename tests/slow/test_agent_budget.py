"""Agents with tools and a subagent in several processes, killed at random moments: nothing is billed over a cap."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("sqlalchemy")

from budget_agents import CAPS, MOST, Billing

import rfx_agent
from rfx_agent.budgets.at import store_at

if TYPE_CHECKING:
    from redis_server import RedisServer

pytest_plugins = ("redis_server",)

PROCESSES, RUNS, KILLS = 4, 6, 5
HERE = Path(__file__).parent.parent


def started(place: str, url: str, seed: int) -> Any:
    command = [sys.executable, str(HERE / "budget_agents.py"), place, url, str(RUNS), str(seed)]
    path = os.pathsep.join([str(Path(rfx_agent.__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
    )


@pytest.fixture(params=["sqlite", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/budgets.db"
    server: RedisServer = request.getfixturevalue("redis_server")
    return server.fresh()


def test_nothing_is_billed_over_a_cap(url: str) -> None:
    rng = random.Random(3)  # noqa: S311  # the order of kills
    with Billing() as server:
        running = [started(server.place, url, seed) for seed in range(PROCESSES)]
        ended = []
        for kill in range(KILLS):
            busy = sum(server.billed.values())
            while sum(server.billed.values()) < busy + 4_000 and any(x.poll() is None for x in running):
                time.sleep(0.05)
            time.sleep(rng.uniform(0.0, 0.05))
            victim = rng.choice(running)
            if victim.poll() is None:
                victim.send_signal(signal.SIGKILL)
                running[running.index(victim)] = started(server.place, url, 100 + kill)
                ended.append(victim)
        said = [process.communicate(timeout=300) for process in running]
        for process, (_, errors) in zip(running, said, strict=True):
            assert process.returncode == 0, errors[-2_000:]
        for process in ended:
            process.communicate()
        (account,) = store_at(url).accounts()
        total = sum(server.billed.values())
    outcomes = [json.loads(line) for out, _ in said for line in out.splitlines()]
    assert len(ended) == KILLS
    assert len(outcomes) == PROCESSES * RUNS
    assert all(x["status"] == "exhausted" for x in outcomes if x["way"] in ("invoke", "ainvoke", "stream", "messages"))
    assert any(x["after"] for x in outcomes)  # the limit that all share was reached
    assert max(server.billed.values()) <= CAPS["tokens"]
    assert total <= MOST
    assert account.peak <= MOST
    # What is still set aside is of those that were killed, at most one call of each of its tools.
    assert total <= account.spent + account.reserved
    assert account.reserved <= KILLS * 4 * CAPS["tokens"]
