"""The flags of show.py, read into a frozen config."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from retrieval.commands import flags
from retrieval.commands.flags import Asked
from retrieval.commands.options import (
    add_resizing,
    add_weights,
    read_extraction,
    read_reranking,
    read_weights_flag,
)
from retrieval.configs.describe import DelgConfig, ExtractConfig
from retrieval.configs.learn import AugmentConfig
from retrieval.configs.rank import MatchConfig, RerankConfig, VerifyConfig
from retrieval.errors import InputError
from retrieval.networks import delg

# What each picture is made of: photos, or queries and database images of a run by their numbers.
_NEEDED = {
    "attention": ("query",),
    "matches": ("query", "database"),
    "rerank": ("query",),
    "positives": (),
    "recalls": (),
    "losses": (),
}
_ENDINGS = (".png", ".jpg", ".jpeg")
_OF_A_RUN = ("rerank", "positives", "recalls", "losses")


@dataclass(frozen=True)
class ShowOptions:
    """What show.py is asked for.

    shown:   the photos' paths, or with ``run`` their numbers there: (query,) or (query, database).
    weights: of the network, or None where the features of ``run`` are to be used.
    """

    picture: str
    run: Path | None
    shown: tuple[str, ...]
    output: Path
    count: int
    weights: str | None
    network: DelgConfig | None
    extract: ExtractConfig
    rerank: RerankConfig
    device: str

    def numbers(self) -> tuple[int, ...]:
        """``shown`` as numbers; InputError for words that are none."""
        try:
            return tuple(map(int, self.shown))
        except ValueError:
            raise InputError(
                f"{' '.join(self.shown)}: with --run, photos are named by their numbers, from 0"
            ) from None


def read_show(description: str | None, argv: Sequence[str] | None) -> ShowOptions:
    """Read the command line of show.py; InputError for a picture whose photos are not named."""
    parser = flags.make_parser(description)
    parser.add_argument("picture", choices=tuple(_NEEDED))
    _add_photos(parser)
    text = "file to write, .png or .jpg (default: the picture's name .png)"
    parser.add_argument("--output", type=Path, help=text)
    text = "keypoints to mark, or queries to show (default: 20, or 8)"
    parser.add_argument("--count", type=int, help=text)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    add_weights(parser, None)
    flags.add_configs(parser, DelgConfig, but=("train_all_layers",))
    flags.add_configs(parser, ExtractConfig, MatchConfig, VerifyConfig)
    flags.add_configs(parser, AugmentConfig, only=("image_size",))
    add_resizing(parser)
    asked = flags.parse(parser, argv)
    _check_output(asked.get("output"))
    run, weights = asked.get("run"), _weights(asked)
    if run is not None:
        _refuse_settings(asked)
    return ShowOptions(
        picture=asked.get("picture"),
        run=run,
        shown=_shown(asked),
        output=asked.get("output") or Path(f"{asked.get('picture')}.png"),
        count=_count(asked),
        weights=weights,
        network=None if weights is None else delg.resolve_config(asked.given(DelgConfig), weights),
        extract=read_extraction(asked, asked.config(AugmentConfig).image_size),
        rerank=read_reranking(asked),
        device=asked.get("device"),
    )


def _check_output(output: Path | None) -> None:
    if output is None:
        return
    if output.suffix.lower() not in _ENDINGS:
        raise InputError(f"--output {output}: expected a file name with {' or '.join(_ENDINGS)}")
    if output.is_dir():
        raise InputError(f"--output {output} is a folder: name a file in it")


def _refuse_settings(asked: Asked) -> None:
    """InputError for settings that a run has already."""
    given = {**asked.given(ExtractConfig), **asked.given(MatchConfig), **asked.given(VerifyConfig)}
    given |= {name: True for name in ("resize_test_imgs", "longest_side") if asked.get(name)}
    if given:
        raise InputError(
            f"--{next(iter(given))} and --run exclude each other: the run's own settings are shown "
            "(tune.py tries others)"
        )


def _add_photos(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("What to show: photos by path, or by number with --run")
    group.add_argument("--query", "--image", help="photo, or with --run the number of a query")
    group.add_argument("--database", help="the other photo; with --run its number in the database")
    text = "run folder of eval.py: its photos, ranking and stored features (losses: of a training)"
    group.add_argument("--run", type=Path, metavar="RUN", help=text)


def _weights(asked: Asked) -> str | None:
    named = asked.get("resume_model") is not None or asked.get("pretrained") is not None
    if asked.get("run") is not None and not named:
        return None
    if asked.get("picture") in _OF_A_RUN:
        raise InputError(f"{asked.get('picture')} shows a run: give --run RUN, and no weights")
    return read_weights_flag(asked, None)


def _count(asked: Asked) -> int:
    count = asked.get("count")
    if count is None:
        return 8 if asked.get("picture") == "positives" else 20
    if count < 1:
        raise InputError(f"--count {count}: at least 1 is needed")
    return count


def _shown(asked: Asked) -> tuple[str, ...]:
    picture = asked.get("picture")
    values = {name: asked.get(name) for name in _NEEDED[picture]}
    if asked.get("run") is not None and picture == "matches" and values["database"] is None:
        del values["database"]  # the first prediction
    missing = [f"--{name}" for name, value in values.items() if value is None]
    if missing:
        raise InputError(f"{picture} needs {' and '.join(missing)}")
    return tuple(values.values())
