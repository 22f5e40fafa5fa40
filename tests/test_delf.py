import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from scipy.ndimage import map_coordinates
from torch import nn

from retrieval.checkpoint import save
from retrieval.configs.describe import DelfConfig
from retrieval.errors import InputError
from retrieval.networks import delf_weights
from retrieval.networks.delf import Attention, Delf, MultiScale, _refine
from retrieval.networks.pooling import GeM
from retrieval.networks.rmac import Regional, regions


@pytest.fixture
def photos():
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def network(**fields):
    torch.manual_seed(0)
    return Delf(DelfConfig(**{"arch": "resnet18", **fields}), "none").eval()


def map_of(model, photos, layer):
    """The map by torchvision's own forward pass."""
    x = photos
    for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"):
        x = getattr(model.backbone.body, name)(x)
        if name == layer:
            return x
    raise AssertionError(layer)


# ---- the network


@torch.no_grad()
@pytest.mark.parametrize("pool", ["mac", "spoc", "gem"])
def test_the_descriptor_is_the_pooled_map(photos, pool):
    model = network(pool=pool)
    x = map_of(model, photos, "layer4").flatten(2).double()
    pooled = {
        "mac": x.amax(2),
        "spoc": x.mean(2),
        "gem": x.clamp(min=1e-6).pow(3).mean(2).pow(1 / 3),
    }[pool]
    expected = pooled / pooled.norm(dim=1, keepdim=True)
    torch.testing.assert_close(model(photos).double(), expected, rtol=1e-4, atol=1e-6)
    assert model.descriptor_dim == 512


@torch.no_grad()
@pytest.mark.parametrize(("layer", "channels"), [("layer3", 256), ("layer4", 512)])
def test_attention_weights_the_map_that_is_pooled(photos, layer, channels):
    model = network(pool="spoc", attention=True, layer=layer, local_layer=layer)
    x = map_of(model, photos, layer)
    first, second = model.attention.conv1, model.attention.conv2
    hidden = torch.relu(
        torch.einsum("oc,bchw->bohw", first.weight[..., 0, 0], x) + first.bias[:, None, None]
    )
    score = torch.einsum("oc,bchw->bohw", second.weight[..., 0, 0], hidden) + second.bias
    score = torch.log1p(torch.exp(score))
    expected = F.normalize((x * score).mean((-2, -1)))
    torch.testing.assert_close(model(photos), expected, rtol=1e-4, atol=1e-6)
    descriptors, scores = model.local_maps(photos)
    torch.testing.assert_close(scores, score, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(descriptors, F.normalize(x), rtol=1e-4, atol=1e-6)
    assert first.weight.shape == (channels, channels, 1, 1)


@torch.no_grad()
def test_cells_know_their_pixels(photos):
    model = network()
    assert model.backbone.local_stride == 32
    assert model.backbone.spec.cell_to_pixel(2) == 64
    assert model.local_maps(photos)[0].shape == (2, 512, 2, 3)
    model = network(layer="layer3", local_layer="layer3")
    assert model.backbone.local_stride == 16
    assert model.local_maps(photos)[0].shape == (2, 256, 4, 6)


@torch.no_grad()
def test_attention_of_layer4_is_read_at_the_cells_of_layer3(photos):
    model = network(attention=True, local_layer="layer3")
    descriptors, scores = model.local_maps(photos)
    x = map_of(model, photos, "layer3")
    coarse = model.attention(map_of(model, photos, "layer4"))
    torch.testing.assert_close(descriptors, F.normalize(x), rtol=1e-4, atol=1e-6)
    assert scores.shape == (2, 1, 4, 6)
    at = np.stack(np.meshgrid(np.arange(4) / 2, np.arange(6) / 2, indexing="ij"))
    for image in range(2):
        expected = map_coordinates(coarse[image, 0].numpy(), at, order=1, mode="nearest")
        np.testing.assert_allclose(scores[image, 0].numpy(), expected, rtol=1e-4, atol=1e-6)


def test_refined_scores_of_one_cell_are_its_own():
    fine = _refine(torch.full((1, 1, 1, 1), 0.7), torch.Size((2, 1)))
    assert fine.flatten().tolist() == pytest.approx([0.7, 0.7])


@torch.no_grad()
def test_without_attention_a_cell_scores_its_norm(photos):
    model = network()
    norm = map_of(model, photos, "layer4").norm(dim=1, keepdim=True)  # 2 x 3 cells: 3 x 3 windows
    expected = torch.stack(
        [norm[..., :2].mean((2, 3)), norm.mean((2, 3)), norm[..., 1:].mean((2, 3))]
    )
    expected = expected.permute(1, 2, 0)[:, :, None].expand_as(norm)
    torch.testing.assert_close(model.local_maps(photos)[1], expected, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_linear_layers_change_nothing_until_trained(photos):
    plain, more = network(pool="spoc"), network(pool="spoc", whitening=True, local_whitening=True)
    torch.testing.assert_close(more(photos), plain(photos), rtol=1e-4, atol=1e-6)


def test_batch_norm_keeps_its_statistics_in_training(photos):
    model = network()
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items() if "running" in k}
    model(photos)
    assert before
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())
    assert model.training


