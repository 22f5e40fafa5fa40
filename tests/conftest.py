import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from retrieval.commands import script


@pytest.fixture(autouse=True, scope="session")
def _kept_memory():
    script.keep_freed_memory()


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """What is known of files' contents is kept apart from the user's."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _one_thread():
    # The suite runs one process a core.
    torch.set_num_threads(1)


@pytest.fixture
def photo(tmp_path):
    """Write a random photo of (width, height) pixels and return its path."""

    def write(name: str, size: tuple[int, int] = (64, 48), seed: int = 0) -> Path:
        rng = np.random.default_rng(seed)
        small = rng.integers(0, 255, (size[1] // 8 + 1, size[0] // 8 + 1, 3), np.uint8)
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(path, quality=95)
        return path

    return write


@pytest.fixture
def real_photos() -> Path:
    """The folder of real photos that DELG_DATA names; tests that need it are skipped without."""
    folder = os.environ.get("DELG_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("real photos: DELG_DATA names no folder")
    return Path(folder)
