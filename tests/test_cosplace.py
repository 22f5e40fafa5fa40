import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from retrieval.configs.describe import DelgConfig
from retrieval.configs.learn import (
    AugmentConfig,
    GroupConfig,
    LossConfig,
    Recipe,
    TrainConfig,
)
from retrieval.data.places import Group
from retrieval.networks.delg import Delg
from retrieval.training.cosplace import Classifiers, Objective, sizes
from retrieval.training.cosplace_batches import Augmentation, Draws


@pytest.fixture
def group():
    return Group([np.arange(0, 4), np.arange(4, 7), np.arange(7, 12)])


@pytest.fixture
def paths(photo):
    return [photo(f"{i}.png", (40, 40), i) for i in range(12)]


def draws(paths, group, *, seed=0, epoch=0):
    return Draws(paths, group, seed, epoch, Augmentation(AugmentConfig(image_size=32)), 32)


def test_each_class_is_drawn_once_before_any_is_drawn_again(paths, group):
    labels = [draws(paths, group)[i][1] for i in range(30)]
    for start in range(0, 30, 3):
        assert sorted(labels[start : start + 3]) == [0, 1, 2]
    assert len({tuple(labels[start : start + 3]) for start in range(0, 30, 3)}) > 1


def test_every_image_of_a_class_is_drawn(paths, group, monkeypatch):
    from retrieval.data import images

    read = []
    original = images.read_image
    monkeypatch.setattr(
        images, "read_image", lambda path, *rest: read.append(path) or original(path, *rest)
    )
    data = draws(paths, group)
    labels = [data[i][1] for i in range(120)]
    assert set(read) == set(paths)
    for path, label in zip(read, labels, strict=True):
        assert paths.index(path) in group.classes[label]


def test_a_draw_depends_on_seed_epoch_and_place_alone(paths, group):
    def images_of(order, **which):
        data = draws(paths, group, **which)
        return {i: data[i][0] for i in order}

    forth = images_of(range(8))
    torch.manual_seed(123)
    back = images_of(reversed(range(8)))
    assert all(torch.equal(forth[i], back[i]) for i in range(8))
    for other in ({"seed": 1}, {"epoch": 1}):
        assert not all(torch.equal(forth[i], x) for i, x in images_of(range(8), **other).items())


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_no_draw(paths, group, workers):
    def batches(num_workers):
        loader = DataLoader(draws(paths, group), batch_sampler=[[0, 1], [2, 3]],
                            num_workers=num_workers)  # fmt: skip
        return [(photos, labels) for photos, labels, _, _ in loader]

    for (a, x), (b, y) in zip(batches(0), batches(workers), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(x, y)


def test_augmentation_leaves_the_random_state_alone():
    augment = Augmentation(AugmentConfig(image_size=32))
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    augment(torch.rand(3, 40, 50, generator=torch.Generator().manual_seed(0)), 5)
    assert torch.equal(torch.rand(3), expected)


def test_an_unreadable_image_gives_its_error(paths, group):
    for path in paths:
        path.write_bytes(b"no image")
    photo_, _, _, error = draws(paths, group)[0]
    assert photo_.shape == (3, 32, 32)
    assert "unreadable" in error


@pytest.fixture(scope="module")
def objective():
    torch.manual_seed(0)
    model = Delg(DelgConfig(fc_output_dim=16, reduction=True, fm_reduction_dim=8), "none")
    group = Group([np.arange(2)] * 5)
    losses = LossConfig(global_weight=2.0, attention_weight=3.0, reconstruction_weight=5.0)
    recipe = Recipe(GroupConfig(), TrainConfig(), AugmentConfig(), losses, only_local=False)
    return Objective(model, Classifiers(group, model, recipe), losses)


def test_the_total_is_the_weighted_sum_of_the_losses(objective):
    photos, labels = torch.randn(2, 3, 64, 64), torch.tensor([1, 3])
    terms = objective(photos, labels)
    expected = 2 * terms["global"] + 3 * terms["attention"] + 5 * terms["reconstruction"]
    torch.testing.assert_close(terms["total"], expected)


@pytest.mark.parametrize(("term", "backbone_learns"), [("global", True), ("attention", False),
                                                    ("reconstruction", False)])  # fmt: skip
def test_the_local_losses_stop_at_the_detached_map(objective, term, backbone_learns):
    objective.zero_grad(set_to_none=True)
    objective(torch.randn(2, 3, 64, 64), torch.tensor([1, 3]))[term].backward()
    grads = [p.grad for p in objective.model.backbone.parameters() if p.requires_grad]
    assert any(grad is not None and grad.abs().max() > 0 for grad in grads) == backbone_learns
    model = objective.model
    local = [*model.attention.parameters(), *model.autoencoder.parameters()]
    assert any(p.grad is not None for p in local) != backbone_learns


def test_sizes_count_images_classes_and_groups(group):
    assert sizes([group, Group([np.arange(3)])]) == (15, 4, 2)
