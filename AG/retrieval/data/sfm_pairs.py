"""The layout of retrieval-SfM-120k (Radenovic et al. 2018): images, 3D models, matching pairs.

    FOLDER/NAME.pkl          {"train" and "val": {cids, cluster, qidxs, pidxs}}
    FOLDER/NAME-whiten.pkl   {cids, qidxs, pidxs}
    FOLDER/ims/cid[-2:]/cid[-4:-2]/cid[-6:-4]/cid

where NAME is the folder's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.data.safe_pickle import read_pickle
from retrieval.errors import InputError


@dataclass(frozen=True)
class SfmPairs:
    """Matching pairs of images.

    paths:     N image files.
    clusters:  (N,) int64 the 3D model of each; -1 where the file does not say.
    queries:   (P,) int64 rows of paths. positives: (P,) a matching image of each.
    """

    paths: list[Path]
    clusters: np.ndarray
    queries: np.ndarray
    positives: np.ndarray


def image_path(folder: Path, cid: str) -> Path:
    """Where the image ``cid`` lies below the folder of its data set."""
    return folder / "ims" / cid[-2:] / cid[-4:-2] / cid[-6:-4] / cid


def read_pairs(folder: Path, mode: str) -> SfmPairs:
    """The pairs of ``mode``: "train", "val", or "whiten".

    Raises InputError if the data set, its file or an image is missing, and for another layout.
    """
    suffix = "-whiten" if mode == "whiten" else ""
    source = folder / f"{folder.name}{suffix}.pkl"
    if not source.is_file():
        there = folder if folder.is_dir() else folder.parent
        found = sorted(p.name for p in there.iterdir()) if there.is_dir() else []
        raise InputError(
            f"{source}: no such file; {there} has {', '.join(found) or 'nothing'}; are --data-root "
            "and --training-dataset right?"
        )
    content: Any = read_pickle(source)
    if mode != "whiten":
        content = content.get(mode) if isinstance(content, dict) else None
    keys = ("cids", "qidxs", "pidxs") + (("cluster",) if mode != "whiten" else ())
    if not isinstance(content, dict) or not all(key in content for key in keys):
        raise InputError(f"{source}: expected the lists {', '.join(keys)} of {mode!r}")
    return _checked(source, content, folder)


def _checked(source: Path, content: Mapping[str, Any], folder: Path) -> SfmPairs:
    cids = [str(cid) for cid in content["cids"]]
    queries, positives = (np.asarray(content[key], np.int64) for key in ("qidxs", "pidxs"))
    clusters = np.asarray(content.get("cluster", [-1] * len(cids)), np.int64)
    rows = np.concatenate([queries, positives])
    if queries.shape != positives.shape or clusters.shape != (len(cids),):
        raise InputError(
            f"{source}: two lists of different length: {len(queries)} qidxs and {len(positives)} "
            f"pidxs, or {len(cids)} cids and {len(clusters)} cluster"
        )
    if len(rows) == 0 or rows.min() < 0 or rows.max() >= len(cids):
        raise InputError(f"{source}: its pairs must be rows of its {len(cids)} images")
    paths = [image_path(folder, cid) for cid in cids]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise InputError(
            f"{source} names {len(missing)} images of {len(paths)} that are missing, the first is "
            f"{missing[0]}"
        )
    return SfmPairs(paths, clusters, queries, positives)
