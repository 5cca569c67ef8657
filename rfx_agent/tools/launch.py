"""Starts bubblewrap, talks to what runs in it, and stops it: the OS sandbox's machinery."""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import platform
import re
import selectors
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

from rfx_agent.errors import ConfigError, ToolError
from rfx_agent.tools.seccomp import seccomp_filter

__all__ = ["START", "Ended", "Launched", "Stopped", "probed"]

START = 5.0  # seconds that Python may take to start, on a busy machine
_TURN = 0.05  # seconds after which a cancelled run is noticed
_RECORDS = 4 * 1024 * 1024  # bytes of what the tests' process says
_INSIDE = "/rfx"  # where the package's own files are mounted
_LIBRARIES = ("/usr/lib", "/usr/lib64", "/usr/lib32", "/lib", "/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo")
_INSTALL = (
    "install it (apt-get install bubblewrap, dnf install bubblewrap, apk add bubblewrap), "
    "or run programs in Monty: sandbox='monty'"
)


class Stopped(Exception):
    """The run was cancelled."""


@dataclass
class Ended:
    """How a run ended.

    Attributes:
        code: exit code, 128 and the signal's number where one ended it; None where we stopped it.
        late: whether it was stopped for its time.
        flooded: whether it was stopped for what it printed.
        said: what bubblewrap said before Python started.
    """

    code: int | None = None
    late: bool = False
    flooded: bool = False
    said: str = ""


def _arguments(module: str, packages: tuple[str, ...]) -> list[str]:
    """The command, but for the descriptors."""
    python, prefix = os.path.realpath(sys.executable), sys.base_prefix
    bwrap = shutil.which("bwrap") or "bwrap"
    made = [bwrap, "--unshare-all", "--die-with-parent", "--new-session", "--clearenv", "--hostname", "sandbox"]
    path = ":".join((_INSIDE, *packages))
    for name, value in (("PYTHONHASHSEED", "0"), ("PYTHONPATH", path), ("MALLOC_ARENA_MAX", "2")):
        made += ["--setenv", name, value]
    for folder in _LIBRARIES:
        if Path(folder).is_symlink():
            made += ["--symlink", str(Path(folder).readlink()), folder]
        elif Path(folder).exists():
            made += ["--ro-bind", folder, folder]
    if prefix != "/usr":
        library = f"{prefix}/lib"
        made += ["--ro-bind", library, library]
        installed = f"{library}/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
        if Path(installed).is_dir():
            made += ["--tmpfs", installed, "--remount-ro", installed]
    made += ["--ro-bind", python, python]
    here = str(Path(__file__).with_name("box"))
    made += ["--ro-bind", here, f"{_INSIDE}/rfx_agent/tools/box"]
    made += ["--dev", "/dev", "--remount-ro", "/dev"]
    made += ["--uid", "65534", "--gid", "65534", "--cap-drop", "ALL"]
    made += ["--size", "DISK", "--tmpfs", "/tmp"]  # noqa: S108  # its own
    for folder in packages:  # which may lie in the host's /tmp
        made += ["--ro-bind", folder, folder]
    made += ["--remount-ro", "/", "--chdir", "/tmp"]  # noqa: S108  # as above
    return [*made, "--seccomp", "FILTER", "--", python, "-S", "-s", "-B", "-P", "-X", "utf8", "-m", module]


