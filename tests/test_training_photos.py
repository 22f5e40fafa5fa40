"""Training sets of any source of positions: who is held out, which classes they make."""

import numpy as np
import pytest
from tests.gps_photos import METRES_A_DEGREE, shot

from eval import main as evaluate
from retrieval.configs.judge import PositivesConfig, Source
from retrieval.configs.learn import GroupConfig
from retrieval.data.layouts import divide
from retrieval.data.photo_sets import open_set
from retrieval.data.places import Positions
from retrieval.data.training_photos import load_groups
from retrieval.data.whereabouts import Whereabouts
from retrieval.drawing.html_report.charts import place_map
from retrieval.errors import InputError
from retrieval.evaluation import Evaluation
from train import main as train


@pytest.fixture
def street(tmp_path):
    """Forty photos along a street, five at each of eight places 50 m apart, with GPS data."""
    for place in range(8):
        for i in range(5):
            latitude = 48 + (50 * place + i) / METRES_A_DEGREE
            shot(tmp_path / f"street/{place}_{i}.jpg", latitude, 6.0)
    return tmp_path / "street"


def metres(utm, zones=0) -> Whereabouts:
    utm = np.asarray(utm, float)
    taken = Positions(utm, np.full(len(utm), np.nan), zones)
    return Whereabouts("exif", "metres", taken, ("",) * len(utm))


def test_a_fifth_is_held_out_and_far_from_the_rest():
    rng = np.random.default_rng(0)
    utm = rng.uniform(0, 1, (500, 2)) @ [[900, 500], [-50, 90]]
    config = PositivesConfig(positive_dist_threshold=30)
    train, val = divide(metres(utm), config)
    assert len(val) == 100
    apart = np.linalg.norm(utm[train][:, None] - utm[val][None], axis=2)
    assert apart.min() > 30
    left_out = np.setdiff1d(np.arange(500), np.concatenate([train, val]))
    near = np.linalg.norm(utm[left_out][:, None] - utm[val][None], axis=2).min(axis=1)
    assert (near <= 30).all()
    axis = np.array([900, 500]) / np.hypot(900, 500)
    assert (utm[val] @ axis).min() > (utm[train] @ axis).max() - 30
    again = divide(metres(utm), config)
    assert all(map(np.array_equal, again, (train, val)))


def test_two_zones_one_after_the_other():
    utm = [[5.0 * i, 0.0] for i in range(10)] * 2
    train, val = divide(metres(utm, np.repeat([32, 33], 10)), PositivesConfig())
    assert (val >= 10).all()
    assert set(range(10)) <= set(train.tolist())


def test_places_are_held_out_whole():
    labels = tuple("aaabbbcccddd")
    unknown = Positions(np.full((12, 2), np.nan), np.full(12, np.nan))
    train, val = divide(Whereabouts("folders", "labels", unknown, labels), PositivesConfig())
    assert {labels[row] for row in val} == {"d"}
    assert {labels[row] for row in train} == set("abc")


def test_photos_that_are_all_near_cannot_be_divided():
    with pytest.raises(InputError, match="all near each other"):
        divide(metres([[i, 0] for i in range(10)]), PositivesConfig())


def test_classes_of_all_directions_need_no_heading(street, tmp_path):
    config = GroupConfig(M=30, N=1, alpha=360, L=1, groups_num=1, min_images_per_class=2)
    paths, groups = load_groups(Source(street), config, tmp_path / "cache")
    assert len(paths) == 40
    names = [[paths[row].name[0] for row in rows] for rows in groups[0].classes]
    assert all(len(set(each)) == 1 for each in names)  # no class mixes two places 50 m apart
    assert sum(map(len, names)) >= 32
    with pytest.raises(InputError, match=r"street/0_0\.jpg: no heading.*--alpha 360"):
        load_groups(Source(street), GroupConfig(groups_num=1), tmp_path / "cache")


def test_the_kept_table_follows_positions_that_change(street, tmp_path):
    config = GroupConfig(M=30, N=1, alpha=360, L=1, groups_num=1, min_images_per_class=2)
    load_groups(Source(street), config, tmp_path / "cache")
    for i in range(5):
        shot(street / f"7_{i}.jpg", 49 + 0.1 * i, 6.0)  # of the same names
    _, groups = load_groups(Source(street), config, tmp_path / "cache")
    assert sum(map(len, groups[0].classes)) <= 35
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_folders_are_classes(tmp_path):
    for place, count in (("a", 3), ("b/c", 4), ("d", 1)):
        for i in range(count):
            shot(tmp_path / f"train/{place}/{i}.jpg", None)
    source = Source(tmp_path / "train", positives=PositivesConfig(positions="folders"))
    config = GroupConfig(groups_num=2, min_images_per_class=2)
    paths, groups = load_groups(source, config, tmp_path / "cache")
    classes = [[paths[row].parent.name for row in rows] for g in groups for rows in g.classes]
    assert classes == [["a"] * 3, ["c"] * 4]
    with pytest.raises(InputError, match="make only 2 groups"):
        load_groups(source, GroupConfig(groups_num=3, min_images_per_class=2), tmp_path)
    with pytest.raises(InputError, match="the largest place has 4"):
        load_groups(source, GroupConfig(groups_num=1, min_images_per_class=9), tmp_path)


def test_training_and_validation_photos_of_one_folder(street, tmp_path):
    config = GroupConfig(M=30, N=1, alpha=360, L=1, groups_num=1, min_images_per_class=2)
    paths, _ = load_groups(Source(street, split="train"), config, tmp_path / "cache")
    val = open_set(Source(street, split="val"))
    assert len(val.queries) == len(val.database) == 8
    assert not set(paths) & set(val.database)
    assert val.selves is not None
    assert [rows.tolist() for rows in val.selves] == [[i] for i in range(8)]
    assert all(row not in right for row, right in enumerate(val.ground_truth["R"].positives))


def test_one_command_trains_on_a_folder_of_photos_with_gps(street, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network = "--backbone resnet18 --fc_output_dim 16 --fm_reduction_dim 8"
    train(
        f"--dataset_folder street --alpha 360 --L 1 --N 1 --M 30 --groups_num 1 "
        f"--min_images_per_class 2 {network} --pretrained none --epochs 1 --iterations_per_epoch 1 "
        "--batch_size 4 --image_size 32 --num_workers 0 --device cpu --lr 1e-3".split()
    )
    (run,) = (tmp_path / "logs" / "default").iterdir()
    evaluate(
        f"--dataset_folder street --resume_model {run}/best_model.pth --no_rerank "
        f"--num_workers 0 --device cpu --save_dir test".split()
    )
    (run,) = (tmp_path / "logs" / "test").iterdir()
    found = Evaluation.open(run)
    assert len(found.photos.queries) == 40
    assert [len(rows) for rows in found.photos.ground_truth["R"].positives] == [4] * 40
    drawn = place_map(found, None)
    assert drawn is not None
    assert len(drawn.marks) == 40
