"""Which labels belong to which video: by their names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from data.tracks.config import Directory, Split
from data.tracks.sequence import Sequence
from data.tracks.video import FILMS, IMAGES, visible

LABELS = (".slp", ".xml", ".csv", ".txt")  # of which each sequence is a file
# Kind of labels -> where else they are in a folder; the challenges have a folder for each sequence.
PLACES = {**dict.fromkeys(LABELS, ()), ".txt": ("*/gt/gt.txt", "*/gt.txt"), ".tif": ("*_GT/TRA",)}
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
    readers = (read_slp.read_slp, read_xml.read_xml, read_tables.read_csv, read_tables.read_mot)
    kind = path.suffix.lower()
    if kind not in LABELS:
        raise ValueError(f"{path}: labels are {', '.join(LABELS)} files, or folders of label images")
    return readers[LABELS.index(kind)](path)


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
        folder: Where it is; None: beside the labels, or beside the folder of their sequence.
    """
    name, endings = sequence_name(labels), endings_of(vid_suffix)
    if folder is None:
        own = [parent for parent in labels.parents if parent.name in (name, f"{name}_GT")]
        folder = own[0].parent if own else labels.parent
    for ending in endings:
        if (folder / f"{name}{ending}").is_file():
            return folder / f"{name}{ending}"
    files = [path for path in visible(folder) if path.name.startswith(name)]
    for path in files:
        if path.name.removeprefix(name).lower() in endings and path.is_file():  # such as .MP4
            return path
    for images in (folder / name / "img1", folder / name):
        if images.is_dir() and any(path.name.lower().endswith(endings) for path in visible(images)):
            return images
    frames = [path for path in files if path.name.lower().endswith(endings)]
    return tuple(path for path in frames if re.fullmatch(FRAME, path.stem.removeprefix(name))) or None


def endings_of(vid_suffix: str | None) -> tuple[str, ...]:
    if not vid_suffix:
        return (*FILMS, *IMAGES)
    return (vid_suffix.lower() if "." in vid_suffix else f".{vid_suffix.lower()}",)


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
    count = len(folders or split.slp_files)
    if isinstance(split.crop_size, list) and len(split.crop_size) != count:
        counts = f"{len(split.crop_size)} values for {count} folders or files"
        raise ValueError(f"{section}.crop_size has {counts}; give one for each")
    if split.slp_files:
        return listed(split, section, needs_videos)
    sources = []
    for number, folder in enumerate(folders):
        sources += in_folder(Path(folder).expanduser(), split.dir, section, number, needs_videos)
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
    """The labels of a folder, sorted by name, each with the video of its name; no film may be left over."""
    labels = labels_in(folder, directory.labels_suffix, section)
    if not needs_videos:
        return [Source(path, None, number) for path in labels]
    sources = [Source(path, pair(path, directory.vid_suffix, folder), number) for path in labels]
    for source in sources:
        if source.video is None:
            missing = f"{folder} has no video {source.name}{directory.vid_suffix or '.*'}"
            remedy = f"name its ending by {section}.dir.vid_suffix, or set dataset.images: false"
            raise ValueError(f"{source.labels}: {missing}; {remedy}")
    used = {*labels}.union(*(source.video if isinstance(source.video, tuple) else [source.video] for source in sources))
    endings = endings_of(directory.vid_suffix) if directory.vid_suffix else FILMS  # images may be anything
    for path in visible(folder):
        if path.name.lower().endswith(endings) and path not in used:
            raise ValueError(f"{path}: the video has no labels of its name; add them, or move it to another folder")
    return sources


def labels_in(folder: Path, suffix: str | None, section: str) -> list[Path]:
    """The labels of one kind in a folder; ValueError if there are none, or several kinds and no suffix."""
    kinds = [f".{suffix.lstrip('.').lower()}"] if suffix else list(PLACES)
    if kinds[0] not in PLACES:
        raise ValueError(f"{section}.dir.labels_suffix: {suffix} is none of {', '.join(PLACES)}")
    files = [path for path in visible(folder) if path.suffix.lower() in LABELS] if folder.is_dir() else []
    found = {kind: {path for place in PLACES[kind] for path in folder.glob(place)} for kind in kinds}
    found = {kind: {*paths, *(path for path in files if path.suffix.lower() == kind)} for kind, paths in found.items()}
    present = [kind for kind, paths in found.items() if paths]
    if len(present) != 1:
        problem = f"has labels of several kinds ({', '.join(present)})" if present else "is no folder with labels"
        raise ValueError(f"{section}.dir.path: {folder} {problem}; {section}.dir.labels_suffix is {' or '.join(kinds)}")
    return sorted(found[present[0]], key=sequence_name)
