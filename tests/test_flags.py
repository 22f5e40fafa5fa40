"""Flags: how fields become flags, and what the help of every script promises."""

import ast
import contextlib
import dataclasses
import functools
import math
import re
import shlex
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from retrieval.commands import (
    delf_flags,
    eval_flags,
    flags,
    hloc_flags,
    prepare_flags,
    show_flags,
    train_flags,
    tree_flags,
    tune_flags,
)
from retrieval.commands.shared_flags import NetworkFlags
from retrieval.configs.setting import Config, setting
from retrieval.errors import InputError
from toy_city import options

ROOT = Path(__file__).parents[1]
AG = ROOT / "AG"


# ---- the machinery


@dataclass(frozen=True)
class Example(Config, group="Training"):
    lr: float = setting(0.5, "learning rate", above=0)
    scales: tuple[float, ...] = setting((1.0, 2.0), "scales", above=0)
    reduction: bool = setting(False, "reduce")
    burst: bool = setting(True, "no bursts")
    ratio: float | None = setting(None, "a ratio", most=1)
    head: Literal["delg", "gem"] = setting("delg", "the head")
    arch: str = setting("resnet18", "network", flag="backbone", names=("arch",), old=("net",))
    not_described: int = setting(3, least=1)


def parser_of(*configs: Config, **how) -> flags.Parser:
    parser = flags.Parser("What it does.\n\nExamples:\n    do it\n")
    for config in configs:
        parser.add(config, **how)
    return parser


def read(*argv: str, **values) -> Example:
    return parser_of(Example()).read(argv).config(Example, **values)


def help_of(parser: flags.Parser, capsys) -> str:
    with pytest.raises(SystemExit):
        parser.read(["-h"])
    return capsys.readouterr().out


def test_without_flags_the_defaults_of_the_config_hold():
    assert read() == Example()


def test_every_kind_of_field_becomes_a_flag():
    words = "--lr 0.1 --scales 0.5 1 --reduction --no_burst --ratio 0.9 --head gem --backbone x"
    assert read(*words.split()) == Example(0.1, (0.5, 1.0), True, False, 0.9, "gem", "x")


def test_hyphens_in_flags_are_underscores_but_values_stay():
    parser = flags.Parser("text")
    parser.add_argument("--data_root")
    assert parser.read(["--data-root=some-folder"]).get("data_root") == "some-folder"
    assert parser.read(["--data_root", "a-b"]).get("data_root") == "a-b"


def test_further_names_are_silent_and_old_ones_warn_once(caplog):
    assert read("--arch", "a").arch == read("--arch=a").arch == "a"
    assert not caplog.text
    assert read("--net", "b").arch == read("--net", "b").arch == "b"
    assert [record.message for record in caplog.records] == ["--net is now called --backbone"]


def test_a_name_that_is_a_flag_is_no_other_flags_name():
    @dataclass(frozen=True)
    class Other(Config, group="Run"):
        net: int = setting(1, "another net")

    asked = parser_of(Example(), Other()).read(["--net", "5"])
    assert (asked.config(Other).net, asked.config(Example).arch) == (5, "resnet18")


def test_the_defaults_are_those_of_the_config_that_is_given(capsys):
    parser = parser_of(Example(lr=3.0), texts={"lr": "another meaning"})
    assert parser.read([]).config(Example).lr == 3.0
    text = help_of(parser, capsys)
    assert "another meaning (default: 3)" in text
    assert text.endswith("examples:\n    do it\n")
    assert "not_described" not in text


def test_values_win_over_flags_and_flags_over_defaults():
    assert read("--lr", "2").lr == 2.0
    assert read("--lr", "2", lr=3.0).lr == 3.0
    assert parser_of(Example()).read(["--lr", "2"]).given(Example) == {"lr": 2.0}


