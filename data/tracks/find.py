"""Which label file belongs to which video: by their names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.tracks.config import Directory, Split
from data.tracks.sequence import Sequence as Labels
from data.tracks.video import FILMS, IMAGES

VIDEOS = (*FILMS, *IMAGES)


@dataclass(frozen=True)
class Source:
    """Labels and their video.

    Attributes:
        labels: A file, or the folder of label images of the Cell Tracking Challenge.
        video: A film, a TIFF stack, a folder of images, or image files; None: there is none.
        number: Of the folder or file in the list that the configuration gives, for its crop size.
    """

    labels: Path
    video: Path | tuple[Path, ...] | None
    number: int = 0

    @property
    def name(self) -> str:
        """Of the sequence: the label file's stem; for formats whose file names are all alike, the folder's name."""
        return sequence_name(self.labels)


def readers() -> dict[str, Callable[[Path], Labels]]:
    """Ending -> reader of that format."""
    from data.tracks.read_slp import read_slp

    return {".slp": read_slp}


def sequence_name(labels: Path) -> str:
    return labels.stem


def find_sources(split: Split, section: str, needs_videos: bool) -> list[Source]:
    """The labels and videos that a section names.

    Raises:
        ValueError: nothing is there, or labels or videos have no partner.
    """
    if split.dir is not None and split.dir.path is not None and split.slp_files is not None:
        raise ValueError(f"{section}.dir and {section}.slp_files both name the labels; keep one")
    if split.slp_files is not None:
        return listed(split, section, needs_videos)
    if split.dir is None or not split.dir.path:
        raise ValueError(f"{section}.dir.path is not set; name a folder with labels and videos, or give slp_files")
    folders = [split.dir.path] if isinstance(split.dir.path, str) else split.dir.path
    sources = []
    for number, folder in enumerate(folders):
        path = Path(folder).expanduser()
        if not path.is_dir():
            raise ValueError(f"{section}.dir.path: {folder} is not a folder")
        sources += in_folder(path, split.dir, section, number, needs_videos)
    return sources


def listed(split: Split, section: str, needs_videos: bool) -> list[Source]:
    """`slp_files` with `video_files`, in the same order."""
    labels, videos = split.slp_files, split.video_files or []
    if needs_videos and len(labels) != len(videos):
        raise ValueError(
            f"{section} has {len(labels)} slp_files and {len(videos)} video_files; give one video for each"
        )
    for name in (*labels, *videos):
        if not Path(name).expanduser().exists():
            raise ValueError(f"{section}: {name} does not exist")
    pairs = zip(labels, videos if needs_videos else [None] * len(labels), strict=True)
    return [
        Source(Path(one).expanduser(), None if other is None else Path(other).expanduser(), number)
        for number, (one, other) in enumerate(pairs)
    ]


def in_folder(folder: Path, directory: Directory, section: str, number: int, needs_videos: bool) -> list[Source]:
    """The label files of a folder, sorted, each with the video of its name."""
    labels = label_files(folder, directory.labels_suffix, section)
    if not needs_videos:
        return [Source(path, None, number) for path in labels]
    endings = (directory.vid_suffix,) if directory.vid_suffix else VIDEOS
    videos = sorted(path for path in folder.iterdir() if path.name.lower().endswith(endings) and path not in labels)
    sources = []
    for path in labels:
        partner = video_of(path, videos)
        if partner is None:
            raise ValueError(
                f"{path}: there is no video of this name ({path.stem} and {', '.join(endings)}); name its ending by "
                f"{section}.dir.vid_suffix, or set dataset.images: false for coordinates alone"
            )
        sources.append(Source(path, partner, number))
    return sources


def label_files(folder: Path, suffix: str | None, section: str) -> list[Path]:
    known = readers()
    endings = (suffix,) if suffix else tuple(known)
    files = sorted(path for path in folder.iterdir() if path.name.endswith(endings))
    kinds = {path.suffix for path in files}
    if not files:
        raise ValueError(f"{section}.dir.path: {folder} has no labels ({', '.join(endings)})")
    if len(kinds) > 1:
        raise ValueError(
            f"{folder} has labels of several kinds ({', '.join(sorted(kinds))}); name one by labels_suffix"
        )
    return files


def video_of(labels: Path, videos: Sequence[Path]) -> Path | tuple[Path, ...] | None:
    """The video with the stem of a label file."""
    return next((video for video in videos if video.stem == labels.stem), None)