def test_attention_alone_can_learn(photos):
    model = network(attention=True)
    model.freeze_all_but_attention()
    model.train()
    model(photos).sum().backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == {n for n, _ in model.named_parameters() if n.startswith("attention.")}


def test_gems_power_learns_ten_times_as_fast_without_decay():
    rest, power = network().parameter_groups(1e-3, 1e-6)
    assert (rest["lr"], rest["weight_decay"]) == (1e-3, 1e-6)
    assert (power["lr"], power["weight_decay"]) == (1e-2, 0)
    assert [p.shape for p in power["params"]] == [(1,)]
    assert len(network(pool="mac").parameter_groups(1e-3, 0)) == 1
    frozen = network(attention=True)
    frozen.freeze_all_but_attention()
    assert len(frozen.parameter_groups(1, 0)[0]["params"]) == 4


@torch.no_grad()
def test_scales_are_joined_by_the_mean_of_gems_power(photos):
    model = network()
    model.pool.p.fill_(2.5)
    small = F.interpolate(photos, (32, 48), mode="bilinear", antialias=True)
    both = (model(photos).pow(2.5) + model(small).pow(2.5)) / 2
    expected = F.normalize(both.pow(1 / 2.5))
    found = MultiScale(model, (1.0, 0.5)).global_descriptors(photos)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(MultiScale(model, (1.0,)).global_descriptors(photos), model(photos))
    model = network(pool="mac")
    expected = F.normalize(model(photos) + model(small))
    found = MultiScale(model, (1.0, 0.5)).global_descriptors(photos)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


# ---- regions


def test_a_square_has_the_regions_of_rmac():
    found = regions(12, 12)
    assert [side for _, _, side in found] == [12] + [8] * 4 + [6] * 9
    assert [(top, left) for top, left, side in found if side == 8] == [
        (0, 0),
        (0, 4),
        (4, 0),
        (4, 4),
    ]


@pytest.mark.parametrize("shape", [(9, 16), (16, 9), (24, 32), (1, 1), (1, 5), (2, 7)])
def test_regions_lie_in_the_map_and_cover_it(shape):
    covered = np.zeros(shape, bool)
    for top, left, side in regions(*shape):
        assert top >= 0 <= left
        assert top + side <= shape[0]
        assert left + side <= shape[1]
        covered[top : top + side, left : left + side] = True
    assert covered.all()


@torch.no_grad()
def test_regional_pooling_adds_up_normalised_regions():
    x = torch.rand(2, 5, 6, 8, generator=torch.Generator().manual_seed(1))
    pool = Regional(GeM(), 5)
    expected = torch.zeros(2, 5)
    for top, left, side in [(0, 0, None), *regions(6, 8)]:
        part = x if side is None else x[..., top : top + side, left : left + side]
        expected += F.normalize(part.pow(3).mean((-2, -1)).pow(1 / 3))
    torch.testing.assert_close(pool(x), expected, rtol=1e-4, atol=1e-5)


