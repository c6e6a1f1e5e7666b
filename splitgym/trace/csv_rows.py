"""Where in a CSV something is: the header before reading, and the row to name after something went wrong."""

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from splitgym.errors import TraceError

_ZONE = re.compile(r"\d{2}:\d{2}.*(?:Z|[+-]\d{2}(?::?\d{2})?)$")


@dataclass(frozen=True)
class Head:
    """The top of a CSV."""

    names: list[str]
    line: int
    """Line of the column names, counted from 1."""
    comments: list[str]
    """Lines above it that begin with #, without that."""
    first_row: dict[str, str]
    """The first data row, by column; empty when there is none."""

    def comment(self, mark: str) -> str | None:
        """The rest of the comment that begins with `mark`."""
        for text in self.comments:
            if text.startswith(mark):
                return text.removeprefix(mark)
        return None


def has_zone(text: str) -> bool:
    """Whether a date and time ends in a time zone: Z, +00, +0000 or +00:00."""
    return _ZONE.search(text.strip()) is not None


def read_head(path: Path) -> Head:
    """Comments, column names and first row.

    Raises:
        TraceError: the file is empty or no text.
    """
    comments: list[str] = []
    names: list[str] = []
    line = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for number, text in enumerate(file, 1):
                text = text.rstrip("\r\n")
                if not names and text.startswith("#"):
                    comments.append(text[1:].strip())
                elif not names and text:
                    names, line = _fields(text), number
                elif text:
                    return Head(names, line, comments, dict(zip(names, _fields(text))))
    except (UnicodeDecodeError, csv.Error):
        raise TraceError(f"{path}: is no UTF-8 text file with comma-separated values") from None
    if not names:
        raise TraceError(f"{path}: the file is empty")
    return Head(names, line, comments, {})


def line_of(path: Path, head: Head, row: int) -> int:
    """Line (from 1) of a data row (from 0); empty lines are no rows."""
    for found, line, _ in _rows(path, head):
        if found == row:
            return line
    return head.line + 1 + row


def find_unreadable(path: Path, head: Head, types: Mapping[str, Any], from_row: int) -> tuple[int, str]:
    """The first data row (from 0) that does not convert, and why; (-1, "") if all do.

    Args:
        path: the file.
        head: its top.
        types: the pyarrow type that each needed column should have.
        from_row: rows before this one are known to be good.
    """
    for row, _, text in _rows(path, head):
        if row < from_row:
            continue
        fields = _fields(text)
        if len(fields) != len(head.names):
            return row, f"has {len(fields)} columns, expected {len(head.names)} ({', '.join(head.names)})"
        for name, value in zip(head.names, fields):
            if name in types and value.strip() and not _converts(value.strip(), types[name]):
                return row, f"{name} is {value!r}, expected {_expected(types[name])}"
    return -1, ""


def _converts(value: str, kind: Any) -> bool:
    try:
        if pa.types.is_floating(kind):
            float(value)
        else:
            pa.array([value]).cast(kind)
    except (ValueError, pa.ArrowInvalid):
        return False
    return True


def _expected(kind: Any) -> str:
    if pa.types.is_floating(kind):
        return "a number"
    if kind.tz is None:
        return "a date and time without a time zone, like the first row's"
    return "a date and time with a time zone, like the first row's"


def _fields(text: str) -> list[str]:
    return next(csv.reader([text]))


def _rows(path: Path, head: Head) -> Iterator[tuple[int, int, str]]:
    """(data row from 0, line from 1, text) of every data row."""
    row = 0
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        for line, text in enumerate(file, 1):
            text = text.rstrip("\r\n")
            if line > head.line and text:
                yield row, line, text
                row += 1
