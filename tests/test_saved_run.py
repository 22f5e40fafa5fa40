"""A run of eval.py, opened again."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import eval as eval_script
from retrieval import checkpoint, evaluation, saved_run
from retrieval.commands import script
from retrieval.configs.describe import DelgConfig
from retrieval.errors import InputError
from retrieval.networks import delg

NETWORK = "--backbone resnet18 --fc_output_dim 16 --attention norm --pretrained none"


def evaluate(folder, *flags: str):
    """The newest run folder of eval.py on ``folder``."""
    command = f"--test_set_folder {folder} {NETWORK} --top_k 4 --num_workers 0 --precision fp32"
    eval_script.main([*command.split(), *flags])
    return max((script.LOGS / "default").iterdir())


@pytest.fixture
def places(photo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in range(3):
        for i in range(3):
            photo(f"set/database/@{100 * place}@{i}@.png", (96, 96), place)
        photo(f"set/queries/@{100 * place + 10}@0@.png", (96, 96), place)
    return tmp_path / "set"


def test_a_run_opened_again_is_reranked_as_before(places):
    run = evaluate(places)
    opened = saved_run.open_run(run)
    config, local = opened.with_local()
    assert config.top_k == 4
    again = evaluation.rerank_locally(opened.ranked, local, config)
    figures = evaluation.score(again.ranking, opened.photos.ground_truth)
    assert figures == opened.result["reranked"]
    assert evaluation.score(opened.ranked.ranking, opened.photos.ground_truth) == figures
    assert config.floor == again.floor == opened.result["protocol"]["rerank"]["floor"]
    assert len(local.queries(0)) == 36


def test_weights_must_be_those_of_the_run(places):
    run = evaluate(places)
    torch.manual_seed(0)  # --seed
    config = DelgConfig(backbone="resnet18", fc_output_dim=16, attention="norm")
    model, _ = delg.create(config, "none")
    right = checkpoint.weights_hash(model.state_dict())
    assert saved_run.open_run(run, right).rerank is not None
    with pytest.raises(InputError, match=r"features are of other weights .*run"):
        saved_run.open_run(run, "0" * 64)


def test_a_run_without_local_features(places):
    opened = saved_run.open_run(evaluate(places, "--no_rerank"))
    assert opened.rerank is None
    with pytest.raises(InputError, match="without --no_rerank"):
        opened.with_local()


def test_two_relative_folders_of_different_parents(places):
    shutil.copytree("set/database", "db")
    words = f"--database_folder db --queries_folder set/queries {NETWORK} --top_k 4"
    eval_script.main([*words.split(), "--num_workers", "0", "--precision", "fp32"])
    opened = saved_run.open_run(max((script.LOGS / "default").iterdir()))
    _, local = opened.with_local()
    assert len(local.queries(2)) == len(local.database(0)) == 36


def test_features_that_are_gone(places):
    run = evaluate(places)
    for shard in Path(json.loads((run / "result.json").read_text())["feature_store"]).glob("s*"):
        shard.unlink()
    with pytest.raises(InputError, match=r"are gone \(12 of 12 images\): run eval.py again"):
        saved_run.open_run(run)


@pytest.mark.parametrize(
    "change",
    [
        {"protocol": {}},
        {"protocol": []},
        {"set": {}},
        {"set": None},
        {"feature_store": 3},
        {"protocol": {"weights_sha256": "", "rerank": {"unknown": 1}}},
    ],
)
def test_a_result_of_another_form(places, change):
    run = evaluate(places, "--no_rerank")
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps({**result, **change}))
    with pytest.raises(InputError, match=r"result\.json: not of eval\.py, or of an older one"):
        saved_run.open_run(run)


@pytest.mark.parametrize(
    "arrays",
    [
        {"global": np.full((3, 4), 99), "similarity": np.zeros((3, 4))},
        {"global": np.full((3, 4), -2), "similarity": np.zeros((3, 4))},
        {"global": np.zeros((3, 4)), "similarity": np.zeros((3, 4))},
        {"global": np.zeros((2, 4), int), "similarity": np.zeros((2, 4))},
        {"global": np.zeros((3, 4), int), "similarity": np.zeros((3, 5))},
        {"global": np.zeros((3, 4), int)},
    ],
)
def test_rankings_of_something_else(places, arrays):
    run = evaluate(places, "--no_rerank")
    np.savez(run / "rankings.npz", **arrays)
    with pytest.raises(InputError, match=r"rankings\.npz"):
        saved_run.open_run(run)


def test_two_folders_without_labels(places):
    words = f"--database_folder {places}/database --queries_folder {places}/queries --no_labels"
    eval_script.main([*words.split(), *NETWORK.split(), "--no_rerank", "--num_workers", "0"])
    opened = saved_run.open_run(max((script.LOGS / "default").iterdir()))
    assert opened.photos.ground_truth == {}
    assert len(opened.ranked.ranking) == 3


def test_what_is_missing_is_said(places, photo):
    run = evaluate(places)
    with pytest.raises(InputError, match=rf"no run folder.*the runs in it: {run.name}"):
        saved_run.open_run(run.parent)
    with pytest.raises(InputError, match="no run folder"):
        saved_run.open_run(run / "nothing")
    result = json.loads((run / "result.json").read_text())

    def damaged(content) -> str:
        (run / "result.json").write_text(content)
        with pytest.raises(InputError) as error:
            saved_run.open_run(run)
        return str(error.value)

    assert "run eval.py again" in damaged("{")
    assert "run eval.py again" in damaged("[]")
    assert "older" in damaged(json.dumps({"global": {}}))
    assert "are gone" in damaged(json.dumps({**result, "feature_store": "nowhere"}))
    (run / "result.json").write_text(json.dumps(result))
    ranking = (run / "rankings.npz").read_bytes()
    for content in (ranking[:-30], b""):
        (run / "rankings.npz").write_bytes(content)
        with pytest.raises(InputError, match=r"rankings\.npz cannot be read"):
            saved_run.open_run(run)
    (run / "rankings.npz").unlink()
    with pytest.raises(InputError, match=r"rankings\.npz cannot be read"):
        saved_run.open_run(run)
    (run / "rankings.npz").write_bytes(ranking)
    saved_run.open_run(run)
    photo("set/database/@0@0@.png", (80, 80), 7)
    with pytest.raises(InputError, match="have changed since"):
        saved_run.open_run(run)
    shutil.rmtree(places)
    with pytest.raises(InputError, match=r"does not exist|no such folder"):
        saved_run.open_run(run)
