"""Geometric verification: how many matches of two photos agree with one transform of the plane.

`verify` fits a transform to matched points by RANSAC in one of several libraries; `verify_matches`
does so for the features of two images, and for model "similarity" takes one hypothesis from each
match instead. The same matches and settings give the same answer, on every run and any thread.
"""

from dataclasses import dataclass, replace

import numpy as np

from retrieval import ransac
from retrieval.configs.rank import VerifyConfig
from retrieval.errors import InputError
from retrieval.features import LocalFeatures

# A model always agrees with the sample that it was made of: evidence starts above this number.
SAMPLE_SIZE = {"affine": 3, "homography": 4, "fundamental": 7, "similarity": 3}

# Inliers that spread less than this about a line or a point (pixels) determine no transform.
_MIN_SPREAD = 1.0
# Along it distinct points stay distinct, and one number is sorted faster than two.
_DIRECTION = np.array([1.0, np.pi])
_REFINED_HYPOTHESES = 5
_REFINEMENTS = 4


@dataclass(frozen=True)
class Verification:
    """The matches that one transform explains.

    num_inliers: their number; 0 without a model.
    inliers:     (M,) bool.
    model:       (3, 3) float64, query to database pixels (homogeneous x, y, 1); for "fundamental"
                 x_database^T F x_query = 0. None where nothing was found.
    """

    num_inliers: int
    inliers: np.ndarray
    model: np.ndarray | None


def verify(
    query_keypoints: np.ndarray, database_keypoints: np.ndarray, config: VerifyConfig
) -> Verification:
    """Fit one transform to M matched points, row by row, both (M, 2) x, y in pixels.

    Too few matches for evidence (SAMPLE_SIZE), or inliers that lie on one line or repeat the same
    points, give 0 inliers. Raises InputError for coordinates that are not finite, or if the
    back-end is not installed.
    """
    if config.model == "similarity":
        raise InputError(
            "model 'similarity' needs the scales of the features: use verify_matches, or another"
            " model for bare keypoints"
        )
    query, database = _checked(query_keypoints, database_keypoints)
    if len(query) <= SAMPLE_SIZE[config.model]:
        return _nothing(len(query))
    settings = ransac.Settings(
        config.model, config.residual_px, config.trials, config.confidence, config.seed
    )
    estimate = ransac.estimate(config.backend, query, database, settings)
    return _judged(estimate, query, database, config)


def verify_matches(
    query: LocalFeatures, database: LocalFeatures, matches: np.ndarray, config: VerifyConfig
) -> Verification:
    """Verify (M, 2) matches [query row, database row] of two images, for every model.

    Residuals are in pixels of the database image as it was described, so that the answer does not
    hang on the resolution of the files. Raises InputError as `verify` does, and for model
    "similarity" if features have no scales.
    """
    found = _verify_described(_as_described(query), _as_described(database), matches, config)
    if found.model is None or query.unit == database.unit == 1:
        return found
    # With x = A u for described pixels u and pixels x of the query, and y = B v for the database:
    # v ~ H u gives y ~ B H A⁻¹ x, and v' F u = 0 gives y' (B⁻¹)' F A⁻¹ x = 0.
    before, after = (_to_pixels_of_photo(each.unit) for each in (query, database))
    if config.model == "fundamental":
        after = np.linalg.inv(after).T
    return replace(found, model=after @ found.model @ np.linalg.inv(before))


def _as_described(features: LocalFeatures) -> LocalFeatures:
    """The features in pixels of what was described."""
    if features.unit == 1:
        return features
    keypoints = (features.keypoints + 0.5) / features.unit - 0.5
    scales = None if features.scales is None else features.scales / features.unit
    return replace(features, keypoints=keypoints, scales=scales, unit=1.0)


def _to_pixels_of_photo(unit: float) -> np.ndarray:
    """(3, 3): pixels of what was described to pixels of the photo; (0, 0) is a pixel's centre."""
    shift = (unit - 1) / 2
    return np.array([[unit, 0.0, shift], [0.0, unit, shift], [0.0, 0.0, 1.0]])


def _verify_described(
    query: LocalFeatures, database: LocalFeatures, matches: np.ndarray, config: VerifyConfig
) -> Verification:
    rows, columns = matches[:, 0], matches[:, 1]
    points = query.keypoints[rows], database.keypoints[columns]
    if config.model != "similarity":
        return verify(*points, config)
    if len(query) == 0 or len(database) == 0:
        return _nothing(len(matches))
    if query.scales is None or database.scales is None:
        raise InputError("model 'similarity' needs features with scales: choose another model")
    if (query.orientations is None) != (database.orientations is None):
        raise InputError("one image's features have orientations, the other's have none")
    from_points, to_points = _checked(*points)
    if len(matches) <= SAMPLE_SIZE["similarity"]:
        return _nothing(len(matches))
    zoom = database.scales[columns].astype(np.float64) / query.scales[rows]
    turn = np.zeros(len(matches))
    if query.orientations is not None and database.orientations is not None:
        turn = database.orientations[columns].astype(np.float64) - query.orientations[rows]
    estimate = _one_match_similarity(from_points, to_points, zoom, turn, config)
    return _judged(estimate, from_points, to_points, config)


