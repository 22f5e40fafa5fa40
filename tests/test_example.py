import contextlib
import json
import os
import pickle
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from example import attention, extract_features, finetuning
from retrieval import checkpoint, errors
from retrieval.commands import delf_flags
from retrieval.data.sfm_pairs import image_path
from retrieval.errors import InputError
from retrieval.evaluation import Evaluation
from retrieval.feature_folders import find_store
from retrieval.report import revisited_lines
from retrieval.training import run_folder, trainer

SHARED = (
    "--gpu-id '3' --training-dataset 'retrieval-SfM-120k' --test-datasets 'roxford5k,rparis6k' "
    "--arch 'resnet18' --pool 'gem' --loss 'contrastive' --loss-margin 0.85 --optimizer 'adam' "
    "--lr 5e-7 --neg-num 3 --query-size=2000 --pool-size=22000 --batch-size 1 --image-size 900 "
    "--epochs 100"
)
LONG_NAME = (
    "retrieval-SfM-120k_resnet18_gem_contrastive_m0.85_adam_lr5.0e-07_wd1.0e-06_nnum3_qsize2000_"
    "psize22000_bsize1_uevery1_imsize900"
)
TEST = "tinytown"


@pytest.fixture(autouse=True)
def _gpus_as_before(monkeypatch):
    # --gpu-id sets it for the process.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES", ""))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data set in cirtorch's layout: 6 clusters of 3 photos; a test set of 8 and 2 queries."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)

    def write(path, look, size=(48, 40)):
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = rng.integers(0, 60, (5, 6, 3)) + look
        small = finetuning_image(noise.clip(0, 255).astype(np.uint8), size)
        small.save(path, format="JPEG")

    folder = root / "train" / "retrieval-SfM-120k"
    lists = {}
    for mode in ("train", "val"):
        cids = [f"{mode}{i:02d}0123456789{i:02d}" for i in range(18)]
        for i, cid in enumerate(cids):
            size = (48, 40) if i % 4 else (40, 48)
            write(image_path(folder, cid), np.array([i // 3 * 30, 90, 200 - i // 3 * 30]), size)
        first = list(range(0, 18, 3))
        clusters = [i // 3 for i in range(18)]
        pairs = {"qidxs": first, "pidxs": [i + 1 for i in first]}
        lists[mode] = {"cids": cids, "cluster": clusters, **pairs}
    (folder / "retrieval-SfM-120k.pkl").write_bytes(pickle.dumps(lists))
    whiten = {key: lists["train"][key] for key in ("cids", "qidxs", "pidxs")}
    (folder / "retrieval-SfM-120k-whiten.pkl").write_bytes(pickle.dumps(whiten))
    test = root / "test" / TEST
    names = [f"photo{i}" for i in range(8)]
    for i, name in enumerate([*names, "asked0", "asked1"]):
        write(test / "jpg" / f"{name}.jpg", np.array([i * 20, 100, 60]), (64, 48))
    entry = {"bbx": [4, 4, 60, 44], "easy": [0, 1], "hard": [2], "junk": [3]}
    gnd = {"imlist": names, "qimlist": ["asked0", "asked1"], "gnd": [entry, entry]}
    (test / f"gnd_{TEST}.json").write_text(json.dumps(gnd))
    return root


def finetuning_image(pixels, size):
    from PIL import Image

    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def flags(data, **more):
    given = {
        "data-root": data,
        "test-datasets": TEST,
        "arch": "resnet18",
        "lr": "1e-4",
        "neg-num": 2,
        "query-size": 4,
        "pool-size": 12,
        "batch-size": 2,
        "image-size": 48,
        "epochs": 2,
        "workers": 0,
        "test-freq": 0,
    } | {name.replace("_", "-"): value for name, value in more.items()}
    return ["--not-pretrained", *(word for k, v in given.items() for word in (f"--{k}", str(v)))]


def only_folder(root):
    (folder,) = Path(root).iterdir()
    return folder


# ---- delf_pytorch's command lines


def test_the_long_directory_name_is_that_of_the_readme(tmp_path):
    asked = delf_flags.read_finetuning(None, ["./models", *shlex.split(SHARED)])
    assert asked.name == LONG_NAME
    assert asked.folder == Path("models") / LONG_NAME
    assert (asked.tune.loss_margin, asked.mining.neg_num, asked.tune.epochs) == (0.85, 3, 100)
    assert asked.test_datasets == ("roxford5k", "rparis6k")
    assert asked.pretrained == "imagenet"


def test_the_steps_find_each_other_by_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for step in ("models", "attention_models"):
        (tmp_path / step / LONG_NAME).mkdir(parents=True)
        (tmp_path / step / LONG_NAME / run_folder.BEST_MODEL).touch()
    line = ["./attention_models", *shlex.split(SHARED), "--param-directory", "./models"]
    asked = delf_flags.read_attention(None, line)
    assert asked.pretrained == f"models/{LONG_NAME}/best_model.pth"
    assert asked.network.attention == "learned"
    assert not asked.train_all
    asked = delf_flags.read_attention(None, [*line, "--layer", "layer3", "--train-all"])
    assert (asked.network.layer, asked.network.local_layer) == ("layer3", "layer3")
    assert asked.train_all
    assert asked.name == LONG_NAME
    line = ["./features", *shlex.split(SHARED), "--param-directory", "./attention_models"]
    read = delf_flags.read_delf_extraction(
        None, [*line, "--feature-num", "2000", "--alpha-thresh", "0"]
    )
    assert read.folder == Path("features") / LONG_NAME
    assert read.pretrained == f"attention_models/{LONG_NAME}/best_model.pth"
    assert (read.local.feature_num, read.local.alpha_thresh) == (2000, 0.0)
    assert read.scales[0] == 0.25
    assert len(read.scales) == 7


def test_every_setting_of_the_network_is_in_the_name():
    line = ["x", "--local-whitening", "--regional", "--whitening", "--not-pretrained"]
    asked = delf_flags.read_finetuning(None, line)
    assert asked.name == (
        "retrieval-SfM-120k_resnet101_gem_lwhiten_r_whiten_notpretrained_contrastive_m0.70_adam_"
        "lr1.0e-06_wd1.0e-06_nnum5_qsize2000_psize20000_bsize5_uevery1_imsize1024"
    )


def test_a_gpu_that_is_not_there_means_the_cpu_with_a_warning(caplog):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    asked = delf_flags.read_finetuning(None, ["x", "--gpu-id", "7"])
    assert asked.resources.device == "auto"
    assert "--gpu-id 7" in caplog.text
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "7"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--lr 0", "--lr 0"),
        ("--batch-size 0", "--batch_size 0"),
        ("--loss-margin -1", "--loss_margin -1"),
        ("--arch resnet3", "--backbone resnet3: expected one of"),
        ("--pretrained imagenet --not-pretrained", "exclude each other"),
        ("--test-datasets a,a", "comes twice"),
        ("--resume gone.pth", "--resume_train gone.pth: no such file"),
    ],
)
def test_flags_that_cannot_be_are_refused(line, message):
    with pytest.raises(InputError, match=message):
        delf_flags.read_finetuning(None, ["x", *shlex.split(line)])


def test_a_missing_run_is_named_with_those_that_are_there(tmp_path):
    (tmp_path / "models" / "other_run").mkdir(parents=True)
    (tmp_path / "models" / "other_run" / run_folder.BEST_MODEL).touch()
    with pytest.raises(InputError, match=r"--param-directory is needed"):
        delf_flags.read_attention(None, ["x"])
    line = ["x", "--param-directory", str(tmp_path / "models")]
    with pytest.raises(InputError, match=r"resnet101.*has other_run"):
        delf_flags.read_attention(None, line)
    line += ["--pretrained", "imagenet"]
    with pytest.raises(InputError, match="--param-directory and --pretrained exclude"):
        delf_flags.read_delf_extraction(None, line)
    with pytest.raises(InputError, match="nowhere: no such folder"):
        delf_flags.read_delf_extraction(None, ["x", "--param-directory", "nowhere"])


def test_lines_are_those_of_the_readme():
    easy = {"mAP E": 61.004, "mP@1 E": 60.0, "mP@5 E": 44.571, "mP@10 E": 35.843}
    medium = {"mAP M": 33.7, "mP@1 M": 100.0, "mP@5 M": 63.636, "mP@10 M": 49.636}
    figures = easy | medium
    assert revisited_lines("rparis6k", figures) == [
        ">> rparis6k: mAP E: 61.0, M: 33.7",
        ">> rparis6k: mP@k[1, 5, 10] E: [60.   44.57 35.84], M: [100.    63.64  49.64]",
    ]


# ---- training


def weights(root):
    return checkpoint.load(only_folder(root) / run_folder.LAST_CHECKPOINT)


def assert_same_training(first, second):
    assert first["epoch"] == second["epoch"]
    assert first["best"] == second["best"]
    for key, tensor in first["model"].items():
        assert torch.equal(tensor, second["model"][key]), key
    moments = first["optimizer"]["state"], second["optimizer"]["state"]
    for row, state in moments[0].items():
        assert torch.equal(state["exp_avg_sq"], moments[1][row]["exp_avg_sq"])


def test_a_resumed_training_ends_as_one_that_never_stopped(tmp_path, data, monkeypatch):
    whole, parts, killed = (str(tmp_path / name) for name in ("whole", "parts", "killed"))
    finetuning.main([whole, *flags(data, epochs=2)])
    finetuning.main([parts, *flags(data, epochs=1)])
    finetuning.main([parts, *flags(data, epochs=2)])
    assert_same_training(weights(whole), weights(parts))

    step = trainer.Trainer.update
    count = iter(range(100))

    def interrupted(self, *optimizers):
        step(self, *optimizers)
        if next(count) == 2:  # after the first step of the second epoch
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(trainer.Trainer, "update", interrupted)
    with pytest.raises(errors.Stopped):
        finetuning.main([killed, *flags(data, epochs=2)])
    state = weights(killed)
    assert (state["epoch"], state["step"]) == (1, 1)
    assert state["tuples"] is not None
    finetuning.main([killed, *flags(data, epochs=2)])
    assert_same_training(weights(whole), weights(killed))

    with pytest.raises(InputError, match=r"other settings: seed 1 \(the checkpoint has 0\)"):
        finetuning.main([whole, *flags(data, seed=1)])


def test_tuples_of_one_batch_share_a_step(tmp_path, data):
    """The gradient of a batch is the sum over its tuples, whatever their photos' sizes."""
    folder = str(tmp_path / "models")
    line = flags(data, epochs=1, batch_size=4, optimizer="sgd", precision="fp32", lr="1e-3")
    finetuning.main([folder, *line])
    trained = weights(folder)["model"]["pool.p"]
    line = flags(data, epochs=1, batch_size=2, update_every=2, optimizer="sgd", precision="fp32")
    other = str(tmp_path / "other")
    finetuning.main([other, *line, "--lr", "1e-3"])
    torch.testing.assert_close(weights(other)["model"]["pool.p"], trained)
    assert trained != 3.0


def test_the_loss_of_a_smaller_last_batch_is_a_mean_too(tmp_path, data):
    means = {}
    for size in (1, 1000):
        folder = tmp_path / str(size)
        line = flags(data, epochs=1, batch_size=size, update_every=1000, precision="fp32")
        finetuning.main([str(folder), *line])
        (losses,) = folder.glob("*/losses.csv")
        rows = [float(line.split(",")[2]) for line in losses.read_text().splitlines()[1:]]
        means[size] = np.mean(rows)
    assert len(rows) == 1
    assert means[1000] == pytest.approx(means[1], rel=1e-4)


def as_process(folder, words):
    """Run ``python3 words`` as a user does; what it printed."""
    path = str(Path(finetuning.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_processes_learn_what_one_does(tmp_path, data):
    """Each takes half of a batch's tuples; the gradients are summed."""
    line = flags(data, epochs=1, optimizer="sgd", precision="fp32", lr="1e-3")
    finetuning.main([str(tmp_path / "one"), *line])
    launcher = "-m torch.distributed.run --standalone --nproc_per_node 2 -m example.finetuning"
    as_process(tmp_path, [*launcher.split(), "two", *line])
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    torch.testing.assert_close(two["best"], one["best"])
    for key, tensor in one["model"].items():
        torch.testing.assert_close(two["model"][key], tensor, msg=key)


# ---- the chain


@pytest.fixture(scope="module")
def chain(tmp_path_factory, data):
    """What the commands write and print, as their own processes, up to the tree's."""
    root = tmp_path_factory.mktemp("chain")
    line = flags(data, epochs=1, test_freq=1, gpu_id=3, test_whiten="retrieval-SfM-120k")
    name = delf_flags.read_finetuning(None, ["x", *line]).name
    tree = f"./trees --root-directory ./features/{name} --test-datasets {TEST} --tree-height 2"
    steps = {
        "example.finetuning": ["./models", *line],
        "example.attention": ["./attention_models", *line, "--param-directory", "./models"],
        "example.extract_features": ["./features", *line]
        + shlex.split("--param-directory ./attention_models --feature-num 30 --scales 1,2"),
        "voc_tree.main": shlex.split(f"{tree} --tree-branch 3 --output tree.txt --rerank-num 4"),
    }
    return root, {step: as_process(root, ["-m", step, *own]) for step, own in steps.items()}


def test_the_chain_prints_what_the_readme_prints(chain):
    _, printed = chain
    network = [
        ">>>> used networks: ",
        "  (meta): dict( ",
        "     architecture: resnet18",
        "     pooling: gem",
        "     outputdim: 512",
        "     mean: [0.485, 0.456, 0.406]",
        "     std: [0.229, 0.224, 0.225]",
        "  )",
    ]
    assert "\n".join(network) in printed["example.finetuning"]
    for name in ("example.finetuning", "example.attention"):
        assert "# 0\n" in printed[name]
        assert f"# 1\n>> {TEST}: mAP E: " in printed[name]
        assert f">> {TEST}: mP@k[1, 5, 10] E: [" in printed[name]
        assert f">> {TEST} + whiten: mAP E: " in printed[name]
        assert ">> Training finished in " in printed[name]


def test_the_chain_leaves_figures_with_their_protocol(chain):
    root, _ = chain
    run = Evaluation.open(only_folder(root / "models") / "test" / TEST)
    assert [step.name for step in run.steps] == ["global", "whitened"]
    assert {"mAP E", "mAP M", "mAP H"} <= run.first.figures.keys()
    assert run.protocol.settings["epoch"] == 1
    assert run.protocol.num_database == 8
    assert run.protocol.settings["extraction"]["size"] == 1024
    assert len(run.protocol.settings["weights_sha256"]) == 64


def test_the_tree_searches_the_extracted_features(chain):
    root, printed = chain
    assert f">> {TEST}: mAP E: " in printed["voc_tree.main"]
    assert f">> {TEST}: mP@k[1, 5, 10] E: [" in (root / "tree.txt").read_text()
    settings = Evaluation.open(root / "trees" / TEST).protocol.settings
    assert settings["features"]["extractor"] == "delf"
    assert settings["features"]["settings"]["max_features"] == 30


def test_the_attention_leaves_the_network_as_it_was(chain):
    root, _ = chain
    before = checkpoint.load(only_folder(root / "models") / run_folder.BEST_MODEL)["model"]
    after = checkpoint.load(only_folder(root / "attention_models") / run_folder.BEST_MODEL)["model"]
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())
    assert set(after) - set(before) == {
        f"attention.{layer}.{kind}" for layer in ("conv1", "conv2") for kind in ("weight", "bias")
    }


def test_the_features_lie_where_the_tree_looks(chain):
    root, _ = chain
    folder = only_folder(root / "features")
    store = find_store(folder / TEST)
    names = [f"database/photo{i}.jpg" for i in range(8)] + ["query/asked0.jpg", "query/asked1.jpg"]
    assert store.names() == sorted(names)
    photo, query = store["database/photo0.jpg"], store["query/asked0.jpg"]
    assert 0 < len(photo) <= 30
    assert photo.descriptors.shape[1] == 512
    assert np.all(np.diff(photo.scores) <= 0)
    assert query.image_size == (64, 48)
    # 64 x 48 at scales 1 and 2: 2 x 2 and 4 x 3 cells
    assert len(photo) == 2 * 2 + 4 * 3
    # a crop's keypoints are in pixels of its whole photo
    assert query.keypoints.min() >= 3.5


def test_features_of_another_layer_or_without_attention(chain, data):
    root, _ = chain
    line = [str(root / "more"), *flags(data, epochs=1, scales="1", feature_num=100)]
    line += ["--param-directory", str(root / "attention_models")]
    extract_features.main([*line, "--layer", "layer3"])
    store = find_store(only_folder(root / "more") / TEST)
    assert store["database/photo0.jpg"].descriptors.shape == (12, 256)  # 4 x 3 cells
    line[-1] = str(root / "models")
    with pytest.raises(InputError, match=r"no attention.*--attention norm"):
        extract_features.main(line)
    extract_features.main([*line, "--attention", "norm"])
    store = find_store(only_folder(root / "more") / TEST)
    assert store["database/photo0.jpg"].descriptors.shape == (4, 512)


def test_features_of_a_frozen_network_projected(data, tmp_path):
    line = [str(tmp_path), *flags(data, scales="1"), "--attention", "norm", "--layer", "layer3"]
    line += ["--pretrained", "none", "--pca-photos", str(data / "test" / TEST), "--pca-dim", "7"]
    line.remove("--not-pretrained")
    extract_features.main(line)
    store = find_store(only_folder(tmp_path) / TEST)
    assert store["database/photo0.jpg"].descriptors.shape == (12, 7)
    assert store.dimensions == 7
    assert store.made_by.settings["projection"]
    with pytest.raises(InputError, match="its last map are not known; use --layer layer3"):
        extract_features.main([*line, "--arch", "vgg16", "--layer", "layer4"])


def test_no_feature_above_an_impossible_attention(chain, data):
    root, _ = chain
    line = [str(root / "none"), *flags(data, epochs=1, scales="1", alpha_thresh=1e9)]
    extract_features.main([*line, "--param-directory", str(root / "attention_models")])
    store = find_store(only_folder(root / "none") / TEST)
    assert len(store["database/photo0.jpg"]) == 0


# ---- bad data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_datasets": "roxford5k"}, rf"no test set 'roxford5k'.*{TEST}"),
        ({"training_dataset": "retrieval-SfM-30k"}, r"retrieval-SfM-30k.pkl: no such file.*120k"),
        ({"test_whiten": "elsewhere"}, r"elsewhere-whiten.pkl: no such file"),
        ({"neg_num": 7}, r"--neg-num 7: the pool"),
        ({"data_root": "nowhere"}, r"nowhere/train"),
        ({"device": "cuda:99"}, r"--device cuda:99"),
    ],
)
def test_missing_data_is_named(tmp_path, data, change, message):
    with pytest.raises(InputError, match=message):
        finetuning.main([str(tmp_path / "models"), *flags(data, **change)])


def test_a_broken_photo_is_named(tmp_path, data):
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    photos = [path for path in (copy / "train").rglob("train*") if path.is_file()]
    assert len(photos) == 18
    for path in photos:
        path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError, match=r"train\d\d0123"), contextlib.chdir(tmp_path):
        finetuning.main(["models", *flags(copy, pool_size=18)])


def test_a_broken_photo_is_left_out_where_that_is_asked_for(tmp_path, data, caplog):
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    min(path for path in (copy / "train").rglob("train*") if path.is_file()).write_text("<html>")
    line = [str(tmp_path / "models"), *flags(copy, pool_size=18, epochs=1)]
    with pytest.raises(InputError, match="--skip_bad_images"):
        finetuning.main(line)
    finetuning.main([*line, "--skip_bad_images"])
    assert any("skipped" in message for message in caplog.messages)


def test_a_folder_in_use_is_left_alone(tmp_path, data):
    line = ["--data-root", str(data), "--test-datasets", "", *flags(data)]
    line.insert(0, str(tmp_path / "m"))
    asked = delf_flags.read_finetuning(None, line)
    busy = run_folder.RunFolder(asked.folder, {})
    with pytest.raises(InputError, match="another process is training there"):
        finetuning.main(line)
    busy.close()


def test_attention_of_another_network_is_refused(chain, data, tmp_path):
    root, _ = chain
    line = flags(data, epochs=1, arch="resnet34")
    line += ["--param-directory", str(root / "models")]
    with pytest.raises(InputError, match="no such file"):
        attention.main([str(tmp_path / "a"), *line])
