"""Flags: the fields of small frozen configs become flags, and come back as configs.

A default lives on the config's field and nowhere else; what a field means is said in its config's
docstring, and in one line in `HELP`. Hyphens and underscores in flags mean the same: S1 writes
`--dataset_folder`, S2 `--test-datasets`. Only `Asked` looks at what argparse returns.
"""

import argparse
import dataclasses
import re
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

from retrieval.errors import InputError

Config = TypeVar("Config", bound="DataclassInstance")

_FLAG = re.compile(r"^--([\w-]+)(?==|$)")

HELP = {
    # the network
    "backbone": "trunk, a name of the table in backbone.py",
    "head": "delg: GeM and a linear layer; gem: GeM alone, for frozen backbones",
    "fc_output_dim": "size of the global descriptor",
    "reduction": "an autoencoder makes the local descriptors",
    "fm_reduction_dim": "size of the local descriptors with --reduction",
    "attention": "learned, or norm: the L2 norm of the activation where none is trained",
    "train_all_layers": "train the early layers of the backbone too",
    # training
    "epochs_num": "epochs; each trains one group",
    "iterations_per_epoch": "steps of one epoch",
    "batch_size": "training images a step, over all processes",
    "lr": "learning rate of the network",
    "classifiers_lr": "learning rate of the classifiers",
    "seed": "of every random draw",
    "precision": "mixed precision",
    "num_workers": "processes that decode images",
    "checkpoint_minutes": "time between checkpoints in mid-epoch",
    "skip_bad_images": "go on without images that cannot be decoded, and count them",
    "global_loss": "margin loss of the global descriptors",
    "margin_scale": "scale of the margin loss (EigenPlaces: 100)",
    "margin": "margin of the margin loss",
    "global_weight": "weight of the margin loss",
    "attention_weight": "weight of the attention loss",
    "reconstruction_weight": "weight of the autoencoder's loss",
    "image_size": "side of a training image (and of test images with --resize_test_imgs)",
    "brightness": "colour jitter",
    "contrast": "colour jitter",
    "saturation": "colour jitter",
    "hue": "colour jitter",
    "random_resized_crop": "largest part of the area that a crop leaves out",
    # CosPlace's groups
    "M": "side of a cell in metres",
    "alpha": "width of a cell in degrees",
    "N": "cells of one group are N cells apart",
    "L": "cells of one group are L headings apart",
    "groups_num": "groups to train (1 for SF-XS and the toy city)",
    "min_images_per_class": "classes with fewer images are left out",
    # evaluation
    "positive_dist_threshold": "metres within which a database image is a right answer",
    "positive_angle": "degrees within which it must also look; default: any",
    "scales": "factors at which global descriptors are taken and averaged",
    "local_scales": "factors at which local features are taken",
    "max_features": "local features an image, the strongest of all scales",
    "min_score": "least attention of a local feature",
    "infer_batch_size": "images run at once when extracting",
    "pca_photos": "folder of other photos, on which to learn a projection of local descriptors",
    "pca_dim": "dimensions of projected local descriptors",
    "pca_power": "0: plain PCA; 0.25: half-whitening; 0.5: whitening",
    "top_k": "predictions of each query that are re-ranked",
    "num_features": "strongest local features an image that are matched; default: all",
    "rule": "which descriptors match: mutual nearest neighbours, or one_way (S1)",
    "ratio": "keep a match only if nearer than this times the second nearest",
    "max_distance": "keep a match only if its L2 distance is below (S1: 0.6)",
    "model": "geometric model fitted to the matches",
    "backend": "library that fits it",
    "residual": "largest residual of an inlier in pixels",
    "trials": "RANSAC trials",
    "fusion": "inliers that the best similarity of a ranking is worth",
    "floor": "inliers that random pairs reach; default: measured",
    "floor_quantile": "of the inlier counts of random pairs that is the floor",
    "threads": "threads that match and verify; default: as many as torch uses",
    # SIFT and the vocabulary tree
    "feature_num": "local features an image, the strongest",
    "root": "RootSIFT: square roots of the L1-normalised descriptors",
    "upright": "give every feature the angle 0",
    "tree_height": "levels of the tree (1: a flat codebook)",
    "tree_branch": "children of a node",
    "train_features": "features that the tree is trained on, at most",
    "tree_seed": "of the tree's k-means",
    "score": "of shared words: S2's l1, cosine, or hamming",
    "words": "nearest words of a query feature that are looked up",
    "bits": "length of a Hamming signature",
    "aggregate": "one signature for the features of an image in a word (ASMK)",
    "weight": "of a Hamming distance",
    "ht": "largest Hamming distance that counts; default: 7/16 of the bits (soft, hard: 3/8)",
    "sigma": "of the soft weight; default: a quarter of the bits",
    "power": "of the power weight",
    "burst": "do not damp several features of an image that match one query feature",
    "nodes": "words are the leaves of the tree, or all its nodes",
    "norm": "what scores are divided by: score with itself, or number of features",
    "expand_num": "verified images that expand a query, at most",
    "expand_inliers": "inliers with which an image expands a query",
}


