import dataclasses
import hashlib
import os
import pickle
import random

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision

from retrieval import checkpoint
from retrieval.configs.describe import DelgConfig
from retrieval.errors import InputError
from retrieval.networks.delg import Delg, create

CONFIG = DelgConfig(reduction=True, fm_reduction_dim=16, fc_output_dim=24, attention_dim=32)


def network(config=CONFIG, seed=0):
    """A network whose every tensor, running statistics included, is drawn at random."""
    torch.manual_seed(seed)
    model = Delg(config, "none").eval()
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor + 0.1 * torch.rand_like(tensor))
    return model


def outputs(model):
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        return model.both(images)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(outputs(a), outputs(b), strict=True))


# ---- Files


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
    for value in (CONFIG, np.zeros(2), {1, 2}, object()):
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
    with pytest.raises(OSError, match="disk full"):
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
    with pytest.raises(InputError, match=r"and \d+ more"):
        checkpoint.load_state(network(), {}, "empty.pth")


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


# ---- Weights of a network: ours


@pytest.mark.parametrize("wrapped", ["ours", "bare", "module", "safetensors"])
def test_our_own_weights_in_every_wrapping(tmp_path, wrapped):
    model = network()
    path = tmp_path / ("w.safetensors" if wrapped == "safetensors" else "w.pth")
    state = model.state_dict()
    if wrapped == "ours":
        checkpoint.save_model(path, model)
    elif wrapped == "bare":
        checkpoint.save(path, state)
    elif wrapped == "module":
        torch.save({"model_state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    else:
        safetensors.torch.save_file(state, path)
    weights = checkpoint.read_weights(path)
    assert weights.layout == "delg"
    assert weights.config == (dataclasses.asdict(CONFIG) if wrapped == "ours" else None)
    other, report = create(CONFIG, str(path))
    assert same(model, other.eval())
    assert report.missing == ()
    assert checkpoint.weights_hash(other.state_dict()) == checkpoint.weights_hash(state)


def test_another_config_is_named_by_its_flags(tmp_path):
    path = tmp_path / "w.pth"
    checkpoint.save_model(path, network())
    cases = [
        ({"backbone": "resnet34"}, "--backbone resnet34, but the file has resnet18"),
        ({"fc_output_dim": 25}, "--fc_output_dim 25, but the file has 24"),
        ({"reduction": False}, "--reduction False, but the file has True"),
    ]
    for change, message in cases:
        with pytest.raises(InputError, match=message):
            create(dataclasses.replace(CONFIG, **change), str(path))
    other = dataclasses.replace(CONFIG, train_all_layers=True)
    assert create(other, str(path))[1].missing == ()


def test_another_shape_without_a_config_lists_keys(tmp_path):
    path = tmp_path / "w.pth"
    torch.save(network().state_dict(), path)
    wrong = dataclasses.replace(CONFIG, fc_output_dim=25, fm_reduction_dim=8)
    with pytest.raises(InputError) as caught:
        create(wrong, str(path))
    assert "global_head.linear.weight (24, 512), expected (25, 512)" in str(caught.value)
    assert "autoencoder.reduce.bias (16,), expected (8,)" in str(caught.value)
    assert "--fm_reduction_dim" in str(caught.value)
    with pytest.raises(InputError, match=r"unexpected: autoencoder\.reduce\.weight"):
        create(dataclasses.replace(CONFIG, reduction=False), str(path))


# ---- Key maps. The files are made from our tensors by a slow mapping of its own: torchvision's
# network is filled name by name, its children are counted as CosPlace's nn.Sequential counts them.


def torchvision_resnet(model):
    """torchvision's ResNet-18 with the backbone's values."""
    resnet = torchvision.models.resnet18(weights=None)
    for name, tensor in resnet.state_dict().items():
        if not name.startswith("fc."):
            tensor.copy_(model.backbone.body.state_dict()[name])
    return resnet


def numbered(modules, prefix):
    sequential = torch.nn.Sequential(*modules)
    return {f"{prefix}.{key}": tensor for key, tensor in sequential.state_dict().items()}


def aggregation(model):
    head = model.global_head
    return {
        "aggregation.1.p": head.pool.p.data,
        "aggregation.3.weight": head.linear.weight.data,
        "aggregation.3.bias": head.linear.bias.data,
    }


def s1_state(model, trunk):
    resnet = torchvision_resnet(model)
    layer4 = {f"layers_4.{key}": tensor for key, tensor in resnet.layer4.state_dict().items()}
    autoencoder = {
        f"autoencoder.conv{i}.{kind}": getattr(layer, kind).data
        for i, layer in ((1, model.autoencoder.reduce), (2, model.autoencoder.expand))
        for kind in ("weight", "bias")
    }
    attention = {f"attention.{key}": t for key, t in model.attention.state_dict().items()}
    return {
        **numbered(list(resnet.children())[:-3], trunk),
        **layer4,
        **aggregation(model),
        **attention,
        **autoencoder,
        "attn_classifier.weight": torch.rand(5965, 256),
        "attn_classifier.bias": torch.rand(5965),
    }


@pytest.mark.parametrize("trunk", ["backbone_after_3", "backbone_until_3"])
@pytest.mark.parametrize("wrapper", [None, "model_state_dict"])
def test_weights_of_s1(tmp_path, trunk, wrapper):
    model = network()
    state = s1_state(model, trunk)
    path = tmp_path / "res18.pth"
    torch.save({wrapper: state, "epoch_num": 3} if wrapper else state, path)
    other, report = create(CONFIG, str(path))
    assert same(model, other.eval())
    assert report.missing == ()
    assert report.dropped == ("attn_classifier.weight", "attn_classifier.bias")
    assert "s1 keys" in str(report)
    assert "left out: attn_classifier.weight" in str(report)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_of_cosplace(tmp_path, prefix):
    model = network()
    state = numbered(list(torchvision_resnet(model).children())[:-2], "backbone")
    state |= aggregation(model)
    path = tmp_path / "ResNet18_24_cosplace.pth"
    torch.save({prefix + key: tensor for key, tensor in state.items()}, path)
    other, report = create(CONFIG, str(path))
    assert torch.equal(outputs(other.eval())[0], outputs(model)[0])
    assert report.loaded == ("backbone", "global_head")
    assert report.missing == ("attention", "autoencoder")
    assert "random, since not loaded: attention, autoencoder" in str(report)


@pytest.mark.parametrize("name", ["vgg16", "efficientnet_b0"])
def test_cosplaces_vgg_and_efficientnet(tmp_path, name):
    config = dataclasses.replace(CONFIG, backbone=name)
    with torch.device("meta"):  # the names are enough
        model = Delg(config, "none")
        whole = torchvision.models.get_model(name, weights=None)
    features = whole.features
    modules = [features] if name == "efficientnet_b0" else list(features.children())[:-2]
    expected = {f"body.features.{key}" for key in features.state_dict()}
    assert set(model.backbone.state_dict()) == expected
    state = {key: torch.empty(t.shape) for key, t in numbered(modules, "backbone").items()}
    state |= {key: torch.empty(t.shape) for key, t in aggregation(model).items()}
    path = tmp_path / "cosplace.pth"
    checkpoint.save(path, state)
    weights = checkpoint.read_weights(path)
    for part in ("backbone", "global_head"):
        ours = {f"{part}.{k}": v.shape for k, v in getattr(model, part).state_dict().items()}
        theirs = {k: v.shape for k, v in weights.state.items() if k.startswith(part)}
        assert theirs == ours


@pytest.mark.parametrize("old", [False, True])
def test_weights_of_torchvision(tmp_path, old):
    """Older files, ImageNet's among them, have no batch counts."""
    model = network()
    state = torchvision_resnet(model).state_dict()
    if old:
        state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    path = tmp_path / "resnet18.pth"
    torch.save(state, path)
    other, report = create(CONFIG, str(path))
    expected = model.backbone.state_dict()
    loaded = other.backbone.state_dict()
    assert all(torch.equal(loaded[key], expected[key]) for key in expected)
    assert report.loaded == ("backbone",)
    assert report.missing == ("global_head", "attention", "autoencoder")
    assert report.dropped == ("fc.weight", "fc.bias")


def test_each_part_is_strict(tmp_path):
    state = s1_state(network(), "backbone_after_3")
    path = tmp_path / "w.pth"
    cases = [
        ({"layers_4.0.conv1.weight": None}, r"lacks: backbone\.body\.layer4\.0\.conv1\.weight"),
        ({"aggregation.3.bias": None}, r"lacks: global_head\.linear\.bias"),
        ({"attention.bn.weight": torch.ones(7)}, r"attention\.bn\.weight \(7,\), expected \(32,\)"),
        ({"attention.extra": torch.ones(1)}, r"unexpected: attention\.extra"),
        ({"whitening.weight": torch.ones(1)}, r"s1 weights, but has also: whitening\.weight"),
    ]
    for change, message in cases:
        changed = {key: tensor for key, tensor in {**state, **change}.items() if tensor is not None}
        torch.save(changed, path)
        with pytest.raises(InputError, match=message):
            create(CONFIG, str(path))


def test_a_head_without_its_layer_is_refused(tmp_path):
    path = tmp_path / "w.pth"
    torch.save(s1_state(network(), "backbone_after_3"), path)
    with pytest.raises(InputError, match=r"unexpected: global_head\.linear\.weight"):
        create(dataclasses.replace(CONFIG, head="gem"), str(path))


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"epoch": 3}, "holds no state dict"),
        ({}, "holds no state dict"),
        ([1, 2], "holds no state dict"),
        ({"encoder.weight": torch.ones(1)}, "unknown layout, with keys such as encoder.weight"),
    ],
)
def test_other_files_are_refused(tmp_path, contents, message):
    path = tmp_path / "other.pth"
    torch.save(contents, path)
    with pytest.raises(InputError, match=message):
        checkpoint.read_weights(path)
