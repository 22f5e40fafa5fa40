"""Download a data set, and unpack it: `get_data.py URL DIR`.

The same command goes on where a download was cut off. Nobody has published checksums of SF-XS,
retrieval-SfM-120k or Oxford and Paris: --sha256 verifies against one that you have.
"""

import logging
import urllib.parse
from collections.abc import Sequence
from pathlib import Path

from retrieval.commands import flags
from retrieval.commands.script import run
from retrieval.data.download import download, unpack

log = logging.getLogger("get_data")


def main(argv: Sequence[str] | None = None) -> None:
    """Fetch the archive, verify it, unpack it."""
    parser = flags.make_parser(__doc__)
    parser.add_argument("url", metavar="URL", help="address of a .zip or .tar archive")
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder to unpack it into")
    parser.add_argument("--sha256", metavar="HEX", help="what the archive's checksum must be")
    parser.add_argument("--keep_archive", action="store_true", help="do not delete it at the end")
    asked = flags.parse(parser, argv)
    folder: Path = asked.get("folder")
    name = Path(urllib.parse.urlsplit(asked.get("url")).path).name or "archive"
    archive = download(asked.get("url"), folder / name, asked.get("sha256"))
    log.info("unpacking %s", archive)
    unpack(archive, folder)
    if not asked.get("keep_archive"):
        archive.unlink()
    log.info("%s: %s", folder, ", ".join(sorted(path.name for path in folder.iterdir())))


if __name__ == "__main__":
    run(main)
