"""With what the work is done; nothing here changes an answer."""

from dataclasses import dataclass
from pathlib import Path

from retrieval.configs.setting import Config, setting


@dataclass(frozen=True)
class Resources(Config, group="Run"):
    """Devices, processes, threads and memory. cache: folder for what can be made again."""

    device: str = setting(
        "auto", "where the network runs: cpu, cuda, or auto: a GPU if there is one"
    )
    num_workers: int = setting(2, "helper processes: they read photos", names=("workers",), least=0)
    infer_batch_size: int = setting(16, "photos that the network describes at once", least=1)
    threads: int | None = setting(
        None, "threads that match and verify (default: as many as torch uses)", least=1
    )
    cache: Path = Path("cache")