def _checked(query: np.ndarray, database: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both point sets as (M, 2) float64."""
    query = np.ascontiguousarray(query, dtype=np.float64)
    database = np.ascontiguousarray(database, dtype=np.float64)
    if query.shape != database.shape or query.shape != (len(query), 2):
        raise InputError(f"matched points {query.shape} and {database.shape}: expected (M, 2) both")
    if not (np.isfinite(query).all() and np.isfinite(database).all()):
        raise InputError("keypoints have NaN or infinite values: extract them again")
    return query, database


def _nothing(num_matches: int) -> Verification:
    return Verification(0, np.zeros(num_matches, bool), None)


def _judged(
    estimate: ransac.Estimate, query: np.ndarray, database: np.ndarray, config: VerifyConfig
) -> Verification:
    """The estimate, unless its inliers are too few, repeated or on one line."""
    if estimate is None:
        return _nothing(len(query))
    model, inliers = estimate
    enough = SAMPLE_SIZE[config.model] + 1
    sides = (query[inliers], database[inliers])
    if not np.isfinite(model).all() or any(_degenerate(side, enough) for side in sides):
        return _nothing(len(query))
    return Verification(int(inliers.sum()), inliers, model)


def _degenerate(points: np.ndarray, enough: int) -> bool:
    """Whether there are fewer than `enough` distinct points, or all lie about one line."""
    if len(points) < enough:
        return True
    centred = points - points.mean(axis=0)
    (xx, xy), (_, yy) = centred.T @ centred / len(points)
    narrow = (xx + yy) / 2 - np.hypot((xx - yy) / 2, xy)  # the smaller eigenvalue
    if narrow < _MIN_SPREAD**2:
        return True
    return len(np.unique(points @ _DIRECTION)) < enough


def _one_match_similarity(
    query: np.ndarray,
    database: np.ndarray,
    zoom: np.ndarray,
    turn: np.ndarray,
    config: VerifyConfig,
) -> ransac.Estimate:
    """Let each match propose the similarity of its scales and angles; refine the best of them.

    Every hypothesis is scored on every match, so nothing is random. The idea is Philbin et al.,
    "Object retrieval with large vocabularies and fast spatial matching", CVPR 2007.
    """
    zoom, turn = zoom[: config.trials], turn[: config.trials]
    cos, sin = zoom * np.cos(turn), zoom * np.sin(turn)
    linear = np.stack([[cos, -sin], [sin, cos]]).transpose(2, 0, 1)  # (H, 2, 2)
    origin = query[: config.trials, :, None]
    shift = database[: config.trials] - (linear @ origin)[..., 0]  # (H, 2)
    lifted = np.column_stack([query, np.ones(len(query))])
    error = np.zeros((len(linear), len(query)), np.float32)  # squared, (H, M)
    for axis in (0, 1):
        hypotheses = np.column_stack([linear[:, axis], shift[:, axis]])
        offset = (hypotheses @ lifted.T - database[:, axis]).astype(np.float32)
        error += offset * offset
    agreeing = error <= config.residual_px**2
    counts = agreeing.sum(axis=1)
    best: ransac.Estimate = None
    for row in np.argsort(-counts, kind="stable")[:_REFINED_HYPOTHESES]:
        refined = _refine_affine(lifted, database, agreeing[row], config.residual_px)
        if refined is not None and (best is None or refined[1].sum() > best[1].sum()):
            best = refined
    return best


def _refine_affine(
    lifted: np.ndarray, database: np.ndarray, inliers: np.ndarray, residual: float
) -> ransac.Estimate:
    """Fit an affine transform to the inliers by least squares, as long as they grow in number.

    `lifted` are the query points as rows x, y, 1.
    """
    best: ransac.Estimate = None
    for _ in range(_REFINEMENTS):
        chosen = lifted[inliers]
        if _degenerate(chosen[:, :2], SAMPLE_SIZE["similarity"] + 1):
            break
        affine = np.linalg.solve(chosen.T @ chosen, chosen.T @ database[inliers]).T
        offset = lifted @ affine.T - database
        grown = (offset * offset).sum(axis=1) <= residual**2
        if best is not None and grown.sum() <= best[1].sum():
            break
        best, inliers = (ransac.as_homogeneous(affine), grown), grown
    return best
