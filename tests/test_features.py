import json
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from retrieval.errors import InputError
from retrieval.features import FeatureStore, LocalFeatures, MadeBy

KEY = MadeBy("test", {"weights": "0123", "scales": [1.0, 0.5]}, {"fingerprint": "abc"})


def local_features(seed, n=None, d=8, scales=False):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(0, 30)) if n is None else n
    return LocalFeatures(
        keypoints=rng.uniform(0, 2048, (n, 2)).astype(np.float32),
        descriptors=rng.normal(size=(n, d)).astype(np.float32),
        scores=rng.uniform(size=n).astype(np.float32),
        image_size=(1000 + seed, 700),
        scales=rng.uniform(1, 9, n).astype(np.float32) if scales else None,
    )


def assert_kept(stored, put):
    assert stored.keypoints.dtype == np.float32
    assert stored.descriptors.dtype == np.float16
    np.testing.assert_array_equal(stored.keypoints, put.keypoints)
    np.testing.assert_array_equal(stored.descriptors, put.descriptors.astype(np.float16))
    np.testing.assert_array_equal(stored.scores, put.scores)
    assert stored.image_size == put.image_size
    assert stored.orientations is None
    assert (stored.scales is None) == (put.scales is None)
    if put.scales is not None:
        np.testing.assert_array_equal(stored.scales, put.scales)


def shards(store):
    return sorted(store.folder.glob("*.safetensors"))


def test_local_features_check_their_rows():
    with pytest.raises(ValueError, match="3 keypoints but 2 scores"):
        LocalFeatures(np.zeros((3, 2)), np.zeros((3, 8)), np.zeros(2), (9, 9))
    with pytest.raises(ValueError, match=r"must be \(N, 2\)"):
        LocalFeatures(np.zeros((3, 3)), np.zeros((3, 8)), np.zeros(3), (9, 9))


def test_the_strongest_features_are_the_first():
    features = local_features(0, n=9, scales=True)
    few = features.strongest(4)
    assert len(few) == 4
    for name in ("keypoints", "descriptors", "scores", "scales", "orientations"):
        rows, kept = getattr(features, name), getattr(few, name)
        np.testing.assert_array_equal(kept, None if rows is None else rows[:4])
    assert few.image_size == features.image_size
    assert features.strongest(None) is features.strongest(9) is features


