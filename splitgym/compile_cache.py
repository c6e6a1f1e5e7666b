"""Numba's cache on disk, made to notice an edit in whatever a compiled function calls.

Numba keeps what it compiled beside a hash of the function's own file. A function of another file that was
compiled into it may have changed since, and the old code would still run. So for the files of this package
the stamp covers all that they import of the package, too. Files that compile take `numba` from here.
"""

import hashlib
import re
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba.core import caching

__all__ = ["numba"]

PACKAGE = Path(__file__).resolve().parent
DATA_ONLY = ("splitgym.trace",)
"""What compiled code takes no constant from: not followed, or edits there would compile everything anew."""

_IMPORT = re.compile(r"^from (splitgym[\w.]*) import (\([^)]*\)|.*)|^import (splitgym[\w.]+)", re.MULTILINE)


def imported(path: Path) -> set[Path]:
    """Files of the package that a file of it imports when it is loaded."""
    found = set()
    for match in _IMPORT.finditer(path.read_text(encoding="utf-8")):
        base = match[1] or match[3]
        names = re.findall(r"\w+", match[2] or "")
        for module in (base, *(f"{base}.{name}" for name in names)):
            place = PACKAGE.parent.joinpath(*module.split("."))
            file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
            if file.is_file() and not module.startswith(DATA_ONLY):
                found.add(file)
    return found


@cache
def stamp(path: Path) -> str:
    """Hash of a file of the package and of all that it imports of it, directly or not."""
    seen: set[Path] = set()
    new = {path}
    while new:
        seen |= new
        new = set().union(*(_imported(file) for file in new)) - seen
    digest = hashlib.sha256()
    for file in sorted(seen):
        digest.update(str(file.relative_to(PACKAGE)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


_imported = cache(imported)


class _OfThisPackage:
    """In front of one of Numba's locators of cache files: takes the files of this package."""

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> Any:
        if PACKAGE not in Path(py_file).resolve().parents:
            return None
        return super().from_function(py_func, py_file)  # type: ignore[misc]

    def get_source_stamp(self) -> Any:
        own = super().get_source_stamp()  # type: ignore[misc]
        return own, stamp(Path(self._py_file).resolve())  # type: ignore[attr-defined]


def _install() -> None:
    """Put such locators before Numba's own."""
    known = caching.CacheImpl._locator_classes
    backed = [kind for kind in known if issubclass(kind, caching._SourceFileBackedLocatorMixin)]
    made: list[Any] = [type(f"OfThisPackage{kind.__name__}", (_OfThisPackage, kind), {}) for kind in backed]
    caching.CacheImpl._locator_classes = [*made, *known]


_install()
