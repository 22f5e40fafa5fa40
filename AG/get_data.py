"""Download a data set, and unpack it.

The same command goes on where a download was cut off. Nobody has published checksums of SF-XS,
retrieval-SfM-120k or Oxford and Paris: --sha256 verifies against one that you have.

Examples:
    python3 AG/get_data.py https://example.org/sf_xs.zip data
    python3 AG/get_data.py https://example.org/sf_xs.zip data --keep_archive --sha256 9f86d0818...
"""

import logging
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from retrieval.commands import flags, script
from retrieval.configs.setting import Config, argument, setting
from retrieval.data.download import download, unpack
from retrieval.files import alone

log = logging.getLogger("get_data")


@dataclass(frozen=True)
class DownloadOptions(Config, group="Data"):
    """What get_data.py is asked for."""

    url: str = argument("address of a .zip or .tar archive", "URL")
    folder: Path = argument("folder to unpack it into")
    sha256: str | None = setting(None, "SHA-256 that the archive must have", "HEX")
    keep_archive: bool = setting(False, "do not delete the archive at the end")
    max_size: float | None = setting(
        None,
        "unpack at most this much (default: as much as the disk has room for, and at most 100 "
        "times the archive)",
        "GB",
        above=0,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Fetch the archive, verify it, unpack it."""
    asked = flags.read(DownloadOptions, __doc__, argv)
    folder = asked.folder
    name = Path(urllib.parse.urlsplit(asked.url).path).name or "archive"
    with alone(folder / name, "fetching it"):
        archive = download(asked.url, folder / name, asked.sha256)
        log.info("unpacking %s", archive)
        most = 100 * archive.stat().st_size if asked.max_size is None else asked.max_size * 1e9
        unpack(archive, folder, most)
        if not asked.keep_archive:
            archive.unlink()
    log.info("%s: %s", folder, ", ".join(sorted(path.name for path in folder.iterdir())))


if __name__ == "__main__":
    script.run(main)
