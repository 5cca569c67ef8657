"""Two processes reply to one question of a budget at the same moment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import rfx_agent

pytest.importorskip("langchain.agents")
pytest.importorskip("langgraph.checkpoint.sqlite")
pytest.importorskip("langgraph.checkpoint.postgres")

pytest_plugins = ("postgres",)
PROGRAM = Path(__file__).parent.parent / "raise_cap.py"


def started(*arguments: str) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(Path(rfx_agent.__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(PROGRAM), *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=os.environ | {"PYTHONPATH": path}
    )


def said(process: subprocess.Popen[str], write: str = "") -> dict[str, Any]:
    out, errors = process.communicate(write, timeout=120)
    assert process.returncode == 0, errors[-2_000:]
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/threads.db"
    place: str = request.getfixturevalue("postgres_url")
    return place.replace("postgresql+psycopg://", "postgresql://")


def test_a_cap_that_two_processes_raise_at_once_is_what_one_of_them_said(url: str) -> None:
    (question,) = said(started(url, "begin"))["open"]
    both = [started(url, "raise", str(cap), question) for cap in (5, 9)]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    found = [said(process) for process in both]
    last = said(started(url, "raise", "30", question), "\n")  # late: that question is no longer open
    cap = last["budget"]["caps"]["samples"]
    assert cap in (5, 9)
    assert {*last["caps"]} <= {5, 9}  # in no checkpoint the sum, nor the late one's
    assert last["budget"]["spent"]["samples"] <= cap
    assert any(x["budget"]["caps"]["samples"] == cap for x in found)
    (asked,) = last["open"]
    assert asked != question
    assert said(started(url, "raise", "12", asked), "\n")["budget"]["caps"]["samples"] == 12
