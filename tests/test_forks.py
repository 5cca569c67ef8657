"""What a forked child has of its parent: no lock that a thread held, no helper process, no half of a change."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from rfx_agent import _forks
from rfx_agent._forks import Lock, own_environment
from rfx_agent.errors import SamplerError
from rfx_agent.records import SampleRequest
from rfx_agent.samplers import ChatModelSampler, CircuitBreaker
from rfx_agent.samplers.openai.clients import Clients
from rfx_agent.testing import ScriptedSampler

if not hasattr(os, "fork"):
    pytest.skip("no fork here", allow_module_level=True)

from forks import holds_in_a_child


@pytest.mark.parametrize("make", [threading.Lock, threading.RLock])
def test_a_fork_waits_for_a_lock_so_that_the_child_finds_no_half_of_a_change(make: type) -> None:
    lock, values, begun = Lock(make), [0, 0], threading.Event()

    def change() -> None:
        with lock:
            values[0] = 1
            begun.set()
            time.sleep(0.3)
            values[1] = 1

    thread = threading.Thread(target=change)
    thread.start()
    begun.wait()

    def whole() -> bool:
        with lock:
            return values == [1, 1]

    assert holds_in_a_child(whole, seconds=5)
    thread.join()
    assert lock.acquire(timeout=0)  # and the parent has it again
    lock.release()


def test_a_lock_that_a_thread_keeps_is_free_in_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_forks, "_PATIENCE", 0.2)
    breaker, done, held = CircuitBreaker(ScriptedSampler(["fine"])), threading.Event(), threading.Event()

    def keep() -> None:
        with breaker._lock:
            held.set()
            done.wait(20)

    thread = threading.Thread(target=keep)
    thread.start()
    held.wait()
    before = time.monotonic()
    assert holds_in_a_child(lambda: breaker.state == "closed", seconds=5)
    assert time.monotonic() - before < 3
    assert not breaker._lock.acquire(timeout=0)  # it is still that thread's in the parent
    done.set()
    thread.join()


def test_locks_are_let_go_of_with_their_owners() -> None:
    gc.collect()
    before = len(_forks._locks)
    for _ in range(100):
        Lock()
    gc.collect()
    assert len(_forks._locks) <= before


_HELPER = """
import os, sys, threading, time
import rfx_agent as R
from rfx_agent.verifiers.worker import shared_worker
verifier, step = R.RegexVerifier("(a+)+b"), R.Step.of("q")
def check(n): assert verifier.verify(step, R.Rollout("a" * n + "b")).passed
check(3)
helper = shared_worker().pid
def busy():
    while True: check(1000)
for _ in range(2): threading.Thread(target=busy, daemon=True).start()
time.sleep(0.1)
for i in range(8):
    if (pid := os.fork()) == 0:
        assert shared_worker().pid is None
        if i % 2:
            check(i + 1)
            assert shared_worker().pid not in (None, helper)
        sys.exit(7)  # with all that is done at exit
    print(pid, flush=True)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
check(5)
assert shared_worker().pid == helper
"""


def test_a_verifiers_helper_is_not_the_childs_and_the_child_ends() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _HELPER],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, said = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail("a child hangs")
    assert process.returncode == 0, said


def test_a_client_in_use_is_not_the_childs() -> None:
    class Given:
        """With a client inside, as the SDK's have one, that is the user's own."""

        _client = object()

    given = Given()
    clients = Clients("m", base_url=None, api_key=None, timeout=1, max_retries=0, client=given)  # type: ignore[arg-type]
    assert holds_in_a_child(lambda: clients.sync() is given, seconds=5)  # nobody used it yet
    clients.sync()

    def refused() -> bool:
        with pytest.raises(SamplerError, match=r"was used before this process was forked.*make client= in the child"):
            clients.sync()
        return True

    assert holds_in_a_child(refused, seconds=5)
    assert clients.sync() is given


def test_a_helper_gets_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    assert "PATH" in own_environment()
    assert "OPENAI_API_KEY" not in own_environment()


def test_a_langchain_model_that_was_asked_before_the_fork_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    models = pytest.importorskip("langchain_core.language_models")
    sampler = ChatModelSampler(models.FakeListChatModel(responses=["7"]))
    request = SampleRequest(({"role": "user", "content": "q"},))

    def warned() -> int:
        sampler.sample(request)
        sampler.sample(request)
        return sum("asked before the process was forked" in x.getMessage() for x in caplog.records)

    assert holds_in_a_child(lambda: warned() == 0, seconds=5)
    assert warned() == 0
    assert holds_in_a_child(lambda: warned() == 1, seconds=5)
    assert warned() == 0
