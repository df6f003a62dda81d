"""Films rollouts: a video and a contact sheet each, drawn afterwards from the simulator positions kept.

Drawing afterwards keeps OpenGL out of the scoring: a state policy is scored where nothing can render, and a
graphics driver that crashes takes no result with it.

Shapes: T control steps, F frames, Q simulator positions.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from sim.aloha import simulator
from sim.aloha_config import CAMERAS, CONTROL_HZ, Config
from sim.rollout import EpisodeResult
from sim.workers import run

HEIGHT, WIDTH = 480, 640


def film(
    config: Config,
    results: Sequence[EpisodeResult],
    directory: Path,
    camera: str = "angle",
    frames_per_second: int = 10,
    report: Callable[[str], None] = print,
) -> list[Path]:
    """Writes `rollout_SEED.mp4` (.gif where ffmpeg is missing) and `rollout_SEED.png`, a contact sheet.

    Of the results, those with a trajectory are filmed, at the robot's own speed. Where nothing can render,
    one line reports it and no file is written.

    Returns:
        the files written.
    """
    assert camera in CAMERAS, camera
    filmed = [result for result in results if result.trajectory is not None]
    directory.mkdir(parents=True, exist_ok=True)
    stride = max(1, round(CONTROL_HZ / frames_per_second))
    start = functools.partial(_camera_crew, config, directory, camera, stride)
    paths = []
    try:
        for _, files in run(start, filmed, num_workers=1):
            paths += files
    except (ValueError, RuntimeError) as error:
        report(f"no film: {str(error).strip().splitlines()[-1]}")
    return paths


def _camera_crew(config: Config, directory: Path, camera: str, stride: int) -> Callable:
    """The renderer process's function: draws one result and returns its files."""
    physics = simulator().Environment(dataclasses.replace(config, cameras=[])).physics
    from sim.renderer import Renderer

    renderer = Renderer(physics.model.ptr, HEIGHT, WIDTH, config.shadows)

    def shoot(result: EpisodeResult) -> list[Path]:
        moments = range(0, len(result.trajectory), stride)
        frames = []
        for moment in moments:
            physics.data.qpos[:] = result.trajectory[moment]
            physics.forward()
            frames.append(renderer.render(physics.data.ptr, camera))
        seconds = [moment / CONTROL_HZ for moment in moments]
        video, sheet = (directory / f"rollout_{result.seed}{suffix}" for suffix in (".mp4", ".png"))
        contact_sheet(frames, seconds, sheet)
        write_video(frames, CONTROL_HZ / stride, video)
        return [video, sheet]

    return shoot


def write_video(frames: Sequence[np.ndarray], frames_per_second: float, path: Path) -> None:
    """Write frames (F, height, width, 3) uint8 as an H.264 video."""
    try:
        import imageio_ffmpeg
    except ImportError:
        raise ValueError("the package imageio-ffmpeg is not installed: pip install -e .[sim]") from None

    height, width = frames[0].shape[:2]
    writer = imageio_ffmpeg.write_frames(
        str(path),
        (width, height),
        fps=frames_per_second,
        codec="libx264",
        quality=7,
        macro_block_size=2,  # H.264 needs even sides; the default resizes to a multiple of 16
        ffmpeg_log_level="error",
    )
    writer.send(None)
    for frame in frames:
        writer.send(np.ascontiguousarray(frame))
    writer.close()


def contact_sheet(
    frames: Sequence[np.ndarray], seconds: Sequence[float], path: Path, columns: int = 4, rows: int = 3
) -> None:
    """Writes a PNG of frames evenly spaced from first to last, each labelled with its time in seconds."""
    from PIL import Image, ImageDraw

    count = min(columns * rows, len(frames))
    picked = np.linspace(0, len(frames) - 1, count).round().astype(int)
    height, width = (side // 2 for side in frames[0].shape[:2])
    gap = 2
    size = (columns * (width + gap) - gap, -(-count // columns) * (height + gap) - gap)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for place, index in enumerate(picked):
        corner = (place % columns * (width + gap), place // columns * (height + gap))
        sheet.paste(Image.fromarray(frames[index]).resize((width, height)), corner)
        label = (corner[0] + 6, corner[1] + 4)
        text = f"{seconds[index]:.1f} s"
        draw.text(label, text, fill="white", stroke_width=2, stroke_fill="black", font_size=18)
    sheet.save(path)
