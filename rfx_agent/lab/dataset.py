"""A dataset of failures: a folder with ``rollouts.parquet`` and ``failures.parquet``.

``rollouts.parquet`` has one row per rollout of a failing problem, ``failures.parquet`` one row per failing problem in
the format of failure profiles (``lab.profiles.read_profile`` reads it). Both carry the same provenance, as JSON under
the schema metadata key ``rfx_agent``.
"""

from __future__ import annotations

import errno
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rfx_agent._extras import need
from rfx_agent.errors import RfxError
from rfx_agent.evidence.features import ONE_MODEL, TWO_MODEL
from rfx_agent.lab.common import FEATURES, KINDS, in_columns, whole_file

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]  # ships no stubs

__all__ = [
    "FAILURES",
    "FORMAT",
    "KEY",
    "ROLLOUTS",
    "TOKEN_FEATURES",
    "Dataset",
    "DatasetError",
    "read_dataset",
    "write_dataset",
]

FORMAT = 2
"""Version of the columns and of the provenance. Format 1 had ``operator`` and ``reference``."""

_RENAMED = {"operator": "remedy", "reference": "expected"}

KEY = b"rfx_agent"
"""Key of the provenance in the Parquet schema's metadata."""

ROLLOUTS, FAILURES = "rollouts.parquet", "failures.parquet"
TOKEN_FEATURES = ("delta_path", "coverage_gap", "logit_variance", "kl", "entropy", "surprisal")
"""Columns with one float32 per token of a rollout."""


class DatasetError(RfxError, OSError):
    """A dataset or its journal that cannot be written or read; names the place and what to do."""


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """A dataset as it was read.

    Attributes:
        folder: where it lies.
        rollouts: one row per rollout, sorted by (problem_id, remedy, attempt).
        failures: one row per failing problem, sorted by problem_id.
        provenance: what it was made with and from.
    """

    folder: Path
    rollouts: pa.Table
    failures: pa.Table
    provenance: Mapping[str, Any]

    def __len__(self) -> int:
        return int(self.failures.num_rows)


def read_dataset(folder: str | os.PathLike[str]) -> Dataset:
    """Read both files.

    Raises:
        DatasetError: a file is missing or cannot be read, is of another format, or they are not of one writing.
        ConfigError: pyarrow is not installed.
    """
    pq, root = need("pyarrow.parquet", "lab"), Path(folder)
    error_type = need("pyarrow", "lab").ArrowException
    tables, about = [], []
    for name in (ROLLOUTS, FAILURES):
        path = root / name
        try:
            table = pq.read_table(path)
            provenance = json.loads((table.schema.metadata or {})[KEY])
        except FileNotFoundError as error:
            raise DatasetError(f"{path} is not there; finish the collection in {root} first") from error
        except (OSError, error_type) as error:
            raise DatasetError(f"{path} cannot be read: {error}") from error
        except (KeyError, ValueError) as error:
            raise DatasetError(f"{path} carries no provenance; give a dataset that rfx collect wrote") from error
        if not isinstance(provenance, dict) or provenance.get("format") not in (1, FORMAT):
            raise DatasetError(f"{path} is not of format {FORMAT}; collect it again with this version, or use its own")
        tables.append(table.rename_columns([_RENAMED.get(column, column) for column in table.column_names]))
        about.append(provenance)
    if about[0] != about[1]:
        raise DatasetError(f"{root}: the two files are of two writings; run rfx collect --finish on it again")
    return Dataset(root, tables[0], tables[1], about[0])