@pytest.mark.parametrize("words", ["--l 1", "--head other", "--not_described 1", "--lr x"])
def test_unknown_flags_values_and_abbreviations_are_refused(words, capsys):
    with pytest.raises(SystemExit) as stop:
        read(*words.split())
    assert stop.value.code == 2
    assert words.split()[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": 0.0}, "--lr 0.0: must be above 0"),
        ({"lr": float("nan")}, "--lr nan"),
        ({"lr": float("inf")}, "--lr inf: must be finite"),
        ({"ratio": 2.0}, "--ratio 2.0: at most 1 is possible"),
        ({"scales": (1.0, -1.0)}, "--scales -1.0: must be above 0"),
        ({"head": "x"}, "--head x: expected one of delg, gem"),
        ({"not_described": 0}, "^not_described 0: at least 1 is needed"),
    ],
)
def test_a_value_out_of_bounds_is_named_by_its_flag(values, message):
    with pytest.raises(InputError, match=message):
        Example(**values)


def test_names_between_commas():
    assert flags.names(" a, b,") == ("a", "b")
    with pytest.raises(InputError, match="--test_datasets a,a: a name comes twice"):
        tree_flags.read_sift("", ["DIR", "--test-datasets", "a,a"])


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("[1]", [1]),
        ("[1, 1/2**(1/2), 1/2]", [1, 0.5**0.5, 0.5]),
        ("0.5,2", [0.5, 2]),
        ("2**-1.5", [2**-1.5]),
    ],
)
def test_scales_are_read(text, values):
    assert read("--scales", text).scales == pytest.approx(values)


@pytest.mark.parametrize("text", ["", "[]", "[0]", "-1", "1/0", "x", "__import__('os')", "9**9**9"])
def test_odd_scales_are_refused(text, capsys):
    with pytest.raises(SystemExit):
        read("--scales", text)
    assert "--scales" in capsys.readouterr().err


def test_the_version_is_that_of_the_package():
    assert f'\nversion = "{flags.VERSION}"\n' in (ROOT / "pyproject.toml").read_text()


# ---- every script

