"""What the runs need around them: an environment per peer, the model's server, a Redis, two of LiteLLM's proxies."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PINS = {
    "litellm": ["litellm[proxy]==1.108.7", "prisma==0.15.0", "redis==8.1.0"],
    "harness": ["pydantic-ai-harness==0.62.0", "pydantic-ai-slim[openai]==2.62.0", "openai==3.57.0", "redis==8.1.0"],
    "langchain": [
        "langchain==1.5.2",
        "langchain-openai==1.7.4",
        "langgraph-checkpoint-postgres==3.2.0",
        "openai==3.57.0",
        "redis==8.1.0",
        str(ROOT) + "[postgres,redis]",
    ],
}
SHOWN = {
    "litellm": ("litellm", "openai", "redis"),
    "harness": ("pydantic-ai-harness", "pydantic-ai-slim", "openai", "redis"),
    "langchain": (
        "langchain",
        "langgraph",
        "langchain-openai",
        "openai",
        "redis",
        "psycopg",
        "sqlalchemy",
        "rfx-agent",
    ),
}


def environment(name: str, home: Path) -> Path:
    """The Python of a peer's own environment, made where it is not there; our own package is this checkout's."""
    pins = PINS[name]
    digest = hashlib.sha256(repr(pins).replace(str(ROOT), "").encode()).hexdigest()
    made = home / f"{name}-{digest[:10]}"
    python = made / "bin" / "python"
    if not (made / "ready").exists():
        shutil.rmtree(made, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", made], check=True)  # noqa: S603  # our own
        given = [x for pin in pins for x in (["-e", pin] if pin.startswith("/") else [pin])]
        print(f"making the environment of {name}", file=sys.stderr)
        subprocess.run([python, "-m", "pip", "install", "-q", *given], check=True, stdout=sys.stderr)  # noqa: S603
        (made / "ready").touch()
    return python


def versions(name: str, python: Path) -> dict[str, str]:
    """What is installed there of what matters."""
    code = "import json, sys, importlib.metadata as m; print(json.dumps({x: m.version(x) for x in sys.argv[1:]}))"
    said = subprocess.run([python, "-c", code, *SHOWN[name]], check=True, capture_output=True, text=True)  # noqa: S603
    found: dict[str, str] = json.loads(said.stdout)
    return found


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


class Model:
    """The running server."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.base_url = f"{self.url}/v1"

    def set(self, **settings: Any) -> None:
        """Forget the counts and behave so."""
        request = urllib.request.Request(f"{self.url}/set", json.dumps(settings).encode(), method="POST")  # noqa: S310
        urllib.request.urlopen(request, timeout=30).close()  # noqa: S310  # loopback

    def count(self) -> dict[str, int]:
        """What it has billed."""
        with urllib.request.urlopen(f"{self.url}/count", timeout=30) as reply:  # noqa: S310  # loopback
            found: dict[str, int] = json.load(reply)
            return found

    def settled(self) -> dict[str, int]:
        """The same when nothing is under way."""
        while (found := self.count())["in_flight"]:
            time.sleep(0.2)
        return found


@contextlib.contextmanager
def model() -> Iterator[Model]:
    """The server in a process of its own."""
    command = [sys.executable, str(HERE / "server.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        try:
            yield Model(int(process.stdout.readline()))  # type: ignore[union-attr]
        finally:
            process.kill()


@contextlib.contextmanager
def redis_server() -> Iterator[str]:
    """Start a Redis for this run and give its URL: append-only, synced every second, which is its default."""
    program, port = shutil.which("redis-server"), free_port()
    if program is None:
        raise SystemExit("overspend: redis-server is not there; install Debian's package redis-server")
    with tempfile.TemporaryDirectory(prefix="rfx-overspend-redis-") as home:
        command = [program, "--port", str(port), "--dir", home, "--save", "", "--appendonly", "yes"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:  # noqa: S603
            wait_for(port, process, 10.0)
            try:
                yield f"redis://127.0.0.1:{port}"
            finally:
                process.kill()


@contextlib.contextmanager
def proxies(python: Path, server: str, redis_url: str) -> Iterator[list[str]]:
    """Two of LiteLLM's, as two instances of one deployment: one Redis, one master key."""
    redis_port = int(redis_url.rpartition(":")[2])
    with tempfile.TemporaryDirectory(prefix="rfx-overspend-litellm-") as folder, contextlib.ExitStack() as running:
        home = Path(folder)
        text = (HERE / "peers" / "litellm_config.yaml").read_text()
        text = text.replace("SERVER", server).replace("REDIS_PORT", str(redis_port))
        (home / "config.yaml").write_text(text.replace("MASTER", f"sk-{secrets.token_hex(16)}"))
        shutil.copy(HERE / "peers" / "litellm_key.py", home)
        env = os.environ | {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYTHONPATH": folder}
        ports = [free_port() for _ in range(2)]
        started = []
        for port in ports:
            command = [str(python.parent / "litellm"), "--config", "config.yaml", "--host", "127.0.0.1"]
            log = running.enter_context((home / f"{port}.log").open("w"))
            process = subprocess.Popen(  # noqa: S603
                [*command, "--port", str(port), "--telemetry", "False"], cwd=home, env=env, stdout=log, stderr=log
            )
            running.callback(process.kill)
            started.append(process)
        for port, process in zip(ports, started, strict=True):
            wait_for(port, process, 180.0)
        yield [f"http://127.0.0.1:{port}/v1" for port in ports]


def warm(proxies: list[str]) -> None:
    """The first calls of a proxy take seconds; they are made before anything is measured."""
    body = json.dumps({"model": "m", "max_tokens": 20, "messages": [{"role": "user", "content": "warm"}]}).encode()
    headers = {"Content-Type": "application/json", "Authorization": "Bearer warm-1"}
    for url in proxies * 5:
        request = urllib.request.Request(f"{url}/chat/completions", body, headers)  # noqa: S310  # loopback
        urllib.request.urlopen(request, timeout=60).close()  # noqa: S310


def wait_for(port: int, process: subprocess.Popen[Any], seconds: float) -> None:
    """Until somebody listens there."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return
        time.sleep(0.2)
    raise SystemExit(f"overspend: {process.args!r} did not start")
