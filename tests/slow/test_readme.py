"""What the README says is what happens: its examples run, its picture is the graph, its test command is the gate's."""

import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rfx_agent import recovery_graph

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_picture_is_drawn_from_the_compiled_graph() -> None:
    from scenarios import SCENARIOS

    graph = recovery_graph(SCENARIOS["tool"].recovery(), interrupts=True)
    assert f"```mermaid\n{graph.get_graph().draw_mermaid().strip()}\n```" in README


def test_the_gate_runs_the_readmes_test_command() -> None:
    commands = re.findall(r"```sh\n(python3 -m venv .*?)\n```", README)
    assert len(commands) == 2
    assert commands[1] in (ROOT / ".ci" / "run").read_text().splitlines()


@pytest.mark.parametrize("code", EXAMPLES, ids=["subgraph", "wrapped-chain"])
def test_an_example_prints_what_it_says(code: str) -> None:
    said = re.findall(r"print\(.*\)  # (.*)", code)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "README.md", "exec"), {})  # noqa: S102  # our own text
    assert out.getvalue().splitlines() == said
    assert len(code.splitlines()) <= 12


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.name)
def test_an_example_program_runs(path: Path) -> None:
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_served_graphs_load() -> None:
    import json

    served = json.loads((ROOT / "langgraph.json").read_text())["graphs"]
    code = "import importlib.util, sys; sys.path.insert(0, '.')\n" + "".join(
        f"spec = importlib.util.spec_from_file_location('g{i}', {path.split(':')[0]!r})\n"
        f"module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)\n"
        f"assert hasattr(getattr(module, {path.split(':')[1]!r}), 'invoke')\n"
        for i, path in enumerate(served.values())
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
