"""The scripts as a user runs them: in processes of their own, on a tiny toy city."""

import csv
import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from retrieval.commands import script
from retrieval.evaluation import Evaluation
from retrieval.networks.create import create, resolve_config

AG = Path(__file__).parents[1] / "AG"
CITY = (
    "--image_size 64 --train_streets 1 --val_streets 1 --test_streets 1 --cells_per_street 1 "
    "--val_queries 6 --test_queries 8 --workers 1"
)
NETWORK = "--backbone resnet18 --fc_output_dim 32 --fm_reduction_dim 16 --reduction"
TRAINING = (
    "--dataset_folder city --pretrained none --groups_num 1 --batch_size 4 --image_size 64 "
    "--lr 1e-3 --num_workers 0 --device cpu"
)


def run(folder: Path, command: str, status: int | None = 0) -> subprocess.CompletedProcess[str]:
    script, *words = command.split()
    done = subprocess.run(
        [sys.executable, str(AG / script), *words],
        cwd=folder, capture_output=True, text=True, env=environment(), timeout=240,
    )  # fmt: skip
    if status is not None:
        assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def runs(folder: Path, save_dir: str) -> list[Path]:
    return sorted((folder / "logs" / save_dir).iterdir())


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["model"]


def equal(a: Path, b: Path) -> bool:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    return all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workplace")
    run(folder, f"make_toy_city.py city {CITY}")
    return folder


@pytest.fixture(scope="module")
def trained(workplace):
    """Two epochs of joint training in one go; returns its run folder."""
    done = run(
        workplace,
        f"train.py {TRAINING} {NETWORK} --epochs_num 2 --iterations_per_epoch 3 --save_dir joint "
        "--num_preds_to_save 1",
    )
    assert "test, global descriptors of the best epoch: R@1" in done.stdout
    (folder,) = runs(workplace, "joint")
    return folder


def test_training_writes_its_run_folder(trained):
    names = {path.name for path in trained.iterdir()}
    assert {"settings.json", "info.log", "losses.csv", "best_model.pth", "finished"} <= names
    assert "weights: " in (trained / "info.log").read_text()  # said before there was a folder
    assert any(name.startswith("events.out.tfevents") for name in names)
    with (trained / "losses.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["epoch"], row["step"]) for row in rows] == [
        (str(epoch), str(step)) for epoch in range(2) for step in range(3)
    ]
    for row in rows:
        total = float(row["global"]) + float(row["attention"]) + 10 * float(row["reconstruction"])
        assert float(row["total"]) == pytest.approx(total, rel=1e-4)


def test_one_epoch_and_one_more_are_two_epochs(workplace, trained):
    common = f"train.py {TRAINING} {NETWORK} --iterations_per_epoch 3 --save_dir split"
    run(workplace, f"{common} --epochs_num 1")
    (first,) = runs(workplace, "split")
    done = run(workplace, f"{common} --epochs_num 2 --resume_train {first}/last_checkpoint.pth")
    assert "epoch 1, step 0" in done.stdout
    second = runs(workplace, "split")[-1]
    assert second != first
    assert equal(second / "last_checkpoint.pth", trained / "last_checkpoint.pth")


