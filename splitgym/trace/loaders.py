"""Read and write trace files: CSV and Parquet, in columns, block by block.

A block of the file is converted to arrays and let go before the next is read, so that a trace of 44 million
rows costs little more than its three arrays (24 bytes a row). Formats are told apart by their column names.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet

from splitgym.errors import TraceError
from splitgym.trace import csv_rows
from splitgym.trace.gather import BLOCK_ROWS, Gather
from splitgym.trace.schemas import match_schema
from splitgym.trace.trace import Trace

MARK = "splitgym trace "
"""Begins the comment line of a CSV that we wrote; the rest of that line is JSON."""
PARQUET_KEY = b"splitgym"
BLOCK_BYTES = 4 << 20


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


def _read(path: Path) -> Iterator[Gather]:
    """Comes back after each block that was added, and once before the first."""
    return _read_csv(path) if path.suffix == ".csv" else _read_parquet(path)


def _read_csv(path: Path) -> Iterator[Gather]:
    head = csv_rows.read_head(path)
    schema = match_schema(path, head.names)
    gather = Gather(path, schema, head.names, head, head.comment(MARK))
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


def _read_parquet(path: Path) -> Iterator[Gather]:
    if path.stat().st_size == 0:
        raise TraceError(f"{path}: the file is empty")
    try:
        with pa_parquet.ParquetFile(path) as file:
            names = list(file.schema_arrow.names)
            about = (file.schema_arrow.metadata or {}).get(PARQUET_KEY)
            saved = None if about is None else about.decode()
            gather = Gather(path, match_schema(path, names), names, None, saved)
            yield gather
            for batch in _batches(file, gather.file_columns()):
                gather.add(batch)
                gather.share_read = gather.rows / max(1, file.metadata.num_rows)
                yield gather
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise TraceError(f"{path}: cannot be read as a Parquet trace ({error})") from None


def _batches(file: Any, columns: list[str]) -> Iterator[Any]:
    yield from file.iter_batches(batch_size=BLOCK_ROWS, columns=columns)
