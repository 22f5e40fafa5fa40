"""show.py, from photos with a network and from a run of eval.py without."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import eval as eval_script
import show
from retrieval.commands import script
from retrieval.data import images
from retrieval.data.positives import Positives
from retrieval.drawing import curves
from retrieval.errors import InputError

NETWORK = "--backbone resnet18 --fc_output_dim 16 --attention norm --pretrained none"
FLAGS = f"{NETWORK} --precision fp32"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """Three places, a database image and a query of each, evaluated; one query has no positives."""
    folder = tmp_path_factory.mktemp("show")
    for split in ("database", "queries"):
        (folder / "set" / split).mkdir(parents=True)
    for place in range(3):
        small = np.random.default_rng(place).integers(0, 255, (12, 16, 3), np.uint8)
        scene = Image.fromarray(small).resize((128, 96), Image.Resampling.BICUBIC)
        scene.save(folder / f"set/database/@{100 * place}@0@.png")
        scene.save(folder / f"set/queries/@{100 * place + (50 if place == 2 else 5)}@0@.png")
    Image.new("RGB", (128, 96)).save(folder / "set/database/@900@0@.png")
    (folder / "set.png").mkdir()
    (folder / "set" / "a.png").touch()
    whole = io.BytesIO()
    scene.save(whole, "JPEG")
    (folder / "set" / "cut.jpg").write_bytes(whole.getvalue()[:-200])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        eval_script.main(f"--test_set_folder set {FLAGS} --top_k 1 --floor 0".split())
    return folder


@pytest.fixture(autouse=True)
def _here(workplace, monkeypatch):
    monkeypatch.chdir(workplace)


@pytest.fixture
def run() -> Path:
    return max((script.LOGS / "default").iterdir())


PICTURES = ["attention", "matches", "rerank", "positives", "recalls"]


@pytest.mark.parametrize("picture", PICTURES)
def test_pictures_of_a_run_need_no_network(run, picture):
    query = "" if picture in ("positives", "recalls") else "--query 1"
    show.main(f"{picture} --run {run} {query} --output {picture}.png".split())
    assert min(images.image_size(f"{picture}.png")) > 200
    assert np.ptp(images.read_image(f"{picture}.png")) > 200


def test_the_picture_is_named_by_itself(run):
    show.main(f"rerank --run {run} --query 2".split())  # without positives
    assert Path("rerank.png").is_file()


def test_pictures_by_a_network(run):
    database = images.list_images("set/database")
    show.main(f"attention {FLAGS} --image {database[0]} --output a.jpg".split())
    show.main(
        f"matches {FLAGS} --query {database[0]} --database {database[1]} --output m.jpg".split()
    )
    show.main(f"attention {NETWORK} --run {run} --query 0 --output r.jpg".split())
    assert all(min(images.image_size(name)) > 200 for name in ("a.jpg", "m.jpg", "r.jpg"))


def test_losses_of_a_training(tmp_path):
    rows = [f"{step // 4},{step % 4},{9 - step},{3 + step}" for step in range(8)]
    (tmp_path / "losses.csv").write_text("\n".join(["epoch,step,total,global", *rows, "2,0,"]))
    columns = curves.read_losses(tmp_path)
    assert columns["total"].tolist() == [9, 8, 7, 6, 5, 4, 3, 2]  # a line cut off does not count
    figure = curves.loss_curves(tmp_path, window=3)
    assert [axis.get_title() for axis in figure.axes] == ["total", "global"]
    raw, mean, _epoch = (line.get_ydata() for line in figure.axes[0].lines)
    assert list(raw) == columns["total"].tolist()
    np.testing.assert_allclose(mean, [9, 8.5, 8, 7, 6, 5, 4, 3])
    show.main(f"losses --run {tmp_path} --output losses.png".split())
    assert images.image_size("losses.png")[0] > 300


@pytest.mark.parametrize("header", ["step,total", "epoch,total", "epoch,step"])
def test_losses_without_a_column_that_is_needed_are_refused(tmp_path, header):
    (tmp_path / "losses.csv").write_text(f"{header}\n" + ",".join("1" for _ in header.split(",")))
    with pytest.raises(InputError, match=rf"losses.csv: no losses .*columns are {header[:4]}"):
        curves.read_losses(tmp_path)


def test_recalls_are_those_of_the_metric():
    truth = Positives([np.array([2]), np.array([0])], [[], []])
    rankings = {"global": np.array([[0, 1, 2], [2, 0, 1]]), "reranked": np.array([[2, 1, 0]] * 2)}
    axis = curves.recall_curves(rankings, truth).axes[0]
    assert [list(line.get_ydata()) for line in axis.lines] == [[0, 50, 100], [50, 50, 100]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("rerank --run RUN --query 3", "--query 3: expected a number from 0 to 2"),
        ("rerank --run RUN --query -1", "--query -1: expected a number from 0 to 2"),
        ("matches --run RUN --query 0 --database 4", "--database 4: expected a number"),
        ("matches --run RUN --query 0 --database FAR", "has no stored features"),
        ("attention --run RUN --query a.png", "named by their numbers"),
        ("attention --run RUN", "attention needs --query"),
        ("rerank --query 0", "give --run RUN"),
        ("matches --run RUN --query 0 --residual 2", "--residual and --run exclude each other"),
        ("attention --run RUN --query 0 --longest_side 64", "--longest_side and --run exclude"),
        ("rerank --run RUN --query 0 --output picture.gif", "expected a file name with .png"),
        ("rerank --run RUN --query 0 --output set.png", "set.png is a folder"),
        ("rerank --run RUN --query 0 --output set/a.png/b.png", "set/a.png"),
        ("losses --run RUN", "losses.csv: no losses to draw"),
        ("positives --run RUN --count 0", "--count 0"),
        ("rerank --run logs --query 0", "no run folder of eval.py"),
        (f"rerank --run RUN --query 0 {NETWORK}", "no weights"),
        ("attention --query a.png", "which weights"),
        (f"attention {NETWORK} --query set/cut.jpg", "set/cut.jpg"),
        (f"attention {NETWORK} --query set/a.png --skip_bad_images", "--skip_bad_images"),
        (
            "attention --run RUN --query 0 --backbone resnet18 --fc_output_dim 8 --attention norm "
            "--pretrained none",
            "of other weights",
        ),
    ],
)
def test_bad_input_is_one_clear_error(run, words, message, capsys):
    if "FAR" in words:
        shortlisted = np.load(run / "rankings.npz")["global"][:, 0]
        words = words.replace("FAR", str(np.setdiff1d(range(4), shortlisted)[0]))
    words = words.replace("RUN", str(run))
    with pytest.raises(SystemExit) as stop:
        script.run(lambda: show.main(words.split()))
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
