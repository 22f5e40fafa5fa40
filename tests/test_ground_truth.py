import csv
import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrieval import metrics
from retrieval.data import ground_truth, images, places, positives
from retrieval.data.places import Positions
from retrieval.data.safe_pickle import read_pickle
from retrieval.errors import InputError

AG = Path(__file__).parents[1] / "AG"


def data_folder(name):
    path = Path(os.environ.get("DELG_DATA", "unset")) / name
    if not path.exists():
        pytest.skip(f"DELG_DATA does not name a folder with {name}")
    return path


def as_lists(rows):
    return [each.tolist() for each in rows]


# --- by distance


@pytest.mark.parametrize("max_angle", [None, 45.0, 180.0])
def test_by_distance_against_all_pairs(max_angle):
    rng = np.random.default_rng(0)
    queries, database = rng.uniform(0, 100, (40, 2)), rng.uniform(0, 100, (150, 2))
    headings = rng.uniform(0, 360, 40), rng.uniform(-360, 720, 150)
    taken = Positions(queries, headings[0]), Positions(database, headings[1])
    found = positives.by_distance(*taken, 25, max_angle)
    for query in range(40):
        expected = []
        for row in range(150):
            near = np.hypot(*(queries[query] - database[row])) <= 25
            difference = np.radians(headings[0][query] - headings[1][row])
            turn = np.degrees(np.arccos(np.clip(np.cos(difference), -1, 1)))
            if near and (max_angle is None or turn <= max_angle):
                expected.append(row)
        assert found.positives[query].tolist() == expected
        assert found.junk[query].size == 0


def nowhere(utm):
    return Positions(utm, np.full(len(utm), np.nan))


def test_by_distance_takes_the_threshold_in_at_utm_size():
    query = np.array([[548240.0, 4180741.0]])
    database = query + [[25.0, 0.0], [0.0, -25.0], [25.001, 0.0], [15.0, 20.0]]
    found = positives.by_distance(nowhere(query), nowhere(database), 25)
    assert as_lists(found.positives) == [[0, 1, 3]]


def test_by_distance_of_nothing():
    some, none = nowhere(np.zeros((3, 2))), nowhere(np.empty((0, 2)))
    assert as_lists(positives.by_distance(some, none, 25).positives) == [[], [], []]
    assert positives.by_distance(none, some, 25).positives == []
    assert as_lists(positives.by_distance(some, some, 25).junk) == [[], [], []]


def test_by_distance_needs_headings_for_an_angle():
    utm = np.zeros((2, 2))
    known, unknown = Positions(utm, np.zeros(2)), Positions(utm, np.array([3.0, np.nan]))
    with pytest.raises(InputError, match=r"--positive_angle .* 1 of 2 queries have none"):
        positives.by_distance(unknown, known, 25, 45)
    with pytest.raises(InputError, match="2 of 2 database images"):
        positives.by_distance(known, nowhere(utm), 25, 45)


def test_by_distance_keeps_zones_of_utm_apart():
    """Equal metres in 10S and 33U are two places; a photo that tells no zone may be in either."""
    utm = np.zeros((4, 2))
    database = nowhere(utm)._replace(zone=np.array([10, 33, 0, -10]))
    queries = nowhere(utm[:3])._replace(zone=np.array([10, 33, 0]))
    found = positives.by_distance(queries, database, 25)
    assert as_lists(found.positives) == [[0, 2], [1, 2], [0, 1, 2, 3]]


def test_by_distance_gives_the_campus_file():
    folder = data_folder("campus")
    paths = [images.list_images(folder / split) for split in ("queries", "database")]
    query, database = map(places.positions, paths)
    names = [[path.name for path in split] for split in paths]
    by_file = positives.from_file(folder / "positives.csv", *names)
    computed = positives.by_distance(query, database, 25, 45)
    assert as_lists(by_file.positives) == as_lists(computed.positives)


# --- from a file

QUERIES = ["q 1.jpg", "sub/q2.jpg", "q3.jpg"]
DATABASE = ["a/x.jpg", "b/x.jpg", "b/y z.jpg", "c@;.jpg"]


def write_csv(path, lines):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    return path


