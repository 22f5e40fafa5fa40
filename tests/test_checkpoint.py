import hashlib
import os
import pickle
import random

import numpy as np
import pytest
import safetensors.torch
import torch

from retrieval import checkpoint
from retrieval.configs.describe import DelgConfig
from retrieval.errors import InputError


def test_round_trip_of_plain_values_and_tensors(tmp_path):
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(2))])
    contents = {
        "epoch": 3,
        "best": np.float64(0.25),
        "count": np.int64(7),
        "flags": (True, None, "text", b"bytes", [1.5]),
        "optimizer": optimizer.state_dict(),
        "rng": torch.get_rng_state(),
        1: {"nested": torch.arange(3, dtype=torch.bfloat16)},
    }
    path = tmp_path / "run" / "last.pth"
    checkpoint.save(path, contents)
    loaded = checkpoint.load(path)
    assert loaded["best"] == 0.25
    assert type(loaded["best"]) is float
    assert type(loaded["count"]) is int
    assert loaded["flags"] == contents["flags"]
    assert loaded["optimizer"] == contents["optimizer"]
    assert torch.equal(loaded["rng"], contents["rng"])
    assert torch.equal(loaded[1]["nested"], contents[1]["nested"])
    assert os.listdir(path.parent) == ["last.pth"]


def test_what_could_not_be_loaded_is_not_saved(tmp_path):
    for value in (DelgConfig(), np.zeros(2), {1, 2}, object()):
        with pytest.raises(TypeError, match=r"contents\['a'\]\[1\]"):
            checkpoint.save(tmp_path / "x.pth", {"a": [0, value]})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch, broken):
    path = tmp_path / "last.pth"
    checkpoint.save(path, {"epoch": 1})

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(InputError, match=r"last\.pth cannot be written \(disk full\)"):
        checkpoint.save(path, {"epoch": 2})
    assert checkpoint.load(path) == {"epoch": 1}
    assert os.listdir(tmp_path) == ["last.pth"]


def test_missing_files_and_folders_are_told(tmp_path):
    for path in (tmp_path / "absent.pth", tmp_path):
        with pytest.raises(InputError, match="no such checkpoint file"):
            checkpoint.load(path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_every_damaged_file_is_an_input_error(tmp_path, suffix):
    whole = tmp_path / f"whole{suffix}"
    tensors = {"a": torch.rand(40), "b": torch.rand(3, 3)}
    if suffix == ".pth":
        checkpoint.save(whole, tensors)
    else:
        safetensors.torch.save_file(tensors, whole)
    data, rng = whole.read_bytes(), random.Random(0)
    damaged = [b"", b"not a checkpoint", b"\x80\x04", pickle.dumps({"a": 1})[:-3]]
    damaged += [data[:n] for n in rng.sample(range(len(data)), 20)]
    damaged += [rng.randbytes(n) for n in range(1, 60)]
    path = tmp_path / f"damaged{suffix}"
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(InputError, match="damaged"):
            checkpoint.load(path)


def test_code_in_a_file_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "evil"),))

    path = tmp_path / "evil.pth"
    torch.save({"model": Evil()}, path)
    with pytest.raises(InputError, match="tensors and plain values"):
        checkpoint.load(path)
    assert not (tmp_path / "evil").exists()


def test_load_state_lists_keys_and_shapes_that_differ():
    layer = torch.nn.Linear(2, 3)
    checkpoint.load_state(layer, {"weight": torch.ones(3, 2), "bias": torch.ones(3)}, "a.pth")
    assert layer.weight.sum() == 6
    with pytest.raises(InputError) as caught:
        checkpoint.load_state(layer, {"weight": torch.ones(2, 3), "scale": torch.ones(1)}, "b.pth")
    message = str(caught.value)
    assert "b.pth" in message
    assert "lacks: bias" in message
    assert "unexpected: scale" in message
    assert "weight (2, 3), expected (3, 2)" in message
    assert layer.weight.sum() == 6


def test_a_long_list_of_keys_is_cut():
    layers = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(9)))
    with pytest.raises(InputError, match=r"and \d+ more"):
        checkpoint.load_state(layers, {}, "empty.pth")


def test_weights_hash_is_that_of_the_values():
    state = {"b": torch.tensor([1.0, 2.0]), "a": torch.tensor(3)}
    digest = hashlib.sha256()
    digest.update(b"a torch.int64 ()\n" + np.int64(3).tobytes())
    digest.update(b"b torch.float32 (2,)\n" + np.array([1, 2], np.float32).tobytes())
    assert checkpoint.weights_hash(state) == digest.hexdigest()
    assert checkpoint.weights_hash(dict(reversed(state.items()))) == digest.hexdigest()
    strided = torch.tensor([[1.0, 0.0], [2.0, 0.0]])[:, 0]
    assert checkpoint.weights_hash({**state, "b": strided}) == digest.hexdigest()
    for other in (torch.tensor([1.0, 2.5]), torch.tensor([[1.0, 2.0]]), state["b"].bfloat16()):
        assert checkpoint.weights_hash({**state, "b": other}) != digest.hexdigest()