class Launched:
    """One run's processes; a ``with`` block ends them all."""

    def __init__(self, cancelled: threading.Event, room: threading.BoundedSemaphore, packages: tuple[str, ...]) -> None:
        self._cancelled, self._room, self._packages = cancelled, room, packages
        self._processes: list[subprocess.Popen[bytes]] = []
        self._infos: list[int] = []

    def __enter__(self) -> Launched:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for process in self._processes:
                process.kill()  # bubblewrap's death is that of all inside: it is their first process's parent
            for process in self._processes:
                process.wait()
                for pipe in (process.stdout, process.stderr):
                    if pipe is not None:
                        pipe.close()
            for info in self._infos:
                _reap(info)
        finally:
            self._room.release()

    def program(self, settings: dict[str, Any], printed: Any, record: bytearray, *, seconds: float) -> Ended:
        """Run a program; ``record`` is what it wrote on its channel."""
        theirs, ours = os.pipe()
        try:
            process = self._start("program", {**settings, "prints": True}, ours, subprocess.PIPE)
        except BaseException:
            os.close(theirs)
            raise
        finally:
            os.close(ours)
        said = bytearray()
        ended = Ended()
        decoders = {what: codecs.getincrementaldecoder("utf-8")("replace") for what in ("stdout", "stderr")}

        def read(what: str, part: bytes) -> bool:
            if what == "record":
                record.extend(part)
                ended.flooded = len(record) >= int(settings["output"]) * 12 + 65536
                return not ended.flooded
            if what == "stderr" and not record:
                said.extend(part[:4096])
            printed(what, decoders[what].decode(part))  # a character may come in two parts
            ended.flooded = bool(printed.size > printed.most)
            return not ended.flooded

        with os.fdopen(theirs, "rb", buffering=0) as channel:
            files = {channel: "record", process.stdout: "stdout", process.stderr: "stderr"}
            ended.late = self._read(files, read, seconds, lambda: bool(record))
        return self._ended(process, ended, said)

    def trial(self, code: dict[str, Any], tests: dict[str, Any], *, seconds: float) -> tuple[list[Any], Ended]:
        """Run code and tests in a sandbox each; the records are the tests' alone."""
        one, two = socket.socketpair()
        with one, two:
            self._start("code", {**code, "prints": False}, one.fileno(), subprocess.DEVNULL)
            judge = self._start("tests", {**tests, "prints": False}, two.fileno(), subprocess.PIPE)
        said, raw = bytearray(), bytearray()

        def read(what: str, part: bytes) -> bool:
            (raw if what == "stdout" else said).extend(part)
            return len(raw) < _RECORDS

        ended = Ended(
            late=self._read({judge.stdout: "stdout", judge.stderr: "stderr"}, read, seconds, lambda: bool(raw))
        )
        self._ended(judge, ended, said)
        return [json.loads(line) for line in bytes(raw).split(b"\n")[:-1]], ended

    def _start(self, role: str, settings: dict[str, Any], channel: int, out: int) -> subprocess.Popen[bytes]:
        filtered = seccomp_filter() or b""
        with contextlib.ExitStack() as stack:
            given = stack.enter_context(os.fdopen(os.memfd_create("rfx"), "w+b"))
            given.write(json.dumps({**settings, "channel": channel}).encode())
            given.flush()
            given.seek(0)
            rules, end = os.pipe()
            stack.callback(os.close, rules)
            os.write(end, filtered)
            os.close(end)
            info, about = os.pipe()
            self._infos.append(info)
            stack.callback(os.close, about)
            command = _arguments(f"rfx_agent.tools.box.{role}", self._packages)
            command[command.index("DISK")] = str(settings["disk"])
            command[command.index("FILTER")] = str(rules)
            command[1:1] = ["--info-fd", str(about)]
            try:
                process = subprocess.Popen(  # noqa: S603  # our own command
                    command,
                    stdin=given,
                    stdout=out,
                    stderr=subprocess.PIPE if out == subprocess.PIPE else subprocess.DEVNULL,
                    pass_fds=(channel, rules, about),
                    start_new_session=True,
                    env={},
                )
            except OSError as error:
                raise ToolError(f"the sandbox could not be started: {error}; {_INSTALL}") from error
        self._processes.append(process)
        return process

    def _read(
        self, files: dict[Any, str], read: Callable[[str, bytes], bool], seconds: float, ready: Callable[[], bool]
    ) -> bool:
        """Read until all are closed or ``read`` says no; whether time ran out before."""
        deadline, running = time.monotonic() + START, False
        with selectors.DefaultSelector() as chosen:
            for file, what in files.items():
                chosen.register(file, selectors.EVENT_READ, what)
            while chosen.get_map():
                if self._cancelled.is_set():
                    raise Stopped
                if not running and ready():
                    deadline, running = time.monotonic() + seconds, True
                left = deadline - time.monotonic()
                if left <= 0:
                    return True
                for key, _ in chosen.select(min(left, _TURN)):
                    part = os.read(key.fd, 65536)
                    if not part:
                        chosen.unregister(key.fileobj)
                    elif not read(key.data, part):
                        return False
        return False

    @staticmethod
    def _ended(process: subprocess.Popen[bytes], ended: Ended, said: bytearray) -> Ended:
        if not ended.late and not ended.flooded:
            with contextlib.suppress(subprocess.TimeoutExpired):
                ended.code = process.wait(1.0)
        ended.said = bytes(said).decode(errors="replace").strip()[:500]
        return ended


