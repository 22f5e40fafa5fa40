import pickle

import numpy as np
import pytest

from retrieval.configs.learn import MiningConfig
from retrieval.data.sfm_pairs import SfmPairs, image_path, read_pairs
from retrieval.errors import InputError
from retrieval.training.sfm_tuples import TuplePhotos, Tuples, hard_negatives, mine_tuples


def unit(rng, count, dim=6):
    rows = rng.normal(size=(count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def slow_negatives(query, pool, own, clusters, count):
    taken, chosen = {own}, []
    for row in sorted(range(len(pool)), key=lambda row: (-float(pool[row] @ query), row)):
        if clusters[row] not in taken:
            taken.add(clusters[row])
            chosen.append(row)
        if len(chosen) == count:
            return chosen
    return None


@pytest.mark.parametrize("count", [1, 3, 5])
def test_negatives_are_the_best_of_other_clusters_one_each(count):
    rng = np.random.default_rng(count)
    pool, queries = unit(rng, 200), unit(rng, 10)
    clusters = np.sort(rng.integers(0, 12, 200))
    own = rng.integers(0, 12, 10)
    pool += 3 * unit(rng, 12)[clusters]  # clusters lie together, so the search must go deep
    pool /= np.linalg.norm(pool, axis=1, keepdims=True)
    found = hard_negatives(queries, pool, own, clusters, count)
    for query in range(10):
        expected = slow_negatives(queries[query], pool, own[query], clusters, count)
        assert found[query].tolist() == expected
        assert len(set(clusters[found[query]])) == count
        assert own[query] not in clusters[found[query]]


def test_a_pool_with_too_few_clusters_is_an_error():
    rng = np.random.default_rng(0)
    clusters = np.array([0, 0, 1, 1, 2, 2])
    assert len(hard_negatives(unit(rng, 1), unit(rng, 6), np.array([0]), clusters, 2)[0]) == 2
    with pytest.raises(InputError, match=r"--neg-num 3.*--pool-size"):
        hard_negatives(unit(rng, 1), unit(rng, 6), np.array([0]), clusters, 3)


def make_pairs(tmp_path, clusters=8, images=4):
    count = clusters * images
    return SfmPairs(
        [tmp_path / f"{i:03d}" for i in range(count)],
        np.repeat(np.arange(clusters), images),
        np.arange(0, count, 2),
        np.arange(1, count, 2),
    )


def test_mined_tuples_keep_the_rules_and_describe_each_image_once(tmp_path):
    pairs = make_pairs(tmp_path)
    rng = np.random.default_rng(1)
    vectors = dict(zip(pairs.paths, unit(rng, len(pairs.paths)), strict=True))
    described = []

    def describe(paths):
        described.extend(paths)
        return np.array([vectors[path] for path in paths])

    tuples = mine_tuples(pairs, MiningConfig(3, 6, 20), describe, 0, 5)
    assert len(tuples) == 6
    assert tuples.negatives.shape == (6, 3)
    assert len(set(described)) == len(described) <= 26
    partner = dict(zip(pairs.queries, pairs.positives, strict=True))
    for index in range(6):
        query, positive, *negatives = tuples.rows(index)
        assert positive == partner[query]
        clusters = pairs.clusters[negatives].tolist()
        assert len({*clusters, pairs.clusters[query]}) == 4
    again = mine_tuples(pairs, MiningConfig(3, 6, 20), describe, 0, 5)
    other = mine_tuples(pairs, MiningConfig(3, 6, 20), describe, 0, 6)
    assert np.array_equal(tuples.negatives, again.negatives)
    assert not np.array_equal(tuples.queries, other.queries)


def test_a_small_set_is_used_whole(tmp_path):
    pairs = make_pairs(tmp_path)
    rng = np.random.default_rng(1)
    tuples = mine_tuples(
        pairs, MiningConfig(2, 2000, 20_000), lambda paths: unit(rng, len(paths)), 0
    )
    assert sorted(tuples.queries) == pairs.queries.tolist()


@pytest.mark.parametrize("name", ["neg_num", "query_size", "pool_size"])
def test_numbers_below_one_are_refused(name):
    with pytest.raises(InputError, match=f"--{name} 0"):
        MiningConfig(**{name: 0})


# ---- the layout


def write_set(folder, photo, content, whiten=None, without=()):
    folder.mkdir(parents=True)
    name = folder.name
    for mode in content.values():
        for i, cid in enumerate(mode["cids"]):
            if cid not in without:
                path = image_path(folder, cid)
                path.parent.mkdir(parents=True, exist_ok=True)
                photo("some.jpg", (40 + 8 * i, 32), i).rename(path)
    (folder / f"{name}.pkl").write_bytes(pickle.dumps(content, protocol=2))
    if whiten is not None:
        (folder / f"{name}-whiten.pkl").write_bytes(pickle.dumps(whiten))


def content(start="a"):
    cids = [f"{start}{i}00112233445566{i}" for i in range(4)]
    return {"cids": cids, "cluster": [7, 7, 8, 8], "qidxs": [0, 2], "pidxs": [1, 3]}


def test_the_layout_is_read(tmp_path, photo):
    folder = tmp_path / "retrieval-SfM-120k"
    train, val = content("a"), content("b")
    whiten = {key: train[key] for key in ("cids", "qidxs", "pidxs")}
    write_set(folder, photo, {"train": train, "val": val}, whiten)
    pairs = read_pairs(folder, "train")
    cid = train["cids"][2]
    assert pairs.paths[2] == folder / "ims" / cid[-2:] / cid[-4:-2] / cid[-6:-4] / cid
    assert pairs.clusters.tolist() == [7, 7, 8, 8]
    assert pairs.queries.tolist() == [0, 2]
    assert pairs.positives.tolist() == [1, 3]
    assert read_pairs(folder, "val").paths[0].name == val["cids"][0]
    assert read_pairs(folder, "whiten").clusters.tolist() == [-1] * 4


def test_photos_come_in_the_order_of_the_tuple_and_larger_ones_are_reduced(tmp_path, photo):
    folder = tmp_path / "set"
    write_set(folder, photo, {"train": content()})
    pairs = read_pairs(folder, "train")
    tuples = Tuples(np.array([0]), np.array([1]), np.array([[3, 2]]))
    photos = TuplePhotos(pairs, tuples, 48)[0]
    assert [tuple(each.shape) for each in photos] == [(3, 32, 40), (3, 32, 48), (3, 24, 48)] + [
        (3, 27, 48)
    ]
    pairs.paths[3].write_bytes(b"no image")
    assert str(pairs.paths[3]) in TuplePhotos(pairs, tuples, 48)[0]


def test_a_missing_data_set_is_named_with_what_is_there(tmp_path):
    (tmp_path / "retrieval-SfM-30k").mkdir()
    with pytest.raises(InputError, match=r"no such file.*retrieval-SfM-30k.*--data-root"):
        read_pairs(tmp_path / "retrieval-SfM-120k", "train")


def test_a_missing_image_is_named(tmp_path, photo):
    train = content()
    write_set(tmp_path / "set", photo, {"train": train}, without=train["cids"][1:3])
    with pytest.raises(InputError, match=rf"2 images of 4.*{train['cids'][1]}"):
        read_pairs(tmp_path / "set", "train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qidxs": [0, 9]}, "rows of its 4 images"),
        ({"qidxs": [0]}, "two lists of different length"),
        ({"cluster": [1]}, "two lists of different length"),
        ({"qidxs": [], "pidxs": []}, "rows of its 4 images"),
    ],
)
def test_lists_that_do_not_fit_are_refused(tmp_path, photo, change, message):
    write_set(tmp_path / "set", photo, {"train": content() | change})
    with pytest.raises(InputError, match=message):
        read_pairs(tmp_path / "set", "train")


def test_another_layout_is_refused(tmp_path, photo):
    write_set(tmp_path / "set", photo, {"train": content()})
    with pytest.raises(InputError, match=r"cids, qidxs, pidxs, cluster of 'val'"):
        read_pairs(tmp_path / "set", "val")


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "set.pkl").write_bytes(b"cos\nsystem\n(S'touch " + b"x'\ntR.")
    with pytest.raises(InputError, match=r"posix|os\.system"):
        read_pairs(folder, "train")
