"""Settings that every test shares."""

import hashlib
from pathlib import Path

import matplotlib
from hypothesis import settings

import splitgym

matplotlib.use("Agg")

# No test of a time limit: a deadline would fail on a busy machine.
settings.register_profile("splitgym", deadline=None, print_blob=True)
settings.load_profile("splitgym")


def pytest_configure(config):
    """Numba's cache does not notice an edit in a function that a compiled one calls: drop it after edits."""
    package = Path(splitgym.__file__).parent
    sources = sorted(package.rglob("*.py"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    stamp = package / "__pycache__" / "numba-cache-of"
    if not hasattr(config, "workerinput") and (not stamp.exists() or stamp.read_text() != digest):
        for folder in package.rglob("__pycache__"):
            for cached in (*folder.glob("*.nbi"), *folder.glob("*.nbc")):
                cached.unlink(missing_ok=True)
        stamp.parent.mkdir(exist_ok=True)
        stamp.write_text(digest)
