"""The frames of one folder, from prepared arrays or from the episode files, and their preparation.

Shapes: N steps of a folder, F frames, B requested rows, h and w in training.
"""

import itertools
import os
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from tqdm import tqdm

from data.demonstrations.hdf5 import dataset_at, open_file, place, read, reading
from data.demonstrations.images import FrameFit, decode
from data.demonstrations.layouts import is_compressed
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

    def __init__(self, files: list[Path], offsets: np.ndarray, keys: list[str], fit: FrameFit):
        self.files, self.offsets, self.keys, self.fit = files, offsets, keys, fit
        self.cameras: OrderedDict[int, list[h5py.Dataset]] = OrderedDict()  # of the open files, by episode
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
        starts, steps = self.offsets[:-1].tolist(), int(self.offsets[-1])
        jobs = [(file, self.keys, targets, start, self.fit) for file, start in zip(self.files, starts, strict=True)]
        workers = min(len(os.sched_getaffinity(0)), len(jobs))
        print(f"preparing the images of {steps} steps in {self.files[0].parent}", file=sys.stderr, flush=True)
        parallel = workers > 1 and steps * len(self.keys) > SERIAL_FRAMES
        done = run_parallel(jobs, workers) if parallel else itertools.starmap(write_episode, jobs)
        for _ in tqdm(done, total=len(jobs), unit="episode", disable=None):  # no bar unless stderr is a terminal
            pass

    def open(self, episode: int) -> list[h5py.Dataset]:
        """The cameras of an episode."""
        if self.process != os.getpid():  # HDF5 handles do not survive a fork
            self.cameras, self.process = OrderedDict(), os.getpid()
        if episode not in self.cameras:
            if len(self.cameras) == OPEN_FILES:
                self.cameras.popitem(last=False)
            root = open_file(self.files[episode])
            self.cameras[episode] = [dataset_at(root, key) for key in self.keys]  # these keep the file open
        self.cameras.move_to_end(episode)
        return self.cameras[episode]


def fitted(frames: h5py.Dataset, start: int, end: int, fit: FrameFit) -> np.ndarray:
    """Frames start … end - 1 of a camera, decoded if they are compressed, (F, 3, h, w) uint8."""
    rows = read(frames, slice(start, end))
    compressed = is_compressed(frames)
    images = np.empty((len(rows), 3, fit.height, fit.width), np.uint8)
    for offset, row in enumerate(rows):
        try:
            images[offset] = fit(decode(row) if compressed else row)
        except ValueError as error:
            raise ValueError(f"{place(frames)} step {start + offset}: {error}") from None
    return images


def write_episode(file: Path, keys: list[str], targets: list[np.ndarray | Path], start: int, fit: FrameFit) -> None:
    """Write all frames of one episode into rows `start`… of each camera's array."""
    with reading(file) as root:
        for key, target in zip(keys, targets, strict=True):
            array = np.load(target, mmap_mode="r+") if isinstance(target, Path) else target
            frames = dataset_at(root, key)
            for first in range(0, len(frames), BLOCK_FRAMES):
                block = fitted(frames, first, first + BLOCK_FRAMES, fit)
                array[start + first : start + first + len(block)] = block


def run_parallel(jobs: list[tuple], workers: int) -> Iterator[Any]:
    """Run `write_episode` for all jobs and yield after each."""
    if isinstance(jobs[0][2][0], Path):
        yield from worker_pool.run(episode_writer, jobs, workers)
        return
    # Arrays of this process; OpenCV decodes and resizes without Python's lock, HDF5 reads one at a time.
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(write_episode, *zip(*jobs, strict=True))


def episode_writer() -> Callable[[tuple], None]:
    """The function of a worker process, with one thread: OpenCV would start as many as the machine has cores."""
    import cv2

    cv2.setNumThreads(1)
    return lambda job: write_episode(*job)
