"""Which labels belong to which video: by their names."""

from __future__ import annotations

import re
from collections.abc import Sequence as Items
from dataclasses import dataclass
from pathlib import Path

from data.tracks.config import Directory, Split
from data.tracks.sequence import Sequence
from data.tracks.video import FILMS, IMAGES, STACKS

LABELS = (".slp", ".xml", ".csv", ".txt")
SUBFOLDERS = {".tif": ("*_GT/TRA",), ".txt": ("*/gt/gt.txt", "*/gt.txt")}  # of the two challenges
FRAME = r"([_-]t?|t)\d+(_[zc]\d+)?"  # what follows the sequence's name in the name of an image file


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
        return sequence_name(self.labels)


def read_labels(path: Path) -> Sequence:
    """The instances of a label file or a folder of label images.

    Raises:
        ValueError: the format is not known, or the file is damaged.
    """
    from data.tracks import read_masks, read_slp, read_tables, read_xml

    if path.is_dir():
        return read_masks.read_masks(path)
    readers = {
        ".slp": read_slp.read_slp,
        ".xml": read_xml.read_xml,
        ".csv": read_tables.read_csv,
        ".txt": read_tables.read_mot,
    }
    if path.suffix not in readers:
        raise ValueError(f"{path}: labels are {', '.join(LABELS)} files or folders of label images")
    return readers[path.suffix](path)


def sequence_name(labels: Path) -> str:
    """The stem of a label file; where all files have one name, as in the challenges, the name of their folder."""
    if labels.is_dir():
        return labels.parent.name.removesuffix("_GT") if labels.name == "TRA" else labels.name.removesuffix("_RES")
    if labels.name in ("gt.txt", "det.txt"):
        return labels.parent.parent.name if labels.parent.name in ("gt", "det") else labels.parent.name
    return labels.stem


def pair(labels: Path, vid_suffix: str | None = None, folder: Path | None = None) -> Path | tuple[Path, ...] | None:
    """The video of labels, found by its name; None if there is none.

    Args:
        vid_suffix: Its ending; None: any.
        folder: Where it is; None: beside the labels.
    """
    name, endings = sequence_name(labels), endings_of(vid_suffix)
    if folder is None:  # the one with the sequence's own folder, or the label file's
        folder = next(
            (parent.parent for parent in labels.parents if parent.name in (name, f"{name}_GT")), labels.parent
        )
    file = next((folder / f"{name}{ending}" for ending in endings if (folder / f"{name}{ending}").is_file()), None)
    if file is not None:
        return file
    for images in (folder / name / "img1", folder / name):
        if images.is_dir() and any(path.name.lower().endswith(endings) for path in images.iterdir()):
            return images
    frames = [path for path in folder.iterdir() if path.name.startswith(name) and path.name.lower().endswith(endings)]
    return tuple(path for path in frames if re.fullmatch(FRAME, path.stem.removeprefix(name))) or None


def endings_of(vid_suffix: str | None) -> tuple[str, ...]:
    return (vid_suffix.lower(),) if vid_suffix else (*FILMS, *IMAGES)


def find_sources(split: Split, section: str, needs_videos: bool) -> list[Source]:
    """The labels and videos that a section names.

    Raises:
        ValueError: nothing is there, or labels or videos have no partner.
    """
    folders = [] if split.dir is None or not split.dir.path else split.dir.path
    folders = [folders] if isinstance(folders, str) else folders
    if bool(folders) == bool(split.slp_files):
        problem = "both name the labels; keep one" if folders else "are both missing; name a folder with labels"
        raise ValueError(f"{section}.dir.path and {section}.slp_files {problem}")
    sources = listed(split, section, needs_videos) if split.slp_files else []
    for number, folder in enumerate(folders):
        path = Path(folder).expanduser()
        if not path.is_dir():
            raise ValueError(f"{section}.dir.path: {folder} is not a folder")
        sources += in_folder(path, split.dir, section, number, needs_videos)
    if isinstance(split.crop_size, list) and len(split.crop_size) != len(folders or split.slp_files):
        raise ValueError(
            f"{section}.crop_size has {len(split.crop_size)} values for {len(folders or split.slp_files)} folders or "
            "files; give one for each"
        )
    return sources


def listed(split: Split, section: str, needs_videos: bool) -> list[Source]:
    """`slp_files` with `video_files`: by name if the names are the same, otherwise in their order."""
    labels = [Path(name).expanduser() for name in split.slp_files]
    videos = [Path(name).expanduser() for name in split.video_files or ()] if needs_videos else [None] * len(labels)
    if len(labels) != len(videos):
        raise ValueError(f"{section} has {len(labels)} slp_files and {len(videos)} video_files; give one for each")
    for path in filter(None, (*labels, *videos)):
        if not path.exists():
            raise ValueError(f"{section}: {path} does not exist")
    names = [sequence_name(path) for path in labels]
    if needs_videos and sorted(names) == sorted(path.stem for path in videos) and len(set(names)) == len(names):
        videos = sorted(videos, key=lambda path: names.index(path.stem))
    return [Source(*both, number) for number, both in enumerate(zip(labels, videos, strict=True))]


def in_folder(folder: Path, directory: Directory, section: str, number: int, needs_videos: bool) -> list[Source]:
    """The labels of a folder, sorted by name, each with the video of its name."""
    sources = []
    for labels in labels_in(folder, directory.labels_suffix, section):
        video = pair(labels, directory.vid_suffix, folder) if needs_videos else None
        if needs_videos and video is None:
            raise ValueError(
                f"{labels}: {folder} has no video {sequence_name(labels)}{directory.vid_suffix or '.*'}; name its "
                f"ending by {section}.dir.vid_suffix, or set dataset.images: false for coordinates alone"
            )
        sources.append(Source(labels, video, number))
    if needs_videos:
        refuse_unlabelled(folder, directory.vid_suffix, sources)
    return sources


def labels_in(folder: Path, suffix: str | None, section: str) -> list[Path]:
    """The label files with an ending, or of the one kind that is there; folders of label images for `.tif`."""
    kinds = [f".{suffix.lstrip('.')}"] if suffix else [*LABELS, *STACKS[:1]]
    files = {}
    for kind in kinds:
        names = () if kind in STACKS else (f"*{kind}",)
        patterns = (*names, *SUBFOLDERS.get(STACKS[0] if kind in STACKS else kind, ()))
        files[kind] = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    present = [kind for kind, paths in files.items() if paths]
    if not present:
        raise ValueError(f"{section}.dir.path: {folder} has no labels ({', '.join(kinds)})")
    if len(present) > 1:
        raise ValueError(f"{folder} has labels of several kinds ({', '.join(present)}); name one by labels_suffix")
    return sorted(files[present[0]], key=sequence_name)


def refuse_unlabelled(folder: Path, vid_suffix: str | None, sources: Items[Source]) -> None:
    """ValueError if a video has no labels; images count if the configuration names their ending."""
    used = {
        path for source in sources for path in (source.video if isinstance(source.video, tuple) else [source.video])
    }
    endings = endings_of(vid_suffix) if vid_suffix else FILMS
    labels = {source.labels for source in sources}
    rest = sorted(
        path for path in folder.iterdir() if path.name.lower().endswith(endings) and path not in used | labels
    )
    if rest:
        raise ValueError(f"{rest[0]}: the video has no labels of its name; add them, or move it to another folder")
