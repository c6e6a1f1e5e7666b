"""Where the shipped data lies: beside the package in a checkout, inside it in a wheel."""

import os
from pathlib import Path

from platformdirs import user_cache_path

_PACKAGE = Path(__file__).resolve().parent


def shipped(kind: str) -> Path:
    """The folder of shipped `profiles`, `traces` or `pretrained` bundles.

    Raises:
        FileNotFoundError: the installation lacks it.
    """
    places = (_PACKAGE / "data" / kind, _PACKAGE.parent / kind, _PACKAGE.parent / "agents" / kind)
    for place in places:
        if place.is_dir():
            return place
    raise FileNotFoundError(f"splitgym is installed without its {kind}: reinstall it, or run from a checkout")


def data_folder() -> Path | None:
    """The folder named by `SPLITGYM_DATA`: originals (traces, measurements) are looked for there first."""
    name = os.environ.get("SPLITGYM_DATA")
    return Path(name) if name else None


def cache_folder() -> Path:
    """Where downloads are kept: `SPLITGYM_CACHE`, or the user's cache folder."""
    name = os.environ.get("SPLITGYM_CACHE")
    return Path(name) if name else user_cache_path("splitgym")