def test_csv(tmp_path):
    path = write_csv(
        tmp_path / "p.csv",
        [
            ("query", "positives (;-separated)"),
            ("q2.jpg", "b/x.jpg;y z.jpg;"),
            ("q3.jpg", ""),
            ("q 1.jpg", "a/x.jpg"),
        ],
    )
    found = positives.from_file(path, QUERIES, DATABASE)
    assert as_lists(found.positives) == [[0], [1, 2], []]
    assert as_lists(found.junk) == [[], [], []]
    path.write_text("\ufeff" + path.read_text().split("\n", 1)[1])  # no header, a byte-order mark
    assert as_lists(positives.from_file(path, QUERIES, DATABASE).positives) == [[0], [1, 2], []]


def test_json_by_rows_and_by_names(tmp_path):
    path = tmp_path / "p.json"
    path.write_text(json.dumps({"positives_per_query": [[3, 0], [], [2, 2]]}))
    found = positives.from_file(path, QUERIES, DATABASE)
    assert as_lists(found.positives) == [[0, 3], [], [2]]
    named = {"q3.jpg": ["y z.jpg"], "q 1.jpg": ["c@;.jpg", "a/x.jpg"], "sub/q2.jpg": []}
    path.write_text(json.dumps(named))
    again = positives.from_file(path, QUERIES, DATABASE)
    assert as_lists(again.positives) == as_lists(found.positives)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"positives_per_query": [[0], [1]]}, "has 2 lists, but there are 3 queries"),
        ({"positives_per_query": [[0], [1], [4]]}, "row 4 is not in the database of 4"),
        ({"positives_per_query": [[0], [1], [-1]]}, "row -1 is not in the database"),
        ({"positives_per_query": [[0], [1], [0.5]]}, "expected a list of rows"),
        ({"positives_per_query": [[0], [1], ["x"]]}, "expected a list of rows"),
        ({"positives_per_query": [[0], [1], [[1], [2, 3]]]}, "expected a list of rows"),
        ({"positives_per_query": [[0], [1], 2]}, "expected a list of rows"),
        ({"positives_per_query": [[0], [1], [True]]}, "expected a list of rows"),
        ({"positives_per_query": 5}, "has no lists"),
        ({"q 1.jpg": [], "q2.jpg": []}, r"1 of 3 queries are not in it .*q3\.jpg"),
        ({"q9.jpg": []}, r"'q9\.jpg': no file has this name in the queries"),
        ({"q3.jpg": ["w.jpg"]}, r"'w\.jpg': no file has this name in the database"),
        ({"q3.jpg": ["x.jpg"]}, r"'x\.jpg': several files have this name in the database"),
        ({"q3.jpg": [], "q2.jpg": [], "sub/q2.jpg": []}, "more than once"),
        ({"q3.jpg": [1]}, "expected"),
        ([1, 2], "expected"),
    ],
)
def test_bad_json(tmp_path, content, message):
    path = tmp_path / "p.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=rf"p\.json.*{message}"):
        positives.from_file(path, QUERIES, DATABASE)


def test_bad_files(tmp_path):
    with pytest.raises(InputError, match=r"none\.csv: cannot be read as CSV"):
        positives.from_file(tmp_path / "none.csv", QUERIES, DATABASE)
    (tmp_path / "p.json").write_text("{")
    with pytest.raises(InputError, match=r"p\.json: cannot be read as JSON"):
        positives.from_file(tmp_path / "p.json", QUERIES, DATABASE)
    with pytest.raises(InputError, match=r"\.csv, \.json or \.npy, not '\.txt'"):
        positives.from_file(tmp_path / "p.txt", QUERIES, DATABASE)
    path = write_csv(tmp_path / "p.csv", [("q3.jpg", "a/x.jpg", "b/x.jpg")])
    with pytest.raises(InputError, match="3 cells"):
        positives.from_file(path, QUERIES, DATABASE)
    path.write_bytes(b"q3.jpg,\xff\xfe")
    with pytest.raises(InputError, match="cannot be read as CSV"):
        positives.from_file(path, QUERIES, DATABASE)


def test_corridor_file():
    folder = data_folder("corridor")
    names = [
        [path.name for path in sorted((folder / part).glob("*.jpg"))] for part in ("query", "ref")
    ]
    found = positives.from_file(folder / "positives.json", *names)
    for query, rows in enumerate(found.positives):
        assert rows.tolist() == [r for r in range(query - 2, query + 3) if 0 <= r < 111]


