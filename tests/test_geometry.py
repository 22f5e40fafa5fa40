import builtins
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from retrieval import ransac
from retrieval.configs.rank import VerifyConfig
from retrieval.errors import InputError
from retrieval.features import LocalFeatures
from retrieval.geometry import SAMPLE_SIZE, verify, verify_matches
from retrieval.ransac import load_backend

SIZE = (1000, 800)
# skimage says so when it finds nothing.
pytestmark = [
    pytest.mark.filterwarnings("ignore:No inliers found"),
    pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning"),
]
COMBINATIONS = [(model, backend) for backend, model in ransac._ESTIMATORS]
POINTS = np.array([[0, 0], [400, 0], [0, 300], [400, 300], [120, 250], [333, 77], [50, 50]], float)


def config(model, backend="opencv", **settings):
    return VerifyConfig(model, backend, **settings)


def apply(model, points):
    lifted = np.column_stack([points, np.ones(len(points))]) @ model.T
    return lifted[:, :2] / lifted[:, 2:]


def turn(angle, axis):
    c, s = np.cos(angle), np.sin(angle)
    other = [i for i in range(3) if i != axis]
    rotation = np.eye(3)
    rotation[np.ix_(other, other)] = [[c, -s], [s, c]]
    return rotation


def planted(model, rng, num=200, outliers=0.5, noise=0.5):
    """Matches of which a share is random. Returns query, database points and the true inliers."""
    query = rng.uniform((0, 0), SIZE, (num, 2))
    if model == "affine":
        database = apply(np.array([[0.9, 0.2, 40], [-0.1, 1.1, 20], [0, 0, 1]]), query)
    elif model == "homography":
        transform = np.array([[0.9, 0.1, 30], [-0.1, 1.1, 10], [2e-4, -1e-4, 1]])
        database = apply(transform, query)
    else:  # two pinhole cameras before points at many depths
        calibration = np.array([[800, 0, 500], [0, 800, 400], [0, 0, 1.0]])
        rays = np.column_stack([query, np.ones(num)]) @ np.linalg.inv(calibration).T
        scene = rays * rng.uniform(4, 12, (num, 1))
        moved = scene @ (turn(0.1, 1) @ turn(0.05, 0)).T + (1.0, 0.2, 0.1)
        database = apply(calibration, moved[:, :2] / moved[:, 2:])
    database = database + noise * rng.normal(size=database.shape)
    inliers = np.ones(num, bool)
    inliers[rng.permutation(num)[: int(outliers * num)]] = False
    database[~inliers] = rng.uniform((0, 0), SIZE, ((~inliers).sum(), 2))
    return query, database, inliers


def residuals(model_name, model, query, database):
    if model_name != "fundamental":
        return np.linalg.norm(apply(model, query) - database, axis=1)
    lines = np.column_stack([query, np.ones(len(query))]) @ model.T
    distance = (lines * np.column_stack([database, np.ones(len(query))])).sum(axis=1)
    return np.abs(distance) / np.linalg.norm(lines[:, :2], axis=1)


# A fundamental matrix at 10 % inliers would need 1e7 samples of seven.
OUTLIERS = {"affine": (0.1, 0.5, 0.9), "homography": (0.1, 0.5, 0.8), "fundamental": (0.1, 0.4)}


@pytest.mark.parametrize(
    ("model", "backend", "outliers"),
    [(*pair, share) for pair in COMBINATIONS for share in OUTLIERS[pair[0]]],
)
def test_a_planted_transform_is_found(model, backend, outliers):
    query, database, truth = planted(model, np.random.default_rng(1), outliers=outliers)
    trials = {0.9: 3000, 0.8: 2000}.get(outliers, 1000)
    residual = 4.0 if model == "homography" and outliers == 0.8 else None
    found = verify(query, database, config(model, backend, trials=trials, residual=residual))
    assert found.num_inliers == found.inliers.sum()
    assert (found.inliers & truth).sum() >= 0.95 * truth.sum()
    # By chance an outlier lies near the transform, or its epipolar line.
    assert (found.inliers & ~truth).sum() <= 3 + 0.15 * (~truth).sum()
    assert found.model is not None
    assert found.model.shape == (3, 3)
    assert np.median(residuals(model, found.model, query[truth], database[truth])) < 3


