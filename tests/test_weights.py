import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from retrieval import checkpoint
from retrieval.commands.eval_flags import check_weights_suffice
from retrieval.configs.describe import DelfConfig, DelgConfig
from retrieval.errors import InputError
from retrieval.networks.create import create
from retrieval.networks.delf import Delf
from retrieval.networks.delg import Delg
from retrieval.networks.weights import read_weights

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
        return model.global_descriptors(images), *model.local_maps(images)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(outputs(a), outputs(b), strict=True))


# ---- This project's


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
    weights = read_weights(path)
    assert weights.layout == "delg"
    assert weights.config == (CONFIG if wrapped == "ours" else None)
    other, report, _ = create(CONFIG, str(path))
    assert same(model, other.eval())
    assert report.missing == ()
    assert checkpoint.weights_hash(other.state_dict()) == checkpoint.weights_hash(state)


# ---- Prefixes of DELG. The files are made from our tensors by a slow mapping of its own:
# torchvision's network is filled name by name, its children are counted as CosPlace's
# nn.Sequential counts them.


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


def first_delg_state(model, backbone):
    resnet = torchvision_resnet(model)
    layer4 = {f"layers_4.{key}": tensor for key, tensor in resnet.layer4.state_dict().items()}
    autoencoder = {
        f"autoencoder.conv{i}.{kind}": getattr(layer, kind).data
        for i, layer in ((1, model.autoencoder.reduce), (2, model.autoencoder.expand))
        for kind in ("weight", "bias")
    }
    attention = {f"attention.{key}": t for key, t in model.attention.state_dict().items()}
    return {
        **numbered(list(resnet.children())[:-3], backbone),
        **layer4,
        **aggregation(model),
        **attention,
        **autoencoder,
        "attn_classifier.weight": torch.rand(5965, 256),
        "attn_classifier.bias": torch.rand(5965),
    }


@pytest.mark.parametrize("backbone", ["backbone_after_3", "backbone_until_3"])
@pytest.mark.parametrize("wrapper", [None, "model_state_dict"])
def test_weights_of_the_first_pytorch_delg(tmp_path, backbone, wrapper):
    model = network()
    state = first_delg_state(model, backbone)
    path = tmp_path / "res18.pth"
    torch.save({wrapper: state, "epoch_num": 3} if wrapper else state, path)
    other, report, _ = create(CONFIG, str(path))
    assert same(model, other.eval())
    assert report.missing == ()
    assert report.dropped == ("attn_classifier.weight", "attn_classifier.bias")
    assert "first PyTorch DELG keys" in str(report)
    assert "left out: attn_classifier.weight" in str(report)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_of_cosplace(tmp_path, prefix):
    model = network()
    state = numbered(list(torchvision_resnet(model).children())[:-2], "backbone")
    state |= aggregation(model)
    path = tmp_path / "ResNet18_24_cosplace.pth"
    torch.save({prefix + key: tensor for key, tensor in state.items()}, path)
    other, report, _ = create(CONFIG, str(path))
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
    weights = read_weights(path)
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
    other, report, _ = create(CONFIG, str(path))
    expected = model.backbone.state_dict()
    loaded = other.backbone.state_dict()
    assert all(torch.equal(loaded[key], expected[key]) for key in expected)
    assert report.loaded == ("backbone",)
    assert report.missing == ("global_head", "attention", "autoencoder")
    assert report.dropped == ("fc.weight", "fc.bias")


def test_each_part_is_strict(tmp_path):
    state = first_delg_state(network(), "backbone_after_3")
    path = tmp_path / "w.pth"
    cases = [
        ({"layers_4.0.conv1.weight": None}, r"lacks: backbone\.body\.layer4\.0\.conv1\.weight"),
        ({"aggregation.3.bias": None}, r"lacks: global_head\.linear\.bias"),
        ({"attention.bn.weight": torch.ones(7)}, r"attention\.bn\.weight \(7,\), expected \(32,\)"),
        ({"attention.extra": torch.ones(1)}, r"unexpected: attention\.extra"),
        (
            {"whitening.weight": torch.ones(1)},
            r"DELG weights, but has also: whitening\.weight",
        ),
    ]
    for change, message in cases:
        changed = {key: tensor for key, tensor in {**state, **change}.items() if tensor is not None}
        torch.save(changed, path)
        with pytest.raises(InputError, match=message):
            create(CONFIG, str(path))


def test_a_head_without_its_layer_is_refused(tmp_path):
    path = tmp_path / "w.pth"
    torch.save(first_delg_state(network(), "backbone_after_3"), path)
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
        read_weights(path)


# ---- DELF: cirtorch's files, and ours


@pytest.fixture
def photos():
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def delf(**fields):
    torch.manual_seed(0)
    return Delf(DelfConfig(**{"arch": "resnet18", **fields}), "none").eval()


