import math

import pytest
import torch
import torch.nn.functional as F

from retrieval.configs.describe import DelgConfig
from retrieval.errors import InputError
from retrieval.networks.attention import attention_pool
from retrieval.networks.delg import Autoencoder, Delg, GlobalHead
from retrieval.training import losses

REDUCED = DelgConfig(reduction=True, fm_reduction_dim=16, fc_output_dim=24, attention_dim=32)
PLAIN = DelgConfig(fc_output_dim=24, attention_dim=32)
FROZEN = DelgConfig(head="gem", attention="norm")


def images(batch=3, height=64, width=96):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(2))


def network(config=REDUCED):
    torch.manual_seed(0)
    return Delg(config, "none")


def local_parameters(model):
    return [p for name, p in model.named_parameters() if name.startswith(("attention", "autoenc"))]


def total_loss(output):
    labels = torch.tensor([0, 1, 2])
    torch.manual_seed(5)
    margin = losses.MarginClassifier(output.descriptors.shape[1], 3)
    attention = losses.AttentionClassifier(output.attention_pooled.shape[1], 3)
    loss = losses.classification_loss(margin(output.descriptors, labels), labels)
    loss = loss + losses.classification_loss(attention(output.attention_pooled), labels)
    if output.reconstruction is not None:
        loss = loss + losses.reconstruction_loss(output.reconstruction, output.local_map)
    return loss


# ---- Parts against the slow way


def test_defaults_are_those_of_the_first_pytorch_delg():
    config = DelgConfig()
    assert (config.backbone, config.head, config.attention) == ("resnet18", "delg", "learned")
    assert (config.fc_output_dim, config.fm_reduction_dim, config.attention_dim) == (512, 128, 512)
    assert (config.gem_p, config.gem_eps) == (3.0, 1e-6)
    assert not config.reduction
    assert not config.train_all_layers


def test_global_head_cell_by_cell():
    head = GlobalHead(4, DelgConfig(fc_output_dim=3))
    assert head.linear is not None
    x = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(3))
    cells = [x[0, :, i, j].tolist() for i in range(2) for j in range(2)]
    cells = [[max(v / math.hypot(*cell), 1e-6) for v in cell] for cell in cells]
    pooled = [(sum(cell[c] ** 3 for cell in cells) / 4) ** (1 / 3) for c in range(4)]
    projected = [
        b + sum(w * v for w, v in zip(row, pooled, strict=True))
        for row, b in zip(head.linear.weight.tolist(), head.linear.bias.tolist(), strict=True)
    ]
    expected = [v / math.hypot(*projected) for v in projected]
    assert head(x)[0].tolist() == pytest.approx(expected, rel=1e-5)


def test_gem_head_has_no_linear_layer():
    head = GlobalHead(4, DelgConfig(head="gem"))
    x = torch.rand(2, 4, 3, 3, generator=torch.Generator().manual_seed(3))
    gem = x.pow(3).mean((2, 3)).pow(1 / 3)
    assert torch.allclose(head(x), gem / gem.norm(dim=1, keepdim=True))
    assert [name for name, _ in head.named_parameters()] == ["pool.p"]
    assert head.dim == 4


def test_autoencoder_is_a_1x1_network():
    x = torch.randn(2, 6, 3, 4, generator=torch.Generator().manual_seed(4))
    autoencoder = Autoencoder(6, 2)

    def at_cell(name, value):
        state = autoencoder.state_dict()
        return state[f"{name}.weight"][:, :, 0, 0] @ value + state[f"{name}.bias"]

    reduced, reconstruction = autoencoder(x)
    code = at_cell("reduce", x[1, :, 2, 3])
    assert torch.allclose(reduced[1, :, 2, 3], code, atol=1e-6)
    back = at_cell("expand", code)
    assert torch.allclose(reconstruction[1, :, 2, 3], back.clamp(min=0), atol=1e-6)


# ---- The network


@pytest.mark.parametrize("config", [REDUCED, PLAIN, FROZEN])
def test_shapes_types_and_norms(config):
    model = network(config).eval()
    with torch.inference_mode():
        output = model(images())
        descriptors, attention = model.local_maps(images())
        assert torch.equal(model.global_descriptors(images()), output.descriptors)
    assert output.descriptors.shape == (3, model.descriptor_dim)
    assert model.descriptor_dim == (512 if config is FROZEN else 24)
    assert torch.allclose(output.descriptors.norm(dim=1), torch.ones(3))
    width = config.fm_reduction_dim if config.reduction else 256
    assert output.local_map.shape == (3, 256, 4, 6)
    assert output.reduced.shape == descriptors.shape == (3, width, 4, 6)
    assert output.attention.shape == attention.shape == (3, 1, 4, 6)
    assert output.attention.min() >= 0
    assert output.attention_pooled.shape == (3, 256)
    assert (output.reconstruction is None) == (not config.reduction)
    assert torch.allclose(descriptors, F.normalize(output.reduced), atol=1e-6)
    assert torch.equal(attention, output.attention)


