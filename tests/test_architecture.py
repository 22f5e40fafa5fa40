"""The house rules that a reader relies on, checked on the source text."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
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
    "compact features feature_folders extraction search matching ransac geometry "
    "verification reranking metrics evaluation protocol report saved_run "
    "query_reranking global_search comparison confidence",
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
    if "commands" not in path.parts:
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


def test_nothing_that_only_unix_has_is_needed_to_start():
    """As on Windows: without fcntl and resource, every module is imported and a lock is taken."""
    modules = [name for name in GRAPH if "processes" not in name]
    code = (
        "import importlib, sys\n"
        "for name in ('fcntl', 'resource', 'pwd', 'grp', 'termios'): sys.modules[name] = None\n"
        f"for name in {modules}: importlib.import_module(name)\n"
        "from pathlib import Path\nfrom retrieval.files import alone\n"
        "with alone(Path('x'), 'testing'): print('locked')\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "PYTHONPATH": str(AG)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout == "locked\n", done.stderr


# Where a file is not written by way of `files.write_atomically`, and why it need not be.
DIRECT_WRITES = {
    "files.write_atomically",
    "run_folder.RunFolder.__init__",  # a line is appended
    "run_folder.LossLog.__init__",  # lines are appended
    "download._fetch",  # PATH.part, to be gone on with
    "city._write",  # renamed, without waiting for the disk at each of thousands of pictures
    "sfm.training_lists",  # these three: into a folder that gets its name when all is written
    "sfm.revisited_lists",
    "sfm._dump",
    "sfm._make",
}
WRITERS = re.compile(r"(write_text|write_bytes|shutil\.copy\w*|np\.save\w*|imwrite|savefig)$")


def writes(call: ast.Call) -> bool:
    """Whether a call writes a file by its path, as far as can be seen."""
    name = ast.unparse(call.func)
    if name == "open" or name.endswith(".open"):
        values = [each.value for each in call.args if isinstance(each, ast.Constant)]
        modes = [value for value in values if isinstance(value, str)]
        modes += [ast.unparse(each) for each in call.args if isinstance(each, ast.IfExp)]
        return any(re.search(r"^[wax]b?\+?$|'[wax]b?'", mode) for mode in modes)
    in_memory = bool(call.args) and ast.unparse(call.args[0]) == "data"
    return bool(WRITERS.search(name)) and not in_memory


def functions(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from functions(node.body, f"{prefix}.{node.name}")
        elif isinstance(node, ast.FunctionDef):
            yield f"{prefix}.{node.name}", node


def test_files_are_written_whole_or_not_at_all():
    found = {
        name
        for path in [*MODULES, *SCRIPTS, *(AG / "toy_city").glob("*.py")]
        for name, function in functions(ast.parse(path.read_text()).body, path.stem)
        for node in ast.walk(function)
        if isinstance(node, ast.Call) and writes(node)
    }
    assert found == DIRECT_WRITES


# ---- how large the rooms may become

FILES = sorted({*MODULES, *SCRIPTS})
FUNCTIONS = [
    (path, node)
    for path in FILES
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.FunctionDef)
]
ROOMS = 24  # files at the top of retrieval/
LINES = 45  # of a function
PARAMETERS = 6  # of a public function
MANY_PARAMETERS = {"global_search.evaluate"}  # all but three by keyword


def parameters(function: ast.FunctionDef) -> list[ast.arg]:
    every = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return [each for each in every if each.arg not in ("self", "cls")]


def test_the_ground_floor_can_be_read_at_a_glance():
    assert len(list((AG / "retrieval").glob("*.py"))) <= ROOMS


def test_no_function_is_long():
    lengths = {
        f"{path.stem}.{node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path, node in FUNCTIONS
    }
    assert not {name: length for name, length in lengths.items() if length > LINES}


def test_no_public_function_has_many_parameters():
    many = {
        f"{path.stem}.{node.name}"
        for path, node in FUNCTIONS
        if len(parameters(node)) > PARAMETERS and not node.name.startswith("_")
    }
    assert many == MANY_PARAMETERS


def test_no_class_name_comes_twice():
    names = [
        node.name
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    ]
    assert not {name for name in names if names.count(name) > 1}


def test_options_are_handed_no_further_than_main():
    """What a command line asks for as a whole stays in `main` and in commands/."""
    whole = re.compile(r"\b(\w+Options|\w+Flags|Asked|Namespace)\b")
    handed = {
        f"{path.stem}.{node.name}"
        for path, node in FUNCTIONS
        for each in parameters(node)
        if "commands" not in path.parts
        and each.annotation is not None
        and whole.search(ast.unparse(each.annotation))
    }
    assert not handed


JUDGING = "evaluation comparison report query_reranking reranking verification global_search"
# They put values into files and pages: JSON, TOML and the protocol, which is printed as it is.
SERIALISING = re.compile(r"json|without_none|told")


def test_what_is_ranked_has_types():
    """From the ranking on, dict[str, Any] is only what goes into files and pages."""
    after = [*map(AG.joinpath("retrieval").joinpath, (f"{each}.py" for each in JUDGING.split()))]
    after += [*(AG / "retrieval" / "drawing").rglob("*.py"), *(AG / "voc_tree").rglob("*.py")]
    after += [*(AG / "retrieval" / "tuning").rglob("*.py")]
    loose = {
        f"{path.stem}.{node.name}"
        for path, node in FUNCTIONS
        if path in after
        and "dict[str, Any]" in ast.unparse(node)
        and not SERIALISING.search(node.name)
    }
    assert not loose


def test_no_word_of_the_design_notes():
    """The two systems are called by their names, DELG and DELF, everywhere."""
    trees = [ROOT / name for name in ("AG", "tests", "benchmarks", "docs")]
    files = [path for tree in trees for path in tree.rglob("*") if path.suffix in (".py", ".md")]
    files += [*ROOT.glob("*.md"), *ROOT.glob("*.ipynb"), ROOT / "Makefile"]
    told = re.compile(r"\bS" + r"[12]\b|\bS" + r"[12]_|\bs" + r"[12]_")
    assert not [str(path) for path in files if told.search(path.read_text(encoding="utf-8"))]