# A script, how it is called, how its line is read, and a line with nothing that could be left out.
SCRIPTS = {
    "eval.py": (
        eval_flags.read_evaluation,
        "--pretrained none --test_set_folder {city}/test --resize_test_imgs",
    ),
    "hloc_files.py": (hloc_flags.read_hloc, "import a b --dataset_folder {city}"),
    "train.py": (train_flags.read_training, "--dataset_folder {city}"),
    "train_only_local.py": (
        train_flags.read_local_training,
        "--dataset_folder {city} --pretrained none",
    ),
    "show.py": (
        show_flags.read_show,
        "attention --pretrained none --image a.jpg --resize_test_imgs",
    ),
    "tune.py": (tune_flags.read_tuning, "RUN"),
    "prepare.py": (prepare_flags.read_preparation, "DIR"),
    "make_toy_city.py": (options.read_city, "DIR"),
    "make_toy_sfm.py": (options.read_sfm, "DIR"),
    "demo.py": (functools.partial(flags.read, Config), ""),
    "demo_delf.py": (delf_flags.read_delf_demo, ""),
    "get_data.py": (None, "URL DIR"),
    "-m example.finetuning": (delf_flags.read_finetuning, "DIR"),
    "-m example.attention": (delf_flags.read_attention, "DIR --param-directory {models}"),
    "-m example.extract_features": (delf_flags.read_delf_extraction, "DIR --pretrained imagenet"),
    "-m voc_tree.main": (tree_flags.read_search, "DIR --expand"),
    "-m voc_tree.grid": (tree_flags.read_grid, "DIR"),
    "-m voc_tree.SIFT.get_descriptor": (tree_flags.read_sift, "DIR"),
}
READERS = {script: how for script, how in SCRIPTS.items() if how[0] is not None}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Folders that lines name; nothing is in them but what reading looks at."""
    root = tmp_path_factory.mktemp("places")
    for split in ("train", "val", "test"):
        (root / "city" / split).mkdir(parents=True)
    run = "retrieval-SfM-120k_resnet101_gem_contrastive_m0.70_adam_lr1.0e-06_wd1.0e-06_nnum5_"
    run += "qsize2000_psize20000_bsize5_uevery1_imsize1024"
    (root / "models" / run).mkdir(parents=True)
    (root / "models" / run / "best_model.pth").touch()
    return {"city": root / "city", "models": root / "models"}


def parser_for(read, monkeypatch) -> flags.Parser:
    """The parser that a reader makes."""
    made = []

    def stop(parser, argv):
        made.append(parser)
        raise InterruptedError

    with monkeypatch.context() as patch, contextlib.suppress(InterruptedError):
        patch.setattr(flags.Parser, "read", stop)
        read("text", [])
    return made[0]


def values_of(options) -> dict[str, list]:
    """The values of each field of a dataclass, and of those in it."""
    found: dict[str, list] = defaultdict(list)
    if isinstance(options, NetworkFlags):
        found |= values_of(options.network)
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        about = field.metadata.get("about")
        if not dataclasses.is_dataclass(value):
            if about or not isinstance(options, Config):
                found[(about and about.flag) or field.name].append(value)
        else:
            for name, values in values_of(value).items():
                found[name] += values
    return found


# What a flag's value is called in the options, where it is not the flag's own name.
CALLED = {"save_dir": "root", "global_scales": "multiscale", "output_dir": "output"}
CALLED |= {"training_dataset": "training_set", "root_directory": "root", "num_workers": "workers"}
CALLED |= {"image_size": "size", "local_scales": "scales"}
IN_WORDS = {"as many as cores", "VAL_RUN/tuning", "its name .png", "that of the attention"}
IN_WORDS |= {"20; of positives 8"}


@pytest.mark.parametrize("script", READERS)
def test_every_default_shown_is_the_one_that_comes_out(script, places, monkeypatch):
    read, line = READERS[script]
    options = read("text", shlex.split(line.format(**places)))
    found = values_of(options) if dataclasses.is_dataclass(options) else {}
    for action in parser_for(read, monkeypatch)._actions:
        shown = re.search(r"\(default: (.*)\)$", action.help or "")
        if shown is None or action.option_strings[0] in line:
            continue
        values = found.get(action.dest, []) + found.get(CALLED.get(action.dest, ""), [])
        if not values:
            assert str(action.default) in (shown[1], "None"), action.dest
        assert all(agrees(shown[1], value) for value in values), (action.dest, shown[1], values)


def agrees(shown: str, value: object) -> bool:
    """Whether a default in words is a value; None is told in words of its own."""
    if value is None or value == "":
        return True
    if isinstance(value, tuple) and value and isinstance(value[0], str):
        return shown == ",".join(value) or shown == " ".join(value)
    if isinstance(value, tuple):
        words = ["all" if v is None else v for v in value]
        parts = shown.split()
        return len(parts) == len(words) and all(
            isinstance(v, str) or agrees(part, v) for part, v in zip(parts, value, strict=True)
        )
    if isinstance(value, float):
        return float(shown) == pytest.approx(value, rel=1e-3)
    return str(value).endswith(shown) or shown in IN_WORDS


def test_the_defaults_that_a_script_has_of_its_own_are_shown(capsys):
    for words in ("--model", "--top_k"):
        text = subprocess.run(
            [sys.executable, "-m", "voc_tree.main", "-h"],
            cwd=AG, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        shown = re.search(rf"^  {words} .*?\(default:\s+(\w+)\)", text, re.DOTALL | re.MULTILINE)
        assert shown[1] == {"--model": "affine", "--top_k": "150"}[words]


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_comes_without_heavy_libraries(script):
    """Grouped, with two examples at the end, and before torch is loaded."""
    code = (
        "import runpy, sys\n"
        "target, *sys.argv[1:] = sys.argv[1:]\n"
        "run = runpy.run_module if target.startswith('-m ') else runpy.run_path\n"
        "try:\n"
        "    run(target.removeprefix('-m '), run_name='__main__')\n"
        "except SystemExit:\n"
        "    heavy = {'torch', 'torchvision', 'cv2', 'faiss', 'matplotlib', 'scipy'}\n"
        "    print('HEAVY', sorted(heavy & sys.modules.keys()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, script, "-h"],
        cwd=AG, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    text, _, heavy = done.stdout.partition("HEAVY ")
    assert heavy.strip() == "[]", done.stderr
    examples = text.partition("\nexamples:\n")[2].strip().splitlines()
    assert len(examples) == 2
    assert ("\nTraining:\n" in text) == (script.split(".")[-1] in TRAIN or script in TRAIN)


TRAIN = ("train.py", "train_only_local.py", "finetuning", "attention", "extract_features")


@pytest.mark.parametrize("script", READERS)
def test_the_examples_of_a_script_can_be_read(script, places, monkeypatch):
    path = AG / (script.removeprefix("-m ").replace(".", "/").removesuffix("/py") + ".py")
    doc = ast.get_docstring(ast.parse(path.read_text()))
    parser = parser_for(READERS[script][0], monkeypatch)
    lines = doc.partition("\nExamples:\n")[2].strip().splitlines()
    for line in lines:
        if not line.strip().startswith("python3"):
            continue
        words = shlex.split(line)
        assert " ".join(words[1:3]).replace("AG/", "").startswith(script)
        words = words[3:] if script.startswith("-m") else words[2:]
        parser.read(tree_flags._joined(words))


def meanings(monkeypatch) -> dict[str, dict[str, str]]:
    """For each flag: script -> help text, up to a colon or a bracket."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for script, (read, _) in READERS.items():
        for action in parser_for(read, monkeypatch)._actions:
            for name in action.option_strings:
                found[name][script] = re.split(r":| \(", action.help or "")[0]
    return found