@pytest.mark.parametrize("images_per_shard", [1, 4, 100])
def test_what_is_put_is_found_again(tmp_path, images_per_shard):
    put = {f"query/ä b {i}.jpg": local_features(i) for i in range(11)}
    store = FeatureStore.open(tmp_path, KEY)
    assert store.names() == []
    with store.writer(images_per_shard) as writer:
        for name, features in put.items():
            writer.put(name, features)
    for each in (store, FeatureStore.open(tmp_path, KEY)):
        assert each.names() == sorted(put)
        assert len(each) == 11
        assert "other" not in each
        for name, features in put.items():
            assert_kept(each[name], features)
    assert len(shards(store)) == -(-11 // images_per_shard)
    with pytest.raises(KeyError):
        store["other"]


def test_images_without_features_and_with_other_fields(tmp_path):
    put = {
        "none": local_features(0, n=0),
        "alone": local_features(1, n=0, d=0),
        "plain": local_features(2, n=3, d=4),
        "scaled": local_features(3, n=3, d=4, scales=True),
    }
    store = FeatureStore.open(tmp_path, KEY)
    assert store.dimensions is None
    with store.writer() as writer:
        for name, features in put.items():
            writer.put(name, features)
    again = FeatureStore.open(tmp_path, KEY)
    assert again.dimensions == 4
    for name, features in put.items():
        assert_kept(again[name], features)
    with (
        again.writer() as writer,
        pytest.raises(InputError, match=r"wide: descriptors of 9 dimensions, but .* have 4"),
    ):
        writer.put("wide", local_features(4, n=3, d=9))


def test_each_way_of_making_has_its_folder(tmp_path):
    other = replace(KEY, extractor="other")
    first, second = FeatureStore.open(tmp_path, KEY), FeatureStore.open(tmp_path, other)
    with first.writer() as writer:
        writer.put("a", local_features(0))
    assert second.names() == FeatureStore.open(tmp_path, other).names() == []
    assert FeatureStore(first.folder).made_by == KEY
    reordered = replace(KEY, settings=dict(reversed(KEY.settings.items())))
    assert FeatureStore.open(tmp_path, reordered).names() == ["a"]


def test_a_store_of_another_version_and_a_folder_that_is_none(tmp_path):
    store = FeatureStore.open(tmp_path, KEY)
    manifest = store.folder / "manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({"format": 1, "key": content["settings"]}))
    with pytest.raises(InputError, match=r"of another version \(1, not 3\).* extract .* again"):
        FeatureStore(store.folder)
    with pytest.raises(InputError, match=r"is no feature store: it has no manifest\.json"):
        FeatureStore(tmp_path)


def test_an_image_is_put_once(tmp_path):
    store = FeatureStore.open(tmp_path, KEY)
    with store.writer() as writer:
        writer.put("a", local_features(0))
        with pytest.raises(ValueError, match="'a' are already in"):
            writer.put("a", local_features(0))
        assert "a" not in store
        writer.flush()
        assert "a" in store
        with pytest.raises(ValueError, match="'a' are already in"):
            writer.put("a", local_features(0))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_descriptors_that_halves_cannot_hold(tmp_path, value):
    features = local_features(0, n=5)
    features.descriptors[2, 3] = value
    with (
        FeatureStore.open(tmp_path, KEY).writer() as writer,
        pytest.raises(
            InputError, match="a: its descriptors have NaN or infinite values, or are too large"
        ),
    ):
        writer.put("a", features)


def test_what_was_put_before_an_error_is_kept(tmp_path):
    def extract():
        with FeatureStore.open(tmp_path, KEY).writer() as writer:
            writer.put("a", local_features(0))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        extract()
    assert FeatureStore.open(tmp_path, KEY).names() == ["a"]


def test_a_later_change_of_the_array_does_not_reach_the_store(tmp_path):
    features = local_features(4, n=3)
    before = features.keypoints.copy()
    store = FeatureStore.open(tmp_path, KEY)
    with store.writer() as writer:
        writer.put("a", features)
        features.keypoints[:] = 0
    np.testing.assert_array_equal(store["a"].keypoints, before)


def test_many_threads_read_and_write(tmp_path, monkeypatch):
    monkeypatch.setattr("retrieval.features._MOST_OPEN", 3)
    store = FeatureStore.open(tmp_path, KEY)
    names = [str(i) for i in range(120)]
    with store.writer(7) as writer, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: writer.put(name, local_features(int(name))), names))
    assert store.names() == sorted(names)
    order = names * 5
    random.Random(0).shuffle(order)
    with ThreadPoolExecutor(8) as pool:
        for name, features in zip(order, pool.map(store.__getitem__, order), strict=True):
            assert_kept(features, local_features(int(name)))
    assert len(store._open_shards) == 3


def filled(folder):
    store = FeatureStore.open(folder, KEY)
    with store.writer(2) as writer:
        for i in range(4):
            writer.put(str(i), local_features(i, n=9))
    return store


def test_missing_and_damaged_files_are_named_with_the_remedy(tmp_path):
    missing = filled(tmp_path / "missing")
    shards(missing)[0].unlink()
    with pytest.raises(
        InputError, match=r"shard-\w+\.safetensors .*missing.* delete .*shard-\w+\.\*"
    ):
        FeatureStore.open(tmp_path / "missing", KEY)
    with pytest.raises(InputError, match=r"shard-\w+\.safetensors .* delete"):
        [missing[name] for name in missing.names()]

    cut = shards(filled(tmp_path / "cut"))[0]
    cut.write_bytes(cut.read_bytes()[:-5])
    with pytest.raises(InputError, match=r"\d+ bytes instead of \d+.* delete"):
        FeatureStore.open(tmp_path / "cut", KEY)

    header = shards(filled(tmp_path / "header"))[0]
    header.write_bytes(b"\xff" * 16 + header.read_bytes()[16:])
    store = FeatureStore.open(tmp_path / "header", KEY)
    with pytest.raises(InputError, match=r"shard-\w+\.safetensors .* delete"):
        [store[name] for name in store.names()]

    fieldless = shards(filled(tmp_path / "fieldless"))[0]
    fieldless.write_bytes(fieldless.read_bytes().replace(b'"scores"', b'"scorez"', 1))
    store = FeatureStore.open(tmp_path / "fieldless", KEY)
    with pytest.raises(InputError, match=r"shard-\w+\.safetensors .* delete"):
        [store[name] for name in store.names()]

    table = shards(filled(tmp_path / "table"))[0].with_suffix(".json")
    table.write_text("{")
    with pytest.raises(InputError, match=r"shard-\w+\.json .* delete"):
        FeatureStore.open(tmp_path / "table", KEY)

    manifest = filled(tmp_path / "manifest").folder / "manifest.json"
    manifest.write_text("{}")
    with pytest.raises(InputError, match=r"manifest\.json is damaged .*; delete the folder"):
        FeatureStore.open(tmp_path / "manifest", KEY)


