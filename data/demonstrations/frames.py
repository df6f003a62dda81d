"""The frames of one folder, from prepared arrays or from the episode files, and their preparation.

Shapes: N steps of a folder, F frames, B requested rows, h and w in training.
"""

import os
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from operator import call
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from tqdm import tqdm

from data.demonstrations.hdf5 import dataset_at, open_file, read, reading
from data.demonstrations.images import FrameFit
from data.demonstrations.layouts import decoded
from storage import worker_pool

BLOCK_FRAMES = 16  # read at once: some 15 MB of 480x640 frames
SERIAL_FRAMES = 2000  # fewer are prepared in this process before others would have started
OPEN_FILES = 256  # far below the usual limit of 1024 for one process


class ArrayFrames:
    """Frames already at training size: one array (N, 3, h, w) uint8 per camera, on disk or in memory."""

    def __init__(self, arrays: list[np.ndarray]):
        self.arrays = arrays

    def copy_to(self, targets: list[np.ndarray], camera: int, rows: np.ndarray) -> None:
        """Copy the frames at `rows` (B,) into B arrays (3, h, w)."""
        array = self.arrays[camera]
        for target, row in zip(targets, rows.tolist(), strict=True):  # one plain copy each, no buffer in between
            target[...] = array[row]


class FileFrames:
    """Frames read, decoded and resized on request. Keeps its files open, each process its own."""

    def __init__(
        self,
        files: list[Path],
        offsets: np.ndarray,
        keys: list[str],
        fit: FrameFit,
        present: np.ndarray | None = None,
    ):
        self.files, self.offsets, self.fit = files, offsets, fit
        # Of each file, the cameras that it has.
        self.keys = [
            [key if present is None or present[episode, camera] else None for camera, key in enumerate(keys)]
            for episode in range(len(files))
        ]
        self.cameras: OrderedDict[int, list[h5py.Dataset | None]] = OrderedDict()  # of the open files, by episode
        self.process = os.getpid()

    def __getstate__(self) -> dict:
        return {**self.__dict__, "cameras": OrderedDict()}

    def copy_to(self, targets: list[np.ndarray], camera: int, rows: np.ndarray) -> None:
        """Read the frames at `rows` (B,) into B arrays (3, h, w)."""
        episodes = np.searchsorted(self.offsets, rows, side="right") - 1
        for target, row, episode in zip(targets, rows.tolist(), episodes.tolist(), strict=True):
            step = row - int(self.offsets[episode])
            target[...] = fitted(self.open(episode)[camera], step, step + 1, self.fit)[0]

    def write_to(self, targets: list[np.ndarray] | list[Path]) -> None:
        """Write all frames into one array (N, 3, h, w) per camera, in memory or a .npy file, on all cores."""
        starts = self.offsets[:-1].tolist()
        jobs = [
            partial(write_episode, file, keys, targets, start, self.fit)
            for file, keys, start in zip(self.files, self.keys, starts, strict=True)
        ]
        run_jobs(jobs, int(self.offsets[-1]) * len(targets), targets, self.files[0].parent)

    def open(self, episode: int) -> list[h5py.Dataset | None]:
        """The cameras of an episode; None for those that it lacks."""
        if self.process != os.getpid():  # HDF5 handles do not survive a fork
            self.cameras, self.process = OrderedDict(), os.getpid()
        if episode not in self.cameras:
            if len(self.cameras) == OPEN_FILES:
                self.cameras.popitem(last=False)
            root = open_file(self.files[episode])
            # These keep the file open.
            self.cameras[episode] = [key and dataset_at(root, key) for key in self.keys[episode]]
        self.cameras.move_to_end(episode)
        return self.cameras[episode]


def fitted(frames: h5py.Dataset, start: int, end: int, fit: FrameFit) -> np.ndarray:
    """Frames start … end - 1 of a camera, decoded if they are compressed, (F, 3, h, w) uint8."""
    rows = read(frames, slice(start, end))
    images = np.empty((len(rows), 3, fit.height, fit.width), np.uint8)
    for offset, row in enumerate(rows):
        images[offset] = decoded(frames, row, start + offset, fit)
    return images


def write_episode(
    file: Path, keys: list[str | None], targets: list[np.ndarray | Path], start: int, fit: FrameFit
) -> None:
    """Write all frames of one episode into rows `start`… of each camera's array; None: the episode lacks the camera."""
    with reading(file) as root:
        for key, target in ((key, target) for key, target in zip(keys, targets, strict=True) if key is not None):
            array = np.load(target, mmap_mode="r+") if isinstance(target, Path) else target
            frames = dataset_at(root, key)
            for first in range(0, len(frames), BLOCK_FRAMES):
                block = fitted(frames, first, first + BLOCK_FRAMES, fit)
                array[start + first : start + first + len(block)] = block


def run_jobs(jobs: list[Callable[[], None]], frames: int, targets: list[np.ndarray] | list[Path], folder: Path) -> None:
    """Run all jobs, which write so many frames of a folder into `targets`, on all cores unless they are few."""
    workers = min(len(os.sched_getaffinity(0)), len(jobs))
    print(f"preparing {frames} images of {folder}", file=sys.stderr, flush=True)
    done = run_parallel(jobs, workers, targets) if workers > 1 and frames > SERIAL_FRAMES else map(call, jobs)
    for _ in tqdm(done, total=len(jobs), unit="job", disable=None):  # no bar unless stderr is a terminal
        pass


def run_parallel(jobs: list[Callable[[], None]], workers: int, targets: list) -> Iterator[Any]:
    """Run all jobs and yield after each."""
    if isinstance(targets[0], Path):
        yield from worker_pool.run(with_one_thread, jobs, workers)
    else:  # arrays of this process; OpenCV decodes and resizes without Python's lock, HDF5 reads one at a time
        with ThreadPoolExecutor(workers) as pool:
            yield from pool.map(call, jobs)


def with_one_thread() -> Callable[[Callable[[], None]], None]:
    """The function of a worker process: it runs a job. OpenCV would start as many threads as the machine has cores."""
    import cv2

    cv2.setNumThreads(1)
    return call