# --- revisited Oxford/Paris

ENTRIES: list[dict[str, Any]] = [
    {"bbx": [1, 2, 30.5, 40], "easy": [0, 3], "hard": [1], "junk": [4]},
    {"bbx": [0, 0, 9, 9], "easy": [], "hard": [2], "junk": []},
]
GND: dict[str, Any] = {"imlist": list("abcde"), "qimlist": ["q0", "q1"], "gnd": ENTRIES}


def arrays_inside(gnd):
    """The same ground truth with numpy arrays and scalars, as some copies have it."""
    entries: list[dict[str, Any]] = [
        {
            name: np.array(rows, np.float64 if name == "bbx" else np.int64)
            for name, rows in entry.items()
        }
        for entry in gnd["gnd"]
    ]
    entries[0]["easy"] = [np.int64(0), np.int32(3)]
    return gnd | {"gnd": entries, "qimlist": tuple(gnd["qimlist"])}


def write_gnd(path, content, protocol=2):
    path.write_bytes(
        json.dumps(content).encode() if path.suffix == ".json" else pickle.dumps(content, protocol)
    )
    return path


def check_gnd(revisited):
    assert revisited.imlist == list("abcde")
    assert revisited.qimlist == ["q0", "q1"]
    np.testing.assert_array_equal(revisited.boxes, [[1, 2, 30.5, 40], [0, 0, 9, 9]])
    truth = revisited.ground_truth
    assert {name: as_lists(each.positives) for name, each in truth.items()} == {
        "E": [[0, 3], []],
        "M": [[0, 1, 3], [2]],
        "H": [[1], [2]],
    }
    assert {name: as_lists(each.junk) for name, each in truth.items()} == {
        "E": [[1, 4], [2]],
        "M": [[4], []],
        "H": [[0, 3, 4], []],
    }


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("content", [GND, arrays_inside(GND)], ids=["lists", "arrays"])
def test_read_gnd_pickle(tmp_path, content, protocol):
    check_gnd(ground_truth.read_gnd(write_gnd(tmp_path / "gnd.pkl", content, protocol)))


def test_read_gnd_json_and_old_numpy_names(tmp_path):
    check_gnd(ground_truth.read_gnd(write_gnd(tmp_path / "gnd.json", GND)))
    new = pickle.dumps(arrays_inside(GND), 2)
    assert b"numpy._core" in new
    (tmp_path / "gnd.pkl").write_bytes(new.replace(b"numpy._core", b"numpy.core"))
    check_gnd(ground_truth.read_gnd(tmp_path / "gnd.pkl"))


def test_original_oxford_and_no_boxes(tmp_path):
    entries = [{"good": [0], "ok": [1, 2], "junk": [4]}, {"good": [], "ok": [3], "junk": []}]
    revisited = ground_truth.read_gnd(write_gnd(tmp_path / "g.json", GND | {"gnd": entries}))
    assert revisited.boxes is None
    truth = revisited.ground_truth
    assert as_lists(truth["E"].positives) == [[0], []]
    assert as_lists(truth["M"].positives) == [[0, 1, 2], [3]]
    assert as_lists(truth["H"].junk) == [[0, 4], []]
    entries = [{"ok": [1, 2], "junk": [4]}, {"ok": [3], "junk": []}]
    truth = ground_truth.read_gnd(
        write_gnd(tmp_path / "g.json", GND | {"gnd": entries})
    ).ground_truth
    assert list(truth) == ["M"]
    assert as_lists(truth["M"].positives) == [[1, 2], [3]]
    assert as_lists(truth["M"].junk) == [[4], []]


