"""Which answers are right."""

from dataclasses import dataclass

from retrieval.errors import InputError


@dataclass(frozen=True)
class PositivesConfig:
    """Which database images are right answers, for sets in which names tell the positions."""

    positive_dist_threshold: float = 25.0
    positive_angle: float | None = None

    def __post_init__(self) -> None:
        if self.positive_dist_threshold <= 0:
            raise InputError(f"--positive_dist_threshold {self.positive_dist_threshold}: not > 0")
