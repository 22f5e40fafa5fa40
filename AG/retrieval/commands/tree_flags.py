"""The flags of voc_tree.main, voc_tree.grid and voc_tree.SIFT.get_descriptor."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from retrieval.commands.flags import Asked, Parser
from retrieval.commands.shared_flags import (
    DataRootFlags,
    NoRerankFlags,
    PhotoSetFlags,
    ReportFlags,
    TestSetFlags,
)
from retrieval.configs.describe import SKIP, ExtractorName, LearnedConfig, SiftConfig
from retrieval.configs.judge import ConfidenceConfig
from retrieval.configs.rank import (
    SIFT_RATIO,
    VERIFIED,
    ExpandConfig,
    MatchConfig,
    RerankConfig,
    ScoreConfig,
    VerifyConfig,
    WordsConfig,
)
from retrieval.configs.run import Resources
from retrieval.configs.setting import Config, argument, setting
from retrieval.errors import InputError

if TYPE_CHECKING:
    from retrieval.data.photo_sets import PhotoSet

Options = TypeVar("Options", bound=TestSetFlags)

# The settings of delf_pytorch.
ORIGINAL_SCORE = ScoreConfig(score="l1", nodes="all", words=1)
ORIGINAL_RERANK = replace(
    VERIFIED,
    match=MatchConfig(rule="one_way", ratio=0.9, precision="float32"),
    verify=VerifyConfig(model="homography", residual=4.0, trials=2000),
    floor=0.0,
)
_NOT_OF_SIFT = ("infer_batch_size", "threads")
_OF_SIFT_ALONE = ("root", "upright")
_TEXTS = {"ratio": "Lowe's test: a match must be nearer than this times the second nearest"}
_TEXTS["ratio"] += f" (default: no test; {SIFT_RATIO} for SIFT)"
_TEXTS["model"] = (
    "geometric model that is fitted to the matches; similarity is for features with a "
)
_TEXTS["model"] += "scale: where this flag is not given, for SIFT"


@dataclass(frozen=True)
class FeaturesFlags(Config, group="Data"):
    """Which local features are searched, and how."""

    roots: tuple[Path, ...] = setting(
        (Path("features/sift"),),
        "folder of the local features, with a folder for each test set; or one feature store, such "
        "as eval.py fills. Several: kinds of features that are searched and verified together",
        flag="root_directory",
    )
    global_run: Path | None = setting(
        None,
        "search by the global descriptors of this run of eval.py --save_descriptors, too",
        "RUN",
    )
    settings: WordsConfig = field(default_factory=WordsConfig)


@dataclass(frozen=True)
class SearchSwitches(NoRerankFlags, group="Visual words"):
    """Flags that change several settings."""

    original: bool = setting(
        False,
        "score, match and verify as delf_pytorch did, where no other flag says otherwise",
        names=("s2",),
    )
    no_homo: bool = setting(False, "the same as --model fundamental", group="Verification")
    expand: bool = setting(
        False, "ask again with the features of verified photos", group="Query expansion"
    )


@dataclass(frozen=True)
class SearchOptions(TestSetFlags, ReportFlags, FeaturesFlags, group="Results"):
    """All that voc_tree.main is asked for; without ``train`` the tree is taken that was saved."""

    directory: Path = argument("folder of the trees and the results", "DIR")
    output: Path = setting(Path("output.txt"), "file to write: the printed figures", "FILE")
    train: bool = setting(
        True, "take the tree that the last call saved in DIR", group="Visual words"
    )
    confidence: ConfidenceConfig = field(default_factory=ConfidenceConfig)


@dataclass(frozen=True)
class GridOptions(TestSetFlags):
    """All that voc_tree.grid is asked for: flags of voc_tree.main, and values of some to try."""

    directory: Path = argument("folder of the tables", "DIR")
    rows: tuple[str, ...] = ()
    vary: tuple[str, ...] = ()


@dataclass(frozen=True)
class SiftOptions(DataRootFlags, PhotoSetFlags):
    """All that voc_tree.SIFT.get_descriptor is asked for."""

    directory: Path = argument("folder of all features", "FEATURES")
    extractor: ExtractorName = setting(
        "sift",
        "what finds and describes them; aliked, disk and xfeat are networks of optional packages",
        group="Local features",
    )
    skip_bad_images: bool = setting(False, SKIP, group="Run")
    sift: SiftConfig = field(default_factory=SiftConfig)
    resources: Resources = field(default_factory=Resources)

    @property
    def local(self) -> SiftConfig | LearnedConfig:
        """The settings of the extractor."""
        if self.extractor == "sift":
            return self.sift
        return LearnedConfig(self.extractor, self.sift.feature_num, self.sift.longest_side)

    @property
    def photo_sets(self) -> "list[PhotoSet]":
        """The set that folders name, or else those of --test_datasets, opened."""
        from retrieval.data import photo_sets  # here, since it loads torch

        folders = (self.dataset_folder, self.test_set_folder, self.database_folder)
        if any(folder is not None for folder in (*folders, self.queries_folder)):
            return [photo_sets.open_set(self.source)]
        found = [photo_sets.find_test_set(self.data_root, name) for name in self.test_datasets]
        return [photo_sets.open_revisited(folder) for folder in found]


def read_search(description: str | None, argv: Sequence[str] | None) -> SearchOptions:
    """Read the command line of voc_tree.main; InputError for flags that contradict each other."""
    parser = Parser(description)
    parser.add(SearchSwitches)
    parser.add(SearchOptions, but=("expand",), texts=_TEXTS)
    parser.add(ExpandConfig)
    asked = parser.read(argv)
    return _named(asked.config(SearchOptions, settings=_settings(asked)))


def read_row(words: str) -> FeaturesFlags:
    """The features and the settings of one row of a grid."""
    parser = Parser(f"a row of the grid: {words}")
    parser.add(SearchSwitches)
    parser.add(FeaturesFlags, but=("expand",), texts=_TEXTS)
    parser.add(ExpandConfig)
    asked = parser.read(shlex.split(words))
    return asked.config(FeaturesFlags, settings=_settings(asked))


def read_grid(description: str | None, argv: Sequence[str] | None) -> GridOptions:
    """Read the command line of voc_tree.grid."""
    parser = Parser(description)
    parser.add(GridOptions)
    results = parser.group("Results")
    text = "a row of the table: flags of voc_tree.main between quotes; may be repeated"
    results.add_argument("--row", action="append", metavar="FLAGS", help=text)
    text = "a flag and its values between quotes, to multiply the rows by; may be repeated"
    results.add_argument("--vary", action="append", metavar="VALUES", help=text)
    asked = parser.read(_joined(sys.argv[1:] if argv is None else argv))
    rows, vary = asked.get("row") or (), asked.get("vary") or ()
    return _named(asked.config(GridOptions, rows=rows, vary=vary))


def read_sift(description: str | None, argv: Sequence[str] | None) -> SiftOptions:
    """Read the command line of voc_tree.SIFT.get_descriptor."""
    parser = Parser(description)
    parser.add(SiftOptions, but=("train_set_folder", "val_set_folder", *_NOT_OF_SIFT))
    asked = parser.read(argv)
    options = asked.config(SiftOptions)
    for name in _OF_SIFT_ALONE if options.extractor != "sift" else ():
        if asked.get(name) is not None:
            raise InputError(f"--extractor {options.extractor} and --{name} exclude each other")
    return _named(options)


def _joined(argv: Sequence[str]) -> list[str]:
    """``--row "--expand"`` as ``--row=--expand``: argparse would take the value for a flag."""
    words: list[str] = []
    for word in argv:
        if words and words[-1] in ("--row", "--vary"):
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words


def _named(options: Options) -> Options:
    """InputError if there is no test set."""
    if not options.test_datasets:
        raise InputError("--test_datasets: names between commas are needed")
    return options


def _settings(asked: Asked) -> WordsConfig:
    """The settings that the flags say; InputError for flags that contradict each other."""
    switches = asked.config(SearchSwitches)
    score = ORIGINAL_SCORE if switches.original else ScoreConfig()
    rerank = _reranking(asked, ORIGINAL_RERANK if switches.original else VERIFIED)
    expand = asked.config(ExpandConfig) if switches.expand else None
    if expand and (switches.no_rerank or rerank.verify.model == "fundamental"):
        raise InputError("--expand needs verified transforms: no --no_rerank, no --no_homo")
    return asked.config(
        WordsConfig,
        score=asked.fill(score),
        rerank=None if switches.no_rerank else rerank,
        expand=expand,
        model_given=switches.original or switches.no_homo or "model" in asked.given(VerifyConfig),
    )


def _reranking(asked: Asked, base: RerankConfig) -> RerankConfig:
    if asked.get("no_homo"):
        model = asked.given(VerifyConfig).get("model", "fundamental")
        if model != "fundamental":
            raise InputError(f"--no_homo and --model {model} exclude each other")
        base = replace(base, verify=replace(base.verify, model="fundamental"))
    return asked.fill(base)
