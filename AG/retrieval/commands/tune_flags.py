"""The flags of tune.py."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from retrieval.commands.flags import Parser
from retrieval.commands.shared_flags import WEIGHTS
from retrieval.configs.rank import MatchConfig, RerankConfig, VerifyConfig
from retrieval.configs.run import Resources
from retrieval.configs.setting import About, Config, abouts, argument, setting
from retrieval.errors import InputError
from retrieval.tuning.search_space import NAMES, WORDS, Axes, in_words

_WHOLE = ("top_k", "num_features")
_OF_THE_RUN = {
    "top_k": "all of the run, 20, 10, 5",
    "model": "affine and homography, as far as the run's back-end knows them",
}


@dataclass(frozen=True)
class TuningOptions(Config, group="Results"):
    """All that tune.py is asked for."""

    run: Path = argument(
        "run folder of eval.py on the validation split: logs/SAVE_DIR/DATE", "VAL_RUN"
    )
    test_run: Path | None = setting(
        None,
        "run folder of eval.py on the test split: what was chosen is measured there too",
        "RUN",
        group="Data",
    )
    model: Path | None = setting(
        None,
        f"{WEIGHTS}: the saved features must be of these",
        "FILE",
        flag="resume_model",
        group="Data",
        is_file=True,
    )
    output_dir: Path | None = setting(
        None, "folder of tuning.json, tuning.png and rerank.toml (default: VAL_RUN/tuning)"
    )
    resources: Resources = field(default_factory=Resources)
    axes: Axes = field(default_factory=Axes)

    @property
    def output(self) -> Path:
        """The folder that is written."""
        return self.output_dir or self.run / "tuning"


def read_tuning(description: str | None, argv: Sequence[str] | None) -> TuningOptions:
    """Read the command line of tune.py; InputError for weights that are no file."""
    parser = Parser(description)
    parser.add(TuningOptions, but=("device", "num_workers", "infer_batch_size"))
    _add_axes(parser)
    asked = parser.read(argv)
    axes = {name: asked.get(name) for name in NAMES if asked.get(name) is not None}
    for name, values in axes.items():
        for value in values:
            if value is not None and (fault := _meanings()[name].fault(value)):
                raise InputError(f"--{name} {value}: {fault}")
    return asked.config(TuningOptions, axes=Axes(**axes))


def _add_axes(parser: Parser) -> None:
    """What each value means stands on its field in the configs of re-ranking."""
    for each in fields(Axes):
        name, about = each.name, _meanings()[each.name]
        text = about.text.partition(" (default")[0]
        if name in WORDS:
            text += f" (a number or {WORDS[name]})"
        default: Any = each.default
        words = " ".join(in_words(name, value) for value in default or ())
        how: dict[str, Any] = {"choices": about.choices}
        if not about.choices:
            how = {"type": _reader(name), "metavar": about.unit or "N"}
        text += f" (default: {words or _OF_THE_RUN[name]})"
        parser.group("Values to try").add_argument(f"--{name}", nargs="+", help=text, **how)
        parser.rename(name, names=about.names)


def _meanings() -> dict[str, About]:
    return {**abouts(VerifyConfig), **abouts(MatchConfig), **abouts(RerankConfig)}


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
