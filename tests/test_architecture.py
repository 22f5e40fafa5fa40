"""The house rules that a reader relies on, checked on the source text."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
AG = ROOT / "AG"
PACKAGES = ("retrieval", "example", "voc_tree")
MODULES = sorted(path for package in PACKAGES for path in (AG / package).rglob("*.py"))
SCRIPTS = sorted(path for path in AG.glob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(AG).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """The modules that a file imports, at any depth, by their full names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            found |= {node.module or ""}
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


GRAPH = {module_name(path): imports(path) for path in MODULES}


def test_there_are_no_import_circles():
    seen: dict[str, int] = {}  # 1: on the way, 2: done

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert seen.get(name) != 1, " -> ".join((*way, name))
        if name in seen:
            return
        seen[name] = 1
        for other in GRAPH[name] & GRAPH.keys() - {"retrieval", name}:
            visit(other, (*way, name))
        seen[name] = 2

    for name in GRAPH:
        visit(name, ())


# A room imports from its own wing and from those before it; see docs/architecture.md.
WINGS = [
    "errors configs files progress devices checkpoint whitening",
    "data",
    "networks",
    "features feature_folders extraction search matching ransac geometry "
    "verification rerank rerank_file metrics evaluation protocol report saved_run query_reranking",
    "training",
    "drawing",
    "tuning",
    "commands",
    "example voc_tree",
]
LEVEL = {room: level for level, wing in enumerate(WINGS) for room in wing.split()}


def level_of(name: str) -> int:
    """The wing of a module; the front door stands above its own library and below the commands."""
    parts = [part for part in name.split(".") if part != "retrieval"]
    return LEVEL[parts[0]] if parts else LEVEL["commands"]


def test_the_wings_stand_in_order():
    upward = [
        f"{name} -> {other}"
        for name, found in GRAPH.items()
        for other in found & GRAPH.keys() - {"retrieval"}
        if level_of(other) > level_of(name)
    ]
    assert not upward


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_packages_import_only_what_lies_below_them(path):
    package = module_name(path).split(".")[0]
    allowed = {"retrieval", package}
    scripts = {script.stem for script in SCRIPTS} | {"toy_city"}
    foreign = {name.split(".")[0] for name in imports(path)} & (set(PACKAGES) | scripts)
    assert foreign <= allowed


def test_what_is_installed_is_the_packages_and_nothing_else():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    installed = config["tool"]["setuptools"]["packages"]
    found = {module_name(path) for path in MODULES if path.name == "__init__.py"}
    assert set(installed) == found
    assert "py-modules" not in config["tool"]["setuptools"]


def test_the_lists_of_requirements_agree():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    listed = {line.strip() for line in lines if line.strip() and not line.startswith("#")}
    assert listed == set(config["project"]["dependencies"])


ACTS = (ast.Expr, ast.For, ast.While, ast.With, ast.Try)


@pytest.mark.parametrize("path", [*MODULES, *SCRIPTS], ids=lambda path: path.stem)
def test_nothing_happens_at_import(path):
    """Modules define; beside that there is a docstring and the test of `__name__`."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.If):
            condition = ast.unparse(node.test)
            assert condition in ("__name__ == '__main__'", "TYPE_CHECKING"), condition
        elif isinstance(node, ast.Expr):
            assert isinstance(node.value, ast.Constant), ast.unparse(node)
        else:
            assert not isinstance(node, ACTS), ast.unparse(node)


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_only_commands_look_at_argparse(path):
    if "commands" not in path.parts and path.stem != "options":
        assert "argparse" not in imports(path)


@pytest.mark.parametrize("path", [*MODULES, *SCRIPTS], ids=lambda path: path.stem)
def test_errors_are_neither_swallowed_nor_forgiven(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ExceptHandler):
            caught = "" if node.type is None else ast.unparse(node.type)
            assert caught not in ("", "Exception", "BaseException"), ast.unparse(node)
        if isinstance(node, ast.keyword):
            written = f"{node.arg}={ast.unparse(node.value)}"
            assert written not in ("strict=False", "weights_only=False", "allow_pickle=True")
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) not in ("sys.path", "ImageFile.LOAD_TRUNCATED_IMAGES")
