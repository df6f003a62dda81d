"""Open and read HDF5 files with errors that name the file, the key, the reason and a remedy that loses no data."""

import contextlib
import errno
import importlib
import os
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

# Registered filter numbers (https://github.com/HDFGroup/hdf5_plugins) that the package hdf5plugin provides.
HDF5PLUGIN_FILTERS = {
    307: "bzip2",
    32001: "blosc",
    32004: "lz4",
    32008: "bitshuffle",
    32013: "zfp",
    32015: "zstd",
    32026: "blosc2",
}
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def open_file(file: Path) -> h5py.File:
    """An open HDF5 file; raises ValueError with the reason if that fails."""
    try:
        return h5py.File(file, "r")
    except OSError as error:
        raise ValueError(f"cannot read {file}: {problem(file, error)}") from None


@contextlib.contextmanager
def reading(file: Path) -> Iterator[h5py.File]:
    """An open HDF5 file; raises ValueError with the reason if the file cannot be opened or read."""
    with open_file(file) as root:
        try:
            yield root
        except (OSError, RuntimeError) as error:
            raise ValueError(f"cannot read {file}: {problem(file, error)}") from None


def problem(file: Path, error: Exception) -> str:
    """Why HDF5 failed to read a file, and what to do. The file may be healthy, so no advice is to delete it."""
    code, reason = getattr(error, "errno", None), " ".join(str(error).split())
    if isinstance(error, BlockingIOError):
        return "another program has locked it; wait until that program has closed the file"
    if code in NO_LOCKS:
        return "its file system has no file locks; set the environment variable HDF5_USE_FILE_LOCKING=FALSE"
    if code:
        return f"{os.strerror(code)}; correct the path, the file's permissions or its disk"
    if "already open for write" in reason:
        return "a program that writes it has not closed it; wait or, after a crash, run `h5clear -s` on a copy of it"
    with file.open("rb") as stream:
        start = stream.read(100)
    if start.startswith(b"version https://git-lfs"):
        return "it is a git-LFS pointer and its content was not downloaded; run `git lfs pull` in its repository"
    if not start:
        return "it is empty, its recording or copy is unfinished; copy it again, or leave the file out"
    if "signature not found" in reason:
        return f"it is no HDF5 file, it begins with {start[:12]!r}; copy it again, or leave the file out"
    return f"{reason}; the file is truncated or damaged: copy it again from its origin, or leave the file out"


def place(item: h5py.Dataset | h5py.Group) -> str:
    """`file: key` for messages."""
    return f"{item.file.filename}: {text(item.name).strip('/')}"


def text(name: str | bytes) -> str:
    """A name in an HDF5 file for messages; h5py returns bytes if it is not UTF-8."""
    return name if isinstance(name, str) else repr(name)


def read(dataset: h5py.Dataset, selection=()) -> np.ndarray:
    """`dataset[selection]`; a missing filter is loaded from hdf5plugin if that is installed."""
    try:
        return dataset[selection]
    except (OSError, RuntimeError) as error:
        missing = missing_filters(dataset)
        if not missing:
            reason = problem(Path(dataset.file.filename), error)
            raise ValueError(f"cannot read {place(dataset)}: {reason}") from None
    with contextlib.suppress(ImportError):
        importlib.import_module("hdf5plugin")  # registers its filters on import
    if missing_filters(dataset):
        names = ", ".join(f"{HDF5PLUGIN_FILTERS.get(number, 'unnamed')} (id {number})" for number in missing)
        provided = HDF5PLUGIN_FILTERS.keys() >= set(missing)
        remedy = "pip install hdf5plugin" if provided else "install its plugin and set HDF5_PLUGIN_PATH to its folder"
        raise ValueError(f"cannot read {place(dataset)}: this machine lacks the HDF5 filter {names}; {remedy}")
    return read(dataset, selection)


def missing_filters(dataset: h5py.Dataset) -> list[int]:
    """Numbers of the compression filters of a dataset that are not available here."""
    settings = dataset.id.get_create_plist()
    filters = [settings.get_filter(position)[0] for position in range(settings.get_nfilters())]
    return [number for number in filters if not h5py.h5z.filter_avail(number)]


def names_in(group: h5py.Group) -> list[str]:
    """The sorted names in a group."""
    names = list(group)
    for name in names:
        if isinstance(name, bytes):
            raise ValueError(f"{place(group)} has an entry named {name!r}, which is not UTF-8; rename the entry")
    return sorted(names)