@pytest.mark.parametrize("suffix", ["json", "pkl"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gnd": ENTRIES[:1]}, "entry in gnd for each of 2 queries, found 1"),
        ({"gnd": [ENTRIES[0], ENTRIES[1] | {"hard": [5]}]}, "row 5 is not in the database of 5"),
        ({"gnd": [ENTRIES[0], ENTRIES[1] | {"hard": ["a"]}]}, "expected a list of rows"),
        ({"gnd": [ENTRIES[0], ENTRIES[1] | {"junk": [2]}]}, "query 1 .* both positive and junk"),
        ({"gnd": [ENTRIES[0], {"easy": []}]}, "easy, hard and junk"),
        ({"gnd": [ENTRIES[0], 7]}, "entry in gnd"),
        ({"gnd": 7}, "lists"),
        ({"gnd": [ENTRIES[0], ENTRIES[1] | {"bbx": [1, 2]}]}, "bbx must be four numbers"),
        ({"gnd": [ENTRIES[0], ENTRIES[1] | {"bbx": None}]}, "bbx must be four numbers"),
        ({"imlist": [1, 2]}, "lists of names"),
        ({"imlist": None}, "lists"),
    ],
)
def test_bad_gnd(tmp_path, suffix, change, message):
    path = write_gnd(tmp_path / f"gnd.{suffix}", GND | change)
    with pytest.raises(InputError, match=rf"gnd\.{suffix}.*{message}"):
        ground_truth.read_gnd(path)


class Evil:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("call", ["system", "eval", "getattr", "Popen", "load", "object array"])
def test_a_pickle_runs_nothing(tmp_path, call, protocol):
    trace = tmp_path / "trace"
    evil = {
        "system": Evil(os.system, f"touch {trace}"),
        "eval": Evil(eval, f"open({str(trace)!r}, 'w')"),
        "getattr": Evil(getattr, "", "join"),
        "Popen": Evil(subprocess.Popen, ["touch", str(trace)]),
        "load": Evil(np.load, str(trace)),
        "object array": np.array([Evil(os.system, f"touch {trace}")], object),
    }
    path = write_gnd(tmp_path / "gnd.pkl", GND | {"more": evil[call]}, protocol)
    with pytest.raises(InputError, match=r"gnd\.pkl: cannot be read .*it refers to"):
        ground_truth.read_gnd(path)
    assert not trace.exists()


def test_damaged_pickles_raise_nothing_but_input_error(tmp_path):
    whole = np.frombuffer(pickle.dumps(arrays_inside(GND), 2), np.uint8)
    rng = np.random.default_rng(0)
    for _ in range(300):
        data = whole.copy()
        data[rng.integers(0, len(data), 2)] = rng.integers(0, 256, 2)
        (tmp_path / "gnd.pkl").write_bytes(data[: rng.integers(0, 2 * len(data))])
        try:
            ground_truth.read_gnd(tmp_path / "gnd.pkl")
        except InputError:
            continue
    with pytest.raises(InputError, match=r"none\.pkl: cannot be read"):
        ground_truth.read_gnd(tmp_path / "none.pkl")


@pytest.mark.parametrize(
    ("name", "images"), [("gnd_roxford5k.pkl", 4993), ("gnd_rparis6k.pkl", 6322)]
)
def test_official_ground_truth(name, images):
    path = data_folder(name)
    revisited = ground_truth.read_gnd(path)
    assert len(revisited.imlist) == images
    assert revisited.boxes is not None
    assert revisited.boxes.shape == (70, 4)
    plain = pickle.load(io.BytesIO(path.read_bytes()))  # these two files hold plain values alone
    for query, entry in enumerate(plain["gnd"]):
        easy, hard, junk = (set(entry[name]) for name in ("easy", "hard", "junk"))
        truth = revisited.ground_truth
        assert set(truth["E"].positives[query]) == easy
        assert set(truth["M"].positives[query]) == easy | hard
        assert set(truth["H"].positives[query]) == hard
        assert set(truth["E"].junk[query]) == junk | hard
        assert set(truth["M"].junk[query]) == junk
        assert set(truth["H"].junk[query]) == junk | easy
    perfect = [
        np.concatenate([right, np.setdiff1d(np.arange(images), right)])
        for right in revisited.ground_truth["M"].positives
    ]
    mean, _ = metrics.mean_average_precision(np.array(perfect), revisited.ground_truth["M"])
    assert mean == pytest.approx(100)


def test_mini_paris():
    revisited = ground_truth.read_gnd(data_folder("mini_rparis") / "gnd_mini_rparis.json")
    assert (len(revisited.imlist), len(revisited.qimlist)) == (238, 12)
    assert list(revisited.ground_truth) == ["E", "M", "H"]


