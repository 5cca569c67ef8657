"""Features of many millions of tokens: Parquet in, Parquet out, in bounded memory, on threads or on Ray."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from rfx_agent._extras import need
from rfx_agent.checks import among, number, whole
from rfx_agent.lab.batches import INPUT, check_schema, features_of_batch, output_schema
from rfx_agent.lab.common import BadRow, OnBad, ProfileError, check_on_bad, whole_file

__all__ = ["Extracted", "extract", "map_batches"]

Given = TypeVar("Given")
Made = TypeVar("Made")

_BATCH_BYTES = 24 << 20  # of input decoded at a time; a worker needs a few times that
_OBJECT_STORE = 256 << 20  # of a Ray that is started here


@dataclass(frozen=True, slots=True)
class Extracted:
    """What an extraction did.

    Attributes:
        rollouts: rows read, and written.
        tokens: positions that counted, padding trimmed.
        bad_rows: (row number, reason) of rollouts that broke their contract; they are in the output, with ``error``.
    """

    rollouts: int
    tokens: int
    bad_rows: tuple[BadRow, ...]


def extract(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    engine: str = "threads",
    workers: int | None = None,
    temperature: float = 0.6,
    coverage_k: int = 20,
    window: int = 8,
    on_bad: OnBad = "raise",
) -> Extracted:
    """Trajectory features of every rollout in a Parquet file; see ``lab.batches`` for the columns.

    The output does not depend on the engine or on the number of workers. It appears when it is whole: a reader sees the
    old file or the new one.

    Args:
        source: Parquet with the columns of ``batches.INPUT``, one row a rollout.
        target: where the features go, one row a rollout in the same order.
        engine: ``threads`` of this process, or ``ray`` (a cluster that is connected to, else one started here).
        workers: batches worked on at once; the machine's cores by default.
        temperature, coverage_k, window: of the features.
        on_bad: ``raise`` at the first rollout that breaks its contract, or ``skip``: it gets an error in the output.

    Raises:
        ProfileError: a file that cannot be read, columns that are missing or of another kind, a bad rollout.
        ConfigError: an engine or a number that cannot work, a library that is not installed.
        OSError: a target that cannot be written.
    """
    check_on_bad(on_bad)
    number("extract: temperature", temperature, above=1e-300)
    whole("extract: coverage_k", coverage_k, least=1)
    whole("extract: window", window)
    pa, pq = need("pyarrow", "lab"), need("pyarrow.parquet", "lab")
    work = partial(features_of_batch, temperature=temperature, coverage_k=coverage_k, window=window)
    rows, tokens, bad = 0, 0, []
    with ExitStack() as stack:
        try:
            file = stack.enter_context(pq.ParquetFile(source, memory_map=False, pre_buffer=False))
        except (OSError, pa.ArrowException) as error:
            raise ProfileError(f"{os.fspath(source)}: {error}") from error
        check_schema(file.schema_arrow, os.fspath(source))
        schema = output_schema(file.schema_arrow)
        part = stack.enter_context(whole_file(Path(target)))
        with pq.ParquetWriter(part, schema) as writer:
            for done in map_batches(work, _batches(file, os.fspath(source)), engine=engine, workers=workers):
                for i in done.column("error").is_valid().to_numpy(zero_copy_only=False).nonzero()[0].tolist():
                    row, why = rows + i + 1, done.column("error")[i].as_py()
                    if on_bad == "raise":
                        raise ProfileError(f"{os.fspath(source)}: row {row}: {why}", row=row)
                    bad.append((row, why))
                rows += len(done)
                tokens += int(need("pyarrow.compute", "lab").sum(done.column("positions")).as_py() or 0)
                writer.write_batch(done)
    return Extracted(rows, tokens, tuple(bad))


def map_batches(
    work: Callable[[Given], Made],
    batches: Iterable[Given],
    *,
    engine: str = "threads",
    workers: int | None = None,
) -> Iterator[Made]:
    """``work`` over batches, in order, with at most ``workers`` + 1 of them in memory.

    Args:
        work: a pure function; for Ray it must pickle.
        batches: Arrow batches, or jobs of a simulation; read only as fast as results are taken.
        engine: ``threads`` or ``ray``.
        workers: the machine's cores by default.

    Raises:
        ConfigError: an engine that does not exist, workers below 1, Ray not installed.
    """
    count = whole("workers", os.cpu_count() or 1 if workers is None else workers, least=1)
    among("engine", engine, ("threads", "ray"))
    if engine == "threads":
        return _on_threads(work, batches, count)
    return _on_ray(need("ray", "ray"), work, batches, count)


def _on_threads(work: Callable[[Any], Any], batches: Iterable[Any], workers: int) -> Iterator[Any]:
    with ThreadPoolExecutor(workers) as pool:
        yield from _in_order((pool.submit(work, batch) for batch in batches), lambda future: future.result(), workers)


def _on_ray(ray: Any, work: Callable[[Any], Any], batches: Iterable[Any], workers: int) -> Iterator[Any]:
    ours = not ray.is_initialized()
    if ours:
        quiet = {"include_dashboard": False, "log_to_driver": False, "configure_logging": False}
        ray.init(num_cpus=workers, object_store_memory=_OBJECT_STORE, **quiet)
    try:
        remote = ray.remote(num_cpus=1)(work.func if isinstance(work, partial) else work)
        known = work.keywords if isinstance(work, partial) else {}
        yield from _in_order((remote.remote(batch, **known) for batch in batches), ray.get, workers)
    finally:
        if ours:
            ray.shutdown()


def _in_order(started: Iterator[Any], result: Callable[[Any], Any], workers: int) -> Iterator[Any]:
    """Results in the order of their start; the next one starts only when there is room."""
    waiting: deque[Any] = deque()
    for one in started:
        waiting.append(one)
        if len(waiting) > workers:
            yield result(waiting.popleft())
    while waiting:
        yield result(waiting.popleft())


def _batches(file: Any, source: str) -> Iterator[Any]:
    meta = file.metadata
    size = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
    rows = max(1, min(4096, _BATCH_BYTES * max(meta.num_rows, 1) // max(size, 1)))
    arrow = need("pyarrow", "lab").ArrowException
    try:
        yield from file.iter_batches(batch_size=rows, columns=list(INPUT), use_threads=False)
    except (OSError, arrow) as error:
        raise ProfileError(f"{source}: {error}") from error