def _reap(info: int) -> None:
    """Take in the sandbox's first process, where bubblewrap has left it to this process to do so.

    Bubblewrap ends before the process that it started. That one then is the child of the process with the id 1: in a
    container often this very process, which would collect one that has ended for each run.
    """
    try:
        os.set_blocking(info, False)  # a process that was forked meanwhile may hold the other end
        found = re.search(rb'"child-pid":\s*(\d+)', os.read(info, 4096))
    except BlockingIOError:
        found = None
    finally:
        os.close(info)
    if found is None:
        return
    place = Path(f"/proc/{int(found[1])}/stat")
    for _ in range(100):
        try:
            name, _, rest = place.read_text(errors="replace").partition(" (")[2].rpartition(") ")
        except OSError:
            return
        if name != "bwrap" or rest.split()[1] != str(os.getpid()):
            return
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(int(found[1]), os.WNOHANG)[0]:
                return
        time.sleep(0.005)  # it has been told to end


_PROBE = """
import json, os, socket
found = []
for what, attempt in {
    "sockets": lambda: socket.socket(),
    "new processes": lambda: os.fork() or os._exit(0),
    "files outside /tmp": lambda: open("/rfx_probe", "w"),
}.items():
    try:
        attempt()
        found.append(what)
    except OSError:
        pass
home = os.listdir(HOME) if os.path.isdir(HOME) else []
answer = json.dumps([found, os.getpid(), sorted(os.environ), home])
"""
_ENVIRONMENT = {"PYTHONHASHSEED", "PYTHONPATH", "MALLOC_ARENA_MAX", "PWD", "LC_CTYPE"}


@lru_cache
def probed(packages: tuple[str, ...]) -> None:
    """Make sure that the sandbox works here, once.

    Raises:
        ConfigError: what is missing.
    """
    if sys.platform != "linux":
        raise ConfigError(f"OSSandbox: bubblewrap needs Linux, and this is {sys.platform}; use sandbox='monty'")
    if shutil.which("bwrap") is None:
        raise ConfigError(f"OSSandbox: there is no bwrap on the PATH; {_INSTALL}")
    if seccomp_filter() is None:
        raise ConfigError(
            f"OSSandbox: the system calls of {platform.machine()} are not known, so processes could not be "
            "forbidden; use sandbox='monty'"
        )
    room = threading.BoundedSemaphore()
    room.acquire()
    record = bytearray()
    limits = {"memory": 256 * 1024**2, "disk": 1024**2, "cpu": 10, "output": 4096, "modules": ("math",)}
    code = f"HOME = {str(Path.home())!r}\n{_PROBE}"
    with Launched(threading.Event(), room, packages) as box:
        ended = box.program({"code": code, "name": "answer", **limits}, _Silent(), record, seconds=10.0)
    try:
        reply = json.loads(bytes(record).split(b"\n")[1])
        found, pid, environment, home = json.loads(reply["text"])
    except (IndexError, ValueError, KeyError) as error:
        said = ended.said or bytes(record).decode(errors="replace")[:300] or f"exit code {ended.code}"
        raise ConfigError(
            f"OSSandbox: bubblewrap is installed and does not work: {said}; it needs unprivileged user namespaces "
            "(sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0; in a "
            "container, a seccomp profile that allows them), or use sandbox='monty'"
        ) from error
    needed = {
        Path(x).relative_to(Path.home()).parts[0] for x in _mounted(packages) if Path(x).is_relative_to(Path.home())
    }
    if set(home) - needed:
        found.append("the home folder")
    if pid > 2:
        found.append("other processes")
    if set(environment) - _ENVIRONMENT:
        found.append("the environment")
    if found:
        raise ConfigError(f"OSSandbox: bubblewrap runs here and leaves open {', '.join(found)}; use sandbox='monty'")


def _mounted(packages: tuple[str, ...]) -> tuple[str, ...]:
    """What may lie under a home folder and is needed all the same."""
    return (os.path.realpath(sys.executable), f"{sys.base_prefix}/lib", *packages)


class _Silent:
    """A reader of what is printed, for a program that prints nothing."""

    size, most = 0, 4096

    def __call__(self, stream: str, text: str) -> None:
        self.size += len(text)
