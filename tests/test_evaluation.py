import json

import numpy as np
import pytest
import torch
from PIL import Image

from retrieval import evaluation, report
from retrieval.configs.describe import DelgConfig, ExtractConfig
from retrieval.configs.judge import PositivesConfig
from retrieval.configs.rank import RerankConfig
from retrieval.data.ground_truth import Positives
from retrieval.data.photo_sets import Folders, open_folders, open_places, open_set
from retrieval.drawing import looks
from retrieval.errors import InputError
from retrieval.networks.delg import Delg

SETTING = ExtractConfig(num_workers=0, precision="fp32")


def name(east: float, north: float, heading: str = "") -> str:
    return f"@{east}@{north}@10@S@@@@@{heading}@@@@@@.png"


@pytest.fixture
def places(photo, tmp_path):
    """Three places 100 m apart, three database images each; queries 10 m beside."""
    for place in range(3):
        for i in range(3):
            photo(f"set/database/{name(100 * place, i)}", (96, 96), place)
        photo(f"set/queries/{name(100 * place + 10, 0)}", (96, 96), place)
    return tmp_path / "set"


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Delg(DelgConfig(fc_output_dim=16, attention="norm"), "none").eval()


def test_positives_of_a_split_are_those_within_the_distance(places):
    photos = open_places(places, PositivesConfig())
    found = photos.ground_truth["R"].positives
    assert [rows.tolist() for rows in found] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    near = open_places(places, PositivesConfig(positive_dist_threshold=10.04))
    assert [len(rows) for rows in near.ground_truth["R"].positives] == [1, 1, 1]


def test_evaluation_ranks_the_same_photo_first_and_reranking_keeps_it(model, places, tmp_path):
    photos = open_places(places, PositivesConfig())
    ranked = evaluation.rank(model, photos, SETTING, 5)
    assert evaluation.score(ranked.ranking, photos.ground_truth)["R@1"] == 100
    store = evaluation.open_store(tmp_path / "store", model, photos, SETTING)
    local = evaluation.local_features(model, photos, ranked.ranking[:, :4], store, SETTING)
    result = evaluation.rerank_locally(ranked, local, RerankConfig(top_k=4, threads=1))
    assert evaluation.score(result.ranking, photos.ground_truth)["R@1"] == 100
    assert set(store.ids()) <= {*photos.query_ids, *photos.database_ids}
    assert np.sort(result.ranking, axis=1).tolist() == np.sort(ranked.ranking, axis=1).tolist()
    comparison = evaluation.compare(
        ranked.ranking, result.ranking, photos.ground_truth, photos.query_ids
    )
    assert comparison["difference"] == 0
    assert len(comparison["helped"]) + len(comparison["hurt"]) + comparison["unchanged"] == 3


def test_skipped_images_rank_nowhere_and_their_queries_miss(model, places):
    photos = open_places(places, PositivesConfig())
    for broken in (photos.database[0], photos.queries[2]):
        broken.write_bytes(broken.read_bytes()[:-200])
    with pytest.raises(InputError, match="skip_bad_images"):
        evaluation.rank(model, photos, SETTING, 9)
    skipped: list[str] = []
    ranked = evaluation.rank(model, photos, SETTING, 9, skipped=skipped)
    assert len(skipped) == 2
    assert not (ranked.ranking[:2] == 0).any()
    assert (ranked.ranking[2] == -1).all()
    assert evaluation.score(ranked.ranking, photos.ground_truth)["R@1"] == pytest.approx(200 / 3)


def test_two_folders_with_a_file_of_positives(places):
    database = sorted(path.name for path in (places / "database").iterdir())
    queries = sorted(path.name for path in (places / "queries").iterdir())
    file = places / "positives.json"
    file.write_text(json.dumps({query: [database[-1]] for query in queries}))
    photos = open_folders(places / "database", places / "queries", PositivesConfig(), file)
    assert [rows.tolist() for rows in photos.ground_truth["R"].positives] == [[8], [8], [8]]


