"""No circle of files, and no room reaches above itself. Read from the code, not run; annotations count as imports."""

import ast
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "rfx_agent"

# What a file in a room must not import, lowest rooms first. A name is a room or a file of the package.
VALUES = (
    *(
        "errors",
        "checks",
        "fence",
        "spend",
        "scan",
        "bill",
        "thinking",
        "records",
        "codec",
        "case",
        "events",
        "ports",
        "evidence",
        "budgets",
    ),
    "policies",
)
ENGINE = ("engine", "remedies", "escalation", "recovery")
PARTS = ("adapters", "samplers", "verifiers", "tools", "telemetry", "testing")
OFFLINE = ("lab", "cli")
ABOVE = {
    **dict.fromkeys(VALUES, (*ENGINE, *PARTS, *OFFLINE)),
    **dict.fromkeys(ENGINE, (*PARTS, *OFFLINE)),
    **dict.fromkeys(PARTS, OFFLINE),
    "lab": ("cli",),
}
# Where LangChain and LangGraph are known.
FRAMEWORKS = ("langchain", "langchain_core", "langgraph")
KNOW_FRAMEWORKS = ("adapters/", "samplers/chat/", "tools/langchain.py", "escalation/overdue.py")
HEAVY = (
    *("circuitbreaker", "genai_prices", "langchain", "langgraph", "openai", "opentelemetry", "rich", "sqlalchemy"),
    *("redis", "torch", "transformers", "typer", "xllamacpp"),
)


def files() -> dict[str, Path]:
    """Every file by its module's name."""
    named = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return named


FILES = files()


@cache
def imports(path: Path) -> list[str]:
    """The modules that ``path`` imports, wherever in the file, for annotations too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the whole name"
            module = node.module or ""
            found += [f"{module}.{x.name}" if f"{module}.{x.name}" in FILES else module for x in node.names]
    return found


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of nodes that reach each other (Tarjan's strongly connected components of more than one node)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph[node]:
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                found.append(group)

    for node in graph:
        if node not in index:
            visit(node)
    return found


def test_no_circle_of_files() -> None:
    graph = {name: {x for x in imports(path) if x in FILES and x != name} for name, path in FILES.items()}
    assert circles(graph) == []


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


@pytest.mark.parametrize("path", FILES.values(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_imports_nothing_from_above(path: Path) -> None:
    relative = path.relative_to(PACKAGE)
    here = relative.parts[0].removesuffix(".py")
    for module in imports(path):
        there = module.split(".")[1] if module.startswith("rfx_agent.") else ""
        assert there not in ABOVE.get(here, ()), f"{relative} imports {module}, which lies above {here}"
        if here != "__init__":
            assert module != "rfx_agent", f"{relative} imports the package's public names; import from their files"
        if module.split(".")[0] in FRAMEWORKS and here not in OFFLINE:
            assert str(relative).startswith(KNOW_FRAMEWORKS), f"{relative} imports {module}; only adapters know it"


def test_every_file_below_the_engine_is_in_a_room() -> None:
    rooms = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES.values()}
    helpers = {"__init__", "_closing", "_collector", "_extras", "_forks", "_http", "_lazy", "_network", "_worker"}
    helpers |= {"accepted", "features", "routing"}
    assert rooms - helpers == {*VALUES, *ENGINE, *PARTS, *OFFLINE}


def test_the_public_package_loads_no_provider_and_no_graph() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    top = [x.module or "" for x in tree.body if isinstance(x, ast.ImportFrom)]
    assert not [m for m in top if m.split(".")[0] in HEAVY]


def test_every_file_can_be_read_in_one_sitting() -> None:
    lines = {str(p.relative_to(PACKAGE)): len(p.read_text().splitlines()) for p in FILES.values()}
    assert {p: n for p, n in lines.items() if n > 400} == {}