# ---- settings


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"arch": "resnet3"}, "--arch resnet3: expected one of resnet18, resnet34, resnet50"),
        ({"pool": "rmac"}, "--pool rmac: expected one of mac, spoc, gem"),
        ({"layer": "layer2"}, "--layer layer2"),
        ({"layer": "layer3", "local_layer": "layer4"}, "use --layer layer3"),
    ],
)
def test_impossible_networks_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        DelfConfig(**fields)


# ---- weights


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
    model, report, learned = delf_weights.create(config, str(tmp_path / "gem.pth.tar"))
    expected = describe(photos)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(photos), expected, rtol=1e-4, atol=1e-6)
    assert report.loaded == ("backbone", "pool")
    whitened = learned["retrieval-SfM-120k", "ss"](expected).numpy()
    slow = whitening["P"] @ (expected.numpy().T - whitening["m"])
    np.testing.assert_allclose(whitened, (slow / np.linalg.norm(slow, axis=0)).T, atol=1e-4)


def test_an_attention_starts_from_cirtorchs_network(tmp_path):
    cirtorch_checkpoint(tmp_path / "gem.pth.tar")
    config = DelfConfig(arch="resnet18", attention=True)
    _, report, _ = delf_weights.create(config, str(tmp_path / "gem.pth.tar"))
    assert report.missing == ("attention",)


def test_a_checkpoint_comes_back(tmp_path, photos):
    model = network(attention=True, regional=True)
    save(tmp_path / "best.pth", delf_weights.contents(model))
    file = delf_weights.read_file(tmp_path / "best.pth")
    assert file.config == model.config
    again, _, _ = delf_weights.create(file.config, str(tmp_path / "best.pth"))
    with torch.no_grad():
        assert torch.equal(again.eval()(photos), model(photos))


def test_a_plain_backbone_is_enough_to_start_from(tmp_path):
    body = torchvision.models.resnet18()
    torch.save(body.state_dict(), tmp_path / "resnet18.pth")
    model, report, _ = delf_weights.create(
        DelfConfig(arch="resnet18"), str(tmp_path / "resnet18.pth")
    )
    assert torch.equal(model.backbone.body.conv1.weight, body.conv1.weight)
    assert (report.loaded, report.missing) == (("backbone",), ("pool",))


def test_weights_of_another_network_are_refused(tmp_path):
    path = str(tmp_path / "gem.pth.tar")
    cirtorch_checkpoint(path)
    with pytest.raises(InputError, match="arch resnet34, but the file has resnet18"):
        delf_weights.create(DelfConfig(arch="resnet34"), path)
    with pytest.raises(InputError, match="pool mac, but the file has gem"):
        delf_weights.create(DelfConfig(arch="resnet18", pool="mac"), path)
    with pytest.raises(InputError, match="neither a file nor one of"):
        delf_weights.create(DelfConfig(), str(tmp_path / "missing.pth"))


def test_unknown_layouts_are_refused(tmp_path):
    path = tmp_path / "odd.pth"
    meta = {"architecture": "resnet18", "pooling": "gem"}
    torch.save({"meta": meta, "state_dict": {"neck.weight": torch.zeros(1)}}, path)
    with pytest.raises(InputError, match=r"has also neck\.weight"):
        delf_weights.read_file(path)
    torch.save({"meta": {"architecture": "alexnet"}, "state_dict": {}}, path)
    with pytest.raises(InputError, match="architecture alexnet"):
        delf_weights.read_file(path)
    torch.save({"meta": meta, "state_dict": {}, "Lw": math.sqrt}, path)
    with pytest.raises(InputError, match="not a readable checkpoint"):
        delf_weights.read_file(path)


def test_attention_needs_a_network_that_has_one():
    with pytest.raises(ValueError, match="no attention"):
        network().freeze_all_but_attention()
    assert sum(p.numel() for p in Attention(4).parameters()) == 4 * 4 + 4 + 4 + 1
