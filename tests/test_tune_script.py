"""eval.py, tune.py, and eval.py with what tune.py wrote, as a user runs them, on a toy city."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from retrieval.commands import script
from retrieval.configs.describe import DelgConfig
from retrieval.configs.rerank_file import read_rerank
from retrieval.errors import InputError
from retrieval.evaluation import Evaluation

AG = Path(__file__).parents[1] / "AG"
CITY = (
    "--image_size 96 --train_streets 1 --val_streets 1 --test_streets 1 --cells_per_street 1 "
    "--database_spacing 20 --val_queries 12 --test_queries 10 --workers 1"
)
EVAL = (
    "eval.py --backbone resnet18 --fc_output_dim 32 --attention norm --pretrained none "
    "--local_scales 1 2 --top_k 6 --num_workers 0 --precision fp32 --device cpu"
)
AXES = "--top_k 6 3 --num_features all 40 --max_distance none --floor 0 --fusion 0 5"


def start(folder: Path, command: str) -> subprocess.Popen[str]:
    script, *words = command.split()
    return subprocess.Popen(
        [sys.executable, str(AG / script), *words], cwd=folder, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def run(folder: Path, command: str, status: int = 0) -> tuple[str, str]:
    process = start(folder, command)
    output, errors = process.communicate(timeout=240)
    assert process.returncode == status, output + errors
    assert "Traceback" not in errors, errors
    return output, errors


def newest(folder: Path, save_dir: str) -> Path:
    return max((folder / "logs" / save_dir).iterdir())


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuning")
    run(folder, f"make_toy_city.py city {CITY}")
    for split in ("val", "test"):
        run(folder, f"{EVAL} --test_set_folder city/{split} --save_dir {split}")
    return folder


@pytest.fixture(scope="module")
def tuned(workplace):
    """The output of tune.py, killed once on its way, and its folder."""
    val, test = newest(workplace, "val"), newest(workplace, "test")
    command = f"tune.py {val} --test_run {test} {AXES} --threads 1"
    counts, deadline = val / "tuning" / "counts", time.monotonic() + 120
    process = start(workplace, command)
    while not list(counts.glob("*.npz")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    saved = {path: path.stat().st_mtime_ns for path in counts.glob("*.npz")}
    assert saved
    output, _ = run(workplace, command)
    assert all(path.stat().st_mtime_ns == when for path, when in saved.items())
    return output, val / "tuning"


def test_tables_files_and_both_splits(tuned):
    output, folder = tuned
    assert "32 settings, 8 distinct geometries; 32 of one_way" in output
    for line in ("best", "Pareto front", "validation, best of 32 settings: R@1 "):
        assert f"\n{line}" in output
    assert "test, best of validation: R@1 " in output
    assert "test, defaults: R@1 " in output
    assert {path.name for path in folder.iterdir()} == {
        "counts", "rerank.toml", "tuning.json", "tuning.png",
    }  # fmt: skip
    told = json.loads((folder / "tuning.json").read_text())
    assert len(told["settings"]) == 32
    settings = Evaluation.open(folder.parent).protocol.settings
    assert told["protocols"][0] == json.loads(json.dumps(settings))
    assert told["test"].keys() == {"best of validation", "defaults"}
    assert (folder / "tuning.png").stat().st_size > 20_000
    comment = [line for line in (folder / "rerank.toml").read_text().splitlines() if "#" in line]
    assert sum("test, " in line for line in comment) == 2
    chosen = read_rerank(folder / "rerank.toml")
    assert (chosen is None) == (told["validation"]["interval_95"][0] <= 0)


def test_eval_takes_what_was_chosen(workplace, tuned, tmp_path):
    _, folder = tuned
    told = json.loads((folder / "tuning.json").read_text())
    file = folder / "rerank.toml"
    if read_rerank(file) is None:  # then there is nothing to compare but the best that was refused
        file = tmp_path / "rerank.toml"
        file.write_text('checksum = "none"\ntop_k = 6\nfloor = 0.0\n')
    words, _ = run(
        workplace, f"{EVAL} --test_set_folder city/test --rerank_config {file} --save_dir again"
    )
    assert f"re-ranking as {file} says" in words
    again = Evaluation.open(newest(workplace, "again"))
    if file.parent == folder:
        best = told["test"]["best of validation"]
        assert again.last.figures["R@1"] == pytest.approx(best["figure"])
        interval = again.comparison().gain[1:]
        assert interval == pytest.approx(best["interval_95"])
    default = Evaluation.open(newest(workplace, "test"))
    assert default.last.figures["R@1"] == pytest.approx(told["test"]["defaults"]["figure"])


def test_eval_reranks_nothing_where_the_file_says_so(workplace, tmp_path):
    (tmp_path / "rerank.toml").write_text('checksum = "none"\nrerank = false\n')
    words, _ = run(
        workplace,
        f"{EVAL} --test_set_folder city/test --rerank_config {tmp_path}/rerank.toml "
        "--save_dir without",
    )
    assert f"no re-ranking as {tmp_path}/rerank.toml says" in words
    without = Evaluation.open(newest(workplace, "without"))
    whole = Evaluation.open(newest(workplace, "test"))
    assert [step.name for step in without.steps] == ["global"]
    assert without.first.figures == whole.first.figures
    with (without.folder / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len({row["query"] for row in rows}) == 10
    assert all(Path(row["prediction"]).is_file() for row in rows)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("logs/val", "no run folder"),
        ("VAL --test_run VAL", "must be measured on others"),
        ("VAL --top_k 7", "evaluate again with --top_k 7"),
        ("VAL --residual 0", "residual 0"),
        ("VAL --resume_model other.pth", "features are of other weights"),
        ("VAL --resume_model none.pth", "--resume_model none.pth: no such file"),
    ],
)
def test_bad_input_is_one_clear_error(workplace, words, message, monkeypatch, capsys):
    # In this process, since importing torch for each of them would take most of the time.
    import torch

    import tune
    from retrieval.networks.create import create

    monkeypatch.chdir(workplace)
    torch.manual_seed(1)
    config = DelgConfig("resnet18", fc_output_dim=32, attention="norm")
    torch.save(create(config, "none").network.state_dict(), "other.pth")
    argv = words.replace("VAL", str(newest(workplace, "val"))).split()
    with pytest.raises(SystemExit) as stop:
        script.run(lambda: tune.main(argv))
    assert stop.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert message in said[-1]
    assert said[-1].startswith("error: ")


def test_a_run_of_visual_words_has_no_network_to_compare(workplace, tmp_path):
    import tune

    run = Evaluation.open(newest(workplace, "val"), with_features=False)
    settings = {name: value for name, value in run.protocol.settings.items() if name != "network"}
    replace(run, protocol=replace(run.protocol, settings=settings)).save(tmp_path)
    with pytest.raises(InputError, match=r"of visual words: leave --resume_model out"):
        tune.open_runs(tmp_path, None, Path("best_model.pth"))