def test_no_flag_means_two_things(monkeypatch):
    for name, by_script in meanings(monkeypatch).items():
        assert len(set(by_script.values())) == 1, (name, by_script)


def test_every_flag_that_an_error_names_exists(monkeypatch):
    """In some script; a grid's rows and torchrun's flags aside."""
    known = {"--untracked_files", "--porcelain", "--nproc_per_node", "--standalone", "--help"}
    known |= {"--sha256", "--keep_archive", "--max_size", "--FLAG", "--no_field", "--no_deps"}
    for read, _ in READERS.values():
        parser = parser_for(read, monkeypatch)
        known |= set(parser._option_string_actions) | {f"--{name}" for name in parser._names}
    for path in sorted(AG.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                for name in re.findall(r"(?<![\w-])--[A-Za-z][\w-]*", node.value):
                    name = "--" + name[2:].replace("-", "_")
                    whole = name in known or any(each.startswith(name) for each in known)
                    assert whole, (str(path), name)


# ---- the command lines of both READMEs that this project grew from

SHARED = (
    "--gpu-id '3' --training-dataset 'retrieval-SfM-120k' --test-datasets 'roxford5k,rparis6k' "
    "--arch 'resnet18' --pool 'gem' --loss 'contrastive' --loss-margin 0.85 --optimizer 'adam' "
    "--lr 5e-7 --neg-num 3 --query-size=2000 --pool-size=22000 --batch-size 1 --image-size 900 "
    "--epochs 100"
)
TREE = (
    "--root-directory ./features/retrieval-SfM-120k_resnet18_gem_contrastive_m0.85_adam_lr5.0e-07_"
    "wd1.0e-06_nnum3_qsize2000_psize22000_bsize1_uevery1_imsize900 --test-datasets "
    "'roxford5k,rparis6k' --tree-height 6 --tree-branch 10  --output output_delf.txt "
    "--rerank-num 150"
)
README_LINES = [
    ("train.py", "--dataset_folder sf_xs --backbone resnet50 --groups_num 1 --epochs_num 3 "
     "--fm_reduction_dim 128 --reduction"),
    ("train_only_local.py", "--dataset_folder sf_xs --backbone resnet50 --groups_num 1 "
     "--epochs_num 3 --fm_reduction_dim 128 --reduction --resume_model best_model.pth"),
    ("eval.py", "--dataset_folder sf_xs --backbone resnet50 --fc_output_dim 512 "
     "--fm_reduction_dim 128 --reduction --resume_model res50_bs32_red128_3+9.pth"),
    ("-m example.finetuning", f"./models {SHARED}"),
    ("-m example.finetuning", f"./models {SHARED.replace('gem', 'spoc')}"),
    ("-m example.attention", f"./attention_models {SHARED} --param-directory './models'"),
    ("-m example.extract_features", f"./features {SHARED} --param-directory './attention_models' "
     "--feature-num 2000 --alpha-thresh 0"),
    ("-m voc_tree.main", f"./trees_delf {TREE}"),
    ("-m voc_tree.SIFT.get_descriptor", "./features --test-datasets 'roxford5k,rparis6k'"),
    ("-m voc_tree.main", "./trees --root-directory ./features/sift --test-datasets "
     "'roxford5k,rparis6k' --tree-height 6 --tree-branch 10  --output output_sift.txt "
     "--rerank-num 150"),
]  # fmt: skip


@pytest.mark.parametrize(("script", "line"), README_LINES)
def test_the_lines_of_both_readmes_are_understood_without_a_warning(
    script, line, monkeypatch, caplog
):
    asked = parser_for(READERS[script][0], monkeypatch).read(shlex.split(line))
    assert not caplog.text
    if "--epochs_num" in line:
        assert asked.get("epochs") == 3
    if "--feature-num" in line:
        assert (asked.get("max_features"), asked.get("min_score")) == (2000, 0.0)
    if "--rerank-num" in line:
        assert asked.get("top_k") == 150


# Names that were once in use, and what they are called now.
OLD = [
    ("eval.py", "--scales 1 0.7071 0.5", "global_scales", (1.0, 0.7071, 0.5)),
    ("-m example.finetuning", "d --multiscale '[1, 1/2]'", "global_scales", (1.0, 0.5)),
    ("-m example.finetuning", "d --workers 3 --resume f", "num_workers", 3),
    ("-m example.extract_features", "d --scales '1/2, 2'", "local_scales", (0.5, 2.0)),
    ("-m voc_tree.main", "d --s2 --no-ransac", "no_rerank", True),
    ("-m voc_tree.main", "d --s2", "original", True),
    ("-m voc_tree.main", "d --precision float32", "match_precision", "float32"),
    ("show.py", "attention --image a.jpg", "query", "a.jpg"),
    ("make_toy_city.py", "d --workers 2", "num_workers", 2),
]


@pytest.mark.parametrize(("script", "line", "flag", "value"), OLD)
def test_old_names_go_on_working(script, line, flag, value, monkeypatch):
    asked = parser_for(READERS[script][0], monkeypatch).read(shlex.split(line))
    assert asked.get(flag) == value


ODD = ("0", "-1", "nan", "inf", "-inf", "1000000000", "1e999", "", "xyzzy", "0.5")


def refusal(read, words: list[str], capsys) -> str:
    """What is said of a command line; nothing if it is taken, which must then be finite."""
    try:
        options = read("text", words)
        found = values_of(options).values() if dataclasses.is_dataclass(options) else []
    except InputError as error:
        return str(error)
    except SystemExit as stop:  # of argparse
        return capsys.readouterr().err if stop.code == 2 else f"exit status {stop.code}"
    numbers = [each for values in found for value in values for each in np.ravel([value])]
    assert not any(isinstance(each, float) and not math.isfinite(each) for each in numbers), words
    return ""


@pytest.mark.parametrize("script", READERS)
def test_odd_values_are_refused_by_the_name_of_the_flag(script, places, monkeypatch, capsys):
    read, line = READERS[script]
    for action in parser_for(read, monkeypatch)._actions:
        if action.option_strings and action.nargs != 0:
            flag = action.option_strings[0]
            for value in ODD:
                said = refusal(read, [*shlex.split(line.format(**places)), flag, value], capsys)
                told = (flag, flag.replace("_", "-"), value or "no text", "make the directory name")
                assert not said or any(each in said for each in told), f"{flag} {value!r}: {said}"
