"""A hook of MkDocs: pages that mkdocs.yml does not name stand in the navigation all the same, under More."""

import re
from pathlib import Path
from typing import Any


def on_config(config: Any) -> Any:
    """Called once the configuration is read."""
    docs = Path(config["docs_dir"])
    named = set(re.findall(r"'([^']+\.(?:md|ipynb))'", str(config["nav"])))
    there = [*docs.glob("*.md"), *docs.glob("notebooks/*.ipynb")]
    missing = sorted({str(path.relative_to(docs)) for path in there} - named)
    if missing:
        config["nav"] = [*config["nav"], {"More": missing}]
    return config