def test_a_stopped_training_goes_on_to_the_same_weights(workplace, trained):
    command = (
        f"train.py {TRAINING} {NETWORK} --epochs_num 2 --iterations_per_epoch 3 --save_dir stopped"
    )
    script, *words = command.split()
    process = subprocess.Popen(
        [sys.executable, str(AG / script), *words], cwd=workplace, env=environment(),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    losses = workplace / "logs" / "stopped"
    deadline = time.monotonic() + 120
    while not list(losses.glob("*/losses.csv")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, output
    assert "the same command goes on" in output
    (folder,) = runs(workplace, "stopped")
    state = torch.load(folder / "last_checkpoint.pth", weights_only=True)
    assert (state["epoch"], state["step"]) < (1, 3)
    done = run(workplace, command)
    assert "Going on from" in done.stdout
    assert runs(workplace, "stopped") == [folder]
    assert equal(folder / "last_checkpoint.pth", trained / "last_checkpoint.pth")


def test_the_number_of_workers_changes_nothing(workplace, trained):
    command = f"train.py {TRAINING} {NETWORK} --epochs_num 2 --iterations_per_epoch 3"
    run(workplace, command.replace("--num_workers 0", "--num_workers 2") + " --save_dir workers")
    (folder,) = runs(workplace, "workers")
    assert equal(folder / "last_checkpoint.pth", trained / "last_checkpoint.pth")


def test_local_only_training_moves_the_local_head_alone(workplace, trained):
    run(
        workplace,
        f"train_only_local.py {TRAINING.replace('--pretrained none', '')} {NETWORK} "
        f"--resume_model {trained}/best_model.pth --epochs_num 1 --iterations_per_epoch 3 "
        "--save_dir local --top_k 5",
    )
    (folder,) = runs(workplace, "local")
    before, after = weights(trained / "best_model.pth"), weights(folder / "last_checkpoint.pth")
    moved = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert moved == {"attention", "autoencoder"}
    # Nor do BatchNorm's statistics move: the global descriptors are the same to the bit.
    photos = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    described = [
        create(resolve_config({}, str(path)), str(path)).network.eval()(photos).descriptors
        for path in (trained / "best_model.pth", folder / "best_model.pth")
    ]
    assert torch.equal(*described)


@pytest.fixture(scope="module")
def evaluated(workplace, trained):
    command = (
        f"eval.py --dataset_folder city {NETWORK} --resume_model {trained}/best_model.pth "
        "--device cpu --num_workers 0 --local_scales 1 2 --top_k 5 --num_preds_to_save 2 "
        "--save_descriptors --precision fp32"
    )
    done = run(workplace, f"{command} --threads 1 --save_dir eval1")
    (folder,) = runs(workplace, "eval1")
    return command, done.stdout, Evaluation.open(folder), folder


def test_evaluation_prints_and_writes_its_figures(evaluated):
    _, output, result, folder = evaluated
    line = next(line for line in output.splitlines() if line.startswith("global  "))
    assert line.split()[1] == f"{result.first.figures['R@1']:.1f}"
    names = {"R@1", "R@5", "R@10", "R@20"}
    assert result.first.figures.keys() == result.last.figures.keys() == names
    assert result.verified.num_inliers.shape == (8, 5)
    for key in ("weights_sha256", "seed", "rerank"):
        assert result.protocol.settings[key] not in (None, ""), key
    assert all((result.protocol.fingerprint, result.protocol.commit, result.protocol.versions))
    assert "eval.py --dataset_folder city" in result.command
    assert (folder / "command.txt").read_text() == result.command + "\n"
    log = (folder / "info.log").read_text()
    assert "network: resnet18" in log
    assert "report, to be opened" in log
    assert {path.name for path in (folder / "preds").iterdir()} == {"0000.jpg", "0001.jpg"}
    assert (folder / "queries_descriptors.npy").is_file()
    assert (folder / "database_descriptors.npy").is_file()
    assert f"browser: {folder.relative_to(folder.parents[2])}/report.html" in output
    assert "8 of 8 queries shown" in (folder / "report.html").read_text()


def test_evaluation_is_repeatable_for_every_number_of_threads(workplace, evaluated):
    command, _, first, folder = evaluated
    run(workplace, f"{command} --threads 3 --save_dir eval3")
    again = Evaluation.open(runs(workplace, "eval3")[0])
    for one, other in zip(first.steps, again.steps, strict=True):
        assert one.figures == other.figures
        assert one.ranking.rows.tolist() == other.ranking.rows.tolist()
    predictions = "predictions.csv"
    assert (runs(workplace, "eval3")[0] / predictions).read_text() == (
        folder / predictions
    ).read_text()


def test_the_commands_of_the_first_readme_are_understood(workplace, trained, evaluated):
    # The evaluation command of the first PyTorch DELG, letter by letter but for the paths.
    run(
        workplace,
        "eval.py --dataset_folder city --backbone resnet18 --fc_output_dim 32 "
        f"--fm_reduction_dim 16 --reduction --resume_model {trained}/best_model.pth",
    )


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train.py --dataset_folder nowhere", "nowhere"),
        ("train.py", "--dataset_folder"),
        ("train.py --dataset_folder city --pretrained none --groups_num 8", "--groups_num 1"),
        ("train.py --dataset_folder city --backbone resnet19", "resnet19"),
        ("train.py --dataset_folder city --device cuda:77", "cuda:77"),
        ("train.py --dataset_folder city --resume_train none.pth", "none.pth"),
        ("train.py --dataset_folder city --pretrained none.pth --groups_num 1", "none.pth"),
        (
            f"train.py {TRAINING} --backbone resnet18 --batch_size 1 --image_size 32",
            "too small for the network's BatchNorm",
        ),
        ("train.py --dataset_folder city --pretrained none --batch_size 0", "--batch_size"),
        ("train.py --dataset_folder city --learning_rate 1", "--learning_rate"),
        ("train_only_local.py --dataset_folder city", "--resume_model"),
        ("eval.py --dataset_folder city", "which weights"),
        ("eval.py --dataset_folder city --pretrained none --resume_model x", "exclude each other"),
        ("eval.py --dataset_folder city/nowhere --pretrained none", "city/nowhere/test"),
        ("eval.py --dataset_folder city --pretrained none --local_features f --no_rerank",
         "--local_features and --no_rerank exclude each other"),
        ("eval.py --database_folder city/train --pretrained none", "--queries_folder"),
        ("eval.py --dataset_folder city --pretrained none --head gem --backend poseidon",
         "poseidon"),
        ("eval.py --dataset_folder city --pretrained none --resize_test_imgs --longest_side 9",
         "--longest_side"),
        ("show.py matches --pretrained none --query a.png --output b.png", "--database"),
        ("show.py attention --pretrained none --image nowhere.png --output b.png", "nowhere.png"),
        ("make_toy_city.py city --image_size 3", "--image_size"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_error(workplace, command, message, monkeypatch, capsys):
    # In this process, since importing torch for each of them would take most of the time.
    monkeypatch.chdir(workplace)
    name, *words = command.split()
    main = importlib.import_module(name.removesuffix(".py")).main
    with pytest.raises(SystemExit) as stop:
        script.run(lambda: main(words))
    assert stop.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert message in said[-1]


def test_an_error_is_one_line_and_no_traceback(workplace):
    done = run(workplace, "train.py --dataset_folder nowhere", status=2)
    assert done.stderr.startswith("error: nowhere")
    assert len(done.stderr.strip().splitlines()) == 1


def test_weights_of_another_shape_are_refused(workplace, trained):
    done = run(
        workplace,
        f"eval.py --dataset_folder city --backbone resnet18 --fc_output_dim 64 "
        f"--resume_model {trained}/best_model.pth",
        status=2,
    )
    assert "--fc_output_dim 64, but the file has 32" in done.stderr


def test_a_broken_image_ends_training_and_evaluation(workplace, trained, tmp_path):
    source = workplace / "city" / "test"
    for split in ("database", "queries_v1"):
        (tmp_path / "test" / split).mkdir(parents=True)
        for path in (source / split).iterdir():
            (tmp_path / "test" / split / path.name).write_bytes(path.read_bytes())
    broken = sorted((tmp_path / "test" / "database").iterdir())[3]
    broken.write_bytes(broken.read_bytes()[:-500])
    command = (
        f"eval.py --dataset_folder {tmp_path} --resume_model {trained}/best_model.pth --no_rerank "
        "--num_workers 0 --save_dir broken"
    )
    done = run(workplace, command, status=2)
    assert broken.name in done.stderr
    assert "--skip_bad_images" in done.stderr
    done = run(workplace, f"{command} --skip_bad_images")
    assert "SKIPPED 1" in done.stdout
    result = Evaluation.open(runs(workplace, "broken")[-1])
    assert len(result.skipped) == 1


def test_broken_photos_of_every_split_end_a_training_before_it_begins(workplace, tmp_path):
    shutil.copytree(workplace / "city", tmp_path / "city")
    broken = []
    for split in ("train", "val/database", "test/queries_v1"):
        path = min((tmp_path / "city" / split).rglob("*.jpg"))
        path.write_bytes(path.read_bytes()[:-500] if split != "train" else b"<html>")
        broken.append(path.name)
    command = f"train.py {TRAINING} {NETWORK} --epochs_num 1 --iterations_per_epoch 2"
    done = run(tmp_path, command, status=2)
    assert re.search(r"3 of \d+ photos cannot be read; --skip_bad_images", done.stderr)
    assert broken[0] in done.stderr
    assert not (tmp_path / "logs").exists()
    done = run(tmp_path, f"{command} --skip_bad_images")
    assert "test, global descriptors of the best epoch" in done.stdout
    assert all(f"{name}" in done.stdout for name in broken[1:])
    (best,) = (tmp_path / "logs").glob("*/*/best_model.pth")
    local = command.replace("train.py", "train_only_local.py").replace("--pretrained none", "")
    local += f" --resume_model {best}"
    done = run(tmp_path, local, status=2)
    assert re.search(r"2 of \d+ photos cannot be read; --skip_bad_images", done.stderr)
    run(tmp_path, f"{local} --skip_bad_images")


def test_pictures_are_written(workplace, trained):
    queries = sorted((workplace / "city" / "test" / "queries_v1").iterdir())
    database = sorted((workplace / "city" / "test" / "database").iterdir())
    model = f"--resume_model {trained}/best_model.pth"
    run(workplace, f"show.py attention {model} --image {queries[0]} --output a.png")
    photos = f"--query {queries[0]} --database {database[0]}"
    run(workplace, f"show.py matches {model} {photos} --output m.png")
    for name in ("a.png", "m.png"):
        assert (workplace / name).stat().st_size > 10_000


def test_two_processes_train_together(workplace):
    # The gradients of two halves of a batch are averaged; both processes end with equal weights,
    # and only the first writes.
    command = f"{TRAINING} {NETWORK} --epochs_num 1 --iterations_per_epoch 2 --save_dir two"
    launcher = "-m torch.distributed.run --standalone --nproc_per_node 2"
    done = subprocess.run(
        [sys.executable, *launcher.split(), str(AG / "train.py"), *command.split()],
        cwd=workplace, capture_output=True, text=True, env=environment(), timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = runs(workplace, "two")
    assert (folder / "best_model.pth").is_file()
    with (folder / "losses.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2


def test_names_cannot_steer_the_terminal(workplace):
    odd = os.fsdecode(b"a\x1b[2J\xff.jpg")
    (workplace / "odd").mkdir()
    for name in (odd, "b.jpg"):
        (workplace / "odd" / name).write_bytes(name.encode(errors="surrogateescape"))
    done = run(
        workplace,
        "eval.py --database_folder odd --queries_folder odd --no_labels --backbone resnet18 "
        "--pretrained none",
        status=2,
    )
    assert r"a\x1b[2J\udcff.jpg" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr


def test_a_signal_to_the_helper_processes_too_stops_a_training(workplace):
    command = f"train.py {TRAINING} {NETWORK} --iterations_per_epoch 400 --save_dir group"
    script, *words = f"{command} --num_workers 2".split()
    process = subprocess.Popen(
        [sys.executable, str(AG / script), *words], cwd=workplace, env=environment(),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    folder = workplace / "logs" / "group"
    while not any(path.stat().st_size > 200 for path in folder.glob("*/losses.csv")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)  # as `timeout` and schedulers do
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, output
    assert "stopped by SIGTERM; the same command goes on from there" in output
    assert "Traceback" not in output
    assert (runs(workplace, "group")[0] / "last_checkpoint.pth").exists()


def test_photos_are_no_answers_to_themselves(workplace):
    """Of one folder as database and queries, by both ways of searching."""
    command = (
        "eval.py --database_folder city/val/database --queries_folder city/val/database "
        "--backbone resnet18 --pretrained none --no_rerank --save_dir"
    )
    done = run(workplace, f"{command} self --no_labels")
    assert "queries are in the database themselves" in done.stdout
    found = Evaluation.open(runs(workplace, "self")[-1], with_features=False)
    rows = found.first.ranking.rows
    assert not (rows == np.arange(len(rows))[:, None]).any()
    done = run(workplace, f"{command} self --keep_self")
    assert re.search(r"global +100\.0", done.stdout)