@pytest.mark.parametrize("outliers", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("upright", [False, True])
def test_one_match_gives_the_similarity(outliers, upright):
    rng = np.random.default_rng(2)
    zoom, angle = 1.5, 0.0 if upright else 0.6
    query = rng.uniform((0, 0), SIZE, (200, 2))
    rotation = zoom * turn(angle, 2)
    rotation[:2, 2] = 30, -20
    rotation[2, 2] = 1
    database = apply(rotation, query) + 0.5 * rng.normal(size=(200, 2))
    truth = np.arange(200) >= 200 * outliers
    database[~truth] = rng.uniform((0, 0), SIZE, ((~truth).sum(), 2))
    scales, angles = rng.uniform(2, 20, 200), rng.uniform(-3, 3, 200)
    noisy = np.exp(0.05 * rng.normal(size=200))
    ours = features(query, scales, None if upright else angles)
    theirs = features(database, scales * zoom * noisy, None if upright else angles + angle)
    matches = np.column_stack([np.arange(200)] * 2)
    found = verify_matches(ours, theirs, matches, config("similarity"))
    assert (found.inliers & truth).sum() >= 0.95 * truth.sum()
    assert (found.inliers & ~truth).sum() <= 3
    assert found.model is not None
    np.testing.assert_allclose(found.model[:2, :2], rotation[:2, :2], atol=0.05)


def features(keypoints, scales=None, orientations=None):
    n = len(keypoints)
    return LocalFeatures(keypoints, np.zeros((n, 4)), np.ones(n), SIZE, scales, orientations)


@pytest.mark.parametrize(("model", "backend"), COMBINATIONS)
@pytest.mark.parametrize(
    "points",
    [
        np.empty((0, 2)),
        POINTS[:3],
        np.full((30, 2), 7.0),
        np.repeat(POINTS[:2], 15, axis=0),
        np.column_stack([np.arange(20.0), 2 * np.arange(20.0)]) * 10,
        np.repeat(POINTS[:3], 5, axis=0),
    ],
    ids=["none", "three", "one point", "two points", "one line", "three points"],
)
def test_degenerate_matches_give_no_inliers(model, backend, points):
    scattered = np.random.default_rng(0).uniform(0, 500, points.shape)
    for query, database in ((points, points), (points, scattered), (scattered, points)):
        found = verify(query, database, config(model, backend))
        assert found.num_inliers == 0
        assert not found.inliers.any()
        assert found.inliers.shape == (len(points),)
        assert found.model is None


@pytest.mark.parametrize(("model", "backend"), COMBINATIONS)
def test_a_minimal_sample_is_no_evidence(model, backend):
    points = np.random.default_rng(3).uniform(0, 500, (SAMPLE_SIZE[model], 2))
    assert verify(points, points + 5, config(model, backend)).num_inliers == 0


@pytest.mark.parametrize("model", ["affine", "homography"])
def test_one_more_than_the_sample_is(model):
    points = POINTS[: SAMPLE_SIZE[model] + 1]
    assert verify(points, points + 5, config(model)).num_inliers == len(points)


@pytest.mark.parametrize(("model", "backend"), COMBINATIONS)
def test_random_matches_have_few_inliers_and_raise_nothing(model, backend):
    rng = np.random.default_rng(4)
    for num in (*range(4, 12), 40):
        query, database = rng.uniform((0, 0), SIZE, (2, num, 2))
        found = verify(query, database, config(model, backend, trials=200))
        assert found.num_inliers <= 12 + num / 4
        assert found.num_inliers == 0 or found.num_inliers > SAMPLE_SIZE[model]


@pytest.mark.parametrize(("model", "backend"), COMBINATIONS)
def test_the_answer_is_the_same_on_every_run_and_thread(model, backend):
    load_backend(backend)
    rng = np.random.default_rng(5)
    sets = [planted(model, rng, num=60, outliers=0.6)[:2] for _ in range(4)] * 2
    settings = config(model, backend, trials=50, seed=3)
    alone = [verify(query, database, settings) for query, database in sets]
    with ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(lambda points: verify(points[0], points[1], settings), sets))
    for a, b in zip(alone, threaded, strict=True):
        np.testing.assert_array_equal(a.inliers, b.inliers)
        np.testing.assert_array_equal(a.model, b.model)


@pytest.mark.parametrize("model", ["affine", "homography", "fundamental"])
def test_the_seed_decides(model):
    query, database, _ = planted(model, np.random.default_rng(6), num=60, outliers=0.95)
    runs = [verify(query, database, config(model, trials=20, seed=seed)) for seed in range(8)]
    assert len({run.inliers.tobytes() for run in runs}) > 1


