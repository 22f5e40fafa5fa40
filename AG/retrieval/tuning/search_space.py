"""The settings that tuning tries: every combination of the values of a few parameters."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from retrieval.configs.rank import (
    DEFAULT_RESIDUAL,
    Geometry,
    Model,
    RerankConfig,
    Rule,
    VerifyConfig,
    backends_for,
)
from retrieval.errors import InputError

# What None means on an axis.
WORDS = {"num_features": "all", "max_distance": "none", "residual": "measured", "floor": "measured"}

_MODELS: tuple[Model, ...] = ("affine", "homography")


@dataclass(frozen=True)
class Axes:
    """Values to try.

    Every combination is a setting; each field is one of `RerankConfig` or of its match and verify,
    and None means what it does there. Of equally good settings the smallest top_k wins, then the
    fewest features (see `try_settings.best_first`), then the first, so that on the other axes the
    values that need a reason come last.

    top_k: None: all that have saved features, and 20, 10, 5 of them.
    model: None: affine and homography, as far as the run's back-end knows them.
    """

    top_k: tuple[int, ...] | None = None
    num_features: tuple[int | None, ...] = (None, 300)
    rule: tuple[Rule, ...] = ("mutual", "one_way")
    max_distance: tuple[float | None, ...] = (None, 0.8)
    residual: tuple[float | None, ...] = (None, 8.0)
    model: tuple[Model, ...] | None = None
    floor: tuple[float | None, ...] = (None, 0.0)
    fusion: tuple[float, ...] = (0.0, 30.0, 100.0)


NAMES = tuple(field.name for field in fields(Axes))


def combinations(axes: Axes, base: RerankConfig) -> list[RerankConfig]:
    """Every combination of the values, once; what is no axis is as in ``base``.

    base: what the run was re-ranked with, so that its top_k have saved features. Raises InputError
    for values that the configs refuse, and for models that the run's back-end does not know.
    """
    depth = base.top_k
    top_k = axes.top_k or (depth, *(k for k in (20, 10, 5) if k < depth))
    filled = replace(axes, top_k=top_k, model=_models(axes, base.verify.backend))
    values = [getattr(filled, name) for name in NAMES]
    named = (dict(zip(NAMES, chosen, strict=True)) for chosen in itertools.product(*values))
    return list(dict.fromkeys(_setting(base, **each) for each in named))


def grid(axes: Axes, base: RerankConfig) -> list[RerankConfig]:
    """The `combinations`, without one_way matches that neither ratio nor max_distance bounds.

    Those are one for every query descriptor, good or bad: the slowest to verify, and nothing that a
    system used. Where only such are asked for, they stay.
    """
    settings = combinations(axes, base)
    return [setting for setting in settings if _is_bounded(setting)] or settings


def _models(axes: Axes, backend: str) -> tuple[Model, ...]:
    if axes.model is None:
        return tuple(model for model in _MODELS if backend in backends_for(model))
    for model in axes.model:
        known = backends_for(model) or (VerifyConfig.backend,)
        if backend not in known:
            raise InputError(
                f"--model {model}: the run's back-end {backend} does not know it; leave it out, or "
                f"run eval.py again with --backend {known[0]}"
            )
    return axes.model


def _setting(base: RerankConfig, **values: Any) -> RerankConfig:
    match = {name: values.pop(name) for name in ("rule", "max_distance")}
    verify = {name: values.pop(name) for name in ("model", "residual")}
    if (
        verify["residual"] is None
    ):  # as much looser than the default as in the run, which measured it
        wider = base.verify.residual_px / DEFAULT_RESIDUAL[base.verify.model]
        verify["residual"] = wider * DEFAULT_RESIDUAL[verify["model"]]
    return replace(
        base, match=replace(base.match, **match), verify=replace(base.verify, **verify), **values
    )


def _is_bounded(setting: RerankConfig) -> bool:
    match = setting.match
    return match.rule != "one_way" or match.ratio is not None or match.max_distance is not None


def value_of(setting: RerankConfig, name: str) -> Any:
    """The value of a setting on the axis ``name``."""
    for config in (setting, setting.match, setting.verify):
        if hasattr(config, name):
            return getattr(config, name)
    raise AttributeError(name)


def in_words(name: str, value: Any) -> str:
    """A value of an axis as its flag takes it."""
    if value is None:
        return WORDS[name]
    return f"{value:g}" if isinstance(value, float) else str(value)


def geometries(settings: Sequence[RerankConfig]) -> list[Geometry]:
    """The distinct geometries of the settings."""
    return list(dict.fromkeys(setting.geometry for setting in settings))
