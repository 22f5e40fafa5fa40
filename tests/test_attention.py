import math

import pytest
import torch

from retrieval.networks.attention import ActivationNorm, Attention, attention_pool


@pytest.mark.parametrize("batch_norm", [True, False])
def test_attention_is_a_1x1_network(batch_norm):
    x = torch.randn(2, 6, 3, 4, generator=torch.Generator().manual_seed(4))
    attention = Attention(6, 5, batch_norm=batch_norm).eval()
    state = attention.state_dict()

    def at_cell(name, value):
        return state[f"{name}.weight"][:, :, 0, 0] @ value + state[f"{name}.bias"]

    hidden = at_cell("conv1", x[1, :, 2, 3])
    if batch_norm:
        hidden = hidden / math.sqrt(1 + attention.bn.eps)
    score = at_cell("conv2", hidden.clamp(min=0))
    assert attention(x)[1, 0, 2, 3].item() == pytest.approx(math.log1p(score.exp().item()))


def test_delfs_attention_has_two_layers_and_no_other_weights():
    attention = Attention(4, 4, batch_norm=False)
    assert sum(p.numel() for p in attention.parameters()) == 4 * 4 + 4 + 4 + 1
    assert {key.split(".")[0] for key in attention.state_dict()} == {"conv1", "conv2"}


def test_attention_pooling_is_the_mean_of_score_times_unit_vector():
    generator = torch.Generator().manual_seed(4)
    x = torch.rand(1, 3, 2, 3, generator=generator)
    score = torch.rand(1, 1, 2, 3, generator=generator)
    expected = sum(
        score[0, 0, i, j] * x[0, :, i, j] / x[0, :, i, j].norm() for i in range(2) for j in range(3)
    )
    assert torch.allclose(attention_pool(x, score)[0], expected / 6)


@pytest.mark.parametrize("window", [1, 3])
def test_activation_norm_averages_the_cells_that_exist(window):
    x = torch.randn(1, 5, 3, 4, generator=torch.Generator().manual_seed(4))
    norm = {(i, j): x[0, :, i, j].norm().item() for i in range(3) for j in range(4)}
    near = window // 2
    for (i, j), _ in norm.items():
        cells = [v for (a, b), v in norm.items() if abs(a - i) <= near and abs(b - j) <= near]
        expected = sum(cells) / len(cells)
        assert ActivationNorm(window)(x)[0, 0, i, j].item() == pytest.approx(expected, rel=1e-5)
