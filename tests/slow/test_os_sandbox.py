"""The OS sandbox: what it answers, and everything that a program may try instead."""

from __future__ import annotations

import asyncio
import copy
import gc
import os
import pickle
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from forks import holds_in_a_child
from test_sandbox import ATTACKS

from rfx_agent import ExactVerifier, Recovery, RetryBudget
from rfx_agent.errors import ConfigError, ToolError
from rfx_agent.records import Rollout, Step
from rfx_agent.remedies import Tool
from rfx_agent.testing import ScriptedSampler
from rfx_agent.tools import OSSandbox, ProgramTool, Sandbox, launch
from rfx_agent.tools.choice import best_sandbox, sandbox_of
from rfx_agent.verifiers.unit_tests import TestsVerifier

pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="needs bubblewrap: apt-get install bubblewrap")


@pytest.fixture(scope="module")
def box():
    with OSSandbox(seconds=1.0, memory=128 * 2**20, output=2000, disk=2**20, workers=2) as sandbox:
        yield sandbox


def ours() -> set[str]:
    """Command lines of sandboxes that this process started and that still run."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:
            continue
        if b"rfx_agent.tools.box" in line:
            found.add(path.parts[2])
    return found


def gone(before: set[str]) -> bool:
    for _ in range(100):
        if not ours() - before:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    ("code", "answer"),
    [
        ("answer = 4721 * 389", "1836469"),
        ("answer = ''", ""),
        ("answer = 1\nprint(2)\n3", "1"),
        ("print(2)\n3", "3"),
        ("answer = None\n5", "5"),
        ("print('a')\nprint(' the last  ')\nprint()", "the last"),
        ("def answer():\n    return 3\nprint(answer())", "3"),
        ("answer = math.comb(5, 2)", "10"),  # imported already, as in Monty
        ("import statistics\nanswer = statistics.median([3, 1, 2])", "2"),
        ("import heapq\nh = [3, 1, 2]\nheapq.heapify(h)\nanswer = heapq.heappop(h)", "1"),
        ("from fractions import Fraction\nanswer = Fraction(1, 3) + Fraction(1, 6)", "1/2"),
        ("def g():\n    yield 1\n    yield 2\nanswer = list(g())", "[1, 2]"),
        ("x = [1, 2, 3]\ndel x[0]\nanswer = x", "[2, 3]"),
        ("class A:\n    @property\n    def p(self): return 7\nanswer = A().p", "7"),
        ("class A(list):\n    pass\nwith open('f', 'w') as f: f.write('x')\nanswer = open('/tmp/f').read()", "x"),
        ("if __name__ == '__main__':\n    answer = 8", "8"),
        ("from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\nanswer = P(3)", "P(x=3)"),
        ("import asyncio\nasync def f(): return 4\nanswer = asyncio.run(f())", "4"),
        ("import random\nanswer = random.random()", "0.8444218515250481"),
        ("import threading\nt = threading.Thread(target=print, args=('hi',))\nt.start()\nt.join()", "hi"),
    ],
)
def test_answer_of_a_program(box, code, answer):
    result = box.run(code)
    assert (result.answer, result.error) == (answer, None)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("a = 1\n\nanswer = a / 0", "ZeroDivisionError: division by zero (line 3)"),
        ("def f(x):\n    return x[0]\nanswer = f(0)", "TypeError: 'int' object is not subscriptable (line 2)"),
        ("answer = 1 +", "SyntaxError: invalid syntax (line 1)"),
        ("import numpy", "ModuleNotFoundError: No module named 'numpy' (line 1)"),
        ("x = int(input())", "EOFError: EOF when reading a line (line 1)"),
        ("x = 1", "ValueError: the program set no variable answer, ended in no expression and printed nothing"),
        ("def answer(): return 3", "TypeError: answer is a function; call it and assign what it returns to answer"),
        ("import os\nos._exit(0)", "the program ended itself before its end"),
        ("import os\nos._exit(7)", "the program ended itself (exit code 7) before its end"),
    ],
)
def test_failure_is_data_with_kind_and_line(box, code, error):
    result = box.run(code)
    assert (result.answer, result.error) == (None, error)


# What a CPython answers, and no harm in it.
_ANSWERED = {"write a file", "system", "__import__", "importlib", "getattr", "frames"}


@pytest.mark.parametrize("attack", ATTACKS)
def test_attack_is_contained_and_reported(box, attack):
    result = box.run(ATTACKS[attack])
    if attack not in _ANSWERED:
        assert result.answer is None, result.answer[:100]
        assert result.error is not None
    assert len(result.error or "") < 700
    assert len(result.output) < 2100
    assert not Path("/tmp/rfx_escape").exists()  # noqa: S108  # the host's
    assert box.run("answer = 1 + 1").answer == "2"  # the parent is well, and so is the next run


_DENIED = {
    # network
    "inet": "import socket\nsocket.socket()",
    "unix": "import socket\nsocket.socket(socket.AF_UNIX)",
    "vsock": "import socket\nsocket.socket(40, socket.SOCK_STREAM)",
    "netlink": "import socket\nsocket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "resolver": "import socket\nsocket.getaddrinfo('example.com', 80)",
    # files
    "shadow": "open('/etc/shadow').read()",
    "passwd": "open('/etc/passwd').read()",
    "parent's /proc": "open('/proc/1/environ').read()",
    "own /proc": "open('/proc/self/maps').read()",
    "sys": "import os\nos.listdir('/sys')",
    "symlink out": "import os\nos.symlink('/etc/shadow', '/tmp/s')\nopen('/tmp/s').read()",
    "symlink up": "import os\nos.symlink('/', '/tmp/r')\nopen('/tmp/r/etc/shadow').read()",
    "dot dot": "open('/tmp/../etc/shadow').read()",
    "hard link": "import os\nos.link('/rfx/rfx_agent/tools/box/wire.py', '/tmp/w')",
    "write /": "open('/x', 'w')",
    "write /dev/shm": "open('/dev/shm/x', 'w')",
    "write our code": "open('/rfx/rfx_agent/tools/box/wire.py', 'a')",
    "write Python": "import os\nopen(os.__file__, 'a')",
    "chmod Python": "import os\nos.chmod(os.__file__, 0o777)",
    "fill /tmp": "for i in range(8): open(f'/tmp/{i}', 'wb').write(bytes(2**18))",
    "one big file": "open('/tmp/x', 'wb', buffering=0).write(bytes(2**21)) == 2**21 or open('/nowhere')",
    "mount": "import ctypes\nc = ctypes.CDLL(None, use_errno=True)\n"
    "assert c.mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0",
    "chroot": "import os\nos.chroot('/tmp')",
    # processes
    "fork": "import os\nos.fork()",
    "spawn": "import os\nos.posix_spawn('/bin/true', ['true'], {})",
    "subprocess": "import subprocess, sys\nsubprocess.run([sys.executable, '-c', '1'])",
    "multiprocessing": "import multiprocessing\np = multiprocessing.Process(target=print)\np.start()",
    "clone": "import ctypes\nassert ctypes.CDLL(None).syscall(56, 17, 0, 0, 0, 0) >= 0",
    "clone3": "import ctypes\nassert ctypes.CDLL(None).syscall(435, 0, 0) >= 0",
    "vfork": "import ctypes\nassert ctypes.CDLL(None).syscall(58) >= 0",
    "x32 fork": "import ctypes\nassert ctypes.CDLL(None).syscall(0x40000000 + 57) >= 0",
    "namespace": "import ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) == 0",
    "ptrace": "import ctypes\nassert ctypes.CDLL(None).ptrace(16, 1, 0, 0) == 0",
    "read memory": "import ctypes\nassert ctypes.CDLL(None).syscall(310, 1, 0, 0, 0, 0, 0) >= 0",
    "raise a limit": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "root": "import os\nos.setuid(0)",
    "signal to others": "import os\nos.kill(4, 0)",
    "io_uring": "import ctypes\nassert ctypes.CDLL(None).syscall(425, 1, 0) >= 0",
    "bpf": "import ctypes\nassert ctypes.CDLL(None).syscall(321, 0, 0, 0) >= 0",
    "keys": "import ctypes\nassert ctypes.CDLL(None).syscall(250, 0, 0, 0) >= 0",
    # memory that no limit on address space counts
    "memfd": "import os\nos.memfd_create('x')",
    "system V": "import ctypes\nassert ctypes.CDLL(None).shmget(0, 2**20, 0o1600) >= 0",
    "attributes": "import os\nopen('/tmp/a', 'w').close()\nos.setxattr('/tmp/a', 'user.x', b'x' * 60000)",
    "attributes of a descriptor": "import os\nwith open('/tmp/a', 'w') as f: os.setxattr(f.fileno(), 'user.x', b'x')",
    # what all processes of the machine share
    "asynchronous I/O": "import ctypes\nx = ctypes.c_void_p()\n"
    "assert ctypes.CDLL(None).syscall(206, 1000, ctypes.byref(x)) == 0",
    "inotify": "import ctypes\nassert ctypes.CDLL(None).inotify_init() >= 0",
    "timers": "import ctypes\nx = ctypes.c_void_p()\nfor _ in range(1000):\n"
    "    assert ctypes.CDLL(None).syscall(222, 0, 0, ctypes.byref(x)) == 0",
    "mmap": "import mmap\nmmap.mmap(-1, 2**30)",
}


@pytest.mark.parametrize("attack", _DENIED)
def test_what_is_denied(box, attack):
    result = box.run(f"{_DENIED[attack]}\nanswer = 'done'")
    assert result.answer is None
    assert result.error is not None
    assert not result.error.startswith(("TimeoutError", "NameError", "AttributeError")), result.error


def test_nothing_of_the_host_is_in_it(box, monkeypatch):
    monkeypatch.setenv("RFX_SECRET", "hunter2")
    seen = box.run("import os\nanswer = sorted(os.environ), os.getuid(), os.getpid(), os.uname().nodename")
    assert seen.answer is not None
    assert "RFX_SECRET" not in seen.answer
    assert seen.answer.endswith("65534, 2, 'sandbox')")
    home = box.run(f"import os\nanswer = os.listdir({str(Path.home())!r})").answer
    assert home in (None, "['.pyenv']", "['.local']")  # at most the interpreter's own folder
    assert box.run("import os\nanswer = os.listdir('/tmp')").answer == "[]"
    fds = "import os\ndef there(i):\n    try: os.fstat(i)\n    except OSError: return False\n    return True\n"
    assert box.run(f"{fds}answer = [i for i in range(256) if there(i)]").answer == "[0, 1, 2, 3]"


def test_no_port_of_the_host_can_be_reached(box):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        result = box.run(f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)\nanswer = 1")
    assert result.answer is None


def test_runs_do_not_see_each_other(box):
    assert box.run("open('/tmp/left', 'w').write('x')\nanswer = 1").answer == "1"
    assert box.run("import os\nanswer = os.path.exists('/tmp/left')").answer == "False"


def test_signals_reach_nobody_outside(box):
    for code in (
        "import os, signal\nos.kill(1, signal.SIGKILL)\nos.kill(-1, signal.SIGTERM)\nanswer = 'alive'",
        "import os, signal\nos.kill(os.getppid(), signal.SIGTERM)\nanswer = 'alive'",
        "import os, signal\nos.killpg(0, signal.SIGKILL)",
    ):
        box.run(code)
    assert box.run("answer = 1").answer == "1"


def test_threads_are_bounded_by_memory_and_go_with_the_run(box):
    before = ours()
    result = box.run(
        "import threading, time\nthreading.stack_size(2**15)\nn = 0\ntry:\n    while True:\n"
        "        threading.Thread(target=time.sleep, args=(99,)).start()\n        n += 1\n"
        "except RuntimeError:\n    answer = n"
    )
    assert result.error is None or "Error" in result.error
    assert gone(before)


def test_a_record_of_ones_own_is_an_answer_and_no_more(box):
    # The channel is the program's to write: what it says there is its answer, which is judged like any other.
    fake = (
        "import os, json\nos.write(3, json.dumps({'unset': False, 'function': False, 'text': '5'}).encode() + b'\\n')"
    )
    assert box.run(f"{fake}\nos._exit(0)").answer in ("5", None)
    for junk in ("b'x' * 10**7", "b'[' * 10**6 + b'\\n'", "b'{}\\n'", "b'null\\n'", "bytes(range(256)) * 99 + b'\\n'"):
        result = box.run(f"import os\nos.write(3, {junk})\nos._exit(0)")
        assert result.answer is None
        assert result.error


@pytest.mark.parametrize("name", ["monty", "bubblewrap"])
def test_program_tool_says_where_it_ran(name):
    tool = ProgramTool(sandbox=name)
    assert tool.run("answer = 6 * 7").answer == "42"
    assert asyncio.run(tool.arun("answer = 6 * 7")).answer == "42"
    result = tool.run("import statistics\nanswer = statistics.mean([1, 3])")
    if name == "monty":
        assert "Monty" in result.error
        assert tool.name == "program"
    else:
        assert result.answer == "2"
        assert tool.name == "program_bubblewrap"
        assert "standard library" in tool.prompt(Step.of("x"))[0]["content"]


def test_choice_is_explicit():
    assert isinstance(sandbox_of("monty", who="x"), Sandbox)
    assert isinstance(sandbox_of("bubblewrap", who="x"), OSSandbox)
    assert isinstance(best_sandbox(), OSSandbox)
    with pytest.raises(ConfigError, match="'monty', 'bubblewrap'"):
        ProgramTool(sandbox="docker")


def test_missing_bubblewrap_is_said_when_it_is_made(monkeypatch):
    launch.probed.cache_clear()
    monkeypatch.setattr(launch.shutil, "which", lambda _: None)
    try:
        with pytest.raises(ConfigError, match="apt-get install bubblewrap"):
            ProgramTool(sandbox="bubblewrap")
        assert isinstance(best_sandbox(), Sandbox)
        assert TestsVerifier("assert f(1) == 1").sandbox.name == "monty"
    finally:
        launch.probed.cache_clear()


def test_bubblewrap_that_does_not_work_is_said_with_its_words(monkeypatch, tmp_path):
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    fake.chmod(0o755)
    launch.probed.cache_clear()
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    try:
        with pytest.raises(ConfigError, match=r"No permissions to create new namespace.*unprivileged"):
            OSSandbox()
    finally:
        launch.probed.cache_clear()


@pytest.mark.parametrize(
    ("taken", "left"),
    [
        (["--seccomp", "FILTER"], "sockets"),
        (["--remount-ro", "/"], "files outside /tmp"),
    ],
)
def test_probe_finds_what_is_left_open(monkeypatch, taken, left):
    real = launch._arguments

    def weaker(module, packages):
        made = real(module, packages)
        for i in range(len(made) - len(taken), 0, -1):
            if made[i : i + len(taken)] == taken:
                del made[i : i + len(taken)]
        return [*made, "FILTER"] if "FILTER" not in made else made

    launch.probed.cache_clear()
    monkeypatch.setattr(launch, "_arguments", weaker)
    try:
        with pytest.raises(ConfigError, match=f"leaves open.*{left}"):
            OSSandbox()
    finally:
        launch.probed.cache_clear()


@pytest.mark.parametrize(
    ("settings", "parameter"),
    [
        ({"seconds": 0}, "seconds"),
        ({"seconds": float("nan")}, "seconds"),
        ({"memory": 10}, "memory"),
        ({"output": 0}, "output"),
        ({"disk": 1}, "disk"),
        ({"workers": 0}, "workers"),
        ({"packages": ("/nowhere/at/all",)}, "packages"),
    ],
)
def test_settings_fail_at_once(settings, parameter):
    with pytest.raises(ConfigError, match=parameter):
        OSSandbox(**settings)


def test_packages_can_be_imported_and_not_written(tmp_path):
    (tmp_path / "greeting.py").write_text("HELLO = 'hi'\n")
    box = OSSandbox(packages=(str(tmp_path),))
    assert box.run("import greeting\nanswer = greeting.HELLO").answer == "hi"
    assert box.run(f"open({str(tmp_path)!r} + '/x', 'w')").answer is None


def test_copies_and_pickles_as_settings(box):
    for twin in (copy.deepcopy(box), pickle.loads(pickle.dumps(box))):  # noqa: S301
        assert repr(twin) == repr(box)
        assert twin.run("answer = 1").answer == "1"


def test_threads_and_tasks_share_it(box):
    programs = [f"answer = sum(range({n}))" for n in range(8)]
    with ThreadPoolExecutor(8) as executor:
        threads = [result.answer for result in executor.map(box.run, programs)]

    async def gathered():
        return [result.answer for result in await asyncio.gather(*map(box.arun, programs))]

    assert threads == asyncio.run(gathered()) == [str(sum(range(n))) for n in range(8)]


def test_cancelled_run_is_killed_with_all_it_started():
    box, before = OSSandbox(seconds=60.0, workers=1), ours()

    async def main():
        for work in (
            lambda: box.arun("while True: pass"),
            lambda: TestsVerifier("assert f() == 1", sandbox=box).averify(
                Step.of("x"), Rollout("def f():\n    while True: pass")
            ),
        ):
            task = asyncio.create_task(work())
            while not ours() - before:
                await asyncio.sleep(0.01)
            waiting = asyncio.create_task(box.arun("answer = 2"))  # for the only place
            await asyncio.sleep(0.1)
            waiting.cancel()
            task.cancel()
            for one in (waiting, task):
                with pytest.raises(asyncio.CancelledError):
                    await one
            assert (await box.arun("answer = 1")).answer == "1"

    asyncio.run(main())
    assert gone(before)


def test_sandbox_that_does_not_start_is_no_verdict_on_the_code(box, monkeypatch):
    real = launch._arguments
    monkeypatch.setattr(launch, "_arguments", lambda *given: [*real(*given)[:-1], "rfx_agent.tools.box.nothing"])
    with pytest.raises(ToolError, match="could not be started"):
        box.run("answer = 1")
    with pytest.raises(ToolError, match="could not be started"):
        TestsVerifier("assert f(1) == 1", sandbox=box).verify(Step.of("x"), Rollout("def f(x): return 1"))


_LEFT = """
import os, threading, time
from rfx_agent.tools import OSSandbox
box = OSSandbox(seconds=60)
threading.Thread(target=box.run, args=("while True: pass",), daemon=True).start()
time.sleep(1)
print("started", flush=True)
os.kill(os.getpid(), 9)
"""


def test_nothing_outlives_a_parent_that_is_killed():
    before = ours()
    done = subprocess.run([sys.executable, "-c", _LEFT], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "started\n", done.stderr
    assert gone(before)


def test_used_from_a_forked_child(box):
    assert holds_in_a_child(lambda: OSSandbox(workers=1).run("answer = 2").answer == "2", seconds=20)


_AS_FIRST_PROCESS = """
import ctypes, os, time
from pathlib import Path
from rfx_agent import Rollout, Step, TestsVerifier
from rfx_agent.tools import OSSandbox
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # orphans come to this process, as they do to a container's first one
box = OSSandbox(seconds=0.3)
verifier = TestsVerifier("assert f() == 1", sandbox=box)
for _ in range(3):
    box.run("answer = 1")
    box.run("while True: pass")
    verifier.verify(Step.of("x"), Rollout("def f(): return 1"))
