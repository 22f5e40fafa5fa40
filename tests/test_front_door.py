"""The names that a program starts with."""

import doctest
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import retrieval
from retrieval import (
    Evaluation,
    describe,
    evaluate,
    load_network,
    match,
    open_photos,
    rerank,
)
from retrieval.configs.describe import DelfConfig, DelgConfig
from retrieval.errors import InputError

AG = Path(__file__).parents[1] / "AG"


def test_the_examples_of_the_docstring(photo, tmp_path, monkeypatch):
    photo("house.png", (128, 96))
    monkeypatch.chdir(tmp_path)
    done = doctest.testmod(retrieval)
    assert (done.failed, done.attempted > 3) == (0, True)


def test_there_are_ten_names_and_no_other():
    assert len(retrieval.__all__) == 10
    assert all(hasattr(retrieval, name) for name in retrieval.__all__)
    assert retrieval._ROOMS.keys() == set(retrieval.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = retrieval.nothing


def test_the_library_starts_without_torch():
    code = "import sys, retrieval, retrieval.errors; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=AG, check=True)


@pytest.fixture(scope="module")
def network():
    return load_network("ResNet18", pretrained="none", device="cpu")


def test_a_network_by_name_and_by_file(network, tmp_path):
    assert network.config == DelgConfig("resnet18", head="gem", attention="norm")
    from retrieval.checkpoint import save_model
    from retrieval.networks.create import create

    for config in (network.config, DelfConfig("resnet18", attention="norm")):
        made = create(config, "none").network
        save_model(tmp_path / "best_model.pth", made)
        again = load_network(tmp_path / "best_model.pth")
        assert again.config == config
        assert type(again) is type(made)
    with pytest.raises(InputError, match="neither a file nor one of"):
        load_network("resnet19")


def test_two_photos_match(network, photo):
    one, other = (describe(network, photo(f"{i}.png", (160, 128), i)) for i in (0, 1))
    assert np.linalg.norm(one.descriptor) == pytest.approx(1, abs=1e-5)
    assert match(one.features, one.features).num_inliers == len(one.features) == 80
    pair = match(one.features, other.features)
    assert pair.inliers.shape == (len(pair.matches),)
    assert pair.num_inliers < 40
    assert pair.model is None or pair.model.shape == (3, 3)


@pytest.fixture
def places(photo, tmp_path):
    for place in range(3):
        photo(f"set/database/@{100 * place}@0@.png", (96, 96), place)
        photo(f"set/queries/@{100 * place + 10}@0@.png", (96, 96), place)
    return tmp_path / "set"


def test_a_photo_set_is_evaluated_saved_opened_and_reranked(network, places, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photos = open_photos(places)
    found = evaluate(network, photos)
    assert found.figures["global"]["R@1"] == found.figures["reranked"]["R@1"] == 100
    found.save(tmp_path / "run")
    opened = Evaluation.open(tmp_path / "run")
    assert opened.figures == found.figures
    again = rerank(replace(opened, confidence=np.ones(3), min_confidence=0.5), top_k=2, floor=1.0)
    assert (again.confidence, again.min_confidence) == (None, 0)  # they were of the other order
    assert again.verified.num_inliers.shape == (3, 2)
    assert again.verified.config.floor == 1
    assert again.protocol.settings["rerank"]["top_k"] == 2
    assert rerank(again).verified.config.floor == rerank(opened, top_k=2).verified.config.floor
    assert again.command == ""
    with pytest.raises(InputError, match=r"top_k 200: .*first 100 predictions"):
        rerank(opened, top_k=200)


def test_photos_in_two_folders(places):
    photos = open_photos(database=places / "database", queries=places / "queries", labels=False)
    assert len(photos.queries) == len(photos.database) == 3
    assert photos.protocol is None
    with pytest.raises(InputError, match="one folder, or database and queries"):
        open_photos(places, database=places, queries=places)
    with pytest.raises(InputError, match="one folder, or database and queries"):
        open_photos(database=places)
