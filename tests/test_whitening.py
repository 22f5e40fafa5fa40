import numpy as np
import pytest
import scipy.linalg
import torch

from retrieval.errors import InputError
from retrieval.whitening import Projection, learn_pca, learn_whitening


def correlated(count=300, dim=6, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, dim)) @ rng.normal(size=(dim, dim)) + rng.normal(size=dim)


def up_to_sign(columns):
    return columns * np.sign(columns[np.abs(columns).argmax(0), np.arange(columns.shape[1])])


def test_pca_is_the_eigendecomposition_with_scaled_axes():
    x = correlated()
    projection = learn_pca(x, 4, 0.25)
    centred = x - x.mean(0)
    values, vectors = scipy.linalg.eigh(centred.T @ centred / (len(x) - 1))
    expected = vectors[:, ::-1][:, :4] * values[::-1][:4] ** -0.25
    np.testing.assert_allclose(projection.mean, x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(
        up_to_sign(projection.matrix), up_to_sign(expected), rtol=1e-4, atol=1e-6
    )


def test_a_pca_to_too_many_dimensions_is_refused():
    with pytest.raises(InputError, match="cannot be learned from 5 descriptors"):
        learn_pca(correlated(5), 6, 0.5)


def test_a_projection_gives_unit_norm():
    projection = Projection(np.ones(3, np.float32), np.eye(3, dtype=np.float32)[:, :2])
    out = projection(torch.tensor([[4.0, 5.0, 9.0]]))
    np.testing.assert_allclose(out.numpy(), [[0.6, 0.8]], rtol=1e-6)


def pairs(dim=5, seed=1):
    rng = np.random.default_rng(seed)
    places = correlated(200, dim, seed)
    noise = rng.normal(size=(400, dim)) @ rng.normal(size=(dim, dim)) * 0.2
    return np.concatenate([places, places]) + noise, np.arange(200), np.arange(200, 400)


def test_learned_whitening_is_the_generalised_eigendecomposition():
    x, queries, positives = pairs()
    learned = learn_whitening(x, queries, positives)
    differences = x[queries] - x[positives]
    within = differences.T @ differences / len(queries)
    centred = x - x[queries].mean(0)
    # scipy: total @ v = value * within @ v with v' within v = 1; smallest value first
    _, vectors = scipy.linalg.eigh(centred.T @ centred, within)
    np.testing.assert_allclose(learned.mean, x[queries].mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        up_to_sign(learned.matrix), up_to_sign(vectors[:, ::-1]), rtol=2e-3, atol=1e-3
    )


def test_learned_whitening_whitens_the_differences_and_orders_the_axes():
    x, queries, positives = pairs()
    learned = learn_whitening(x, queries, positives)
    y = (x - learned.mean) @ learned.matrix.astype(np.float64)
    differences = y[queries] - y[positives]
    np.testing.assert_allclose(differences.T @ differences / 200, np.eye(5), atol=1e-3)
    spread = y.T @ y
    assert np.all(np.diff(np.diag(spread)) <= 0)
    off = spread - np.diag(np.diag(spread))
    assert np.abs(off).max() < 1e-3 * np.diag(spread).max()


def test_fewer_pairs_than_dimensions_are_regularised():
    x, queries, positives = pairs(dim=8)
    learned = learn_whitening(x, queries[:3], positives[:3])
    assert np.isfinite(learned.matrix).all()
    same = learn_whitening(x, queries, queries)  # no difference at all
    assert np.isfinite(same.matrix).all()


def test_whitening_needs_pairs_of_finite_descriptors():
    x, queries, positives = pairs()
    with pytest.raises(InputError, match="without matching pairs"):
        learn_whitening(x, queries[:0], positives[:0])
    x[3, 2] = np.nan
    with pytest.raises(InputError, match="NaN or infinite"):
        learn_whitening(x, queries, positives)
