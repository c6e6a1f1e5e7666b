"""The documentation is true: its commands and code run as printed, what is made from the code is current."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
import yaml

from splitgym import cli
from splitgym.cli.learning import add_learning_commands

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.glob("*.md")])
RUN = ("README.md", "quickstart.md")
"""Pages whose shell commands are run, each page as one script."""
RUN_PYTHON = ("README.md", "extending.md")
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))


@dataclass(frozen=True)
class Block:
    """A block of code of a page."""

    page: str
    line: int
    language: str
    code: str
    not_here: str | None
    """Why it is not run: `<!-- run: not here (REASON) -->` stands above it."""


def blocks(path: Path) -> Iterator[Block]:
    text = path.read_text()
    fence = r"(?:^<!-- run: not here \(([^\n]*)\) -->\n)?^```(\w+)\n(.*?)^```"
    for found in re.finditer(fence, text, re.DOTALL | re.MULTILINE):
        line = text.count("\n", 0, found.start(2)) + 1
        yield Block(path.name, line, found[2], found[3], found[1])


def page(name: str) -> Path:
    return next(path for path in PAGES if path.name == name)


@pytest.mark.parametrize("name", RUN)
def test_shell_commands_run_as_printed(name: str, tmp_path: Path) -> None:
    script = [b.code for b in blocks(page(name)) if b.language == "sh" and b.not_here is None]
    assert script
    # `set -m`: jobs of a script get the numbers that the page uses in `kill %1`.
    text = "\n".join(["set -em", "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT", *script])
    here = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", text], cwd=tmp_path, env=os.environ | here, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, f"{name}: {done.stdout[-2000:]}\n{done.stderr[-2000:]}"


@pytest.mark.parametrize(
    "block",
    [b for name in RUN_PYTHON for b in blocks(page(name)) if b.language == "python" and b.not_here is None],
    ids=lambda b: f"{b.page}:{b.line}",
)
def test_python_runs_as_printed(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    exec(compile(block.code, f"{block.page} from line {block.line}", "exec"), names)
    assert set(names) - {"__name__", "__builtins__"}, "it defined nothing"


def commands(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line, words) of each `splitgym ...` and `python train.py ...` of a page, in fences and indented."""
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines, 1):
        text = line.strip().removeprefix("$ ")
        if not re.match(r"(splitgym|python train\.py) ", text) or text.startswith("splitgym --"):
            continue
        if not (line.startswith("    ") or inside_fence(lines, number)):
            continue
        place = number
        while text.endswith("\\"):
            text = f"{text[:-1]} {lines[place].strip()}"
            place += 1
        text = text.replace("python train.py --demo", "").replace("python train.py", "splitgym train")
        text = re.sub(r"\.\.\.(?= |$)", "", text)  # "and so on", in the lab book
        words = [
            "1" if re.fullmatch(r"\d?[A-Z]", word) else word for word in shlex.split(text, comments=True)
        ]
        if words:
            yield number, [word for word in words[1:] if word != "&"]


def inside_fence(lines: list[str], number: int) -> bool:
    return sum(line.startswith("```") for line in lines[:number]) % 2 == 1


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(cli.app, "registered_commands", [*cli.app.registered_commands])
    add_learning_commands(cli.app)
    return typer.main.get_command(cli.app)