def write_dataset(
    folder: str | os.PathLike[str],
    rollouts: Sequence[Mapping[str, Any]],
    failures: Sequence[Mapping[str, Any]],
    provenance: Mapping[str, Any],
) -> Dataset:
    """Write both files: whole or not at all, each moved into place when it is on the disk.

    Args:
        folder: where; it is made if need be.
        rollouts: rows by column name; columns that a row lacks are null.
        failures: the same, a remedy's rate under its name, ``<remedy>_attempts`` and ``<remedy>_tokens`` beside it. A
            feature, a remedy or a kind that no row has is no column.
        provenance: what goes under ``KEY``.

    Raises:
        DatasetError: they cannot be written, a full disk included.
        ConfigError: pyarrow is not installed.
    """
    pa, root = need("pyarrow", "lab"), Path(folder)
    metadata = {KEY: json.dumps(provenance, ensure_ascii=False, allow_nan=False).encode()}
    tables = {
        ROLLOUTS: pa.Table.from_pylist(list(rollouts), schema=_rollout_schema(pa).with_metadata(metadata)),
        FAILURES: pa.Table.from_pylist(list(failures), schema=_failure_schema(pa, failures).with_metadata(metadata)),
    }
    with disk(root):
        root.mkdir(parents=True, exist_ok=True)
        # Both are on the disk before either is moved: a full disk leaves the old pair as it was.
        with ExitStack() as stack:
            for name, table in tables.items():
                _write(stack.enter_context(whole_file(root / name)), table)
    return Dataset(root, tables[ROLLOUTS], tables[FAILURES], provenance)


@contextmanager
def disk(place: Path) -> Iterator[None]:
    """Turn what goes wrong on the disk into ``DatasetError``, and say so where it is full."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            raise DatasetError(f"{place}: {_FULL}") from error
        raise DatasetError(f"{place} cannot be used: {error}; give another folder if it is not ours") from error
    except DatasetError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DatasetError(f"{place}: {_FULL}") from error
        raise DatasetError(f"{place} cannot be written: {error.strerror or error}") from error


_FULL = "the disk is full; free some space and start again: what was recorded is kept, and nothing is half-written"


def _write(path: Path, table: Any) -> None:
    with path.open("wb") as file:
        need("pyarrow.parquet", "lab").write_table(table, file, compression="zstd", compression_level=12)
        file.flush()
        os.fsync(file.fileno())


def _rollout_schema(pa: Any) -> pa.Schema:
    text, count, number, real = pa.string(), pa.int32(), pa.float32(), pa.float64()
    columns: dict[str, tuple[Any, bool]] = {
        "problem_id": (text, False),
        "generator": (text, False),
        "remedy": (text, False),
        "attempt": (count, False),
        "source": (count, True),
        "seed": (pa.int64(), False),
        "temperature": (number, False),
        "text": (text, False),
        "answer": (text, True),
        "passed": (pa.bool_(), False),
        "score": (number, True),
        "finish_reason": (text, True),
        "prompt_tokens": (count, False),
        "completion_tokens": (count, False),
        "seconds": (number, False),
        "start": (count, False),
        "junction": (count, True),
        "peak": (count, True),
        **dict.fromkeys((*TWO_MODEL, *ONE_MODEL), (real, True)),
        **dict.fromkeys(TOKEN_FEATURES, (pa.list_(number), True)),
        "error": (text, True),
    }
    return pa.schema([pa.field(name, kind, nullable=null) for name, (kind, null) in columns.items()])


def _failure_schema(pa: Any, rows: Sequence[Mapping[str, Any]]) -> pa.Schema:
    def there(name: str) -> bool:
        return any(row.get(name) is not None for row in rows)

    fields = [pa.field(name, pa.string(), nullable=False) for name in ("cell", "model", "task", "problem_id")]
    fields.append(pa.field("n_failed_rollouts", pa.int32(), nullable=False))
    for names in FEATURES.values():  # a profile has all features of a kind or none
        if any(map(there, names)):
            fields += [pa.field(name, pa.float64()) for name in names]
    end = "_attempts"
    for name in in_columns(column.removesuffix(end) for row in rows for column in row if column.endswith(end)):
        if there(name):
            fields += [pa.field(name, pa.float64()), pa.field(f"{name}_attempts", pa.int32(), nullable=False)]
            fields += [pa.field(f"{name}_tokens", pa.float64())] * there(f"{name}_tokens")
    fields += [pa.field(f"kind_{kind}", pa.float64()) for kind in KINDS if there(f"kind_{kind}")]
    fields += [pa.field("prompt", pa.string(), nullable=False), pa.field("expected", pa.string())]
    return pa.schema(fields)
