import logging
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from retrieval.configs.judge import Source
from retrieval.configs.learn import GroupConfig
from retrieval.data import images, places
from retrieval.data.places import Place, Positions
from retrieval.data.training_photos import load_groups
from retrieval.errors import InputError


def slow_groups(utm, heading, config):
    """CosPlace's procedure, image by image: class id, group id, then dictionaries."""
    images_of_class, group_of_class = defaultdict(list), {}
    for row, ((east, north), angle) in enumerate(zip(utm, heading, strict=True)):
        rounded = (
            int(east // config.M * config.M),
            int(north // config.M * config.M),
            int(angle // config.alpha * config.alpha),
        )
        images_of_class[rounded].append(row)
        group_of_class[rounded] = (
            rounded[0] % (config.M * config.N) // config.M,
            rounded[1] % (config.M * config.N) // config.M,
            rounded[2] % (config.alpha * config.L) // config.alpha,
        )
    groups = defaultdict(list)
    for name, rows in images_of_class.items():
        if len(rows) >= config.min_images_per_class:
            groups[group_of_class[name]].append(rows)
    return list(groups.values())


def as_lists(groups):
    return [[rows.tolist() for rows in group.classes] for group in groups]


def random_places(n=3000, side=60.0, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(-side, side, (n, 2)), rng.uniform(0, 360, n)


@pytest.mark.parametrize(
    "config",
    [
        GroupConfig(groups_num=1),
        GroupConfig(M=7, alpha=45, N=3, L=4, groups_num=1, min_images_per_class=2),
        GroupConfig(M=20, alpha=360, N=1, L=1, groups_num=1, min_images_per_class=1),
        GroupConfig(M=10, alpha=30, N=5, L=2, groups_num=1, min_images_per_class=4),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_groups_against_a_slow_derivation(config, seed):
    utm, heading = random_places(side=30, seed=seed)
    expected = slow_groups(utm, heading, config)
    assert expected
    every = GroupConfig(**{**vars(config), "groups_num": len(expected)})
    # CosPlace leaves the order of classes in a group to a set; here it is by the first image.
    in_order = [sorted(group, key=lambda rows: rows[0]) for group in expected]
    in_order.sort(key=lambda group: group[0][0])
    groups = places.build_groups(Positions(utm, heading), every)
    assert as_lists(groups) == in_order
    assert as_lists(places.build_groups(Positions(utm, heading), config)) == in_order[:1]
    assert groups[0].num_images == sum(map(len, in_order[0]))
    assert groups[0].classes[0].dtype == np.int64


def test_classes_of_a_group_lie_apart():
    utm, heading = random_places()
    config = GroupConfig(groups_num=20, min_images_per_class=1)
    for group in places.build_groups(Positions(utm, heading), config):
        corners = {
            (*(utm[rows[0]] // 10).astype(int).tolist(), int(heading[rows[0]] // 30))
            for rows in group.classes
        }
        assert len({(e % 5, n % 5, h % 2) for e, n, h in corners}) == 1


def test_cells_fifty_metres_and_sixty_degrees_apart_make_one_group():
    cells = [(50 * i, 50 * j, 60 * h) for i in range(3) for j in range(3) for h in range(6)]
    utm = np.repeat([(e + 5.0, n + 5.0) for e, n, _ in cells], 10, axis=0)
    heading = np.repeat([h + 3.0 for *_, h in cells], 10)
    (group,) = places.build_groups(Positions(utm, heading), GroupConfig(groups_num=1))
    assert len(group.classes) == 54
    assert group.num_images == 540


def test_heading_is_taken_around_the_circle():
    utm = np.zeros((30, 2))
    heading = np.repeat([1.0, 361.0, -359.0], 10)
    (group,) = places.build_groups(Positions(utm, heading), GroupConfig(groups_num=1))
    assert as_lists([group]) == [[list(range(30))]]


def test_too_few_groups_or_images():
    utm, heading = np.zeros((20, 2)), np.zeros(20)
    with pytest.raises(InputError, match=r"--groups_num 8: .* set --groups_num 1"):
        places.build_groups(Positions(utm, heading), GroupConfig())
    with pytest.raises(InputError, match=r"--min_images_per_class; .* has 20: lower it"):
        places.build_groups(Positions(utm, heading), GroupConfig(min_images_per_class=21))
    with pytest.raises(InputError, match="--min_images_per_class"):
        places.build_groups(Positions(np.empty((0, 2)), np.empty(0)), GroupConfig())
    with pytest.raises(InputError, match="--N 0"):
        GroupConfig(N=0)
    with pytest.raises(InputError, match="--alpha 400"):
        GroupConfig(alpha=400)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        (places.EXAMPLE, Place(548240.35, 4180741.21, 210.0, 10)),
        ("a/b@7@8@/@1.5@-2@@@@@@@@@.jpg", Place(1.5, -2.0, None)),
        ("@1@2@10@S@37@-122@pano@@90.5.JPG", Place(1.0, 2.0, 90.5, 10)),
        ("@0543256.96@4178906.70.png", Place(543256.96, 4178906.70, None)),
        ("@0449.22@0353.78@44@Q@@@img@@87@@@@ 17h51@region3@.jpg", Place(449.22, 353.78, 87.0, 44)),
        ("x@3@4@5", Place(3.0, 4.0, None)),
        ("@1@2@33@H@.jpg", Place(1.0, 2.0, None, -33)),
        ("@1@2@61@H@.jpg", Place(1.0, 2.0, None)),
        ("@1@2@33@north@.jpg", Place(1.0, 2.0, None)),
    ],
)
def test_parse_name(name, place):
    assert places.parse_name(name) == place
    assert places.parse_name(Path(name)) == place


@pytest.mark.parametrize(
    "name",
    ["IMG_0001.jpg", "@.jpg", "@1@.jpg", "@a@2@.jpg", "@nan@2@.jpg", "@1@inf@.jpg", ""]
    + ["@1@2@@@@@@@north@.jpg", "@1@2@@@@@@@nan@.jpg"],
)
def test_names_without_coordinates(name):
    message = r"no coordinates in the name.* as in @0548240.*--no_labels or --positives"
    with pytest.raises(InputError, match=message):
        places.parse_name(name)


def make_split(folder, utm, heading):
    folder.mkdir(parents=True, exist_ok=True)
    for row, ((east, north), angle) in enumerate(zip(utm, heading, strict=True)):
        shown = "" if np.isnan(angle) else f"{angle:.2f}"
        (folder / f"@{east:.2f}@{north:.2f}@10@S@@@{row:04d}@@{shown}@@@@@@.jpg").touch()


def test_positions(tmp_path):
    make_split(tmp_path / "q", [(3.0, 4.0), (1.0, 2.0)], [np.nan, 90.0])
    paths = images.list_images(tmp_path / "q")
    utm, heading, zone = places.positions(paths)
    assert [path.name[:5] for path in paths] == ["@1.00", "@3.00"]
    assert utm.tolist() == [[1, 2], [3, 4]]
    assert zone.tolist() == [10, 10]
    assert heading[0] == 90
    assert np.isnan(heading[1])
    (tmp_path / "q" / "plain.jpg").touch()
    with pytest.raises(InputError, match=r"plain\.jpg: no coordinates"):
        places.positions(images.list_images(tmp_path / "q"))


CONFIG = GroupConfig(M=50, N=2, L=1, groups_num=2, min_images_per_class=2)


@pytest.fixture
def train(tmp_path):
    make_split(tmp_path / "a" / "train", *random_places(200))
    return tmp_path / "a" / "train"


def test_load_groups_reads_what_it_cached(train, tmp_path, monkeypatch):
    paths, groups = load_groups(Source(train), CONFIG, tmp_path / "cache")
    assert as_lists(groups) == as_lists(places.build_groups(places.positions(paths), CONFIG))
    assert len(list((tmp_path / "cache").iterdir())) == 1

    def never(*_):
        raise AssertionError("the cached table was not used")

    monkeypatch.setattr(places, "build_groups", never)
    again = load_groups(Source(train), CONFIG, tmp_path / "cache")
    assert again[0] == paths
    assert as_lists(again[1]) == as_lists(groups)


def test_cache_is_keyed_by_names_and_config(train, tmp_path):
    cache = tmp_path / "cache"
    load_groups(Source(train), CONFIG, cache)
    other = tmp_path / "b" / "train"  # the same base name with other images
    make_split(other, *random_places(200, seed=1))
    paths, groups = load_groups(Source(other), CONFIG, cache)
    assert as_lists(groups) == as_lists(places.build_groups(places.positions(paths), CONFIG))
    finer = GroupConfig(M=40, N=2, L=1, groups_num=2, min_images_per_class=2)
    load_groups(Source(train), finer, cache)
    assert len(list(cache.iterdir())) == 3
    moved = train.rename(tmp_path / "moved")  # the same images elsewhere share the table
    load_groups(Source(moved), CONFIG, cache)
    assert len(list(cache.iterdir())) == 3
    next(moved.iterdir()).unlink()
    load_groups(Source(moved), CONFIG, cache)
    assert len(list(cache.iterdir())) == 4


@pytest.mark.parametrize("damage", ["cut", "noise", "empty"])
def test_a_damaged_table_is_made_anew(train, tmp_path, caplog, damage):
    cache = tmp_path / "cache"
    _, groups = load_groups(Source(train), CONFIG, cache)
    (table,) = cache.iterdir()
    whole = table.read_bytes()
    table.write_bytes({"cut": whole[: len(whole) // 2], "noise": b"noise", "empty": b""}[damage])
    with caplog.at_level(logging.WARNING):
        _, again = load_groups(Source(train), CONFIG, cache)
    assert "damaged" in caplog.text
    assert str(table) in caplog.text
    assert as_lists(again) == as_lists(groups)
    assert table.read_bytes() == whole


def test_flipped_bytes_never_crash(train, tmp_path):
    cache = tmp_path / "cache"
    _, groups = load_groups(Source(train), CONFIG, cache)
    (table,) = cache.iterdir()
    whole = np.frombuffer(table.read_bytes(), np.uint8)
    rng = np.random.default_rng(0)
    for _ in range(60):
        data = whole.copy()
        data[rng.integers(0, len(data), 3)] ^= rng.integers(1, 256, 3, dtype=np.uint8)
        table.write_bytes(data)
        assert as_lists(load_groups(Source(train), CONFIG, cache)[1]) == as_lists(groups)


def test_a_training_name_without_heading(tmp_path):
    make_split(tmp_path / "train", [(1.0, 2.0), (3.0, 4.0)], [20.0, np.nan])
    with pytest.raises(InputError, match=r"@3\.00.*no heading \(1 of 2"):
        load_groups(Source(tmp_path / "train"), CONFIG, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_degrees_are_no_metres(tmp_path):
    """Two places 38 km apart, which as metres would be one."""
    names = ["@37.77493@-122.41942@.jpg", "@38.10411@-122.25664@.jpg"]
    with pytest.raises(InputError, match=r"@37\.77.* look like degrees .*expected metres"):
        places.positions([tmp_path / name for name in names])
    with pytest.raises(InputError, match="look like degrees"):
        places.positions([Path("@-122.41942@37.77493@10@S@.jpg")])
    for sound in (["@37.775@-122.419@.jpg"], [*names, "@548240.35@4180741.21@.jpg"], []):
        places.positions([Path(name) for name in sound])


def test_images_of_two_zones_share_no_class():
    utm, heading = np.zeros((20, 2)), np.zeros(20)
    zones = np.repeat([10, -33], 10)
    (group,) = places.build_groups(Positions(utm, heading, zones), GroupConfig(groups_num=1))
    assert as_lists([group]) == [[list(range(10)), list(range(10, 20))]]


def test_the_largest_cell_that_is_told_lies_in_one_zone():
    utm, heading = np.zeros((6, 2)), np.zeros(6)
    zones = np.array([10, 10, 10, 10, 33, 33])
    with pytest.raises(InputError, match=r"largest cell .* has 4:"):
        places.build_groups(
            Positions(utm, heading, zones), GroupConfig(min_images_per_class=5, groups_num=1)
        )
