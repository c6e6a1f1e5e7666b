"""Blocks of a trace file in, arrays and a trace out: each row checked, nothing there twice."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from splitgym.errors import TraceError
from splitgym.trace import csv_rows
from splitgym.trace.csv_rows import Head
from splitgym.trace.schemas import Schema
from splitgym.trace.trace import Trace, find_problem
from splitgym.types import NS_PER_S, UNKNOWN

BLOCK_ROWS = 1 << 17

Columns = dict[str, NDArray[Any]]


class _Column:
    """An array that grows in place: a large block is remapped by realloc, so nothing is ever there twice."""

    def __init__(self, kind: type[np.generic]) -> None:
        self.array: NDArray[Any] = np.empty(0, kind)
        self.size = 0

    def extend(self, values: NDArray[Any]) -> None:
        end = self.size + len(values)
        if end > len(self.array):
            self.array.resize(end + end // 8 + BLOCK_ROWS, refcheck=False)
        self.array[self.size : end] = values
        self.size = end

    def take(self) -> NDArray[Any]:
        """The array, cut to what was added; what comes next goes into another."""
        self.array.resize(self.size, refcheck=False)
        taken, self.array, self.size = self.array, np.empty(0, self.array.dtype), 0
        return taken


class Gather:
    """Blocks of a file in, a trace out.

    Args:
        path: of the file.
        schema: its format.
        names: of all its columns.
        head: of a CSV.
        about: the JSON that `save` wrote, if it did.
    """

    def __init__(
        self, path: Path, schema: Schema, names: list[str], head: Head | None, about: str | None
    ) -> None:
        self.path, self.schema, self.head, self.about = path, schema, head, about
        self.fixed = [(column, value) for column, value in schema.fixed if column in names]
        self.wanted = dict(schema.columns)
        self.wanted |= {ours: theirs for ours, theirs in schema.optional.items() if theirs in names}
        self.columns = {
            ours: _Column(np.float64 if ours == "arrival_s" else np.int64) for ours in self.wanted
        }
        self.rows = 0
        self.share_read = 0.0
        self.last_s = 0.0
        self.start_ns: int | None = None
        taken = {*self.wanted.values(), *schema.dropped, *(column for column, _ in self.fixed)}
        self.ignored = [column for column in names if column not in taken]

    def file_columns(self) -> list[str]:
        return [*self.wanted.values(), *(column for column, _ in self.fixed)]

    def fail(self, row: int, what: str) -> NoReturn:
        """Refuse the file for data row `row` (counted from 0)."""
        where = f"data row {row + 1}"
        if self.head is not None:
            where += f" (line {csv_rows.line_of(self.path, self.head, row)})"
        raise TraceError(f"{self.path}: {where}: {what}")

    def add(self, batch: Any) -> None:
        """Check a block (a pyarrow RecordBatch) and keep its arrays."""
        columns: Columns = {}
        problems: list[tuple[int, str]] = []
        for ours, theirs in self.wanted.items():
            column = batch.column(theirs)
            if ours == "max_tokens":
                column = column.fill_null(UNKNOWN)
            if column.null_count:
                row = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
                problems.append((row, f"{theirs} is empty"))
                # What is below that row no longer matters: any valid value will do.
                column = column.slice(0, row)
            columns[ours] = self._seconds(column) if ours == "arrival_s" else _numeric(column)
        shortest = min(len(column) for column in columns.values())
        columns = {ours: column[:shortest] for ours, column in columns.items()}
        if shortest:
            early = columns["arrival_s"] < 0 if self.schema.clock else np.zeros(0, np.bool_)
            if early.any():
                what = f"{self.wanted['arrival_s']} is before the first row's: sort the trace by time"
                problems.append((int(np.argmax(early)), what))
            found = find_problem(columns, after_s=self.last_s)
            problems += [found] if found else []
        for theirs, value in self.fixed:
            other = _numeric(batch.column(theirs).fill_null(UNKNOWN)) != value
            if other.any():
                problems.append((int(np.argmax(other)), f"{theirs} is not {value}: not one LLM request"))
        if problems:
            row, what = min(problems, key=lambda problem: problem[0])
            self.fail(self.rows + row, what)
        if not shortest:
            return
        self.rows += shortest
        self.last_s = float(columns["arrival_s"][-1])
        for ours, column in columns.items():
            self.columns[ours].extend(column)

    def _seconds(self, column: Any) -> NDArray[Any]:
        if not self.schema.clock:
            return _numeric(column)
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            zone = "UTC" if len(column) and csv_rows.has_zone(column[0].as_py()) else None
            column = column.cast(pa.timestamp("ns", zone))
        elif not pa.types.is_timestamp(column.type):
            raise pa.ArrowInvalid(f"{self.wanted['arrival_s']} holds {column.type}, expected dates and times")
        stamps = column.cast(pa.timestamp("ns", column.type.tz)).cast(pa.int64()).to_numpy()
        if self.start_ns is None and len(stamps):
            self.start_ns = int(stamps[0])
        return (stamps - (self.start_ns or 0)) / NS_PER_S

    @property
    def fresh(self) -> int:
        """Rows that no trace holds yet."""
        return self.columns["arrival_s"].size

    def refuse_empty(self) -> None:
        """A file without rows is no trace."""
        if self.rows == 0:
            raise TraceError(f"{self.path}: has column names but no data rows")

    def trace(self, name: str | None) -> Trace:
        """The blocks since the last call as one trace."""
        self.refuse_empty()
        file_format = "Parquet" if self.head is None else "CSV"
        provenance = {"file": self.path.name, "format": f"{self.schema.name}, {file_format}"}
        if self.ignored:
            provenance["ignored_columns"] = ", ".join(self.ignored)
        saved_name = self.path.stem
        if self.about is not None:
            saved_name, provenance = _read_about(self.path, self.about)
        arrays = {ours: column.take() for ours, column in self.columns.items()}
        return Trace(
            arrays["arrival_s"],
            arrays["prompt_tokens"],
            arrays["output_tokens"],
            arrays.get("max_tokens"),
            name or saved_name,
            provenance,
        )


def _numeric(column: Any) -> NDArray[Any]:
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        return np.asarray(column.to_numpy(zero_copy_only=False))
    return np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False))


def _read_about(path: Path, about: str) -> tuple[str, dict[str, str]]:
    with suppress(ValueError, TypeError, KeyError):
        data = json.loads(about)
        if isinstance(data["name"], str) and isinstance(data["provenance"], dict):
            return data["name"], {str(k): str(v) for k, v in data["provenance"].items()}
    raise TraceError(f"{path}: the name and provenance saved in it are damaged")
