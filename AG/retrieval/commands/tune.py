"""What tune.py asks for: its flags, read into the values to try."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

from retrieval.commands import flags
from retrieval.configs.rank import Model, RerankConfig, Rule
from retrieval.errors import InputError
from retrieval.tuning.search_space import WORDS, Axes, in_words

_HELP = {
    "top_k": "predictions of each query that are re-ranked; default: all of the run, 20, 10, 5",
    "num_features": "strongest local features an image that are matched",
    "rule": "which descriptors match",
    "max_distance": "keep a match only if its L2 distance is below",
    "residual": "largest residual of an inlier in pixels",
    "model": "geometric model fitted to the matches; default: affine and homography, as far as the "
    "run's back-end knows them",
    "floor": "inliers that count for nothing",
    "fusion": "inliers that the best similarity of a ranking is worth",
}
_CHOICES = {"rule": get_args(Rule), "model": get_args(Model)}
_WHOLE = ("top_k", "num_features")


@dataclass(frozen=True)
class TuningOptions:
    """All that tune.py is asked for."""

    run: Path
    test_run: Path | None
    output: Path
    model: Path | None
    axes: Axes
    threads: int | None


def read_tuning(description: str | None, argv: Sequence[str] | None) -> TuningOptions:
    """Read the command line of tune.py; InputError for weights that are no file."""
    parser = flags.make_parser(description)
    text = "run folder of eval.py on the validation split: logs/SAVE_DIR/DATE"
    parser.add_argument("run", type=Path, metavar="VAL_RUN", help=text)
    text = "the same on the test split: what was chosen is measured there too"
    parser.add_argument("--test_run", type=Path, help=text)
    text = "folder of tuning.json, tuning.png, rerank.toml (default: VAL_RUN/tuning)"
    parser.add_argument("--output_dir", type=Path, help=text)
    text = "check that the saved features are of these weights"
    parser.add_argument("--resume_model", type=Path, help=text)
    flags.add_configs(parser, RerankConfig, only=("threads",))
    _add_axes(parser)
    asked = flags.parse(parser, argv)
    threads, model = asked.given(RerankConfig).get("threads"), asked.get("resume_model")
    if model is not None and not model.is_file():
        raise InputError(f"--resume_model {model}: no such file")
    return TuningOptions(
        run=asked.get("run"),
        test_run=asked.get("test_run"),
        output=asked.get("output_dir") or asked.get("run") / "tuning",
        model=model,
        axes=asked.config(Axes),
        threads=RerankConfig(threads=threads).threads,
    )


def _add_axes(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("Values to try; every combination is a setting")
    for field in fields(Axes):
        name, text = field.name, _HELP[field.name]
        if name in WORDS:
            text += f", or {WORDS[name]}"
        values: Any = field.default
        if values is not None:
            text += f" (default: {' '.join(in_words(name, value) for value in values)})"
        options: dict[str, Any] = {"choices": _CHOICES.get(name)}
        if name not in _CHOICES:
            options = {"type": _reader(name), "metavar": "N" if name in _WHOLE else "X"}
        group.add_argument(f"--{name}", nargs="+", default=argparse.SUPPRESS, help=text, **options)


def _reader(name: str) -> Callable[[str], float | None]:
    """Reads a number, or the word for None where the axis has one."""

    def read(text: str) -> float | None:
        if text == WORDS.get(name):
            return None
        try:
            return int(text) if name in _WHOLE else float(text)
        except ValueError:
            word = f", or {WORDS[name]}" if name in WORDS else ""
            kind = "a whole number" if name in _WHOLE else "a number"
            raise argparse.ArgumentTypeError(f"{text!r}: expected {kind}{word}") from None

    return read