def test_without_reduction_attention_pools_the_map_itself():
    model = network(PLAIN).eval()
    with torch.inference_mode():
        output = model(images())
    assert output.reduced is output.local_map
    expected = attention_pool(output.local_map, output.attention)
    assert torch.equal(output.attention_pooled, expected)


def test_with_reduction_attention_scores_the_map_and_pools_the_reconstruction():
    model = network(REDUCED).eval()
    with torch.inference_mode():
        output = model(images())
        assert torch.equal(output.attention, model.attention(output.local_map))
    expected = attention_pool(output.reconstruction, output.attention)
    assert torch.equal(output.attention_pooled, expected)


@pytest.mark.parametrize("size", [(32, 32), (33, 95), (97, 64), (224, 50)])
@pytest.mark.parametrize("config", [REDUCED, FROZEN])
def test_any_image_size_will_do(config, size):
    model = network(config).eval()
    with torch.inference_mode():
        output = model(images(1, *size))
        assert torch.isfinite(output.descriptors).all()
        assert output.attention.shape[2:] == (math.ceil(size[0] / 16), math.ceil(size[1] / 16))


def test_no_images_give_no_descriptors():
    model = network().eval()
    with torch.inference_mode():
        assert model.global_descriptors(images(0)).shape == (0, 24)
        assert model.local_maps(images(0))[0].shape[:2] == (0, 16)


def test_bf16_autocast_gives_float32_descriptors_near_those_of_float32():
    model = network().eval()
    with torch.inference_mode():
        exact = model(images())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model(images())
            local, attention = model.local_maps(images())
    for tensor in (output.descriptors, output.attention, output.attention_pooled, local, attention):
        assert tensor.dtype == torch.float32
    assert output.local_map.dtype == torch.bfloat16
    assert (output.descriptors * exact.descriptors).sum(1).min() > 0.999
    assert torch.allclose(output.descriptors.norm(dim=1), torch.ones(3))


# ---- Where gradients go


@pytest.mark.parametrize("config", [REDUCED, PLAIN])
def test_the_local_losses_do_not_reach_the_backbone(config):
    model = network(config).train()
    output = model(images())
    assert not output.local_map.requires_grad
    loss = output.attention_pooled.square().sum() + output.attention.sum()
    if output.reconstruction is not None:
        loss = loss + losses.reconstruction_loss(output.reconstruction, output.local_map)
    loss.backward()
    touched = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert touched == ({"attention", "autoencoder"} if config.reduction else {"attention"})
    assert all(parameter.grad is not None for parameter in local_parameters(model))


def test_the_global_loss_does_not_reach_the_local_head():
    model = network().train()
    model(images()).descriptors[:, 0].sum().backward()
    touched = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert touched == {"backbone", "global_head"}
    assert model.backbone.body.layer3[0].conv1.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("everything", [True, False])
def test_train_all_layers(everything):
    model = network(DelgConfig(reduction=True, train_all_layers=everything)).train()
    total_loss(model(images())).backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    assert model.backbone.body.conv1.weight.requires_grad == everything
    assert model.backbone.body.layer3[0].conv1.weight.requires_grad


def test_local_only_training_leaves_the_global_descriptors_as_they_were():
    model = network().eval()
    with torch.inference_mode():
        before = model.global_descriptors(images())
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    model.freeze_all_but_local()
    model.train()
    optimizer = torch.optim.Adam(local_parameters(model), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        total_loss(model(images())).backward()
        optimizer.step()
    changed = {
        key.split(".")[0]
        for key, tensor in model.state_dict().items()
        if not torch.equal(tensor, state[key])
    }
    assert changed == {"attention", "autoencoder"}
    learned = {id(p) for p in model.parameters() if p.requires_grad}
    assert learned == {id(p) for p in local_parameters(model)}
    assert model.attention.bn.num_batches_tracked == 2
    with torch.inference_mode():
        assert torch.equal(model.eval().global_descriptors(images()), before)


def test_local_only_training_works_without_reduction():
    model = network(PLAIN)
    model.freeze_all_but_local()
    total_loss(model.train()(images())).backward()
    assert all(p.grad is not None for p in local_parameters(model))


def test_without_a_trained_local_head_there_is_nothing_to_train():
    assert local_parameters(network(FROZEN)) == []


def test_no_classifier_is_part_of_the_network():
    parts = {name for name, _ in network().named_children()}
    assert parts == {"backbone", "global_head", "attention", "autoencoder"}


# ---- Configs


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"head": "fc"}, "--head fc"),
        ({"attention": "none"}, "--attention none"),
        ({"backbone": "alexnet"}, "--backbone alexnet"),
        ({"fm_reduction_dim": 0}, "--fm_reduction_dim 0"),
        ({"norm_window": 2}, "norm_window 2"),
    ],
)
def test_impossible_configs_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        DelgConfig(**values)


def test_cosplaces_names_of_backbones_are_known():
    assert DelgConfig(backbone="ResNet50").backbone == "resnet50"
