import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import map_coordinates

from retrieval.configs.describe import DelfConfig
from retrieval.errors import InputError
from retrieval.networks.delf import Delf, MultiScale, _refine


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
    model = network(pool="spoc", attention="learned", layer=layer, local_layer=layer)
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
    model = network(attention="learned", local_layer="layer3")
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
    model = network(attention="learned")
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
    frozen = network(attention="learned")
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


# ---- settings


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"arch": "resnet3"}, "--backbone resnet3: expected one of resnet18, resnet34, resnet50"),
        ({"pool": "rmac"}, "--pool rmac: expected one of mac, spoc, gem"),
        ({"layer": "layer2"}, "layer layer2: expected one of layer3"),
        ({"attention": "none"}, "attention none: expected one of learned, norm"),
        ({"layer": "layer3", "local_layer": "layer4"}, "use --layer layer3"),
    ],
)
def test_impossible_networks_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        DelfConfig(**fields)


def test_attention_needs_a_network_that_has_one():
    with pytest.raises(ValueError, match="no learned attention"):
        network().freeze_all_but_attention()
