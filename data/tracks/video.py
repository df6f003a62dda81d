"""Frames of a video: a film, image files one a frame, or a TIFF stack. A frame is (H, W, C) uint8."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

FILMS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
IMAGES = (".tif", ".tiff", ".png", ".jpg", ".jpeg")
STACKS = (".tif", ".tiff")
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


class Video:
    """One video; only paths are kept, so that it can be sent to a worker.

    Attributes:
        path: The film, the stack, or the folder of the image files.
        channels: C of its frames: 1 or 3.
        size: Height and width in px.
    """

    def __init__(self, path: Path, channels: int):
        self.path, self.channels = path, channels
        self.size = (0, 0)

    def __len__(self) -> int:
        raise NotImplementedError

    def files(self) -> list[Path]:
        return [self.path]

    def frames(self, start: int, stop: int) -> Iterator[np.ndarray]:
        """Frames start … stop - 1, each (H, W, C) uint8; ValueError if one cannot be decoded."""
        raise NotImplementedError


class Film(Video):
    """A film, decoded by FFmpeg (PyAV). A frame is found by its time stamp, also behind a seek; in AVI by counting."""

    def __init__(self, path: Path, channels: int):
        super().__init__(path, channels)
        av = _av()
        try:
            with av.open(str(path)) as container:
                stream = container.streams.video[0]
                self.size = (stream.height, stream.width)
                packets = [packet for packet in container.demux(stream) if packet.size and not packet.is_discard]
                stamps = [packet.pts for packet in packets]
                # AVI stores no time stamps: with B-frames, FFmpeg's guesses are not those of the decoded frames.
                self.is_counted = container.format.name == "avi" and stamps != [packet.dts for packet in packets]
        except (av.FFmpegError, OSError, IndexError, ValueError) as error:
            raise ValueError(f"{path}: the video cannot be read ({_reason(error)}); convert it to H.264") from None
        stamps = list(range(len(stamps))) if self.is_counted else stamps
        if not stamps or None in stamps:
            raise ValueError(f"{path}: the video has no frames with time stamps; convert it to MP4")
        self.stamps = np.sort(np.array(stamps, np.int64))
        next(self.frames(0, 1), None)  # the codec may be unknown although the container is not

    def __len__(self) -> int:
        return len(self.stamps)

    def frames(self, start: int, stop: int) -> Iterator[np.ndarray]:
        av = _av()
        format_name = "gray" if self.channels == 1 else "rgb24"
        expected = start
        try:
            with av.open(str(self.path)) as container:
                stream = container.streams.video[0]
                if not self.is_counted:
                    container.seek(int(self.stamps[start]), stream=stream)
                for number, frame in enumerate(container.decode(stream)):
                    index = number if self.is_counted else int(np.searchsorted(self.stamps, frame.pts))
                    if index >= stop or index > expected:  # a damaged frame, which must not shift the others
                        return
                    if index >= start:
                        expected += 1
                        image = frame.to_ndarray(format=format_name)
                        yield image.reshape(*image.shape[:2], self.channels)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise ValueError(f"{self.path}: frame {expected} cannot be decoded ({_reason(error)})") from None


class Images(Video):
    """Image files, one a frame, in the order of the numbers at the ends of their names; or the pages of a TIFF file."""

    def __init__(self, paths: Sequence[Path], channels: int):
        super().__init__(paths[0] if len(paths) == 1 else paths[0].parent, channels)
        ordered = sorted(paths, key=lambda path: (frame_number(path), path.name))
        self.pages = [(path, 0) for path in ordered]
        if len(paths) == 1 and paths[0].suffix.lower() in STACKS:
            self.pages = [(paths[0], page) for page in range(pages_of(paths[0]))]
        self.size = read_image(ordered[0]).shape[:2]

    def __len__(self) -> int:
        return len(self.pages)

    def files(self) -> list[Path]:
        return list(dict.fromkeys(path for path, _ in self.pages))

    def frames(self, start: int, stop: int) -> Iterator[np.ndarray]:
        for path, pages in itertools.groupby(self.pages[start:stop], key=lambda page: page[0]):
            for image in read_pages(path, [page for _, page in pages]):
                if image.shape[:2] != self.size:
                    raise ValueError(f"{path}: the image is {image.shape[:2]} px, the first one {self.size}")
                yield eight_bit(image, self.channels)


def open_video(paths: Path | Sequence[Path], channels: int) -> Video:
    """A film, a TIFF stack, a folder with image files, or a list of image files.

    Raises:
        ValueError: it cannot be read.
    """
    if not isinstance(paths, Path):
        return Images(paths, channels)
    if not paths.is_dir():
        return Images([paths], channels) if paths.suffix.lower() in IMAGES else Film(paths, channels)
    images = [path for path in visible(paths) if path.suffix.lower() in IMAGES]
    if not images:
        raise ValueError(f"{paths}: the folder has no image files ({', '.join(IMAGES)})")
    return Images(images, channels)


def visible(folder: Path) -> list[Path]:
    """What is in a folder, sorted, without hidden files such as the `._NAME` of macOS."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def frame_number(path: Path) -> int:
    """The last number in a file's name, before what says its slice: frame_0003.tif and x_t003_z0.tif are 3."""
    numbers = re.findall(r"\d+", re.sub(r"_[zc]\d+$", "", path.stem))
    return int(numbers[-1]) if numbers else 0