def revisited(folder, photo):
    for i in range(4):
        photo(f"{folder}/jpg/d{i}.jpg", (64, 64), i // 2)
    photo(f"{folder}/jpg/q0.jpg", (64, 64), 1)
    return {
        "imlist": ["d0", "d1", "d2", "d3"],
        "qimlist": ["q0"],
        "gnd": [{"bbx": [8, 8, 64, 64], "easy": [2], "hard": [3], "junk": [0]}],
    }


def test_a_revisited_set_is_recognised_and_scored(model, photo, tmp_path):
    gnd = revisited("mini", photo)
    (tmp_path / "mini" / "gnd_mini.json").write_text(json.dumps(gnd))
    photos = open_set(Folders(dataset=tmp_path / "mini"), PositivesConfig())
    assert photos.query_boxes == [(8, 8, 64, 64)]
    figures = evaluation.score(np.array([[2, 0, 3, 1]]), photos.ground_truth)
    assert figures["mAP E"] == figures["mAP M"] == figures["mAP H"] == 100
    assert figures["mP@1 M"] == 100
    ranked = evaluation.rank(model, photos, SETTING, 4)
    assert sorted(ranked.ranking[0].tolist()) == [0, 1, 2, 3]


def test_a_photo_searched_with_two_boxes_is_described_twice(model, photo, tmp_path):
    gnd = revisited("mini", photo)
    gnd["qimlist"] *= 2
    gnd["gnd"].append({**gnd["gnd"][0], "bbx": [0, 0, 32, 32]})
    (tmp_path / "mini" / "gnd_mini.json").write_text(json.dumps(gnd))
    photos = open_set(Folders(dataset=tmp_path / "mini"), PositivesConfig())
    ranked = evaluation.rank(model, photos, SETTING, 4)
    store = evaluation.open_store(tmp_path / "features", model, photos, SETTING)
    local = evaluation.local_features(model, photos, ranked.ranking, store, SETTING)
    whole, corner = (local.queries(row).keypoints.max() for row in (0, 1))
    assert whole > 32 > corner


def test_missing_images_of_a_revisited_set_are_named(photo, tmp_path):
    gnd = revisited("mini", photo)
    (tmp_path / "mini" / "gnd_mini.json").write_text(json.dumps(gnd))
    (tmp_path / "mini" / "jpg" / "d1.jpg").unlink()
    with pytest.raises(InputError, match=r"1 images that are missing.*d1\.jpg"):
        open_set(Folders(dataset=tmp_path / "mini"), PositivesConfig())


def test_a_fingerprint_knows_the_photos_and_the_truth(places):
    photos = open_places(places, PositivesConfig())
    before = photos.fingerprint()
    assert open_places(places, PositivesConfig()).fingerprint() == before
    other = open_places(places, PositivesConfig(positive_dist_threshold=10.04))
    assert other.fingerprint() != before
    Image.new("RGB", (8, 8)).save(photos.database[0])
    assert open_places(places, PositivesConfig()).fingerprint() != before


@pytest.mark.parametrize(
    ("breaks", "message"),
    [
        (lambda folder: (folder / "database").rename(folder / "db"), "database"),
        (lambda folder: (folder / "queries").rename(folder / "q"), "no folder queries"),
        (lambda folder: [p.unlink() for p in (folder / "queries").iterdir()], "no images"),
        (lambda folder: next((folder / "queries").iterdir()).rename(folder / "queries/a.png"),
         "no coordinates"),
    ],
)  # fmt: skip
def test_a_broken_data_set_is_one_clear_error(places, breaks, message):
    breaks(places)
    with pytest.raises(InputError, match=message) as error:
        open_places(places, PositivesConfig())
    assert str(places) in str(error.value)


def test_the_report_tells_figures_times_and_what_reranking_did():
    result = {
        "global": {"R@1": 50.0, "R@5": 75.0},
        "reranked": {"R@1": 62.5, "R@5": 75.0},
        "comparison": {
            "metric": "R@1", "difference": 12.5, "interval_95": [-1.0, 20.0],
            "helped": ["a", "b"], "hurt": ["c"], "unchanged": 5,
        },
        "seconds": {"re-ranking": 1.25}, "pairs": 800, "ms_per_pair": 0.5, "skipped": ["x"],
        "thread_seconds": {"loading": 0.1, "matching": 0.2, "verification": 0.3},
        "protocol": {"rerank": {"floor": 6.0}},
    }  # fmt: skip
    text = report.table(result)
    lines = text.splitlines()
    assert lines[0].split() == ["R@1", "R@5"]
    assert lines[1].split() == ["global", "50.0", "75.0"]
    assert lines[2].split() == ["reranked", "62.5", "75.0"]
    for part in ("+12.5 [-1.0, +20.0]", "up for 2", "down for 1", "800 pairs", "SKIPPED 1"):
        assert part in text


def test_without_labels_there_are_predictions_and_no_figures(places, tmp_path):
    photos = open_places(places, PositivesConfig(), labels=False)
    assert evaluation.score(np.zeros((3, 1), np.int64), photos.ground_truth) == {}
    report.write_predictions(tmp_path / "p.csv", photos, np.array([[0, 1], [2, -1], [3, 4]]), 2)
    rows = [line.split(",") for line in (tmp_path / "p.csv").read_text().splitlines()]
    assert rows[0] == ["query", "prediction_1", "prediction_2"]
    assert rows[2] == [photos.query_ids[1], photos.database_ids[2], ""]


def test_strips_show_the_wrong_queries_only_if_asked(places, tmp_path):
    photos = open_places(places, PositivesConfig())
    ranking = np.array([[0, 1], [0, 3], [6, 7]])
    every = looks.save_strips(tmp_path / "all", photos, ranking, 10)
    wrong = looks.save_strips(tmp_path / "wrong", photos, ranking, 10, only_wrong=True)
    assert [file.name for file in every] == ["0000.jpg", "0001.jpg", "0002.jpg"]
    assert [file.name for file in wrong] == ["0001.jpg"]


def test_per_query_figures_average_to_the_recall():
    truth = {"R": Positives([np.array([0]), np.array([1]), np.array([], int)], [np.array([])] * 3)}
    ranking = np.array([[0, 1], [0, 1], [1, 0]])
    assert evaluation.per_query(ranking, truth).tolist() == [100, 0, 0]
    assert evaluation.score(ranking, truth, (1,))["R@1"] == pytest.approx(100 / 3)
