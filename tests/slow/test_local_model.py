"""The local sampler with a real model: SmolLM2-135M, out of the package index, in llama.cpp's own server."""

from __future__ import annotations

import asyncio
import math
import os
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sampler_conformance import PROMPT, SamplerConformance, ask

from rfx_agent.errors import ConfigError, SamplerError, WeightsCorrupt, WeightsError
from rfx_agent.records import SampleRequest
from rfx_agent.samplers.local import LocalSampler
from rfx_agent.samplers.weights import SMOLLM2_135M, fetch

both = pytest.mark.parametrize("how", ["sync", "async"])


@pytest.fixture(scope="module")
def weights() -> Path:
    pytest.importorskip("xllamacpp", reason="the extra 'local' is not installed")
    return fetch(SMOLLM2_135M)


@pytest.fixture(scope="module")
def running(weights: Path) -> Iterator[LocalSampler]:
    with LocalSampler("smollm2-135m", context=512, parallel=3, threads=1) as sampler:
        yield sampler


class TestConformance(SamplerConformance):
    @pytest.fixture
    def sampler(self, running: LocalSampler) -> Any:
        return running

    @pytest.fixture
    def dead_sampler(self, weights: Path) -> Any:
        sampler = LocalSampler(weights, context=64, parallel=1, threads=1)
        sampler.close()
        return sampler


@both
def test_log_probabilities_carry_token_ids(running: LocalSampler, how: str) -> None:
    result = ask(running, SampleRequest(PROMPT, n=3, max_tokens=10, seed=1), how)
    assert result.notes == ()
    for rollout in result.rollouts:
        table = rollout.logprobs
        assert table is not None
        assert table.space == "ids"
        assert table.ids.shape == (len(rollout.tokens or ()), 20)
        assert "".join(rollout.tokens or ()) == rollout.text
        # At T = 1, over the whole vocabulary: the top 20 hold at most all of the mass.
        mass = [math.fsum(math.exp(lp) for lp in row) for row in table.logprobs.tolist()]
        assert all(0.05 < m <= 1.001 for m in mass)
    assert result.usage.completion_tokens == sum(len(rollout.tokens or ()) for rollout in result.rollouts)
    assert result.usage.calls == 1


def test_the_end_of_a_turn_is_a_position(running: LocalSampler) -> None:
    request = SampleRequest(({"role": "user", "content": "Say hi."},), max_tokens=200, temperature=0.0, seed=1)
    rollout = running.sample(request).rollouts[0]
    assert rollout.finish_reason == "stop"
    assert rollout.tokens is not None
    assert rollout.tokens[-1] == ""
    assert rollout.usage.completion_tokens == len(rollout.tokens)


def test_more_draws_than_slots(running: LocalSampler) -> None:
    result = running.sample(SampleRequest(PROMPT, n=5, max_tokens=6, temperature=1.5, seed=9))
    assert len(result.rollouts) == 5
    assert result.usage.calls == 2
    assert len({rollout.text for rollout in result.rollouts}) > 1


def test_a_seed_repeats_its_draws(running: LocalSampler) -> None:
    request = SampleRequest(PROMPT, max_tokens=12, temperature=1.0, seed=42)
    texts = [ask(running, request, how).rollouts[0].text for how in ("sync", "sync", "async")]
    assert len(set(texts)) == 1
    other = SampleRequest(PROMPT, max_tokens=12, temperature=1.0, seed=43)
    assert running.sample(other).rollouts[0].text != texts[0]


def test_draws_are_not_truncated(running: LocalSampler) -> None:
    """llama.cpp's defaults would keep the likeliest 40 tokens; a hot draw then never leaves the top of the table."""
    result = running.sample(SampleRequest(PROMPT, n=3, max_tokens=12, temperature=5.0, seed=3))
    outside = 0
    for rollout in result.rollouts:
        assert rollout.logprobs is not None
        for ids, taken in zip(rollout.logprobs.ids.tolist(), rollout.logprobs.taken.tolist(), strict=True):
            outside += taken not in ids
    assert outside > 18  # of 36


def test_without_log_probabilities_the_cost_is_an_estimate(running: LocalSampler) -> None:
    result = running.sample(SampleRequest(PROMPT, n=3, max_tokens=8, want_logprobs=False))
    assert result.usage.completion_tokens == 24
    assert any("estimated" in note for note in result.notes)


def test_a_prompt_that_does_not_fit_is_refused(running: LocalSampler) -> None:
    long = ({"role": "user", "content": "word " * 600},)
    with pytest.raises(SamplerError, match="context size") as caught:
        running.sample(SampleRequest(long))
    assert caught.value.status == 400
    assert not caught.value.transient


def test_the_server_is_local_and_locked(running: LocalSampler) -> None:
    inner = running._started()
    assert str(inner._clients.base_url).startswith("http://127.0.0.1:")
    request = urllib.request.Request(f"{inner._clients.base_url}/chat/completions", data=b"{}", method="POST")  # noqa: S310
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(request)  # noqa: S310
    assert inner._clients._api_key not in repr(running) + repr(inner)


