"""Film rollouts: a video and a contact sheet each, rendered afterwards from recorded simulator positions.

Rendering afterwards keeps OpenGL out of the evaluation: a state policy is evaluated on machines that cannot render, and
a crash of a graphics driver loses no result.

Shapes: T control steps, F frames, Q simulator positions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sim.contract import simulator
from sim.rollout import EpisodeResult
from sim.workers import run

HEIGHT, WIDTH = 480, 640
FRAMES_PER_SECOND = 10


def film(
    config: Any, results: Sequence[EpisodeResult], directory: Path, report: Callable[[str], None] = print
) -> list[Path]:
    """Write `rollout_SEED.mp4`, at the robot's speed, and `rollout_SEED.png`, a contact sheet.

    Results without a trajectory are left out. If nothing can render, one line reports it.

    Returns:
        The files written.
    """
    filmed = [result for result in results if result.trajectory is not None]
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    try:
        for _, files in run(functools.partial(_filmer, config, directory), filmed, num_workers=1):
            paths += files
    except (ValueError, RuntimeError, ImportError) as error:
        report(f"no film: {str(error).strip().splitlines()[-1]}")
    return paths


def _filmer(config: Any, directory: Path) -> Callable[[EpisodeResult], list[Path]]:
    """The function of the rendering process: it films one result and returns its files."""
    room = simulator(config)
    view = functools.cache(functools.partial(room.viewer, config, height=HEIGHT, width=WIDTH))  # by task

    def film_result(result: EpisodeResult) -> list[Path]:
        positions = result.trajectory[:: room.CONTROL_HZ // FRAMES_PER_SECOND]
        frames = [view(result.task)(moment) for moment in positions]
        video, sheet = (directory / f"rollout_{result.seed}{suffix}" for suffix in (".mp4", ".png"))
        contact_sheet(frames, sheet)
        write_video(frames, FRAMES_PER_SECOND, video)
        return [video, sheet]

    return film_result


def write_video(frames: Sequence[np.ndarray], frames_per_second: float, path: Path) -> None:
    """Write frames (F, height, width, 3) uint8 as an H.264 video."""
    import imageio.v2

    # H.264 needs even sides; the default resizes to a multiple of 16.
    imageio.v2.mimwrite(path, frames, fps=frames_per_second, codec="libx264", quality=7, macro_block_size=2)


def contact_sheet(frames: Sequence[np.ndarray], path: Path, columns: int = 4, rows: int = 3) -> None:
    """Write a PNG of frames evenly spaced from first to last, row by row, at half their size."""
    from PIL import Image

    count = min(columns * rows, len(frames))
    picked = [frames[index][::2, ::2] for index in np.linspace(0, len(frames) - 1, count).round().astype(int)]
    picked += [np.full_like(picked[0], 255)] * (-count % columns)
    lines = [np.concatenate(picked[start : start + columns], axis=1) for start in range(0, len(picked), columns)]
    Image.fromarray(np.concatenate(lines)).save(path)
