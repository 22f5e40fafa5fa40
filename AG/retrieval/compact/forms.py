"""The forms in which a store keeps local features: half precision, 8 bits a number, binary codes.

| bytes of a feature of d numbers | half | 8bit | binary |
|---|---|---|---|
| descriptor | 2 d | d | bits / 8 |
| keypoint, score, scale, orientation | 8 + 4 + 4 + 4 | 4 + 2 + 2 + 1 | 4 + 2 + 2 + 1 |

Half precision is what extractors write; keypoints in halves would be off by up to half a pixel. In
the compact forms a keypoint's x and y are whole 65,535ths of the photo's sides (of 4,000 pixels a
31,000th of a pixel is the least and 0.03 the largest error), an orientation is a 256th of a turn,
scores and scales are halves. An 8-bit descriptor is scaled so that its largest number is ±127, and
has unit norm again when it is read.
"""

from collections.abc import Mapping

import numpy as np

from retrieval.configs.describe import Form

_SMALL: Mapping[str, type[np.generic]] = {
    "keypoints": np.uint16,
    "scores": np.float16,
    "scales": np.float16,
    "orientations": np.uint8,
}

# The types of the fields of `LocalFeatures` in each form.
TYPES: Mapping[Form, Mapping[str, type[np.generic]]] = {
    "half": {
        "keypoints": np.float32,
        "descriptors": np.float16,
        "scores": np.float32,
        "scales": np.float32,
        "orientations": np.float32,
    },
    "8bit": {**_SMALL, "descriptors": np.int8},
    "binary": {**_SMALL, "descriptors": np.uint8},
}

_SIDE = np.iinfo(np.uint16).max
_TURN = 256
_INT8_MAX = 127
_TINY = 1e-30  # for rows of zeros


def feature_bytes(form: Form, fields: Mapping[str, tuple[int, ...]]) -> int:
    """The bytes of one feature, whose ``fields`` have rows of these shapes."""
    return sum(
        int(np.prod(shape)) * np.dtype(TYPES[form][name]).itemsize for name, shape in fields.items()
    )


def packed(
    fields: Mapping[str, np.ndarray], form: Form, image_size: tuple[int, int]
) -> dict[str, np.ndarray]:
    """The fields of N features as ``form`` keeps them; binary: the descriptors are codes already.

    What lies outside of the photo is moved to its edge; numbers too large for halves become the
    largest one.
    """
    if form == "half":
        with np.errstate(over="ignore"):
            return {name: np.array(rows, TYPES[form][name]) for name, rows in fields.items()}
    kept = {}
    for name, rows in fields.items():
        if name == "keypoints":
            shares = (rows + 0.5) / np.array(image_size, np.float64)
            rows = np.rint(np.clip(shares, 0, 1) * _SIDE)
        elif name == "orientations":
            rows = np.rint(rows.astype(np.float64) / (2 * np.pi) * _TURN) % _TURN
        elif name in ("scores", "scales"):
            largest = np.finfo(np.float16).max
            rows = np.clip(rows, -largest, largest)
        elif form == "8bit":
            single = rows.astype(np.float32)
            most = np.abs(single).max(axis=1, keepdims=True, initial=_TINY)
            rows = np.rint(single * (_INT8_MAX / most))
        kept[name] = rows.astype(TYPES[form][name])
    return kept


def unpacked(
    fields: Mapping[str, np.ndarray], form: Form, image_size: tuple[int, int]
) -> dict[str, np.ndarray]:
    """The fields that `packed` kept: float32, but for descriptors in halves and binary codes."""
    if form == "half":
        return dict(fields)
    found: dict[str, np.ndarray] = {name: rows.astype(np.float32) for name, rows in fields.items()}
    found["keypoints"] = found["keypoints"] / _SIDE * np.array(image_size, np.float32) - 0.5
    if "orientations" in found:
        found["orientations"] *= 2 * np.pi / _TURN
    if form == "binary":
        found["descriptors"] = fields["descriptors"]
    else:
        norm = np.linalg.norm(found["descriptors"], axis=1, keepdims=True)
        found["descriptors"] /= np.maximum(norm, _TINY)
    return found