def test_every_command_in_the_documentation_is_understood(root: Any) -> None:
    wrong, count = [], 0
    for path in PAGES:
        for line, words in commands(path):
            try:
                command, rest = root, words
                while hasattr(command, "list_commands"):
                    command, rest = command.commands[rest[0]], rest[1:]
                command.make_context(" ".join(words), list(rest))
                count += 1
            except KeyError as error:
                wrong.append(f"{path.name}:{line}: no command {error}")
            except Exception as error:
                says = error.format_message() if hasattr(error, "format_message") else repr(error)
                wrong.append(f"{path.name}:{line}: {says}")
    assert not wrong, "\n".join(wrong)
    assert count > 40


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_run(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    stored = nbformat.read(path, as_version=4)
    # How a cell's lines are cut into outputs depends on timing; that it has some does not.
    shows = [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code" and cell.outputs]
    assert len(shows) > 1 and all(stored.cells[i].outputs for i in shows), "store its outputs"


def test_there_are_two_notebooks() -> None:
    assert len(NOTEBOOKS) == 2


def test_every_page_is_in_the_navigation() -> None:
    config = pytest.importorskip("mkdocs.config").load_config(str(ROOT / "mkdocs.yml"))
    shown = set(re.findall(r"[\w/-]+\.(?:md|ipynb)", str(config.plugins.on_config(config)["nav"])))
    assert shown == {str(path.relative_to(DOCS)) for path in [*DOCS.glob("*.md"), *NOTEBOOKS]}


QUOTED = {
    "routing.goodput_over_tuned.8h": ".15",
    "routing.goodput_over_mp_oracle.8h": ".33",
    "routing.goodput_over_tuned.4h4a": ".15",
    "routing.goodput_over_mp_oracle.4h4a": ".31",
    "joint.goodput_over_static_tuned": ".20",
    "joint.goodput_over_reactive_heavy_pretrained": ".06",
}
"""What the README says of learning, by the benchmark's claims."""


def test_the_readme_claims_no_more_than_the_benchmark() -> None:
    claims = json.loads((DOCS / "benchmark.json").read_text())["claims"]
    text = (ROOT / "README.md").read_text()
    said = text[text.index("Learning beyond imitation") : text.index("## Use it")]
    for name, quoted in QUOTED.items():
        assert f"{quoted} more" in said or re.search(rf"it is .*{re.escape(quoted)}", said), quoted
        assert float(quoted) <= claims[name], f"README.md says {quoted}, {name} is {claims[name]}"
        assert claims[f"{name}.ci_low"] > 0


def test_links_of_the_readme_lead_somewhere() -> None:
    for name in re.findall(r"\]\(((?!http)[^)#]+)", (ROOT / "README.md").read_text()):
        assert (ROOT / name).exists(), name


def test_the_kubernetes_manifest_holds_a_configuration_that_the_router_takes(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    from splitgym.router.config import load_config

    found = list(yaml.safe_load_all((ROOT / "examples" / "kubernetes" / "splitgym.yaml").read_text()))
    kinds = {(part["kind"], part["metadata"]["name"]): part for part in found}
    file = tmp_path / "router.yaml"
    file.write_text(kinds["ConfigMap", "splitgym-router"]["data"]["router.yaml"])
    config = load_config(file)
    servers = kinds["StatefulSet", "vllm"]["spec"]
    assert len(config.servers) == servers["replicas"]
    assert all(server.url == f"http://{server.name}.vllm:8000" for server in config.servers)
    container = kinds["Deployment", "splitgym-router"]["spec"]["template"]["spec"]["containers"][0]
    keys = {config.listen.keys.env, config.admin.keys.env}
    assert keys == {variable["name"] for variable in container["env"]}
    ports = {port["containerPort"] for port in container["ports"]}
    assert ports == {config.listen.port, config.admin.port}


MANIFEST = ROOT / "examples" / "kubernetes" / "splitgym.yaml"


@pytest.mark.parametrize(
    "part", list(yaml.safe_load_all(MANIFEST.read_text())), ids=lambda part: part["kind"]
)
def test_the_kubernetes_manifest_obeys_the_schemas(part: dict[str, Any]) -> None:
    """Kubernetes' own, in which an unknown key is an error; there is no cluster here."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    newest = kubernetes_validate.latest_version()
    kubernetes_validate.validate(part, newest, strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**part, "replicaz": 1}, newest, strict=True)


def test_the_parts_of_the_kubernetes_manifest_find_each_other() -> None:
    """Selectors, ports, volumes and secrets: what a schema cannot tell, and a cluster would."""
    found = list(yaml.safe_load_all(MANIFEST.read_text()))
    names = {
        kind: {p["metadata"]["name"] for p in found if p["kind"] == kind}
        for kind in {p["kind"] for p in found}
    }
    pods = {p["metadata"]["name"]: p["spec"] for p in found if p["kind"] in ("Deployment", "StatefulSet")}
    labels = [spec["template"]["metadata"]["labels"] for spec in pods.values()]
    for name, spec in pods.items():
        assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items(), name
        pod = spec["template"]["spec"]
        volumes = {v["name"]: v for v in pod.get("volumes", ())}
        claims = {claim["metadata"]["name"] for claim in spec.get("volumeClaimTemplates", ())}
        for container in pod["containers"]:
            mounted = {mount["name"] for mount in container.get("volumeMounts", ())}
            assert mounted <= volumes.keys() | claims, name
            ports = {port.get("name", port["containerPort"]) for port in container.get("ports", ())}
            for probe in ("readinessProbe", "livenessProbe", "startupProbe"):
                if probe in container:
                    assert container[probe]["httpGet"]["port"] in ports | {
                        port["containerPort"] for port in container["ports"]
                    }
        for volume in volumes.values():
            if "configMap" in volume:
                assert volume["configMap"]["name"] in names["ConfigMap"]
        if "serviceName" in spec:
            assert spec["serviceName"] in names["Service"], "a StatefulSet's pods are named by its service"
    for service in (p for p in found if p["kind"] == "Service"):
        chosen = service["spec"]["selector"]
        assert any(chosen.items() <= label.items() for label in labels), service["metadata"]["name"]


def test_the_docstring_of_the_environment_has_the_shapes_of_its_space() -> None:
    from splitgym.envs import RoutingEnv
    from splitgym.observation import observation_space

    said = re.findall(r"^ *\| (\w+) \| \((\w+),(?: (\d+))?\) \|", RoutingEnv.__doc__ or "", re.MULTILINE)
    shapes = {name: tuple(8 if size == "M" else int(size) for size in sizes if size) for name, *sizes in said}
    assert shapes == {name: space.shape for name, space in observation_space(8).items()}


@pytest.fixture
def generate(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(cli.app, "registered_commands", [*cli.app.registered_commands])
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_current(generate: ModuleType) -> None:
    for name, make in generate.PAGES.items():
        assert (DOCS / name).read_text() == make(), f"docs/{name}: run `python docs/generate.py`"
