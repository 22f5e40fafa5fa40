"""The flags of the tree's commands."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from retrieval.commands import flags
from retrieval.commands.flags import Asked
from retrieval.configs.rank import (
    ExpandConfig,
    MatchConfig,
    RerankConfig,
    ScoreConfig,
    TreeConfig,
    VerifyConfig,
)
from retrieval.errors import InputError

# S2's settings, as far as they are not defaults.
_S2_SCORE: dict[str, Any] = {"score": "l1", "nodes": "all", "words": 1}
_S2_MATCH: dict[str, Any] = {"rule": "one_way", "ratio": 0.9, "precision": "float32"}
_S2_VERIFY: dict[str, Any] = {"residual": 4.0, "trials": 2000}
RERANK_NUM = 150
SIFT_RATIO = 0.9


@dataclass(frozen=True)
class Settings:
    """How one test set is searched; no re-ranking, no expansion where these are None."""

    root: Path
    tree: TreeConfig
    score: ScoreConfig
    rerank: RerankConfig | None
    expand: ExpandConfig | None

    def suited_to(self, features: Mapping[str, Any]) -> "Settings":
        """Lowe's test for SIFT, where no --ratio was given: deep features do better without."""
        if self.rerank is None or self.rerank.match.ratio or features.get("extractor") != "sift":
            return self
        match = replace(self.rerank.match, ratio=SIFT_RATIO)
        return replace(self, rerank=replace(self.rerank, match=match))


def add_test_sets(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add ``--test-datasets``, and return its group."""
    group = parser.add_argument_group("Data")
    text = "names between commas (default: %(default)s)"
    group.add_argument("--test_datasets", default="roxford5k,rparis6k", help=text)
    return group


def read_test_sets(asked: Asked) -> tuple[str, ...]:
    """The names of the test sets; InputError if there is none, or one comes twice."""
    text = asked.get("test_datasets")
    names = flags.split_names("--test-datasets", text)
    if not names:
        raise InputError(f"--test-datasets {text!r}: names between commas are needed")
    return names


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add the flags that `read_settings` reads."""
    group = parser.add_argument_group("Method")
    text = "folder of features, with a folder for each test set"
    group.add_argument("--root_directory", type=Path, default=Path("features/sift"), help=text)
    group.add_argument("--s2", action="store_true", help="S2's score, matches and verification")
    text = f"images of each ranking that are re-ranked (default: {RERANK_NUM})"
    group.add_argument("--rerank_num", type=int, default=RERANK_NUM, metavar="N", help=text)
    text = "verify by the fundamental matrix, not a homography"
    group.add_argument("--no_homo", action="store_true", help=text)
    group.add_argument("--no_ransac", action="store_true", help="do not re-rank")
    text = "ask again with the features of verified images"
    group.add_argument("--expand", action="store_true", help=text)
    flags.add_configs(parser, TreeConfig, ScoreConfig, ExpandConfig, MatchConfig, VerifyConfig)
    flags.add_configs(parser, RerankConfig, but=("top_k",))  # --rerank-num


def read_settings(asked: Asked) -> Settings:
    """The settings that the flags say; InputError for flags that contradict each other."""
    s2 = asked.get("s2")
    rerank, expand = None, None
    if not asked.get("no_ransac"):
        rerank = _reranking(asked, s2)
    if asked.get("expand"):
        if rerank is None or rerank.verify.model == "fundamental":
            raise InputError("--expand needs verified transforms: no --no-ransac, no --no-homo")
        expand = asked.config(ExpandConfig)
    score = ScoreConfig(**(_S2_SCORE if s2 else {}) | asked.given(ScoreConfig))
    return Settings(asked.get("root_directory"), asked.config(TreeConfig), score, rerank, expand)


def _reranking(asked: Asked, s2: bool) -> RerankConfig:
    verify: dict[str, Any] = {"model": "homography", **(_S2_VERIFY if s2 else {})}
    verify |= asked.given(VerifyConfig)
    if asked.get("no_homo"):
        if asked.given(VerifyConfig).get("model", "fundamental") != "fundamental":
            raise InputError(f"--no-homo and --model {verify['model']} exclude each other")
        verify["model"] = "fundamental"
    match = {**(_S2_MATCH if s2 else {}), **asked.given(MatchConfig)}
    order = {"top_k": asked.get("rerank_num"), **({"floor": 0.0} if s2 else {})}
    return RerankConfig(
        **{
            **order,
            **asked.given(RerankConfig),
            "match": MatchConfig(**match),
            "verify": VerifyConfig(**verify),
        }
    )