def test_one_server_for_threads_that_start_together(weights: Path) -> None:
    sampler = LocalSampler(weights, context=128, parallel=2, threads=1)
    assert sampler.name == "local:SmolLM2-135M-Instruct.Q4_1"
    servers: list[Any] = []
    threads = [threading.Thread(target=lambda: servers.append(sampler._started())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(server) for server in servers}) == 1
    sampler.close()
    sampler.close()
    asyncio.run(sampler.aclose())
    with pytest.raises(SamplerError, match="closed"):
        sampler.start()


def test_closing_while_it_samples_is_an_error_not_a_hang(weights: Path) -> None:
    sampler = LocalSampler(weights, context=512, parallel=1, threads=1)
    sampler.start()
    outcome: list[object] = []

    def work() -> None:
        try:
            outcome.append(sampler.sample(SampleRequest(PROMPT, max_tokens=400, temperature=0.0)))
        except SamplerError as error:
            outcome.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(0.3)
    sampler.close()
    thread.join(30)
    assert not thread.is_alive()
    assert isinstance(outcome[0], SamplerError)


def test_closing_while_a_loop_samples_is_an_error_not_a_hang(weights: Path) -> None:
    async def main() -> None:
        async with LocalSampler(weights, context=512, parallel=1, threads=1) as sampler:
            task = asyncio.create_task(sampler.asample(SampleRequest(PROMPT, max_tokens=400, temperature=0.0)))
            await asyncio.sleep(0.3)
        with pytest.raises(SamplerError):
            await task

    asyncio.run(main())


# --- what cannot work


def test_files_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="cannot be read"):
        LocalSampler(tmp_path / "nothing.gguf")
    (tmp_path / "text.gguf").write_text("hello")
    with pytest.raises(WeightsError, match="no GGUF file"):
        LocalSampler(str(tmp_path / "text.gguf"))
    with pytest.raises(ConfigError, match=r"give one of qwen2.5-coder-0.5b"):
        LocalSampler("gpt-2")


def test_a_model_that_is_cut_is_an_error_not_a_crash(weights: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    with weights.open("rb") as file:
        cut.write_bytes(file.read(1_000_000))
    sampler = LocalSampler(cut)
    with pytest.raises(WeightsError, match=r"could not load .*cut.gguf with context=2048, parallel=4"):
        sampler.sample(SampleRequest(PROMPT))


@pytest.mark.parametrize(
    "options", [{"threads": 0}, {"parallel": 0}, {"context": 10}, {"top_logprobs": -1}, {"timeout": 0}]
)
def test_parameters_that_cannot_work_fail_at_once(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        LocalSampler(**options)


def test_a_missing_extra_is_named(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(ConfigError, match=r"pip install 'rfx-agent\[local\]'"):
        LocalSampler(weights).start()


# --- the end of a process

_USE = """
import os, sys, time
from rfx_agent.samplers.local import LocalSampler
from rfx_agent.records import SampleRequest
sampler = LocalSampler(sys.argv[1], context=128, parallel=1, threads=1)
text = sampler.sample(SampleRequest(({"role": "user", "content": "Hi."},), max_tokens=4)).rollouts[0].text
assert text
"""
_ENDS = {
    "closed": "sampler.close()",
    "forgotten": "",
    "deleted": "del sampler",
    "raising": "raise SystemExit(0)",
    "busy": """
import threading
request = SampleRequest(({"role": "user", "content": "Hi."},), max_tokens=100, temperature=3.0)
def work():
    try:
        while True:
            sampler.sample(request)
    except Exception:
        pass
threading.Thread(target=work, daemon=True).start()
time.sleep(0.3)
""",
    "forked": """
child = os.fork()
if child == 0:
    try:
        sampler.sample(SampleRequest(({"role": "user", "content": "Hi."},)))
    except Exception as error:
        refused = "fork" in str(error)
    del sampler  # stops nothing: these threads are the parent's
    os._exit(0 if refused else 3)
for _ in range(200):
    pid, status = os.waitpid(child, os.WNOHANG)
    if pid:
        break
    time.sleep(0.05)
else:
    os.kill(child, 9)
    sys.exit("the child hangs")
sys.exit(os.waitstatus_to_exitcode(status))
""",
}


@pytest.mark.parametrize("end", sorted(_ENDS))
def test_a_process_ends_in_silence(weights: Path, end: str) -> None:
    if end == "forked" and not hasattr(os, "fork"):
        pytest.skip("no fork here")
    code = _USE + _ENDS[end]
    done = subprocess.run(
        # Newer Pythons warn of any fork beside threads; what is meant here is what the sampler itself says.
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code, str(weights)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")


def test_weights_that_are_swapped_between_their_hash_and_their_load(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "weights" / weights.name
    mine.parent.mkdir()
    shutil.copy(weights, mine)
    real, read = LocalSampler._serve, []

    def swap(self: LocalSampler, xllamacpp: Any, path: Path, key: str, held: Any) -> Any:
        (tmp_path / "evil").write_bytes(b"GGUF" + bytes(100))
        (tmp_path / "evil").replace(path)
        read.append(held.path.stat().st_size)
        return real(self, xllamacpp, path, key, held)

    monkeypatch.setattr(LocalSampler, "_serve", swap)
    sampler = LocalSampler("smollm2-135m", context=64, parallel=1, threads=1, cache_dir=tmp_path)
    with pytest.raises(WeightsCorrupt, match="changed or replaced"):
        sampler.start()
    assert read == [weights.stat().st_size]  # llama.cpp was given the file that was hashed
    sampler.close()