def cirtorch_checkpoint(path, **extra):
    """A checkpoint as cirtorch writes it, and the descriptor that its network computes."""
    torch.manual_seed(3)
    features = nn.Sequential(*list(torchvision.models.resnet18().children())[:-2]).eval()
    state = {f"features.{k}": v for k, v in features.state_dict().items()}
    state = {k: v for k, v in state.items() if "num_batches" not in k}  # as from old versions
    state["pool.p"] = torch.tensor([2.2])
    rng = np.random.default_rng(0)
    whitening = {"m": rng.normal(size=(512, 1)), "P": rng.normal(size=(512, 512))}
    other = {"m": np.zeros((512, 1)), "P": np.eye(512)}
    meta = {
        "architecture": "resnet18",
        "pooling": "gem",
        "local_whitening": False,
        "regional": False,
        "whitening": False,
        "outputdim": 512,
        "mean": [0.485, 0.456, 0.406],
        "Lw": {"retrieval-SfM-120k": {"ss": whitening, "ms": other}},
    }
    torch.save({"meta": meta, "state_dict": state, "epoch": 3, **extra}, path)

    @torch.no_grad()
    def describe(photos):
        x = features(photos).clamp(min=1e-6).pow(2.2).mean((-2, -1)).pow(1 / 2.2)
        return F.normalize(x)

    return describe, whitening


def test_cirtorchs_checkpoint_gives_cirtorchs_descriptor(tmp_path, photos):
    describe, whitening = cirtorch_checkpoint(tmp_path / "gem.pth.tar")
    config = DelfConfig(arch="resnet18")
    model, report, learned = create(config, str(tmp_path / "gem.pth.tar"))
    assert read_weights(tmp_path / "gem.pth.tar").config == config
    expected = describe(photos)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(photos), expected, rtol=1e-4, atol=1e-6)
    assert report.loaded == ("backbone", "pool")
    whitened = learned["retrieval-SfM-120k", "ss"](expected).numpy()
    slow = whitening["P"] @ (expected.numpy().T - whitening["m"])
    np.testing.assert_allclose(whitened, (slow / np.linalg.norm(slow, axis=0)).T, atol=1e-4)


def test_a_network_of_cirtorch_is_not_scored_as_a_delg(tmp_path):
    """Its learned pooling would be put aside, and p = 3 taken, without a word."""
    path = str(tmp_path / "gem.pth.tar")
    cirtorch_checkpoint(tmp_path / "gem.pth.tar")
    config = DelgConfig("resnet18", head="gem", attention="norm")
    report = create(config, path).report
    with pytest.raises(InputError, match=r"example\.finetuning tests and tunes it"):
        check_weights_suffice(path, config, report, with_local=False)


def test_an_attention_starts_from_cirtorchs_network(tmp_path):
    cirtorch_checkpoint(tmp_path / "gem.pth.tar")
    config = DelfConfig(arch="resnet18", attention="learned")
    _, report, _ = create(config, str(tmp_path / "gem.pth.tar"))
    assert report.missing == ("attention",)


def test_a_checkpoint_comes_back(tmp_path, photos):
    model = delf(attention="learned", regional=True)
    checkpoint.save_model(tmp_path / "best.pth", model)
    file = read_weights(tmp_path / "best.pth")
    assert file.config == model.config
    again, _, _ = create(file.config, str(tmp_path / "best.pth"))
    with torch.no_grad():
        assert torch.equal(again.eval()(photos), model(photos))


def test_a_plain_backbone_is_enough_to_start_from(tmp_path):
    body = torchvision.models.resnet18()
    torch.save(body.state_dict(), tmp_path / "resnet18.pth")
    model, report, _ = create(DelfConfig(arch="resnet18"), str(tmp_path / "resnet18.pth"))
    assert torch.equal(model.backbone.body.conv1.weight, body.conv1.weight)
    assert (report.loaded, report.missing) == (("backbone",), ("pool",))


def test_other_files_of_cirtorch_are_refused(tmp_path):
    path = tmp_path / "odd.pth"
    meta = {"architecture": "resnet18", "pooling": "gem"}
    torch.save({"meta": meta, "state_dict": {"neck.weight": torch.zeros(1)}}, path)
    with pytest.raises(InputError, match=r"has also: neck\.weight"):
        read_weights(path)
    torch.save(
        {"meta": {"architecture": "alexnet"}, "state_dict": {"features.0.weight": torch.zeros(1)}},
        path,
    )
    with pytest.raises(InputError, match="architecture alexnet"):
        read_weights(path)
    torch.save({"meta": meta, "state_dict": {}, "Lw": math.sqrt}, path)
    with pytest.raises(InputError, match="not a readable checkpoint"):
        read_weights(path)


@pytest.mark.parametrize(("old", "now"), [(True, "learned"), (False, "norm")])
def test_configs_that_say_attention_by_a_bool_are_known(tmp_path, old, now):
    model = delf(attention=now)
    contents = checkpoint.model_contents(model)
    contents["config"]["attention"] = old
    checkpoint.save(tmp_path / "old.pth", contents | {"meta": model.meta()})
    assert read_weights(tmp_path / "old.pth").config == model.config


