"""Traces by name: the Azure originals (found or downloaded, always checked) and the built-in generators."""

import hashlib
import http.client
import os
import tempfile
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from splitgym.errors import MissingTraceError, TraceError
from splitgym.resources import cache_folder, data_folder
from splitgym.trace import synth
from splitgym.trace.loaders import load_file
from splitgym.trace.trace import Trace

BASE_URL = "https://raw.githubusercontent.com/Azure/AzurePublicDataset/master/data"
"""The data folder of the AzurePublicDataset repository."""
CITE = (
    "Azure Public Dataset, LLM inference traces 2023 (Microsoft), CC-BY 4.0; cite Patel et al., Splitwise: "
    "Efficient Generative LLM Inference Using Phase Splitting, ISCA 2024"
)

Progress = Callable[[int, int], None]
"""Called with (bytes so far, bytes in all)."""


@dataclass(frozen=True)
class Original:
    """A published trace file."""

    file: str
    sha256: str
    num_bytes: int


ORIGINALS = {
    "azure-code": Original(
        "AzureLLMInferenceTrace_code.csv",
        "54e9a6d2a4bd06ba1e060304b900abbc74cbea53de96506e60fe5bb4f2277fb6",
        320_117,
    ),
    "azure-conv": Original(
        "AzureLLMInferenceTrace_conv.csv",
        "2f1e5b666d4e3055fdbba98598ce2ec307767b9064e03e2fa46676dbcc7d0bf8",
        719_188,
    ),
}


def names() -> tuple[str, ...]:
    """The names that `load` knows."""
    return (*ORIGINALS, *synth.names())


def load(
    name_or_path: str | Path, *, download: bool = True, progress: Callable[[int], None] | None = None
) -> Trace:
    """A trace by name, or from a file.

    Args:
        name_or_path: `azure-code`, `azure-conv` (looked for in the folder that `SPLITGYM_DATA` names, then in
            the cache, then downloaded), `azure-code-synth`, `azure-conv-synth` (one generated hour, offline),
            or the path of a CSV or Parquet file (see `load_file`).
        download: False raises where an original would have to be downloaded.
        progress: called with about the bytes of a file that were read so far.

    Raises:
        TraceError: an unknown name, a file that cannot be used, or a download that failed.
    """
    name = str(name_or_path)
    if name in synth.names():
        return synth.hour(name)
    if name in ORIGINALS:
        trace = load_file(fetch(name, download=download), name)
        about = {"source": CITE, "sha256": ORIGINALS[name].sha256}
        return replace(trace, provenance={**trace.provenance, **about})
    if "/" not in name and "\\" not in name and not Path(name).suffix and not Path(name).exists():
        raise TraceError(
            f"{name!r} is no trace: expected {', '.join(names())}, or the path of a .csv or .parquet"
        )
    return load_file(name, progress=progress)


def fetch(
    name: str, *, base_url: str = BASE_URL, progress: Progress | None = None, download: bool = True
) -> Path:
    """The file of an original trace: from `SPLITGYM_DATA`, the cache, or downloaded into the cache.

    The content's sha256 is checked wherever it comes from.

    Args:
        name: `azure-code` or `azure-conv`.
        base_url: folder to download from.
        progress: called as the download goes on.
        download: False raises instead of downloading.

    Raises:
        TraceError: an unknown name, a failed download, or content with another sha256.
    """
    if name not in ORIGINALS:
        raise TraceError(f"{name!r} cannot be fetched: expected {' or '.join(ORIGINALS)}")
    original = ORIGINALS[name]
    folder = data_folder()
    if folder is not None:
        for place in (folder / "azure-2023" / original.file, folder / original.file):
            if place.is_file():
                _check(
                    _sha256(place),
                    original,
                    str(place),
                    "put the published file there, or unset SPLITGYM_DATA",
                )
                return place
    cached = cache_folder() / "traces" / original.file
    if cached.is_file() and _sha256(cached) == original.sha256:
        return cached
    if not download:
        raise MissingTraceError(f"{name} is not on this machine: `splitgym trace fetch {name}` downloads it")
    # A cached file with another content was damaged: it is ours, so it is replaced.
    _download(name, f"{base_url.rstrip('/')}/{original.file}", original, cached, progress)
    return cached


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise TraceError(f"{path}: cannot be read ({error})") from None


def _check(found: str, original: Original, where: str, advice: str) -> None:
    if found != original.sha256:
        raise TraceError(f"{where}: its sha256 is {found}, expected {original.sha256}: {advice}")


def _download(name: str, url: str, original: Original, target: Path, progress: Progress | None) -> None:
    """Download into a temporary file beside `target`, check, then rename: the target is whole or absent."""
    part: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, text = tempfile.mkstemp(prefix=original.file, suffix=".part", dir=target.parent)
        part = Path(text)
        digest, done = hashlib.sha256(), 0
        with os.fdopen(handle, "wb") as file, urllib.request.urlopen(url, timeout=30) as reply:
            while block := reply.read(1 << 16):
                done += len(block)
                if done > original.num_bytes:
                    break  # another file: no need to have all of it
                digest.update(block)
                file.write(block)
                if progress is not None:
                    progress(done, original.num_bytes)
        if done != original.num_bytes:
            more = "more than " if done > original.num_bytes else ""
            size = f"{more}{min(done, original.num_bytes)} bytes came, expected {original.num_bytes}"
            raise TraceError(f"{url}: {size}: nothing was kept; try again, or look at what is served there")
        _check(digest.hexdigest(), original, url, "nothing was kept; look at what is served there")
        part.replace(target)
        part = None
    except (OSError, http.client.HTTPException) as error:
        raise TraceError(
            f"{name} cannot be downloaded from {url} ({error}): set SPLITGYM_DATA to a folder that holds "
            f"{original.file}, or use {name}-synth, which is built in"
        ) from None
    finally:
        if part is not None:
            with suppress(OSError):
                part.unlink(missing_ok=True)
