import numpy as np
import pytest
import torch
import torch.nn.functional as F

from retrieval.networks.pooling import GeM
from retrieval.networks.rmac import RMac, regions


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
    pool = RMac(GeM(), 5)
    expected = torch.zeros(2, 5)
    for top, left, side in [(0, 0, None), *regions(6, 8)]:
        part = x if side is None else x[..., top : top + side, left : left + side]
        expected += F.normalize(part.pow(3).mean((-2, -1)).pow(1 / 3))
    torch.testing.assert_close(pool(x), expected, rtol=1e-4, atol=1e-5)
