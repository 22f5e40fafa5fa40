"""What tuning tells: tables, the comment of rerank.toml, and the content of tuning.json."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from retrieval.configs.rank import RerankConfig
from retrieval.metrics import Gain, paired_interval
from retrieval.tuning import try_settings
from retrieval.tuning.search_space import NAMES, Axes, combinations, geometries, in_words, value_of
from retrieval.tuning.try_settings import Outcome

_SHOWN = 5
_NO_RERANKING = "no re-ranking"


@dataclass(frozen=True)
class Measured:
    """A setting on the queries of one split, against the global ranking."""

    outcome: Outcome
    before: float
    gain: Gain


def measured(outcome: Outcome, before: np.ndarray) -> Measured:
    """The setting against ``before``, (Q,) of the global ranking."""
    gained = paired_interval(outcome.per_query, before)
    return Measured(outcome, float(np.nanmean(before)), gained)


def difference(metric: str, found: Measured) -> str:
    """``R@1 60.0 -> 70.0: +10.0 [+5.0, +15.0]`` …"""
    return (
        f"{metric} {found.before:.1f} -> {found.outcome.figure:.1f}: {found.gain.in_words()} "
        f"(paired, 95 %), {found.outcome.ms:.1f} ms a query"
    )


def plan(axes: Axes, base: RerankConfig, settings: Sequence[RerankConfig]) -> str:
    """How much is to be searched, and what of the combinations is not."""
    words = f"{len(settings)} settings, {len(geometries(settings))} distinct geometries"
    left_out = len(combinations(axes, base)) - len(settings)
    return words + (f"; {left_out} of one_way without max_distance left out" if left_out else "")


def best_table(outcomes: Sequence[Outcome], metric: str) -> str:
    """The first few of outcomes that are sorted best first."""
    return _table([_row(outcome) for outcome in outcomes[:_SHOWN]], metric)


def front_table(outcomes: Sequence[Outcome], metric: str, before: float) -> str:
    """The Pareto front of figure against time, the global ranking being its first point."""
    marks = zip(outcomes, try_settings.on_front(outcomes, before), strict=True)
    front = sorted((outcome for outcome, on in marks if on), key=lambda outcome: outcome.ms)
    rows = [[f"{before:.1f}", "0.0", _NO_RERANKING, *[""] * (len(NAMES) - 1)]]
    return _table([*rows, *(_row(outcome) for outcome in front)], metric)


def _table(rows: list[list[str]], metric: str) -> str:
    columns = list(zip([metric, "ms", *NAMES], *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    lines = []
    for line in zip(*columns, strict=True):
        figures = [word.rjust(width) for word, width in zip(line[:2], widths[:2], strict=True)]
        words = [word.ljust(width) for word, width in zip(line[2:], widths[2:], strict=True)]
        lines.append("  ".join([*figures, *words]).rstrip())
    return "\n".join(lines)


def _row(outcome: Outcome) -> list[str]:
    words = {name: in_words(name, value_of(outcome.setting, name)) for name in NAMES}
    if outcome.setting.floor is None:
        words["floor"] += f": {outcome.floor:g}"
    return [f"{outcome.figure:.1f}", f"{outcome.ms:.1f}", *words.values()]


def verdict(metric: str, gained: Gain) -> str:
    """What is chosen, and why. gained: `try_settings.gain_of_choosing`."""
    what = "the best setting" if gained.low > 0 else _NO_RERANKING
    return (
        f"chosen: {what} (on queries that it was not chosen by, the best setting gains "
        f"{gained.in_words()} of {metric})"
    )


def summary(
    metric: str, num_settings: int, best: Measured, gained: Gain, tested: Mapping[str, Measured]
) -> list[str]:
    """What the best setting gains on validation, what was ``tested`` on test, what is chosen."""
    lines = [f"validation, best of {num_settings} settings: {difference(metric, best)}"]
    lines += [f"test, {name}: {difference(metric, found)}" for name, found in tested.items()]
    return [*lines, verdict(metric, gained)]


def as_json(
    outcomes: Sequence[Outcome],
    metric: str,
    best: Measured,
    gained: Gain,
    tested: Mapping[str, Measured],
) -> dict[str, Any]:
    """Every setting with its figure and time, what was chosen, and what that gains."""
    front = try_settings.on_front(outcomes, best.before)
    return {
        "metric": metric,
        "global": best.before,
        "num_settings": len(outcomes),
        "num_geometries": len(geometries([outcome.setting for outcome in outcomes])),
        "verdict": verdict(metric, gained),
        "gain_of_choosing": gained,
        "validation": _measured_json(best),
        "test": {name: _measured_json(found) for name, found in tested.items()},
        "settings": [
            {
                **{name: value_of(outcome.setting, name) for name in NAMES},
                "floor_in_force": outcome.floor,
                "figure": outcome.figure,
                "ms_per_query": outcome.ms,
                "pareto": pareto,
            }
            for outcome, pareto in zip(outcomes, front, strict=True)
        ],
    }


def _measured_json(found: Measured) -> dict[str, Any]:
    return {
        "setting": asdict(found.outcome.settled),
        "global": found.before,
        "figure": found.outcome.figure,
        "difference": found.gain.difference,
        "interval_95": found.gain[1:],
        "ms_per_query": found.outcome.ms,
    }