def read_image(path: Path, page: int = 0) -> np.ndarray:
    """(H, W) or (H, W, C) in the file's own type; ValueError if it cannot be read."""
    import cv2

    found, images = cv2.imreadmulti(str(path), page, 1, flags=cv2.IMREAD_UNCHANGED)
    if not found:
        raise ValueError(f"{path}: the image cannot be decoded")
    return images[0] if images[0].ndim == 2 else images[0][..., 2::-1]


def pages_of(path: Path) -> int:
    """Number of pages of a TIFF file, each a frame; ValueError if they are channels or slices, too."""
    with _tiff(path) as file:
        shape = list(zip(file.series[0].axes, file.series[0].shape, strict=True))
        if sum(size > 1 for axis, size in shape if axis not in "YXS") > 1:
            axes = ", ".join(f"{axis} {size}" for axis, size in shape)
            raise ValueError(f"{path}: pages are not frames alone ({axes}); save one channel and slice of it")
        return len(file.pages)


def read_pages(path: Path, pages: Sequence[int]) -> Iterator[np.ndarray]:
    """Pages of an image file as `read_image` returns them, without searching for each from the first one on."""
    if pages == [0]:
        yield read_image(path)
        return
    with _tiff(path) as file:
        for page in pages:
            try:
                yield file.pages[page].asarray()
            except ValueError:  # a compression that tifffile does not know, such as LZW
                yield read_image(path, page)


def eight_bit(image: np.ndarray, channels: int) -> np.ndarray:
    """(H, W[, C]) of any type -> (H, W, channels) uint8; other types than uint8 are scaled to their own range."""
    image = image if image.ndim == 3 else image[..., None]
    if image.dtype != np.uint8:
        image = np.nan_to_num(image, nan=np.nanmin(image)) if image.dtype.kind == "f" else image
        low, high = float(image.min()), float(image.max())
        image = ((image - low) * (255 / max(high - low, 1e-9))).astype(np.uint8)
    image = image[..., :3] if image.shape[-1] >= 3 else image[..., :1]
    if image.shape[-1] == channels:
        return np.ascontiguousarray(image)
    if channels == 1:
        return (image @ LUMA + 0.5).astype(np.uint8)[..., None]
    return np.repeat(image, 3, axis=-1)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _tiff(path: Path) -> Any:
    try:
        import tifffile
    except ImportError:
        raise ValueError(f"{path}: TIFF files need tifffile; pip install 'keel[tracking]'") from None
    try:
        return tifffile.TiffFile(path)
    except (tifffile.TiffFileError, OSError) as error:
        raise ValueError(f"{path}: the image cannot be decoded ({_reason(error)})") from None


def _av() -> Any:
    try:
        import av
    except ImportError:
        raise ValueError("videos need PyAV; pip install 'keel[tracking]'") from None
    return av