class Asked:
    """What a command line asks for, as configs."""

    def __init__(self, namespace: argparse.Namespace) -> None:
        self._values = vars(namespace)

    def get(self, name: str) -> Any:
        """The value of a flag that is no config's field."""
        return self._values[name]

    def config(self, config: type[Config], **values: Any) -> Config:
        """The config that the flags say; ``values`` set further fields (InputError if refused)."""
        return config(**{**self.given(config), **values})

    def given(self, config: "type[DataclassInstance]") -> dict[str, Any]:
        """The fields of ``config`` that the command line sets, without the defaults."""
        fields = {field.name for field in dataclasses.fields(config)}
        return {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in self._values.items()
            if name in fields and value is not None
        }


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser that takes no abbreviated flags."""
    return argparse.ArgumentParser(
        description=description,
        epilog="Hyphens and underscores in flags mean the same.",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_configs(
    parser: argparse.ArgumentParser,
    *configs: "type[DataclassInstance]",
    only: Sequence[str] | None = None,
    but: Sequence[str] = (),
    texts: Mapping[str, str] = HELP,
) -> None:
    """Add a flag for each field of each config that ``texts`` describe and ``only``/``but`` admit.

    A bool becomes a switch (``--no_field`` where it is True by default), a tuple takes several
    values, a Literal has choices. A field that two configs share has one flag.
    """
    for config in configs:
        group = parser.add_argument_group(_title(config))
        kinds = typing.get_type_hints(config)
        for field in dataclasses.fields(config):
            taken = f"--{field.name}" in parser._option_string_actions
            wanted = field.name in texts and field.name in (only or texts)
            if wanted and field.name not in but and not taken:
                _add_flag(group, field, _without_none(kinds[field.name]), texts[field.name])


def _add_flag(
    group: argparse._ArgumentGroup, field: dataclasses.Field, kind: Any, text: str
) -> None:
    flag, default = f"--{field.name}", field.default
    shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
    said = default in ("", None) or kind is bool
    text += "" if said else f" (default: {shown})"
    # A flag that is not written leaves no value: the default is the config's.
    options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text}
    if kind is bool:
        flag = f"--no_{field.name}" if default is True else flag
        options |= {"action": "store_false" if default is True else "store_true"}
        options |= {"dest": field.name}
    elif typing.get_origin(kind) is Literal:
        options |= {"choices": typing.get_args(kind)}
    elif typing.get_origin(kind) is tuple:
        options |= {"nargs": "+", "type": typing.get_args(kind)[0]}
    else:
        options |= {"type": kind}
    group.add_argument(flag, **options)


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> Asked:
    """Parse the command line; argparse itself reports unknown flags, with exit status 2."""
    words = sys.argv[1:] if argv is None else argv
    return Asked(parser.parse_args([_underscored(word) for word in words]))


def _underscored(word: str) -> str:
    """``--tree_height`` of ``--tree-height``; what is no flag stays."""
    return _FLAG.sub(lambda flag: f"--{flag[1].replace('-', '_')}", word)


def split_names(flag: str, text: str) -> tuple[str, ...]:
    """The names between commas that ``flag`` was given; InputError if one comes twice."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if len(set(names)) < len(names):
        raise InputError(f"{flag} {text!r}: a name comes twice")
    return names


def _title(config: type) -> str:
    return (config.__doc__ or config.__name__).strip().splitlines()[0].rstrip(".")


def _without_none(kind: Any) -> Any:
    """``float`` for ``float | None``: the flag's absence says None."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return next(part for part in typing.get_args(kind) if part is not type(None))
    return kind