def nested(depth: int, times: int) -> bytes:
    """A list of several times a list of several times a list …"""
    value: list = []
    for _ in range(depth):
        value = [value] * times
    return pickle.dumps({"gnd": value})


HOSTILE = {
    "type that is none": pickle.dumps(np.arange(4, dtype=np.int64), 2).replace(b"i8", b"V9"),
    "shape that lies": pickle.dumps(np.arange(64.0), 2).replace(b"K@\x85", b"K\xff\x85"),
    "shared lists": nested(8, 100),
    "lists too deep": nested(40, 1),
    "a number of a value": b"\x80\x02]r\xff\xff\xff\x0f.",
    "bytes of a length": b"\x80\x03cbuiltins\nbytes\nJ\xff\xff\xff\x7f\x85R.",
    "state of a function": b"\x80\x02c_codecs\nencode\n}X\x01\x00\x00\x00aK\x01sb.",
    "state of an array": b"\x80\x02cnumpy\nndarray\n)RK\x07b.",
    "a circle": b"\x80\x02]q\x00h\x00a.",
    "an object": b"\x80\x02cnumpy\ndtype\n)\x81.",
    "a persistent name": b"\x80\x02Paway\n.",
    "array of objects": pickle.dumps(np.array([[[1]], {}], object).reshape(2, 1), 2),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_pickles_are_refused_at_once(kind, tmp_path):
    path = tmp_path / "gnd.pkl"
    path.write_bytes(HOSTILE[kind])
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from retrieval.data.safe_pickle import read_pickle\n"
        "from retrieval.errors import InputError\n"
        "used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 28), used + (1 << 28)))\n"
        "try:\n    read_pickle(sys.argv[1])\nexcept InputError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        env={**os.environ, "PYTHONPATH": str(AG)}, capture_output=True, text=True, timeout=20,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "cannot be read as a pickle of plain values" in done.stdout


def test_arrays_of_every_plain_type_are_read(tmp_path):
    arrays = {
        "big": np.arange(6, dtype=">i4").reshape(2, 3),
        "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "texts": np.array(["a", "bcd"]),
        "bytes": np.array([b"a", b"bc"]),
        "truths": np.array([True, False]),
        "empty": np.empty((0, 4), np.float16),
    }
    for protocol in range(6):
        write_gnd(tmp_path / "a.pkl", arrays | {"scalar": np.float32(2.5)}, protocol)
        found = read_pickle(tmp_path / "a.pkl")
        assert found.pop("scalar") == 2.5
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array)
        write_gnd(tmp_path / "a.pkl", {"names": np.array(["a", "b"], object)}, protocol)
        assert read_pickle(tmp_path / "a.pkl") == {"names": ["a", "b"]}


def test_positives_as_an_array(tmp_path):
    """One right answer a query, as Nordland has it, or several."""
    file = tmp_path / "gt.npy"
    for rows, expected in (([2, 0, 1], [[2], [0], [1]]), ([[0, 1], [2, 3], [1, 1]], None)):
        np.save(file, np.array(rows))
        found = as_lists(positives.from_file(file, QUERIES, DATABASE).positives)
        assert found == (expected or [[0, 1], [2, 3], [1]])
    lists = np.empty(3, object)
    lists[:] = [[0], [1, 2], []]
    for wrong in (np.array([0.5, 1, 2]), np.array([[[0]]] * 3), lists):
        np.save(file, wrong, allow_pickle=True)
        with pytest.raises(InputError, match=r"gt\.npy: (expected rows|cannot be read.*\.json)"):
            positives.from_file(file, QUERIES, DATABASE)
    np.save(file, np.array([0, 1]))
    with pytest.raises(InputError, match="2 lists, but there are 3 queries"):
        positives.from_file(file, QUERIES, DATABASE)
    (tmp_path / "gt.mat").touch()
    with pytest.raises(InputError, match=r"\.csv, \.json or \.npy, not '\.mat': write"):
        positives.from_file(tmp_path / "gt.mat", QUERIES, DATABASE)


def test_a_query_named_twice_in_json_is_refused(tmp_path):
    (tmp_path / "p.json").write_text('{"q.jpg": ["a.jpg"], "q.jpg": []}')
    with pytest.raises(InputError, match=r"p\.json.*'q\.jpg' comes more than once"):
        positives.read_json(tmp_path / "p.json")
