"""Read and write trace files: CSV and Parquet, in columns, block by block.

A block of the file is converted to arrays and let go before the next is read, so that a trace of 44 million
rows costs little more than its three arrays (24 bytes a row). Formats are told apart by their column names.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet
from numpy.typing import NDArray

from splitgym.errors import TraceError
from splitgym.trace import csv_rows
from splitgym.trace.csv_rows import Head
from splitgym.trace.schemas import Schema, match_schema
from splitgym.trace.trace import Trace, find_problem
from splitgym.types import NS_PER_S, UNKNOWN

MARK = "splitgym trace "
"""Begins the comment line of a CSV that we wrote; the rest of that line is JSON."""
PARQUET_KEY = b"splitgym"
BLOCK_BYTES = 4 << 20
BLOCK_ROWS = 1 << 17

Columns = dict[str, NDArray[Any]]


def load_file(
    path: str | Path, name: str | None = None, *, progress: Callable[[int], None] | None = None
) -> Trace:
    """Read a trace file.

    Formats, by column names: ours (`arrival_s, prompt_tokens, output_tokens[, max_tokens]`), Azure 2023 and
    2024 (`TIMESTAMP, ContextTokens, GeneratedTokens`; with or without a time zone), the Splitwise simulator's
    (`arrival_timestamp, prompt_size, token_size, ...`). Azure's arrivals are shifted so that the first is at
    0; the other formats count from 0 already and are left as they are.

    Args:
        path: `.csv` or `.parquet`.
        name: the trace's name; default: the one saved in the file, or the file's.
        progress: called after each block with about the bytes read so far.

    Raises:
        TraceError: the file is missing, empty, of no known format, or has a row that is no request; names the
            file and the row (data row counted from 1, and the line for CSV) or column.
    """
    path = _checked(path)
    try:
        size = path.stat().st_size
        for gather in _read(path):
            if progress is not None:
                progress(round(gather.share_read * size))
        return gather.trace(name)
    except OSError as error:
        raise TraceError(f"{path}: cannot be read ({error})") from None


def blocks(path: str | Path, name: str | None = None) -> Iterator[Trace]:
    """A trace file piece by piece, in memory that does not grow with its length: for streamed simulations.

    The pieces, one after the other, are what `load_file` gives as a whole.

    Args:
        path, name: as for `load_file`.

    Raises:
        TraceError: as for `load_file`, when the piece with the error is reached.
    """
    path = _checked(path)
    try:
        for gather in _read(path):
            if gather.fresh:
                yield gather.trace(name)
        gather.refuse_empty()
    except OSError as error:
        raise TraceError(f"{path}: cannot be read ({error})") from None


def _checked(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise TraceError(f"{path}: no such trace file")
    if path.suffix not in (".csv", ".parquet"):
        others = " (`splitgym trace --help` lists what converts other files)" if "json" in path.suffix else ""
        raise TraceError(f"{path}: a trace file ends in .csv or .parquet, not in {path.suffix!r}{others}")
    return path


SAVED_ROWS = 1 << 20
"""Rows between two words on how far saving is; a row group of Parquet."""


def save(trace: Trace, path: str | Path, progress: Callable[[int], None] | None = None) -> None:
    """Write a trace as `.csv` or `.parquet` so that `load_file` gives exactly the same one back.

    Name and provenance go into the Parquet metadata, or into the comment line at the top of the CSV. The file
    appears whole or not at all.

    Args:
        trace: to write.
        path: of the file.
        progress: called with the number of requests written so far.

    Raises:
        TraceError: another ending, or a place that cannot be written.
    """
    path = Path(path)
    if path.suffix not in (".csv", ".parquet"):
        raise TraceError(f"{path}: a trace is written as .csv or .parquet, not as {path.suffix!r}")
    columns = {
        "arrival_s": trace.arrival_s,
        "prompt_tokens": trace.prompt_tokens,
        "output_tokens": trace.output_tokens,
    }
    if trace.max_tokens is not None:
        columns["max_tokens"] = trace.max_tokens
    about = json.dumps({"name": trace.name, "provenance": trace.provenance})
    table = pa.table(columns)
    part = path.with_name(path.name + ".part")
    try:
        if path.suffix == ".parquet":
            told = table.replace_schema_metadata({PARQUET_KEY: about})
            with pa_parquet.ParquetWriter(part, told.schema) as parquet:
                _in_parts(told, parquet.write_table, progress)
        else:
            with part.open("wb") as file:
                file.write(f"# {MARK}{about}\n{','.join(columns)}\n".encode())
                options = pa_csv.WriteOptions(include_header=False)
                with pa_csv.CSVWriter(file, table.schema, write_options=options) as csv:
                    _in_parts(table, csv.write_table, progress)
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise TraceError(f"{path}: cannot be written ({error})") from None


def _in_parts(
    table: pa.Table, write: Callable[[pa.Table], None], progress: Callable[[int], None] | None
) -> None:
    for first in range(0, max(1, table.num_rows), SAVED_ROWS):
        write(table.slice(first, SAVED_ROWS))
        if progress is not None:
            progress(min(table.num_rows, first + SAVED_ROWS))


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


class _Gather:
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


def _read(path: Path) -> Iterator[_Gather]:
    """Comes back after each block that was added, and once before the first."""
    return _read_csv(path) if path.suffix == ".csv" else _read_parquet(path)


def _read_csv(path: Path) -> Iterator[_Gather]:
    head = csv_rows.read_head(path)
    schema = match_schema(path, head.names)
    gather = _Gather(path, schema, head.names, head, head.comment(MARK))
    yield gather
    # Tokens are read as floats, so that "12.5" is found and named rather than refused as a type.
    types: dict[str, Any] = dict.fromkeys(gather.file_columns(), pa.float64())
    if schema.clock:
        zone = "UTC" if csv_rows.has_zone(head.first_row.get(schema.columns["arrival_s"], "")) else None
        types[schema.columns["arrival_s"]] = pa.timestamp("ns", zone)
    convert = pa_csv.ConvertOptions(column_types=types, include_columns=list(types))
    read = pa_csv.ReadOptions(skip_rows=head.line - 1, block_size=BLOCK_BYTES)
    try:
        with pa_csv.open_csv(path, read_options=read, convert_options=convert) as reader:
            size = path.stat().st_size
            for number, batch in enumerate(reader, 1):
                gather.add(batch)
                gather.share_read = min(1.0, number * BLOCK_BYTES / size)
                yield gather
    except pa.ArrowInvalid as error:
        # Rare, so it may take its time: find the row that pyarrow only speaks of.
        row, what = csv_rows.find_unreadable(path, head, types, from_row=gather.rows)
        if row < 0:
            raise TraceError(f"{path}: cannot be read as CSV ({error})") from None
        gather.fail(row, what)


def _read_parquet(path: Path) -> Iterator[_Gather]:
    if path.stat().st_size == 0:
        raise TraceError(f"{path}: the file is empty")
    try:
        with pa_parquet.ParquetFile(path) as file:
            names = list(file.schema_arrow.names)
            about = (file.schema_arrow.metadata or {}).get(PARQUET_KEY)
            saved = None if about is None else about.decode()
            gather = _Gather(path, match_schema(path, names), names, None, saved)
            yield gather
            for batch in _batches(file, gather.file_columns()):
                gather.add(batch)
                gather.share_read = gather.rows / max(1, file.metadata.num_rows)
                yield gather
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise TraceError(f"{path}: cannot be read as a Parquet trace ({error})") from None


def _batches(file: Any, columns: list[str]) -> Iterator[Any]:
    yield from file.iter_batches(batch_size=BLOCK_ROWS, columns=columns)
