import math

import pytest
import torch

from retrieval.networks import pooling


def maps(batch=2, channels=3, h=4, w=5, seed=0):
    return torch.randn(batch, channels, h, w, generator=torch.Generator().manual_seed(seed))


def test_gem_mac_and_spoc_equal_loops_over_cells():
    x = maps()
    p, eps = 2.5, 1e-6
    for b in range(2):
        for c in range(3):
            cells = [float(v) for v in x[b, c].flatten()]
            mean = sum(max(v, eps) ** p for v in cells) / len(cells)
            assert pooling.gem(x, p, eps)[b, c].item() == pytest.approx(mean ** (1 / p), rel=1e-5)
            assert pooling.mac(x)[b, c].item() == max(cells)
            expected = sum(cells) / len(cells)
            assert pooling.spoc(x)[b, c].item() == pytest.approx(expected, abs=1e-6)


def test_gem_runs_from_the_mean_to_the_maximum():
    x = maps().abs() + 0.1
    assert torch.allclose(pooling.gem(x, 1.0), pooling.spoc(x))
    assert torch.allclose(pooling.gem(x, 60.0), pooling.mac(x), rtol=0.06)


def test_gem_module_learns_p_and_has_finite_gradients_on_a_zero_map():
    layer = pooling.GeM()
    assert layer.p.shape == (1,)
    assert layer.p.item() == 3
    assert "eps=1e-06" in repr(layer)
    x = torch.zeros(1, 2, 3, 3, requires_grad=True)
    layer(x).sum().backward()
    for gradient in (x.grad, layer.p.grad):
        assert gradient is not None
        assert torch.isfinite(gradient).all()


def test_pooling_is_float32_under_autocast():
    x = maps().abs().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pooled = [pooling.gem(x), pooling.mac(x), pooling.spoc(x), pooling.l2_normalize(x)]
        layer = pooling.GeM()(x)
    assert all(y.dtype == torch.float32 for y in pooled)
    assert torch.equal(layer, pooling.gem(x.float()))


def test_l2_normalize_leaves_zero_alone():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert torch.allclose(pooling.l2_normalize(x), torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
    columns = pooling.l2_normalize(torch.tensor([[3.0], [4.0]]), dim=0)
    assert torch.allclose(columns, torch.tensor([[0.6], [0.8]]))


def test_a_single_cell_and_an_empty_batch():
    assert torch.allclose(pooling.gem(torch.full((1, 2, 1, 1), 0.5)), torch.tensor(0.5))
    assert pooling.gem(torch.zeros(0, 4, 2, 2)).shape == (0, 4)
    assert math.isclose(pooling.gem(torch.zeros(1, 1, 2, 2)).item(), 1e-6, rel_tol=1e-3)
