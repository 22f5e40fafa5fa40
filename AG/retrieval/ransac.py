"""RANSAC for one transform of the plane, by the library of one's choice.

Each back-end is a function of points, a model and `Settings`, and all are seeded: the same points
and settings give the same answer, on every run and any thread.
"""

import signal
import threading
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import cv2
import numpy as np

from retrieval.configs.rank import Backend
from retrieval.errors import InputError

# A back-end's answer: the (3, 3) model and the (M,) bool inliers, or None if it found no model.
Estimate = tuple[np.ndarray, np.ndarray] | None


class Settings(NamedTuple):
    """What RANSAC needs to know; see `geometry.VerifyConfig`. residual in pixels."""

    model: str
    residual: float
    trials: int
    confidence: float
    seed: int


def estimate(backend: str, query: np.ndarray, database: np.ndarray, settings: Settings) -> Estimate:
    """Fit a model to (M, 2) float64 points of query and database, more than its minimal sample."""
    return _ESTIMATORS[backend, settings.model](query, database, settings)


def as_homogeneous(affine: np.ndarray) -> np.ndarray:
    """A (2, 3) affine model as (3, 3)."""
    return np.vstack([affine, (0.0, 0.0, 1.0)])


@cache
def load_backend(backend: Backend) -> ModuleType:
    """Import a back-end; raises InputError if it is not installed.

    Importing pycolmap replaces the process's signal handlers, which only the main thread can put
    back: programs with a thread pool call this there, before the pool starts.
    """
    if backend == "opencv":
        return cv2
    try:
        if backend == "skimage":
            import skimage.measure
            import skimage.transform

            return skimage
        if backend == "poselib":
            import poselib

            return poselib
        return _import_pycolmap()
    except ImportError as error:
        raise InputError(
            f"verification back-end {backend!r} is not installed: pip install"
            f" 'delg-delf[geometry]', or choose back-end 'opencv'"
        ) from error


def _import_pycolmap() -> ModuleType:
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("call load_backend('pycolmap') in the main thread first")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        import pycolmap
    finally:
        for number, handler in handlers.items():
            if handler is not None:  # None: not installed from Python, so not ours to restore
                signal.signal(number, handler)
    return pycolmap


def _opencv_affine(query: np.ndarray, database: np.ndarray, settings: Settings) -> Estimate:
    # This RANSAC draws by an internal generator of fixed state, so the seed shuffles the matches.
    # On real photos it is as good as USAC's (AUC) and takes two thirds of its time.
    order = np.random.default_rng(settings.seed).permutation(len(query))
    affine, mask = cv2.estimateAffine2D(
        query[order],
        database[order],
        method=cv2.RANSAC,
        ransacReprojThreshold=settings.residual,
        maxIters=settings.trials,
        confidence=min(settings.confidence, 1 - 1e-9),
        refineIters=0,  # refining changes no inlier, and takes as long as an easy pair
    )
    if affine is None:
        return None
    inliers = np.zeros(len(query), bool)
    inliers[order] = mask.ravel() > 0
    return as_homogeneous(affine), inliers


def _opencv_usac(
    fit: Callable[..., Any], query: np.ndarray, database: np.ndarray, settings: Settings
) -> Estimate:
    params = cv2.UsacParams()
    params.threshold = settings.residual
    params.maxIterations = settings.trials
    params.confidence = min(settings.confidence, 1 - 1e-9)
    params.randomGeneratorState = settings.seed
    params.score = cv2.SCORE_METHOD_MSAC
    params.isParallel = False
    try:
        model, mask = fit(query, database, params)
    except cv2.error:  # its solvers refuse some degenerate sets
        return None
    if model is None or model.shape != (3, 3):
        return None
    return model, mask.ravel() > 0


def _opencv_homography(query: np.ndarray, database: np.ndarray, settings: Settings) -> Estimate:
    return _opencv_usac(cv2.findHomography, query, database, settings)


def _opencv_fundamental(query: np.ndarray, database: np.ndarray, settings: Settings) -> Estimate:
    return _opencv_usac(cv2.findFundamentalMat, query, database, settings)


def _skimage(query: np.ndarray, database: np.ndarray, settings: Settings) -> Estimate:
    skimage = load_backend("skimage")
    transform, min_samples = {
        "affine": (skimage.transform.AffineTransform, 3),
        "homography": (skimage.transform.ProjectiveTransform, 4),
        "fundamental": (skimage.transform.FundamentalMatrixTransform, 8),
    }[settings.model]
    try:
        model, inliers = skimage.measure.ransac(
            (query, database),
            transform,
            min_samples=min_samples,
            residual_threshold=settings.residual,
            max_trials=settings.trials,
            stop_probability=settings.confidence,
            rng=settings.seed,
        )
    except (np.linalg.LinAlgError, ValueError):  # it refits to the inliers, even if too few
        return None
    return None if not model or inliers is None else (np.asarray(model.params, float), inliers)


def _poselib(query: np.ndarray, database: np.ndarray, settings: Settings) -> Estimate:
    poselib = load_backend("poselib")
    homography = settings.model == "homography"
    options = {
        "max_reproj_error" if homography else "max_epipolar_error": settings.residual,
        "max_iterations": settings.trials,
        "min_iterations": min(100, settings.trials),
        "success_prob": settings.confidence,
        "seed": settings.seed,
    }
    fit = poselib.estimate_homography if homography else poselib.estimate_fundamental
    model, found = fit(query, database, options, {})
    return np.asarray(model, float), np.asarray(found["inliers"], bool)


def _pycolmap(query: np.ndarray, database: np.ndarray, settings: Settings) -> Estimate:
    pycolmap = load_backend("pycolmap")
    fit, name = {
        "affine": (pycolmap.estimate_affine2d_robust, "tgt_from_src"),
        "homography": (pycolmap.estimate_homography_matrix, "H"),
        "fundamental": (pycolmap.estimate_fundamental_matrix, "F"),
    }[settings.model]
    options = pycolmap.RANSACOptions()
    options.max_error = settings.residual
    options.max_num_trials = settings.trials
    options.min_num_trials = min(100, settings.trials)
    options.confidence = settings.confidence
    options.random_seed = settings.seed
    found = fit(query, database, options)
    if found is None:
        return None
    model = np.asarray(found[name], float)
    inliers = np.asarray(found["inlier_mask"], bool)
    return (as_homogeneous(model) if model.shape == (2, 3) else model), inliers


_ESTIMATORS: dict[tuple[str, str], Callable[..., Estimate]] = {
    ("opencv", "affine"): _opencv_affine,
    ("opencv", "homography"): _opencv_homography,
    ("opencv", "fundamental"): _opencv_fundamental,
    **{("skimage", model): _skimage for model in ("affine", "homography", "fundamental")},
    **{("poselib", model): _poselib for model in ("homography", "fundamental")},
    **{("pycolmap", model): _pycolmap for model in ("affine", "homography", "fundamental")},
}