def test_the_remedy_works(tmp_path):
    store = filled(tmp_path)
    broken = shards(store)[0]
    broken.write_bytes(b"")
    for file in store.folder.glob(f"{broken.stem}.*"):
        file.unlink()
    again = FeatureStore.open(tmp_path, KEY)
    assert len(again) == 2
    with again.writer() as writer:
        for name in set("0123") - set(again.names()):
            writer.put(name, local_features(int(name), n=9))
    for name in "0123":
        assert_kept(FeatureStore.open(tmp_path, KEY)[name], local_features(int(name), n=9))


def test_leftovers_of_a_killed_writer_do_not_count(tmp_path):
    store = filled(tmp_path)
    shards(store)[0].with_suffix(".json").unlink()  # killed between the shard and its table
    (store.folder / ".shard-0.safetensors.77.tmp").write_bytes(b"half a sh")
    assert len(FeatureStore.open(tmp_path, KEY)) == 2


WRITER = """
import sys
from pathlib import Path
from test_features import KEY, local_features
from retrieval.features import FeatureStore
folder, first, last, step = sys.argv[1], *map(int, sys.argv[2:])
store = FeatureStore.open(Path(folder), KEY)
with store.writer(5) as writer:
    for i in range(first, last, step):
        if str(i) not in store:  # another process may have been faster
            writer.put(str(i), local_features(i, n=400, d=64))
"""


def start_writer(folder, *numbers):
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent / "AG")])
    command = [sys.executable, "-c", WRITER, str(folder), *map(str, numbers)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path})


def test_a_killed_writer_leaves_all_whole_shards(tmp_path):
    rng, known = random.Random(0), 0
    for attempt in range(4):
        process = start_writer(tmp_path, attempt * 1_000_000, (attempt + 1) * 1_000_000, 1)
        try:
            deadline = time.monotonic() + 60
            while len(list(tmp_path.glob("*/shard-*.json"))) < known + 4:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.02))
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        store = FeatureStore.open(tmp_path, KEY)
        known = len(list(tmp_path.glob("*/shard-*.json")))
        assert len(store) == 5 * known
        mine = [int(name) for name in store.names() if int(name) // 1_000_000 == attempt]
        assert sorted(mine) == list(range(attempt * 1_000_000, attempt * 1_000_000 + len(mine)))
        for name in store.names():
            assert_kept(store[name], local_features(int(name), n=400, d=64))


def test_several_processes_write_to_one_store(tmp_path):
    spans = [(0, 60, 2), (1, 60, 2), (0, 60, 3)]  # the last one stores what others store too
    processes = [start_writer(tmp_path, *span) for span in spans]
    assert [process.wait(timeout=60) for process in processes] == [0, 0, 0]
    store = FeatureStore.open(tmp_path, KEY)
    assert store.names() == sorted(map(str, range(60)))
    for name in store.names():
        assert_kept(store[name], local_features(int(name), n=400, d=64))


def test_a_changed_byte_is_noticed(tmp_path):
    store = filled(tmp_path)
    for path in sorted(store.folder.iterdir()):
        whole = path.read_bytes()
        for at in np.random.default_rng(0).integers(len(whole), size=40).tolist():
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
            with pytest.raises(InputError, match=r"damaged|another version"):
                read_all(tmp_path)
        path.write_bytes(whole)
    read_all(tmp_path)


def read_all(folder: Path) -> None:
    store = FeatureStore.open(folder, KEY)
    for name in store.names():
        store[name]


def test_stores_without_checksums_are_read(tmp_path):
    store = filled(tmp_path)
    for path in store.folder.glob("*.json"):
        content = json.loads(path.read_text())
        kept = {name: value for name, value in content.items() if name != "checksum"}
        path.write_text(json.dumps(kept))
    old = FeatureStore.open(tmp_path, KEY)
    assert old.names() == store.names()
    for name in old.names():
        assert np.array_equal(old[name].descriptors, store[name].descriptors)
