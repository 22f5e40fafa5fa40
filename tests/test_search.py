import numpy as np
import pytest

from retrieval import search
from retrieval.errors import InputError
from retrieval.search import Ranking, fused


def unit(n, d=16, seed=0):
    rows = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize(("q", "n", "k"), [(3, 50, 5), (200, 700, 20), (1, 1, 1), (30, 40, 40)])
def test_flat_equals_numpy(q, n, k):
    queries, database = unit(q), unit(n, seed=1)
    ranking, similarity = search.knn(queries, database, k)
    product = queries.astype(np.float64) @ database.T
    expected = np.argsort(-product, axis=1, kind="stable")[:, :k]
    assert ranking.dtype == np.int64
    assert similarity.dtype == np.float32
    np.testing.assert_array_equal(ranking, expected)
    np.testing.assert_allclose(similarity, np.take_along_axis(product, expected, 1), atol=1e-6)


def test_inner_product_orders_as_distance():
    queries, database = unit(10), unit(300, seed=1)
    distance = np.linalg.norm(queries[:, None] - database[None], axis=2)
    ranking, _ = search.knn(queries, database, 300)
    np.testing.assert_array_equal(ranking, np.argsort(distance, axis=1))


def test_k_is_cut_at_the_database_and_empty_sets_are_normal():
    assert search.knn(unit(3), unit(5), 20)[0].shape == (3, 5)
    assert search.knn(unit(0), unit(5), 4)[0].shape == (0, 4)
    ranking, similarity = search.knn(unit(3), unit(0), 4)
    assert ranking.shape == similarity.shape == (3, 0)


def test_ties_come_in_the_order_of_rows():
    database = np.repeat(np.eye(4, dtype=np.float32), 5, axis=0)
    ranking, _ = search.knn(np.eye(4, dtype=np.float32), database, 20)
    for query in range(4):
        np.testing.assert_array_equal(ranking[query, :5], np.arange(5) + 5 * query)
        assert (np.diff(ranking[query, 5:]) > 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["query", "database"])
def test_not_finite(bad, side):
    sets = {"query": unit(4), "database": unit(6)}
    sets[side][2, 3] = bad
    with pytest.raises(InputError, match=rf"1 of \d {side} descriptors .*row 2"):
        search.knn(sets["query"], sets["database"], 2)


def test_bad_shapes_and_k():
    with pytest.raises(InputError, match="16 dimensions, database descriptors 8"):
        search.knn(unit(3), unit(5, 8), 2)
    with pytest.raises(InputError, match="k = 0"):
        search.knn(unit(3), unit(5), 0)
    with pytest.raises(ValueError, match=r"must be \(N, D\)"):
        search.knn(unit(3)[0], unit(5), 2)


def test_halves_and_strided_rows_are_taken():
    queries, database = unit(4), unit(90, seed=1)
    expected, _ = search.knn(queries, database, 3)
    wide = np.zeros((90, 32), np.float64)
    wide[:, ::2] = database
    np.testing.assert_array_equal(search.knn(queries, wide[:, ::2], 3)[0], expected)
    halves = database.astype(np.float16)
    again, _ = search.knn(queries, halves, 3)
    np.testing.assert_array_equal(again, search.knn(queries, halves.astype(np.float32), 3)[0])


def test_without_takes_rows_and_keeps_the_order():
    rows = np.array([[4, 1, 3, 0], [2, 4, 0, 1], [-1, -1, -1, -1]])
    ranking = search.Ranking(rows, np.float32([[4, 3, 2, 1], [8, 7, 6, 5], [-np.inf] * 4]))
    left_out = [np.array([1]), np.array([9]), np.array([], np.int64)]
    found = search.without(ranking, left_out)
    assert found.rows.tolist() == [[4, 3, 0], [2, 4, 0], [-1, -1, -1]]
    assert found.similarity.tolist() == [[4, 2, 1], [8, 7, 6], [-np.inf] * 3]
    assert search.without(ranking, None) is ranking


def full(rng, scale=1.0):
    """A ranking of 30 photos for 4 queries, and its scores by row."""
    scores = (rng.random((4, 30)) * scale).astype(np.float32)
    rows = np.argsort(-scores, axis=1)
    return Ranking(rows, np.take_along_axis(scores, rows, 1)), scores


def test_fused_scores_against_a_slow_sum():
    rng = np.random.default_rng(0)
    (one, first), (two, second) = full(rng), full(rng, 1000.0)
    found = fused([one, two])
    for query in range(4):
        total = np.zeros(30)
        for scores in (first[query], second[query]):
            total += scores / np.sort(scores)[-10:].mean()
        np.testing.assert_allclose(found.similarity[query], np.sort(total)[::-1], rtol=1e-5)
        np.testing.assert_allclose(total[found.rows[query]], found.similarity[query], rtol=1e-5)


def test_an_index_fused_with_itself_or_alone_keeps_its_order():
    ranking, _ = full(np.random.default_rng(1))
    assert fused([ranking]) is ranking
    np.testing.assert_array_equal(fused([ranking, ranking]).rows, ranking.rows)
    nothing = Ranking(ranking.rows, np.full_like(ranking.similarity, -1))  # of a blank query
    np.testing.assert_array_equal(fused([ranking, nothing]).rows, ranking.rows)
