"""The flags of eval.py."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from retrieval.commands import shared_flags as shared
from retrieval.commands.flags import Asked, Parser
from retrieval.configs.describe import CompactConfig, DelgConfig
from retrieval.configs.judge import ConfidenceConfig, EvaluationConfig
from retrieval.configs.rank import RerankConfig
from retrieval.configs.rerank_file import read_rerank
from retrieval.configs.setting import setting
from retrieval.errors import InputError

if TYPE_CHECKING:
    from retrieval.networks.weights import PartsReport


@dataclass(frozen=True)
class EvaluationOptions(
    shared.PhotoSetFlags,
    shared.NetworkFlags,
    shared.ResizeFlags,
    shared.NoRerankFlags,
    shared.ReportFlags,
    shared.PlaceRunFlags,
    group="Data",
):
    """All that eval.py is asked for.

    rerank_config: the file that had a say in the re-ranking; None with --no_rerank.
    """

    local_features: tuple[Path, ...] = setting(
        (),
        "re-rank by these stored local features (of SIFT, DELF, …), not by the network's own; by "
        "several kinds together",
        "STORE",
        group="Local features",
    )
    rerank_config: Path | None = setting(
        None,
        "re-rank as this file of tune.py says. Flags win over its settings, but where it says "
        "rerank = false there is no re-ranking",
        "FILE",
        group="Re-ranking",
    )
    save_descriptors: bool = setting(
        False, "write the global descriptors as .npy too", group="Results"
    )
    compact: CompactConfig = field(default_factory=CompactConfig)
    judged: EvaluationConfig = field(default_factory=EvaluationConfig)
    confidence: ConfidenceConfig = field(default_factory=ConfidenceConfig)


def check_weights_suffice(
    weights: str, network: DelgConfig, loaded: "PartsReport", *, with_local: bool
) -> None:
    """InputError where a part that is used would be random, or another, without being asked for."""
    if weights == "none":
        return
    if loaded.of_delf:  # it has a pooling of its own, which a DELG would silently put aside
        raise InputError(
            f"{weights} is a network of DELF or cirtorch, and this command uses those of DELG: "
            "python3 -m example.finetuning tests and tunes it (--pretrained FILE)"
        )
    remedies = {}
    if network.head != "gem":  # GeM alone has one weight, its power, 3 where nothing was trained
        remedies["global_head"] = "--head gem needs none"
    if with_local:
        remedies["attention"] = (
            "--attention norm scores keypoints by the norm of the activation; or --no_rerank"
        )
        remedies["autoencoder"] = "leave out --reduction, or use --no_rerank"
    needed = [f"{part} ({remedies[part]})" for part in loaded.missing if part in remedies]
    if needed:
        raise InputError(f"{weights} has no weights for {'; '.join(needed)}")


_OF_OWN_FEATURES = (
    *("pca_photos", "local_scales", "max_features", "min_score", "all_local_features", "no_rerank"),
)


def read_evaluation(description: str | None, argv: Sequence[str] | None) -> EvaluationOptions:
    """Read the command line of eval.py; InputError for flags that contradict each other."""
    parser = Parser(description)
    parser.add(EvaluationOptions, but=("train_set_folder", "val_set_folder"))
    parser.add(DelgConfig, but=("train_all_layers",))
    asked = parser.read(argv)
    for name in _OF_OWN_FEATURES if asked.get("local_features") else ():
        if asked.get(name) is not None:
            raise InputError(f"--local_features and --{name} exclude each other: leave one out")
    for name in () if asked.get("local_features") else ("form", "bytes_per_image", "code_bits"):
        if asked.get(name) is not None:
            raise InputError(
                f"--{name} makes a smaller store of one that is there: name it by --local_features "
                "(eval.py --all_local_features makes one of the network's own)"
            )
    judged = asked.config(
        EvaluationConfig, extract=shared.read_extraction(asked), rerank=_reranking(asked)
    )
    options = asked.config(
        EvaluationOptions,
        weights=shared.read_weights(asked),
        written=asked.given(DelgConfig),
        rerank_config=None if asked.get("no_rerank") else asked.get("rerank_config"),
        judged=judged,
    )
    _ = options.source  # says at once what is missing
    return options


def _reranking(asked: Asked) -> RerankConfig | None:
    """What the flags say, over what the file says; either may say that there is to be none."""
    file = asked.get("rerank_config")
    base = RerankConfig() if file is None else read_rerank(file)
    return None if base is None or asked.get("no_rerank") else asked.fill(base)
