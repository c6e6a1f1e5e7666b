"""The README's Python runs as printed, with smaller numbers."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SMALLER = {
    "range(1000)": "range(100)",
    "range(5)": "range(1)",
    '["poisson:azure-code@17"]': '[parse("poisson:azure-code@17", duration_s=5, warmup_s=1)]',
    "import evaluate, print_tables": "import evaluate, parse, print_tables",
}


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_readme_python_runs(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    code = BLOCKS[number]
    for old, new in SMALLER.items():
        code = code.replace(old, new)
    exec(compile(code, "README.md", "exec"), {})
    if "print_tables" in code:
        assert "mine" in capsys.readouterr().out


def test_readme_has_python_and_names_files_that_exist() -> None:
    assert len(BLOCKS) == 2
    root = Path(__file__).resolve().parent.parent
    for name in re.findall(r"\((docs/[^)]+)\)", README):
        assert (root / name).is_file(), name
