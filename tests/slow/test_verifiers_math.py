"""Mathematical equality, and what happens to those who try to break it."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from forks import holds_in_a_child
from verifier_conformance import HOSTILE, check_hostile, check_verifier

from rfx_agent.errors import ConfigError
from rfx_agent.records import Rollout, Step
from rfx_agent.verifiers import MathVerifier
from rfx_agent.verifiers import worker as module
from rfx_agent.verifiers.worker import WorkerTimeout, helper, shared_worker

STEP = Step.of("?")


def _judge(expected, text, **settings):
    return MathVerifier(expected, **settings).verify(STEP, Rollout(text))


class _NoWorker:
    def call(self, job, *, seconds):
        raise AssertionError(f"a plain comparison went to the worker: {job}")


@pytest.mark.parametrize(
    ("expected", "text", "passes"),
    [
        (42, "Answer: 42", True),
        ("42", "so \\boxed{42.0}", True),
        ("1/2", "Answer: 0.5", True),
        ("\\frac{1}{2}", "Answer: 2/4", True),
        ("1,000", "1000", True),
        ("42", "Answer: 43", False),
        ("0.1", "Answer: 0.1000000001", False),
        ("Answer: 7", "Answer: 7", True),  # an expected answer may be a worked solution
        ("listen", "Answer: silent", False),  # as mathematics, both are the same product of letters
        ("yes", "Answer: Yes.", True),
        (0, "Answer: 0", True),
        ("42", "", False),
        ("x+1", "Answer: " + "x" * 3000, False),
    ],
)
def test_plain_answers_need_no_algebra(monkeypatch, expected, text, passes):
    monkeypatch.setattr(module, "shared_worker", _NoWorker)
    assert _judge(expected, text).passed is passes


@pytest.mark.parametrize(
    ("expected", "text", "passes"),
    [
        ("\\sqrt{8}", "Answer: $2\\sqrt{2}$", True),
        ("x^2 - 1", "Answer: (x-1)(x+1)", True),
        ("x^2 - 1", "Answer: x**2 - 1", True),
        ("2x+1", "1+2*x", True),
        ("$\\{1,2\\}$", "Answer: \\{2, 1\\}", True),
        ("(1, 2)", "Answer: (1,2)", True),
        ("\\begin{pmatrix}1&2\\end{pmatrix}", "\\boxed{\\begin{pmatrix}1 & 2\\end{pmatrix}}", True),
        ("5", "Answer: x=5", True),
        ("10!", "Answer: 3628800", True),
        ("\\sqrt{8}", "I am sure\nthat the result is $2\\sqrt{2}$ after all", True),  # no answer marked
        ("x^2 - 1", "Answer: x^2 + 1", False),
        ("\\sqrt{8}", "Answer: none of them", False),
        ("\\pi", "Answer: 3.14", False),
    ],
)
def test_symbolic_answers(expected, text, passes):
    verdict = _judge(expected, text)
    assert verdict.passed is passes, verdict.reason


def test_power_tower_is_stopped_and_the_worker_replaced():
    assert _judge("\\sqrt{8}", "Answer: 2\\sqrt{2}").passed
    before = shared_worker().pid
    verdict = _judge("x", "Answer: $99999999!! + 9^{9^{9^{9}}}$", seconds=0.5)
    assert not verdict.passed
    assert "took longer than 0.5 s" in verdict.reason
    assert _judge("\\sqrt{8}", "Answer: 2\\sqrt{2}").passed
    assert shared_worker().pid not in (None, before)


def test_async_does_not_block_the_loop():
    async def main():
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticker = asyncio.create_task(tick())
        verdict = await MathVerifier("\\sqrt{8}").averify(STEP, Rollout("Answer: 2\\sqrt{2}"))
        ticker.cancel()
        return verdict.passed, ticks

    passed, ticks = asyncio.run(main())
    assert passed
    assert ticks > 1


def test_threads_share_one_worker():
    pid = shared_worker().pid
    with ThreadPoolExecutor(8) as executor:
        verdicts = list(executor.map(lambda n: _judge(f"{n}x", f"Answer: x*{n}"), range(2, 18)))
    assert all(verdict.passed for verdict in verdicts)
    assert pid is None or shared_worker().pid == pid


def test_worker_survives_every_kind_of_end():
    worker = helper(memory=128 * 2**20)
    job = {"op": "regex", "pattern": "(a|a)*b", "flags": 0, "group": 0, "full": False, "text": "a" * 60}
    with pytest.raises(WorkerTimeout):
        worker.call(job, seconds=0.1)
    assert worker.call({**job, "text": "ab"}, seconds=5) == {"matched": True, "answer": "ab"}
    os.kill(worker.pid, 9)
    while worker.pid is not None:
        time.sleep(0.01)
    assert worker.call({**job, "text": "ab"}, seconds=5)["matched"]
    assert "error" in worker.call({**job, "pattern": "("}, seconds=5)
    if importlib.util.find_spec("resource") is not None:
        assert "error" in worker.call({**job, "text": "b" * (100 * 2**20)}, seconds=60)  # out of memory
        assert worker.call({**job, "text": "ab"}, seconds=5)["matched"]
    worker.close()
    worker.close()
    assert worker.pid is None


_SCRIPT = """
from rfx_agent.records import Rollout, Step
from rfx_agent.verifiers import MathVerifier
from rfx_agent.verifiers.worker import shared_worker
import sys
print("imported once")   # no main guard: multiprocessing would run this again in its child
assert MathVerifier("2x+1").verify(Step.of("?"), Rollout("1+2x")).passed
assert "sympy" not in sys.modules
print(shared_worker().pid)
"""


def test_needs_no_main_guard_and_leaves_nothing_behind(tmp_path):
    script = tmp_path / "user.py"
    script.write_text(_SCRIPT)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=True)
    first, pid = done.stdout.split("\n")[:2]
    assert first == "imported once"
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_child_gets_a_worker_of_its_own():
    assert _judge("2x+1", "1+2x").passed
    assert holds_in_a_child(lambda: _judge("3x+1", "1+3x").passed, seconds=60)
    assert _judge("2x+1", "1+2x").passed


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_text(hostile):
    check_hostile(MathVerifier("\\sqrt{8}", seconds=0.5), STEP, HOSTILE[hostile])


def test_conformance():
    check_verifier(MathVerifier("42"), STEP, passing="Answer: 42", failing="Answer: 41")
    check_verifier(MathVerifier("2x"), STEP, passing="Answer: x*2", failing="Answer: x+2")


def test_missing_library(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'rfx-agent\[math\]'"):
        MathVerifier()


def test_settings_fail_at_once():
    with pytest.raises(ConfigError, match="seconds is -1"):
        MathVerifier(seconds=-1)
    with pytest.raises(ConfigError, match="name is ''"):
        MathVerifier(name="")
    with pytest.raises(ConfigError, match="nothing to compare with"):
        MathVerifier().verify(STEP, Rollout("1"))
