"""Rendering a planned city to a folder, in several processes, so that it can be cut short."""

import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np

from retrieval.errors import InputError
from retrieval.files import alone
from toy_city.config import ToyCityConfig
from toy_city.plan import FOLDERS, StreetPlan, View, plan_city
from toy_city.street import Street

VERSION = 1  # of the pictures: another one means other pictures for the same config
MARKER = "city.json"


def make_toy_city(
    folder: Path,
    config: ToyCityConfig,
    *,
    workers: int = 1,
    force: bool = False,
    progress: Callable[[int], object] | None = None,
) -> bool:
    """Writes a city to `folder`; False if this very city is there already.

    Pictures go to `folder`.partial first, where a run that was cut short is continued; the folder
    gets its name when all is done. `progress` is told how many more pictures are there. InputError
    if `folder` holds anything else, unless that is a toy city and `force` is given, or if it cannot
    be written.
    """
    if workers < 1:
        raise InputError(f"--num_workers {workers}: at least 1 is needed")
    folder = Path(os.path.abspath(folder))
    description = json.dumps({"version": VERSION, "config": asdict(config)}, indent=2) + "\n"
    try:
        with alone(folder, "making a toy city there"):
            if _holds_city(folder, description, force):
                return False
            partial = folder.with_name(folder.name + ".partial")
            _prepare(partial, description)
            _render(partial, config, workers, progress or (lambda number: None))
            if folder.exists():
                shutil.rmtree(folder)
            partial.rename(folder)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be written ({error}); choose another folder or free its disk"
        ) from error
    return True


def render_street(folder: Path, plan: StreetPlan, image_size: int) -> int:
    """Takes those pictures of a street that are not in `folder` yet; how many it has in all."""
    missing = [view for view in plan.views if not (folder / view.path).exists()]
    if missing:
        scale = float(np.clip(image_size / 7, 12, 64))
        street = Street(plan.origin, plan.axis, plan.length, scale, plan.seed)
        for view in missing:
            _write(folder / view.path, take_picture(street, view))
    return len(plan.views)


def take_picture(street: Street, view: View) -> bytes:
    """One picture as a JPEG file."""
    rng = np.random.default_rng(view.seed)
    picture = street.picture(view.camera, view.hour, view.conditions, rng)
    quality = int(rng.uniform(95 - 40 * view.conditions.wear, 96))
    options = [cv2.IMWRITE_JPEG_QUALITY, quality]
    return cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), options)[1].tobytes()


def _holds_city(folder: Path, description: str, force: bool) -> bool:
    """Whether the very city is there; InputError if anything is that must not be overwritten."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; expected a folder to write the city to")
    if not folder.exists() or not any(folder.iterdir()):
        return False
    marker = folder / MARKER
    if not marker.is_file():
        raise InputError(f"{folder}: holds other files and no {MARKER}; choose an empty folder")
    if marker.read_text(encoding="utf-8") == description:
        return True
    if not force:
        raise InputError(
            f"{folder}: holds a toy city of another configuration ({marker}); "
            "give --force to replace it, or choose another folder"
        )
    return False


def _prepare(partial: Path, description: str) -> None:
    """Makes the unfinished folder, or keeps it if it is of the same city."""
    marker = partial / MARKER
    if partial.exists() and not (marker.is_file() and marker.read_text("utf-8") == description):
        if not marker.is_file() and any(partial.iterdir()):
            raise InputError(f"{partial}: holds other files and no {MARKER}; remove it")
        shutil.rmtree(partial)
    for name in FOLDERS:
        (partial / name).mkdir(parents=True, exist_ok=True)
    for unfinished in partial.rglob(".*.tmp"):
        unfinished.unlink()
    _write(marker, description.encode())


def _render(
    folder: Path, config: ToyCityConfig, workers: int, progress: Callable[[int], object]
) -> None:
    """Renders the streets in `workers` processes."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_start_worker) as pool:
        jobs = [
            pool.submit(render_street, folder, plan, config.image_size)
            for plan in plan_city(config)
        ]
        try:
            for job in as_completed(jobs):
                progress(job.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start_worker() -> None:
    """One thread a worker, which dies with an interrupt and with the process that began it."""
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)

    def follow() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _write(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_name(f".{os.getpid()}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
