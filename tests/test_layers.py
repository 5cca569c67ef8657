"""A module imports only from lower layers, and siblings do not import each other. Read from the code, not run."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "rfx_agent"

# Lowest first. A name is a module or a package of rfx_agent; those on one line are siblings.
LAYERS = (
    ("_errors",),
    ("_closing", "_extras", "_types"),
    ("_records", "limits", "numerics"),
    ("features", "budgets", "calibration", "ports"),
    ("case", "prices", "routing", "shared"),
    ("diagnosis", "escalation", "events", "policies"),
    ("engine", "telemetry", "testing", "tools", "verifiers"),
    ("adapters", "backends", "stores"),
    ("lab",),
    ("cli",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
# Top-K tables are named in annotations below the layer they live in; nothing is imported at run time.
ANNOTATION_ONLY = {("_errors", "_types"), ("_errors", "case"), ("_types", "numerics")}
HEAVY = (
    "circuitbreaker",
    "genai_prices",
    "sqlalchemy",
    "openai",
    "langgraph",
    "torch",
    "transformers",
    "xllamacpp",
    "langchain",
    "opentelemetry",
    "typer",
    "rich",
    "sqlalchemy",
    "genai_prices",
    "circuitbreaker",
)


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> list[tuple[str, bool]]:
    """(imported module, whether only for annotations) for every import in ``path``."""
    tree = ast.parse(path.read_text())
    hidden = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node in hidden) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the whole name"
            found.append((node.module or "", node in hidden))
    return found


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_only_from_lower_layers(path: Path) -> None:
    relative = path.relative_to(PACKAGE)
    here = relative.parts[0].removesuffix(".py")
    if here == "__init__":
        return  # the public names come from everywhere
    assert here in LEVEL, f"{relative} is in no layer; name it in LAYERS and in ARCHITECTURE.md"
    for module, annotation in imports(path):
        there = room(module)
        if not module.startswith("rfx_agent") or there == here:
            continue
        assert there, f"{relative} imports the package's public names; import from where they are"
        if annotation and (here, there) in ANNOTATION_ONLY:
            continue
        assert LEVEL[there] < LEVEL[here], f"{relative} (layer {LEVEL[here]}) imports {module}"


def test_the_public_package_loads_no_provider_and_no_graph() -> None:
    top = [module for module, annotation in imports(PACKAGE / "__init__.py") if not annotation]
    assert not [m for m in top if m.split(".")[0] in HEAVY]


def test_every_file_can_be_read_in_one_sitting() -> None:
    lines = {p.relative_to(PACKAGE): len(p.read_text().splitlines()) for p in modules()}
    assert {p: n for p, n in lines.items() if n > 400} == {}
    assert sorted(lines.values())[len(lines) // 2] <= 150