left = []
for path in Path("/proc").glob("[0-9]*/stat"):
    try:
        rest = path.read_text().rpartition(")")[2].split()
    except OSError:
        continue
    if int(rest[1]) == os.getpid():
        left.append((path.parts[2], rest[0]))
print(left, len(os.listdir("/proc/self/fd")) - 1)
"""


def test_no_process_is_left_to_a_containers_first_one():
    command = [sys.executable, "-c", _AS_FIRST_PROCESS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "[] 3\n", done.stdout + done.stderr


def test_no_descriptor_is_left_open(box, monkeypatch):
    def opened() -> int:
        return len([*Path("/proc/self/fd").iterdir()])

    box.run("answer = 1")
    before, real = opened(), launch._arguments
    for code in ("answer = 1", "while True: pass", "while True: print('x' * 999)", "import os\nos._exit(3)"):
        box.run(code)
    monkeypatch.setattr(launch, "_arguments", lambda *given: ["/nowhere/bwrap", *real(*given)[1:]])
    verifier = TestsVerifier("assert f(1) == 1", sandbox=box)
    for work in (lambda: box.run("answer = 1"), lambda: verifier.verify(Step.of("x"), Rollout("def f(x): return 1"))):
        with pytest.raises(ToolError, match="could not be started"):
            work()
    assert opened() == before


def test_characters_that_come_in_parts_are_whole(box):
    parts = "import os, time\nfor b in 'é€😀'.encode():\n    os.write(1, bytes([b]))\n    time.sleep(0.02)"
    assert box.run(parts).answer == "é€😀"
    for text in ("answer = 'a\\ud800'", "raise ValueError('a\\ud800')"):
        result = box.run(text)
        assert (result.answer or result.error).encode()
    verifier = TestsVerifier("assert f(1) == 1", sandbox=box)
    assert verifier.verify(Step.of("x"), Rollout("def f(x): raise ValueError('\\ud800')")).feedback.encode()


def test_a_run_that_is_cancelled_twice_says_nothing_more(box, caplog):
    async def main():
        task = asyncio.create_task(box.arun("while True: pass"))
        await asyncio.sleep(0.2)
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await box.arun("answer = 1")).answer == "1"

    asyncio.run(main())
    gc.collect()
    assert not caplog.records


@pytest.mark.parametrize("name", ["monty", "bubblewrap"])
def test_a_record_says_what_ran(name):
    reply = "```python\nimport statistics\nanswer = statistics.mean([1, 3])\n```"
    recovery = Recovery(
        ScriptedSampler([reply], last=reply),
        ExactVerifier("2"),
        remedies=[Tool(ProgramTool(sandbox=name, name="calculator"))],
        budget=RetryBudget(attempts=1),
    )
    case = recovery.run("The mean of 1 and 3?", "3")
    (note,) = [x.note for x in case.attempts]
    if name == "bubblewrap":
        assert case.outcome.status == "rescued"
        assert note == "it ran in CPython in bubblewrap"
    else:
        assert "No module named 'statistics'" in note
        assert "it ran in Monty, a subset of Python; a CPython has it: sandbox='bubblewrap'" in note
        assert "apt-get install bubblewrap" in note
