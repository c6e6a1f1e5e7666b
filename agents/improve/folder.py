"""The files of an improvement: begun once, gone on with, nothing overwritten unasked."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agents.runs import write_atomic
from splitgym.errors import ConfigError, PolicyError, TraceError
from splitgym.policy.manifest import MANIFEST


def begin(folder: Path, about: Mapping[str, Any], force: bool) -> None:
    """Begin, or go on with the same improvement.

    Args:
        folder: of the improvement.
        about: what it is of.
        force: begin anew in a folder of another one.

    Raises:
        ConfigError: the folder holds something else.
    """
    file = folder / "improve.json"
    if folder.exists() and any(folder.iterdir()):
        known = read(file)
        if known is None:
            raise ConfigError(f"--run-dir {folder}: is there already, and holds no improvement: name another")
        if known == about:
            return
        if not force:
            differs = next(key for key in about if known.get(key) != about[key])
            raise ConfigError(
                f"--run-dir {folder}: holds an improvement with other {differs}: name another, or --force "
                "begins anew"
            )
        shutil.rmtree(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--run-dir {folder}: cannot be made a folder ({error.strerror})") from None
    write_atomic(file, json.dumps(about, indent=1))


def check_out(out: Path, candidate: Path, force: bool) -> None:
    """Nothing is overwritten unasked, and nothing but a bundle at all.

    Raises:
        PolicyError: something else than the candidate is at `out`.
    """
    if not out.exists() or _same(out, candidate):
        return
    if not (out / MANIFEST).is_file():
        raise PolicyError(f"--out {out}: is there already, and is no bundle: name a new folder")
    if not force:
        raise PolicyError(f"--out {out}: is there already: name a new folder, or --force replaces the bundle")


def publish(candidate: Path, out: Path) -> None:
    """The candidate becomes the new bundle, in one step."""
    if _same(out, candidate):
        return
    part, before = (out.with_name(f".{out.name}.{word}") for word in ("part", "before"))
    clear(part)
    shutil.copytree(candidate, part)
    clear(before)
    if out.exists():
        out.replace(before)
    part.replace(out)
    clear(before)


def _same(one: Path, other: Path) -> bool:
    texts = [path / MANIFEST for path in (one, other)]
    return all(text.is_file() for text in texts) and texts[0].read_bytes() == texts[1].read_bytes()


def clear(folder: Path) -> None:
    """Remove a folder, if it is there."""
    shutil.rmtree(folder, ignore_errors=True)


def read(file: Path) -> dict[str, Any] | None:
    """JSON that was written before; None where there is none."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def sha256(path: Path) -> str:
    """Of a log.

    Raises:
        TraceError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise TraceError(f"{path}: cannot be read ({error.strerror})") from None
