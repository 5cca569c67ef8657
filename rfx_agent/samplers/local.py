"""A model on this machine: llama.cpp's own server inside the process, through the prebuilt wheel
``xllamacpp``."""

from __future__ import annotations

import asyncio
import ctypes
import os
import secrets
import threading
import weakref
from pathlib import Path
from typing import Any, Self

from rfx_agent._closing import AsyncClosing
from rfx_agent._extras import need_patient
from rfx_agent.checks import whole
from rfx_agent.errors import ConfigError, SamplerError, WeightsError
from rfx_agent.ports import Sampler
from rfx_agent.records import SampleRequest, SampleResult
from rfx_agent.samplers.loopback import LoopbackSampler
from rfx_agent.samplers.weights.cache import check_gguf, fetched
from rfx_agent.samplers.weights.known import WEIGHTS, Weights
from rfx_agent.samplers.weights.pinned import Pinned
from rfx_agent.samplers.weights.sources import Progress

__all__ = ["LocalSampler"]

# llama.cpp cuts the tail off by default (top_k 40, top_p 0.95, min_p 0.05). Draws here come from the model's
# distribution at the request's temperature and from nothing else, which is what the features are computed
# under.
_PLAIN = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
_HELLO = ({"role": "user", "content": "."},)


class LocalSampler(AsyncClosing, Sampler):
    """Samples a GGUF model on this machine, with log-probabilities and token ids, and continues prefixes.

    The weights are fetched and verified, and the server started, on first use or by ``start()``. The server
    listens on a loopback port with a random key. Starting takes about a second, during which other threads do
    not run.

    Draws follow the model's distribution at the request's temperature, untruncated (no top-k, top-p or
    min-p). A request with a seed repeats its draws as long as it runs alone; beside others it is computed in
    another batch, whose rounding may change a token.

    Args:
        weights: a name in ``rfx_agent.samplers.weights.WEIGHTS`` (fetched once, verified by hash each time),
            a ``Weights`` record, or the path of a GGUF file.
        threads: threads that compute; by default the CPUs this process may use. More than are free is slow:
            they wait for each other at every layer.
        parallel: completions computed in one batch; more are queued.
        context: tokens per completion, prompt included.
        top_logprobs: alternatives returned per token, or None for none.
        cache_dir: where weights are kept; by default ``RFX_CACHE``, else the user's cache directory.
        progress: called with bytes done, bytes in all and their source while weights are fetched.
        timeout: seconds without an answer, time in the queue included.
        name: for records and messages; by default ``local:`` and the model's name.

    Raises:
        ConfigError: a parameter that cannot work.
        WeightsError: the path is no GGUF file. Fetching raises it too, on first use.

    One instance serves any number of threads and event loops. It is stopped by ``close()``, at the end of a
    ``with`` block, when it is collected, or at exit. It does not survive ``fork``: a child process makes its
    own, and must end as ``multiprocessing`` ends its children (``os._exit``), for at a plain exit llama.cpp
    waits for threads that the child does not have.

    Example:
        >>> LocalSampler("smollm2-135m", threads=2)  # fetches and loads nothing yet
        LocalSampler('smollm2-135m', threads=2, parallel=4)
    """

    continues_prefix = True

    def __init__(
        self,
        weights: str | Path | Weights = "qwen2.5-coder-0.5b",
        *,
        threads: int | None = None,
        parallel: int = 4,
        context: int = 2048,
        top_logprobs: int | None = 20,
        cache_dir: str | Path | None = None,
        progress: Progress | None = None,
        timeout: float = 600.0,
        name: str | None = None,
    ) -> None:
        if threads is not None:
            whole("LocalSampler: threads", threads, least=1)
        whole("LocalSampler: parallel", parallel, least=1)
        whole("LocalSampler: context", context, least=64)
        self._weights = _resolve(weights)
        label = self._weights.name if isinstance(self._weights, Weights) else self._weights.stem
        self.name = name or f"local:{label}"
        self.model = label
        self._threads = threads or _cpus()
        self._parallel = parallel
        self._context = context
        self._cache_dir = cache_dir
        self._progress = progress
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._closed = False
        self._inner: LoopbackSampler | None = None
        self._stop: weakref.finalize[[list[Any], LoopbackSampler, int], LocalSampler] | None = None
        # One is made now, to check the parameters that it shares; the real one needs the server's port.
        self._settings: dict[str, Any] = {
            "top_logprobs": top_logprobs,
            "timeout": timeout,
            "max_n": parallel,
            "continues_prefix": True,
            "extra_body": _PLAIN,
            "usage_of": "choice",
            "name": self.name,
        }
        self.max_calls = LoopbackSampler(label, base_url="http://127.0.0.1/v1", **self._settings).max_calls

    def __repr__(self) -> str:
        return f"LocalSampler({self.model!r}, threads={self._threads}, parallel={self._parallel})"

    def start(self) -> None:
        """Fetch the weights and start the server, unless that is done; blocks.

        Raises:
            ConfigError: the extra ``local`` is not installed.
            WeightsError: the weights cannot be had, or llama.cpp cannot load them.
            SamplerError: it was closed, or the process was forked.
        """
        self._started()

    def sample(self, request: SampleRequest) -> SampleResult:
        """Draw ``request.n`` completions; starts the server if need be. Raises as ``start``, and
        SamplerError."""
        return self._started().sample(request)

    async def asample(self, request: SampleRequest) -> SampleResult:
        """Do what ``sample`` does, without blocking the event loop (but for the second in which llama.cpp starts)."""
        inner = self._inner if self._inner is not None else await asyncio.to_thread(self._started)
        return await inner.asample(request)

    def close(self) -> None:
        """Stop the server and free the model; idempotent. Requests that still run fail with SamplerError."""
        inner = self._shut()
        if inner is not None:
            inner.close()

    async def aclose(self) -> None:
        """Do what ``close`` does, and close the connections of the running event loop."""
        inner = await asyncio.to_thread(self._shut)
        if inner is not None:
            await inner.aclose()

    def _shut(self) -> LoopbackSampler | None:
        with self._lock:
            self._closed = True
            inner, self._inner = self._inner, None
            stop, self._stop = self._stop, None
        # Before the clients are closed: only an open socket can be shut down under a thread that reads from
        # it.
        if stop is not None:
            stop()
        return inner

    def __enter__(self) -> Self:
        self.start()
        return self

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self.start)
        return self

    def _started(self) -> LoopbackSampler:
        if os.getpid() != self._pid:
            raise SamplerError(f"{self.name!r} does not survive fork; make a LocalSampler in the child process")
        with self._lock:
            if self._closed:
                raise SamplerError(f"{self.name!r} is closed; make a new sampler")
            if self._inner is None:
                xllamacpp = need_patient("xllamacpp", "local")
                if isinstance(self._weights, Weights):
                    with fetched(self._weights, cache_dir=self._cache_dir, progress=self._progress) as held:
                        self._inner = self._made(xllamacpp, held.source, held)
                else:
                    self._inner = self._made(xllamacpp, self._weights, None)
            return self._inner

    def _made(self, xllamacpp: Any, path: Path, held: Pinned | None) -> LoopbackSampler:
        """A sampler of a server that runs; its weights are those that are held, where any are."""
        key = secrets.token_urlsafe(32)
        server = self._serve(xllamacpp, path, key, held)
        url = f"{server.listening_address}/v1"
        inner = LoopbackSampler(self.model, base_url=url, api_key=key, **self._settings)
        # At exit too: the server's threads must end before the interpreter does.
        self._stop = weakref.finalize(self, _stop, [server], inner, self._pid)
        del server
        # One token, to be sure that its loop runs: stopped before that, llama.cpp waits for ever.
        try:
            inner.sample(SampleRequest(_HELLO, max_tokens=1, want_logprobs=False))
            if held is not None:
                held.check()
        except BaseException:
            self._stop()
            raise
        return inner

    def _serve(self, xllamacpp: Any, path: Path, key: str, held: Pinned | None = None) -> Any:
        params = xllamacpp.CommonParams()
        params.model.path = str(path if held is None else held.path)
        params.model_alias = {self.model}
        params.n_ctx = self._context * self._parallel
        params.n_parallel = self._parallel
        params.cpuparams.n_threads = self._threads
        params.cpuparams_batch.n_threads = self._threads
        params.hostnames = ["127.0.0.1"]
        params.port = 0
        params.api_keys = [key]
        params.ui = False
        params.endpoint_slots = False
        params.warmup = False
        params.fit_params = False  # the sizes are given; fitting them would load the model twice
        params.verbosity = -1  # llama.cpp writes to the process's stderr, errors included
        try:
            return xllamacpp.Server(params)
        except RuntimeError as error:
            raise WeightsError(
                f"llama.cpp could not load {path} with context={self._context}, parallel={self._parallel}: "
                "the file is cut or of an unknown kind, or memory is short; check the file, or ask for less context"
            ) from error


def _resolve(weights: str | Path | Weights) -> Weights | Path:
    if isinstance(weights, Weights):
        return weights
    if isinstance(weights, str) and weights in WEIGHTS:
        return WEIGHTS[weights]
    path = Path(weights).expanduser()
    if isinstance(weights, str) and path.suffix != ".gguf" and not path.exists():
        raise ConfigError(
            f"LocalSampler: weights is {weights!r}; give one of {', '.join(sorted(WEIGHTS))}, or a GGUF file's path"
        )
    check_gguf(path)
    return path


def _cpus() -> int:
    # A container's share, where the system tells it.
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def _stop(held: list[Any], inner: LoopbackSampler, pid: int) -> None:
    """Drop the last reference to the server, whose destructor stops and joins its threads."""
    server = held.pop()
    if os.getpid() != pid:
        # In a forked child these threads do not exist and joining them would never end: leave it to the
        # kernel.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(server))
        return
    inner.abort()
