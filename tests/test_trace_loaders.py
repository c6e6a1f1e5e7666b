"""Trace files: every format, exact round trips, and every kind of bad file."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitgym.errors import TraceError
from splitgym.trace import Trace, gather, load, load_file, loaders, save

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens"
OURS = "arrival_s,prompt_tokens,output_tokens"
SIM = "request_id,request_type,application_id,arrival_timestamp,batch_size,prompt_size,token_size"


def write(folder: Path, text: str, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def test_azure_2023(tmp_path: Path) -> None:
    """No zone, seven digits, carriage returns, no end of line at the end: as published."""
    text = f"{AZURE}\r\n2023-11-16 18:17:03.9799600,4808,10\r\n2023-11-16 18:17:04.0319600,3180,8"
    trace = load_file(write(tmp_path, text))
    assert trace.arrival_s.tolist() == [0.0, 0.052]
    assert trace.prompt_tokens.tolist() == [4808, 3180] and trace.output_tokens.tolist() == [10, 8]
    assert trace.max_tokens is None and trace.name == "t"
    assert trace.provenance == {"file": "t.csv", "format": "azure, CSV"}


@pytest.mark.parametrize("zone", ["+00:00", "Z", "+0000", "+00", "-07:00"])
def test_azure_2024(tmp_path: Path, zone: str) -> None:
    """A zone; whole seconds have no fraction; a week is long."""
    stamps = ["2024-05-10 00:00:00.009930", "2024-05-10 00:00:01", "2024-05-16 23:59:59.999999"]
    text = "\n".join([AZURE, *(f"{stamp}{zone},10,2" for stamp in stamps), ""])
    trace = load_file(write(tmp_path, text))
    assert trace.arrival_s.tolist() == [0.0, 0.99007, 604799.990069]


def test_zones_may_differ_between_rows(tmp_path: Path) -> None:
    text = f"{AZURE}\n2024-05-10 00:00:00+00:00,10,2\n2024-05-10 02:00:01.5+02:00,10,2\n"
    assert load_file(write(tmp_path, text)).arrival_s.tolist() == [0.0, 1.5]


def test_the_simulators_format(tmp_path: Path) -> None:
    text = f"{SIM}\n0,2,0,0.013264575136051834,1,2745,10\n1,2,0,0.0341967545188158,1,762,341\n"
    trace = load_file(write(tmp_path, text))
    assert trace.arrival_s.tolist() == [0.013264575136051834, 0.0341967545188158]
    assert trace.prompt_tokens.tolist() == [2745, 762] and trace.output_tokens.tolist() == [10, 341]
    assert "ignored_columns" not in trace.provenance


def test_our_format_by_hand(tmp_path: Path) -> None:
    text = f"# a comment\n\n# another\nuser,{OURS},max_tokens\nann,0.5,3,4.0,\n\nbob,1e0,5,6,100\n"
    trace = load_file(write(tmp_path, text), name="mine")
    assert trace.arrival_s.tolist() == [0.5, 1.0] and trace.output_tokens.tolist() == [4, 6]
    assert trace.max_tokens is not None and trace.max_tokens.tolist() == [-1, 100]
    assert trace.name == "mine" and trace.provenance["ignored_columns"] == "user"


TEXT = st.text(st.characters(codec="utf-8"), max_size=20)


@st.composite
def any_traces(draw: Any) -> Trace:
    n = draw(st.integers(1, 30))
    times = sorted(draw(st.lists(st.floats(0, 1e6), min_size=n, max_size=n)))
    sizes = st.lists(st.integers(1, 2**31 - 1), min_size=n, max_size=n)
    limits = st.lists(st.one_of(st.just(-1), st.integers(1, 2**31 - 1)), min_size=n, max_size=n)
    return Trace(
        np.array(times),
        np.array(draw(sizes)),
        np.array(draw(sizes)),
        draw(st.one_of(st.none(), limits.map(np.array))),
        draw(TEXT),
        draw(st.dictionaries(TEXT, TEXT, max_size=3)),
    )


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_what_is_saved_loads_the_same(ending: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("saved") / f"t{ending}"

    @given(any_traces())
    def round_trip(trace: Trace) -> None:
        save(trace, path)
        assert load_file(path).equals(trace)
        assert [p.name for p in path.parent.iterdir()] == [path.name]

    round_trip()


def test_many_blocks_are_one_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders, "BLOCK_BYTES", 1 << 12)
    for module in (loaders, gather):
        monkeypatch.setattr(module, "BLOCK_ROWS", 100)
    n = 5000
    trace = Trace(np.arange(n) / 7, np.arange(n) + 1, np.full(n, 3), np.arange(n) + 9, "many", {"a": "b"})
    monkeypatch.setattr(loaders, "SAVED_ROWS", 1500)
    for ending in (".csv", ".parquet"):
        told: list[int] = []
        save(trace, tmp_path / f"t{ending}", told.append)
        assert load_file(tmp_path / f"t{ending}").equals(trace)
        assert told == [1500, 3000, 4500, 5000]
    lines = (tmp_path / "t.csv").read_text().splitlines()
    lines[4002] = lines[4002].replace(",3,", ",0,")
    with pytest.raises(TraceError, match=r"data row 4001 \(line 4003\): output_tokens is 0"):
        load_file(write(tmp_path, "\n".join(lines)))
    lines[4002] = "x" + lines[4002]
    with pytest.raises(TraceError, match=r"data row 4001 \(line 4003\): arrival_s is 'x571"):
        load_file(write(tmp_path, "\n".join(lines)))
    lines[4002] = lines[3000]
    with pytest.raises(TraceError, match=r"data row 4001 \(line 4003\): .*before the row above"):
        load_file(write(tmp_path, "\n".join(lines)))


def test_times_fall_across_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (loaders, gather):
        monkeypatch.setattr(module, "BLOCK_ROWS", 2)
    table = pa.table({"arrival_s": [0.0, 5.0, 4.0], "prompt_tokens": [1, 1, 1], "output_tokens": [1, 1, 1]})
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(TraceError, match=r"data row 3: arrives at 4\.0 s, before the row above"):
        load_file(tmp_path / "t.parquet")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("0.0,1,1\n2.0,1,1\n1.0,1,1", r"data row 3 \(line 4\): arrives at 1.0 s, before the row above"),
        ("0.0,1,1\n-2.0,1,1", r"data row 2 \(line 3\): arrival time -2.0 s is negative"),
        ("nan,1,1", r"data row 1 \(line 2\): arrival_s is empty"),
        ("inf,1,1", r"data row 1 \(line 2\): arrival time is inf"),
        ("0.0,0,1", r"data row 1 \(line 2\): prompt_tokens is 0.0, expected an integer"),
        ("0.0,1,1\n\n0.0,1,0", r"data row 2 \(line 4\): output_tokens is 0.0"),
        ("0.0,-3,1", r"data row 1 \(line 2\): prompt_tokens is -3.0"),
        ("0.0,1.5,1", r"data row 1 \(line 2\): prompt_tokens is 1.5, expected an integer"),
        ("0.0,1,1\n0.0,many,1", r"data row 2 \(line 3\): prompt_tokens is 'many', expected a number"),
        ("0.0,1,1\n0.0,,1", r"data row 2 \(line 3\): prompt_tokens is empty"),
        ("0.0,1,1\n,1,1", r"data row 2 \(line 3\): arrival_s is empty"),
        ("0.0,1,1\n0.0,1", r"data row 2 \(line 3\): has 2 columns, expected 3"),
        ("0.0,1,1\n0.0,1,1,1", r"data row 2 \(line 3\): has 4 columns, expected 3"),
        ("1700000000000,1,1", r"data row 1 \(line 2\): .*are these seconds\?"),
        ("", "has column names but no data rows"),
    ],
)
def test_a_bad_row_of_ours(tmp_path: Path, rows: str, words: str) -> None:
    with pytest.raises(TraceError, match=words) as caught:
        load_file(write(tmp_path, f"{OURS}\n{rows}\n"))
    assert str(caught.value).startswith(str(tmp_path / "t.csv")) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            "2024-05-10 00:00:01,1,1\n2024-05-10 00:00:00,1,1",
            r"data row 2 \(line 3\): TIMESTAMP is before the first row's: sort",
        ),
        (
            "2024-05-10 00:00:01,1,1\n2024-05-10 00:00:03,1,1\n2024-05-10 00:00:02,1,1",
            r"data row 3 \(line 4\): arrives at 1.0 s, before the row above \(2.0 s\)",
        ),
        ("yesterday,1,1", r"data row 1 \(line 2\): TIMESTAMP is 'yesterday', expected a date and time"),
        (
            "2024-05-10 00:00:00,1,1\n2024-05-10 00:00:01Z,1,1",
            r"data row 2 \(line 3\): TIMESTAMP is .*without a time zone, like the first",
        ),
        (
            "2024-05-10 00:00:00Z,1,1\n2024-05-10 00:00:01,1,1",
            r"data row 2 \(line 3\): TIMESTAMP is .*with a time zone, like the first",
        ),
        ("2024-05-10 00:00:00,1,0", r"data row 1 \(line 2\): output_tokens is 0"),
    ],
)
def test_a_bad_row_of_azure(tmp_path: Path, rows: str, words: str) -> None:
    with pytest.raises(TraceError, match=words):
        load_file(write(tmp_path, f"{AZURE}\n{rows}\n"))


@pytest.mark.parametrize(
    ("row", "words"),
    [("0,2,0,0.5,4,10,2", "batch_size is not 1"), ("0,1,0,0.5,1,10,2", "request_type is not 2")],
)
def test_the_simulators_other_requests_are_refused(tmp_path: Path, row: str, words: str) -> None:
    with pytest.raises(TraceError, match=rf"data row 2 \(line 3\): {words}"):
        load_file(write(tmp_path, f"{SIM}\n0,2,0,0.1,1,10,2\n{row}\n"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the file is empty"),
        ("\n\n", "the file is empty"),
        ("# only\n", "the file is empty"),
        ("arrival_s,prompt_tokens\n0,1\n", "lacks the column output_tokens of the splitgym format"),
        ("TIMESTAMP\n0\n", "lacks the columns ContextTokens, GeneratedTokens of the azure format"),
        ("a,b\n0,1\n", "no known trace format: has columns a, b, expected arrival_s,prompt_tokens"),
        (f"{OURS},arrival_s\n0,1,1,1\n", "column arrival_s is there twice"),
        ("# splitgym trace {broken\n" + OURS + "\n0,1,1\n", "name and provenance saved in it are damaged"),
    ],
)
def test_a_bad_file(tmp_path: Path, text: str, words: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(TraceError, match=words) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_bytes_are_no_csv(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"\xff\xfe\x00a\x80")
    with pytest.raises(TraceError, match="no UTF-8 text"):
        load_file(path)


def test_a_missing_file_and_a_wrong_ending(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"none\.csv: no such trace file"):
        load(tmp_path / "none.csv")
    with pytest.raises(TraceError, match=r"ends in \.csv or \.parquet, not in '\.xlsx'"):
        load_file(write(tmp_path, "x", "t.xlsx"))
    trace = Trace([0.0], [1], [1])
    with pytest.raises(TraceError, match=r"written as \.csv or \.parquet"):
        save(trace, tmp_path / "t.json")
    with pytest.raises(TraceError, match="cannot be written"):
        save(trace, tmp_path / "no" / "t.csv")


GOOD: dict[str, list[Any]] = {"arrival_s": [0.0, 1.0], "prompt_tokens": [1, 2], "output_tokens": [3, 4]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"output_tokens": [3, None]}, "data row 2: output_tokens is empty"),
        ({"output_tokens": [3, 0]}, "data row 2: output_tokens is 0"),
        ({"output_tokens": [3.0, 4.5]}, "data row 2: output_tokens is 4.5"),
        ({"arrival_s": [1.0, 0.0]}, "data row 2: arrives at 0.0 s"),
        ({"arrival_s": [math.nan, 0.0]}, "data row 1: arrival time is nan"),
        ({"prompt_tokens": ["1", "x"]}, "cannot be read as a Parquet trace"),
        ({"prompt_tokens": [[1], [2]]}, "cannot be read as a Parquet trace"),
    ],
)
def test_a_bad_parquet(tmp_path: Path, change: dict[str, list[Any]], words: str) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({**GOOD, **change}), path)
    with pytest.raises(TraceError, match=words) as caught:
        load_file(path)
    assert str(path) in str(caught.value)


def test_a_parquet_without_rows_columns_or_sense(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table(GOOD).slice(0, 0), path)
    with pytest.raises(TraceError, match="no data rows"):
        load_file(path)
    pq.write_table(pa.table(GOOD).drop_columns(["arrival_s"]), path)
    with pytest.raises(TraceError, match="lacks the column arrival_s"):
        load_file(path)
    path.write_bytes(b"no parquet at all")
    with pytest.raises(TraceError, match="cannot be read as a Parquet trace"):
        load_file(path)
    path.write_bytes(b"")
    with pytest.raises(TraceError, match="the file is empty"):
        load_file(path)


@pytest.mark.parametrize("kind", [pa.timestamp("us", "UTC"), pa.timestamp("ms"), pa.string()])
def test_azure_columns_in_parquet(tmp_path: Path, kind: Any) -> None:
    stamps = pa.array(["2024-05-10 00:00:00.5", "2024-05-10 00:00:02"])
    if kind != pa.string():
        stamps = stamps.cast(pa.timestamp("ns")).cast(pa.timestamp(kind.unit)).cast(kind)
    table = pa.table({"TIMESTAMP": stamps, "ContextTokens": [5, 6], "GeneratedTokens": [7, 8]})
    pq.write_table(table, tmp_path / "t.parquet")
    assert load_file(tmp_path / "t.parquet").arrival_s.tolist() == [0.0, 1.5]


def test_azure_counts_from_its_first_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders, "BLOCK_BYTES", 1 << 10)
    rows = [f"2024-05-10 00:{i // 60:02}:{i % 60:02}+00:00,10,2" for i in range(600)]
    trace = load_file(write(tmp_path, "\n".join([AZURE, *rows])))
    assert trace.arrival_s.tolist() == list(range(600))


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_bytes_read_are_told(tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders, "BLOCK_BYTES", 1 << 10)
    for module in (loaders, gather):
        monkeypatch.setattr(module, "BLOCK_ROWS", 100)
    numbers = np.arange(1, 601)
    path = tmp_path / f"t.{ending}"
    save(Trace(numbers.astype(np.float64), numbers, numbers), path)
    told: list[int] = []
    assert len(load_file(path, progress=told.append)) == 600
    assert told == sorted(told) and told[0] == 0 and told[-1] == path.stat().st_size
    assert len(set(told)) > 4