def dataset_at(root: h5py.File, key: str) -> h5py.Dataset:
    """The dataset under a key; raises ValueError if it, the target of a link, or a source of its values is missing."""
    dataset = root.get(key)
    if isinstance(dataset, h5py.Dataset):
        check_sources(dataset)
        return dataset
    check_links(root, key)
    keys = []
    root.visititems(lambda name, item: keys.append(text(name)) if isinstance(item, h5py.Dataset) else None)
    known = ", ".join(sorted(keys)) or "none"
    remedy = "choose dataset.layout, state_keys, action_key and cameras after these"
    raise ValueError(f"{root.filename} has no dataset `{key}`; it has {known}: {remedy}")


def check_links(root: h5py.File, key: str, most: int = 16) -> None:
    """Raise ValueError if a link on the way to a key leads nowhere; like HDF5, follow at most 16 links in a row."""
    group = root
    for name in filter(None, key.split("/")):
        if not isinstance(group, h5py.Group) or not group.id.links.exists(name.encode()):
            return
        if group.get(name) is None:
            file, target = Path(group.file.filename), group.id.links.get_val(name.encode())
            if isinstance(target, tuple):
                file, target = find_source(file, os.fsdecode(target[0]), "HDF5_EXT_PREFIX"), target[1]
            target = os.path.join(group.name, os.fsdecode(target))
            try:
                with reading(file) as other:
                    if most:
                        check_links(other, target, most - 1)
                    raise ValueError("that file has no such key; restore the target of the link")
            except ValueError as error:
                raise ValueError(f"{root.filename}: `{key}` is a link to `{target}` in {file}: {error}") from None
        group = group.get(name)


def check_sources(dataset: h5py.Dataset) -> None:
    """Raise ValueError if values of a dataset have no source: HDF5 would return zeros for them."""
    mappings = dataset.virtual_sources() if dataset.is_virtual else []
    unsupported = [name for name, _, _ in dataset.external or ()]  # raw values outside of HDF5 files
    unsupported += [mapping.file_name for mapping in mappings if "%b" in mapping.file_name + mapping.dset_name]
    if unsupported:
        raise ValueError(f"{place(dataset)} takes its values from {unsupported[0]}; copy them into an ordinary dataset")
    for mapping in mappings:
        source = find_source(Path(dataset.file.filename), mapping.file_name, "HDF5_VDS_PREFIX")
        check_virtual_source(dataset, mapping, source)
    if not mappings or None in dataset.maxshape:  # a virtual dataset that grows with its sources
        return
    covered = sum(mapping.vspace.get_select_npoints() for mapping in mappings)
    if covered < dataset.size:
        without = f"{dataset.size - covered} of {dataset.size} values have no source"
        raise ValueError(f"{place(dataset)} is a virtual dataset: {without}; write it again with all its sources")


def check_virtual_source(dataset: h5py.Dataset, mapping, source: Path) -> None:
    name = mapping.dset_name
    try:
        with reading(source) as root:
            values = dataset_at(root, name)
            if any(have < need for have, need in zip(values.shape, mapping.src_space.shape, strict=True)):
                raise ValueError(f"{place(values)} has shape {values.shape}, expected {mapping.src_space.shape}")
            read(values, (0,) * values.ndim)
    except ValueError as error:
        raise ValueError(f"{place(dataset)} takes its values from {name} in {source}: {error}") from None


def find_source(file: Path, name: str, variable: str) -> Path:
    """The file that HDF5 opens for a name stored in `file`: it tries the folders of an environment variable, the
    folder of `file`, and the working directory, and for an absolute path that is missing its last component."""
    if name == ".":  # in virtual datasets: the file itself
        return file
    prefixes = [prefix for prefix in os.environ.get(variable, "").split(":") if prefix]
    folders = [*prefixes, file.parent, Path(), file.resolve().parent]
    names = [name, Path(name).name] if Path(name).is_absolute() else [name]
    candidates = [Path(folder, candidate) for candidate in names for folder in folders]
    return next((path for path in candidates if path.exists()), Path(file.parent, name))


def add_sources(file: Path, sources: set[Path]) -> None:
    """Add the other files that values of an HDF5 file come from: through external links or virtual datasets."""
    new = set()

    def visit_link(name: bytes, info) -> None:
        if info.type == h5py.h5l.TYPE_EXTERNAL:
            target = os.fsdecode(root.id.links.get_val(name)[0])
            new.add(find_source(file, target, "HDF5_EXT_PREFIX"))

    def visit_object(name: str | bytes, item) -> None:
        if isinstance(item, h5py.Dataset) and item.is_virtual:
            names = [mapping.file_name for mapping in item.virtual_sources()]
            new.update(find_source(file, source, "HDF5_VDS_PREFIX") for source in names)

    with contextlib.suppress(OSError, RuntimeError), h5py.File(file, "r") as root:  # reading the episode reports these
        root.id.links.visit(visit_link, info=True)
        root.visititems(visit_object)
    new = {source for source in new if source.is_file()} - sources - {file}
    sources |= new
    for source in new:
        add_sources(source, sources)
