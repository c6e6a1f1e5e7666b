"""Traces by name: where they are looked for, the download, and what is refused."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from splitgym.errors import TraceError
from splitgym.trace import fetch, load, names, sources
from splitgym.trace.sources import Original

CONTENT = b"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03,48,10\n2023-11-16 18:17:04,31,8\n"
FILE = "AzureLLMInferenceTrace_code.csv"


class Server(ThreadingHTTPServer):
    """Serves `content` at /data/FILE and counts."""

    content = CONTENT
    cut = 0
    hits = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/data/"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.hits += 1
        if self.path != f"/data/{FILE}":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()
        self.wfile.write(self.server.content[: len(self.server.content) - self.server.cut])

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, no SPLITGYM_DATA, and a small file published as azure-code."""
    monkeypatch.setenv("SPLITGYM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SPLITGYM_DATA", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    small = Original(FILE, hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))
    monkeypatch.setitem(sources.ORIGINALS, "azure-code", small)
    return tmp_path / "cache" / "traces"


def test_a_download_is_kept_and_loaded(server: Server, cache: Path) -> None:
    seen: list[tuple[int, int]] = []
    path = fetch("azure-code", base_url=server.url, progress=lambda *done: seen.append(done))
    assert path == cache / FILE and path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert fetch("azure-code", base_url=server.url) == path and server.hits == 1
    trace = load("azure-code")
    assert trace.name == "azure-code" and len(trace) == 2
    assert trace.provenance["sha256"] == hashlib.sha256(CONTENT).hexdigest()
    assert "CC-BY 4.0" in trace.provenance["source"]


def test_another_content_is_refused(server: Server, cache: Path) -> None:
    server.content = CONTENT.replace(b"48", b"49")
    with pytest.raises(TraceError, match=r"/data/Azure.*csv: its sha256 is [0-9a-f]{64}, expected"):
        fetch("azure-code", base_url=server.url)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (CONTENT + b"x" * 1_000_000, "more than 99 bytes came"),
        (CONTENT[:50], "50 bytes came"),
    ],
)
def test_another_length_is_refused(server: Server, cache: Path, content: bytes, words: str) -> None:
    server.content = content
    words = words.replace("99", str(len(CONTENT)))
    with pytest.raises(TraceError, match=rf"{words}, expected {len(CONTENT)}"):
        fetch("azure-code", base_url=server.url)
    assert list(cache.iterdir()) == []


def test_a_broken_connection_leaves_nothing(server: Server, cache: Path) -> None:
    server.cut = 20
    with pytest.raises(TraceError, match=r"bytes came|cannot be downloaded"):
        fetch("azure-code", base_url=server.url)
    assert list(cache.iterdir()) == []
    server.cut = 0
    assert fetch("azure-code", base_url=server.url).read_bytes() == CONTENT


def test_no_server_or_no_file_says_what_else_to_do(server: Server, cache: Path) -> None:
    for url in (server.url + "elsewhere", "http://127.0.0.1:9/data"):
        with pytest.raises(TraceError, match=r"cannot be downloaded from .*SPLITGYM_DATA.*azure-code-synth"):
            fetch("azure-code", base_url=url)
    assert list(cache.iterdir()) == []


def test_no_download_when_none_is_wanted(server: Server, cache: Path) -> None:
    with pytest.raises(TraceError, match="not on this machine"):
        fetch("azure-code", base_url=server.url, download=False)
    assert server.hits == 0
    fetch("azure-code", base_url=server.url)
    assert len(load("azure-code", download=False)) == 2


def test_a_damaged_cache_is_replaced(server: Server, cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / FILE).write_bytes(CONTENT[:-5])
    assert fetch("azure-code", base_url=server.url).read_bytes() == CONTENT


@pytest.mark.parametrize("place", ["azure-2023", "."])
def test_the_data_folder_comes_first(
    server: Server, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    folder = tmp_path / "data" / place
    folder.mkdir(parents=True)
    (folder / FILE).write_bytes(CONTENT)
    monkeypatch.setenv("SPLITGYM_DATA", str(tmp_path / "data"))
    assert fetch("azure-code", base_url=server.url) == folder / FILE and server.hits == 0
    (folder / FILE).write_bytes(CONTENT + b"\n")
    with pytest.raises(TraceError, match=r"its sha256 is .*unset SPLITGYM_DATA"):
        fetch("azure-code", base_url=server.url)


def test_a_data_folder_without_the_file_is_no_obstacle(
    server: Server, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPLITGYM_DATA", str(tmp_path / "nothing"))
    assert fetch("azure-code", base_url=server.url) == cache / FILE


def test_an_unknown_name_lists_the_known() -> None:
    assert names() == ("azure-code", "azure-conv", "azure-code-synth", "azure-conv-synth")
    with pytest.raises(TraceError, match="'azure' is no trace: expected azure-code, azure-conv, azure"):
        load("azure")
    with pytest.raises(TraceError, match="'azure-code-synth' cannot be fetched: expected azure-code or"):
        fetch("azure-code-synth")


def test_the_published_sums() -> None:
    assert sources.ORIGINALS["azure-code"].sha256.startswith("54e9a6d2a4bd06ba")
    assert sources.ORIGINALS["azure-conv"].sha256.startswith("2f1e5b666d4e3055")
    assert sources.BASE_URL.endswith("Azure/AzurePublicDataset/master/data")