def test_a_similarity_is_zero_without_evidence():
    matches = np.column_stack([np.arange(7)] * 2)
    some, ones = POINTS.astype(np.float32), np.ones(7, np.float32)
    for points in (np.full_like(some, 3), np.column_stack([some[:, 0]] * 2)):
        one = features(points, ones)
        assert verify_matches(one, one, matches, config("similarity")).num_inliers == 0
    one = features(some, ones)
    assert verify_matches(one, one, matches[:3], config("similarity")).num_inliers == 0
    assert verify_matches(one, one, matches[:0], config("similarity")).num_inliers == 0
    assert verify_matches(one, one, matches, config("similarity")).num_inliers == 7


def test_features_and_matches_are_verified_as_their_points():
    query, database, _ = planted("affine", np.random.default_rng(7))
    order = np.random.default_rng(8).permutation(200)
    matches = np.column_stack([np.arange(200)[::-1], np.argsort(order)[::-1]])
    found = verify_matches(features(query), features(database[order]), matches, config("affine"))
    expected = verify(query[::-1], database[::-1], config("affine"))
    np.testing.assert_array_equal(found.inliers, expected.inliers)


def test_bad_input_is_named():
    bad = POINTS.copy()
    bad[2, 1] = np.nan
    with pytest.raises(InputError, match="NaN or infinite"):
        verify(bad, POINTS, config("affine"))
    with pytest.raises(InputError, match=r"\(M, 2\)"):
        verify(POINTS, POINTS[:-1], config("affine"))
    with pytest.raises(InputError, match="scales"):
        verify(POINTS, POINTS, config("similarity"))
    matches = np.column_stack([np.arange(7)] * 2)
    with pytest.raises(InputError, match="scales"):
        verify_matches(features(POINTS), features(POINTS), matches, config("similarity"))
    turned = features(POINTS, np.ones(7), np.zeros(7))
    with pytest.raises(InputError, match="orientations"):
        verify_matches(turned, features(POINTS, np.ones(7)), matches, config("similarity"))


@pytest.mark.parametrize(
    "settings",
    [
        {"model": "projective"},
        {"backend": "degensac"},
        {"model": "affine", "backend": "poselib"},
        {"model": "similarity", "backend": "skimage"},
        {"residual": 0.0},
        {"trials": 0},
        {"confidence": 1.5},
        {"seed": -1},
    ],
)
def test_settings_are_checked(settings):
    with pytest.raises(InputError):
        VerifyConfig(**settings)


@pytest.fixture
def fresh_imports():
    load_backend.cache_clear()
    yield
    load_backend.cache_clear()


@pytest.mark.parametrize("backend", ["poselib", "pycolmap"])
def test_a_missing_extra_names_the_remedy(backend, fresh_imports, monkeypatch):
    plain_import = builtins.__import__

    def without(name, *args, **kwargs):
        if name == backend:
            raise ImportError(name)
        return plain_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=rf"{backend}.*pip install.*geometry"):
        verify(POINTS, POINTS, config("homography", backend))


def test_importing_pycolmap_leaves_the_signal_handlers(fresh_imports):
    def handler(number, frame):
        raise AssertionError

    old = signal.signal(signal.SIGTERM, handler)
    try:
        load_backend("pycolmap")
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, old)


def test_pycolmap_is_imported_in_the_main_thread_only(fresh_imports):
    errors = []

    def work():
        try:
            load_backend("pycolmap")
        except RuntimeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(errors) == 1
    assert "main thread" in errors[0]


@pytest.mark.parametrize("zoom", [0.5, 8.0])
@pytest.mark.parametrize(
    ("model", "backend"), [*COMBINATIONS, ("similarity", "opencv")], ids="-".join
)
def test_the_resolution_of_a_file_changes_nothing(model, backend, zoom):
    """One picture kept at another resolution, and described at the same size."""
    rng = np.random.default_rng(3)
    query, database, _ = planted("affine" if model == "similarity" else model, rng, outliers=0.3)
    scales = rng.uniform(10, 20, len(query))
    matches = np.column_stack([np.arange(len(query))] * 2)

    def at(keypoints, unit):
        moved = unit * (keypoints + 0.5) - 0.5
        return replace(features(moved, unit * scales), unit=unit)

    settings = config(model, backend)
    once = verify_matches(at(query, 1.0), at(database, 1.0), matches, settings)
    again = verify_matches(at(query, zoom), at(database, 3.0), matches, settings)
    assert again.num_inliers == pytest.approx(once.num_inliers, rel=0.02)
    assert once.num_inliers > 100
    # The transform is of the pixels of the files.
    moved = zoom * (query + 0.5) - 0.5, 3 * (database + 0.5) - 0.5
    name = "affine" if model == "similarity" else model
    off = residuals(name, again.model, *moved)[again.inliers]
    assert np.median(off) < 3 * settings.residual_px / 2
