"""The layout of ``dtrak``: lower packages never import higher ones, and the library never imports what stands on it."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import dtrak

PACKAGE = Path(dtrak.__file__).parent
LAYERS = (
    "utils", "config", "execution", "data", "study", "models", "training", "gradients", "linalg", "index", "methods",
    "analysis", "evaluation", "build", "app",
)  # fmt: skip
ABOVE = {"index_builder", "pages", "app", "tests"}


def imported(path: Path) -> set[str]:
    """Names of the modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def imported_at_once(path: Path) -> set[str]:
    """Names of the dtrak modules that a file imports when it is imported itself."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    found = {node.module for node in body if isinstance(node, ast.ImportFrom) and node.module}
    return {name for name in found if name.startswith("dtrak.")}


def test_modules_do_not_import_each_other_in_a_ring():
    edges = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(("dtrak", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        edges[name] = imported_at_once(path)
    tuple(TopologicalSorter(edges).static_order())  # raises CycleError, which names the ring


def test_every_package_has_its_place():
    assert {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()} == set(LAYERS)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_package_imports_only_lower_ones(layer):
    allowed = set(LAYERS[: LAYERS.index(layer) + 1])
    for path in (PACKAGE / layer).rglob("*.py"):
        names = imported(path)
        assert not {name for name in names if name.split(".")[0] in ABOVE}, path
        assert {name.split(".")[1] for name in names if name.startswith("dtrak.")} <= allowed, path


def test_pages_touch_no_arrays():
    for path in (PACKAGE.parent / "pages").glob("*.py"):
        assert not {name.split(".")[0] for name in imported(path)} & {"torch", "faiss", "numpy"}, path
