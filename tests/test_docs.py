"""The documentation is current: pages made from the code are what the code gives now."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from splitgym import cli

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def generate(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.setattr(cli.app, "registered_commands", [*cli.app.registered_commands])
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("generate", None)


def test_generated_pages_are_current(generate: ModuleType) -> None:
    for name, make in generate.PAGES.items():
        assert (ROOT / "docs" / name).read_text() == make(), f"docs/{name}: run `make docs`"