def test_a_config_of_another_version_is_told(tmp_path):
    contents = checkpoint.model_contents(delf())
    contents["config"]["glow"] = 1
    checkpoint.save(tmp_path / "new.pth", contents)
    with pytest.raises(InputError, match="does not know: glow"):
        read_weights(tmp_path / "new.pth")


def test_an_attention_that_is_not_asked_for_is_left_out(tmp_path, photos):
    model = delf(attention="learned")
    checkpoint.save_model(tmp_path / "best.pth", model)
    config = dataclasses.replace(model.config, attention="norm")
    again, report, _ = create(config, str(tmp_path / "best.pth"))
    assert (report.missing, len(report.dropped)) == ((), 4)
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(photos), delf()(photos))


def test_of_another_kind_of_network_the_backbone_alone_is_taken(tmp_path):
    one, other = network(), delf(attention="learned")
    checkpoint.save_model(tmp_path / "delg.pth", one)
    checkpoint.save_model(tmp_path / "delf.pth", other)
    for config, file, source in [(other.config, "delg", one), (one.config, "delf", other)]:
        model, report, _ = create(config, str(tmp_path / f"{file}.pth"))
        assert report.loaded == ("backbone",)
        expected = source.backbone.state_dict()
        assert all(torch.equal(v, expected[k]) for k, v in model.backbone.state_dict().items())


def cosplace_state(prefix: str = "") -> dict[str, torch.Tensor]:
    names = ("backbone.0.weight", "aggregation.1.p", "aggregation.3.weight")
    return {f"{prefix}{name}": torch.ones(2) for name in names}


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "model.net."])
def test_what_wrappers_put_before_the_keys_is_left_out(tmp_path, prefix):
    torch.save({"model_state_dict": cosplace_state(prefix)}, tmp_path / "a.pth")
    weights = read_weights(tmp_path / "a.pth")
    assert weights.layout == "CosPlace"
    assert weights.state.keys() == read_weights_of(tmp_path, cosplace_state()).keys()


def read_weights_of(tmp_path, state):
    torch.save(state, tmp_path / "b.pth")
    return read_weights(tmp_path / "b.pth").state


@pytest.mark.parametrize(
    "best", [np.float64(55.5), np.float32(1), np.int64(3), np.bool_(True), np.arange(3.0)]
)
def test_a_last_checkpoint_of_cosplace_is_read(tmp_path, best):
    state = {"epoch_num": 3, "model_state_dict": cosplace_state(), "best_val_recall1": best}
    torch.save({**state, "optimizer_state_dict": {"state": {}}}, tmp_path / "last_checkpoint.pth")
    assert read_weights(tmp_path / "last_checkpoint.pth").layout == "CosPlace"


MIXED_KEYS: dict[object, torch.Tensor] = {"backbone.0.weight": torch.ones(1), 1: torch.ones(1)}
OURS = {"backbone.body.conv1.weight": torch.ones(1)}
CIRTORCH = {"state_dict": {"features.0.weight": torch.ones(1)}}


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({1: torch.ones(1)}, "holds no state dict"),
        (MIXED_KEYS, "holds no state dict"),
        ({**cosplace_state(), "x": 3}, "holds no state dict"),
        ([1, 2], "holds no state dict"),
        ({"model": OURS, "config": {"backbone": 5}}, "its network's backbone is 5"),
        ({"model": OURS, "config": {"fc_output_dim": "x"}}, "its network's fc_output_dim is 'x'"),
        ({"model": OURS, "config": {"nope": 5}}, "does not know: nope"),
        ({**CIRTORCH, "meta": {"architecture": "resnet18"}}, "does not tell their pooling"),
        ({**CIRTORCH, "meta": {"architecture": 3, "pooling": "gem"}}, "architecture 3"),
        (
            {**CIRTORCH, "meta": {"architecture": "resnet18", "pooling": "gem", "Lw": {"a": 3}}},
            r"learned whitenings \(Lw\) cannot be read",
        ),
        (Path("a"), r"it refers to pathlib\.PosixPath\); save its state dict alone"),
        (b"<!DOCTYPE html><html>404</html>", "a web page, .* download it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS"),
        (b"", "it is empty"),
        (b"\x80\x02nonsense", "expected a whole file of tensors and plain values"),
    ],
)
def test_what_is_no_checkpoint_is_said_in_our_words(tmp_path, contents, message):
    path = tmp_path / "a.pth"
    path.write_bytes(contents) if isinstance(contents, bytes) else torch.save(contents, path)
    with pytest.raises(InputError, match=message) as error:
        read_weights(path)
    assert "a.pth" in str(error.value)
    assert "weights_only" not in str(error.value)
    assert "\x1b" not in str(error.value)


def test_weights_that_are_no_numbers_are_refused_by_their_names(tmp_path):
    network = Delg(DelgConfig(fc_output_dim=4), "none")
    with torch.no_grad():
        network.attention.load_state_dict(
            {key: value * torch.nan for key, value in network.attention.state_dict().items()}
        )
    checkpoint.save_model(tmp_path / "a.pth", network)
    with pytest.raises(InputError, match=r"NaN or infinite values in attention\."):
        create(network.config, str(tmp_path / "a.pth"))
