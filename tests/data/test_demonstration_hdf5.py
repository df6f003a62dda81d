"""HDF5 files as people have them: links, virtual datasets, filters, locks, pointers, texts that are not UTF-8."""

import contextlib
import fcntl
import os
import shutil
import sys

import h5py
import numpy as np
import pytest
from demonstration_files import build_act, everything, write_act_episode, write_act_folder
from documents import SHARED

CASES = SHARED / "cases/episodes"
LENGTHS = (20, 12, 31)


def case(name: str) -> str:
    if not (CASES / name).is_dir():
        pytest.skip(f"{CASES / name} is not on this machine")
    return str(CASES / name)


def refusal(tmp_path, **config) -> str:
    """The one line with which the episodes are refused, in both ways of reading."""
    messages = []
    for lazy in (False, True):
        with pytest.raises(ValueError) as caught:
            build_act(tmp_path, {"lazy_preprocess": lazy}, **config)
        messages.append(str(caught.value))
    assert messages[0] == messages[1] and "\n" not in messages[0] and "remove" not in messages[0]
    return messages[0]


def states(bundle) -> np.ndarray:
    return everything(bundle.train_dataset)["state"].numpy()


# --- links in the file system -------------------------------------------------------------------------------------


def test_case_linked_folders_are_read(tmp_path):
    shutil.copytree(case("linked"), tmp_path / "linked")
    shutil.copytree(case("plain"), tmp_path / "plain")
    (tmp_path / "linked/day2").symlink_to("../plain")
    bundle = build_act(tmp_path, path=str(tmp_path / "linked"))
    assert bundle.train_dataset.lengths.tolist() == [20, 27, 20, 20, 20, 20]
    assert any("top is in 4 of 6 episodes" in line for line in bundle.summary)


def test_a_file_is_read_once_whatever_leads_to_it(tmp_path):
    write_act_folder(tmp_path / "elsewhere/deep", (5, 6))
    write_act_folder(tmp_path / "act/z", (7,))
    (tmp_path / "act/a").symlink_to(tmp_path / "act/z")  # the same folder again, earlier in the alphabet
    (tmp_path / "act/day2").symlink_to("../elsewhere")
    (tmp_path / "act/latest.hdf5").symlink_to("z/episode_0.hdf5")
    (tmp_path / "act/single.hdf5").symlink_to("../elsewhere/deep/episode_1.hdf5")
    os.link(tmp_path / "act/z/episode_0.hdf5", tmp_path / "act/z/same.h5")
    for loop, target in (("here", "."), ("up", ".."), ("z/top", "../../act"), ("day3", "day2")):
        (tmp_path / "act" / loop).symlink_to(target)
    source = build_act(tmp_path).train_dataset.sources[0]
    assert source.details["names"] == ["day2/deep/episode_0.hdf5", "day2/deep/episode_1.hdf5", "z/episode_0.hdf5"]
    assert source.lengths().tolist() == [5, 6, 7]


@pytest.mark.parametrize("name", ["episode_9.hdf5", "day2"])
def test_a_link_that_leads_nowhere_is_named(tmp_path, name):
    write_act_folder(tmp_path / "act", LENGTHS)
    (tmp_path / "act" / name).symlink_to(tmp_path / "unmounted")
    message = refusal(tmp_path)
    assert str(tmp_path / "act" / name) in message and str(tmp_path / "unmounted") in message
    (tmp_path / "act" / name).rename(tmp_path / "act/notes.txt")
    assert len(build_act(tmp_path).train_dataset.lengths) == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_that_cannot_be_read_is_named(tmp_path):
    write_act_folder(tmp_path / "act/day1", LENGTHS)
    write_act_folder(tmp_path / "act/day2", LENGTHS)
    (tmp_path / "act/day2").chmod(0)
    try:
        assert str(tmp_path / "act/day2") in refusal(tmp_path)
    finally:
        (tmp_path / "act/day2").chmod(0o755)


# --- links between HDF5 files -------------------------------------------------------------------------------------


def virtual_episode(tmp_path, value: float = 1.0, **mapping) -> None:
    """`act/episode_0.hdf5`, whose states are virtual: rows 0 … 4 of `a.h5` and rows 5 … 9 of `parts/b.h5`."""
    parts = {"a.h5": np.full((5, 14), value), "parts/b.h5": np.full((5, 14), 2.0)}
    layout = h5py.VirtualLayout((10, 14), "f8")
    for number, (name, values) in enumerate(parts.items()):
        (tmp_path / "sources" / name).parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(tmp_path / "sources" / name, "w") as root:
            root["x"] = values
        rows = mapping.get("rows", 5)
        layout[5 * number : 5 * number + rows] = h5py.VirtualSource(f"../sources/{name}", "x", (5, 14))[:rows]
    write_act_episode(tmp_path / "act/episode_0.hdf5", 10, replace={"observations/qpos": None})
    with h5py.File(tmp_path / "act/episode_0.hdf5", "r+") as root:
        root.create_virtual_dataset("observations/qpos", layout)


def external_episode(tmp_path, value: float = 1.0) -> None:
    """`act/episode_0.hdf5`, whose observations are a link to a file that links on to `sources/a.h5`."""
    write_act_episode(tmp_path / "sources/a.h5", 10, replace={"observations/qpos": np.full((10, 14), value)})
    with h5py.File(tmp_path / "sources/index.h5", "w") as root:
        root["of/arm"] = h5py.ExternalLink("a.h5", "/observations")
    write_act_episode(tmp_path / "act/episode_0.hdf5", 10)
    with h5py.File(tmp_path / "act/episode_0.hdf5", "r+") as root:
        del root["observations"]
        root["observations"] = h5py.ExternalLink("../sources/index.h5", "/of/arm")


@pytest.mark.slow
@pytest.mark.parametrize("write", [virtual_episode, external_episode])
def test_a_changed_source_is_seen(tmp_path, write):
    write(tmp_path, 1.0)
    episode = (tmp_path / "act/episode_0.hdf5").read_bytes()
    first = states(build_act(tmp_path))
    assert (first[:5] == 1).all() and (first[5:] == (2 if write is virtual_episode else 1)).all()
    status = (tmp_path / "act/episode_0.hdf5").stat()
    write(tmp_path, 3.0)
    (tmp_path / "act/episode_0.hdf5").write_bytes(episode)
    os.utime(tmp_path / "act/episode_0.hdf5", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (states(build_act(tmp_path))[:5] == 3).all()
    (tmp_path / "sources").rename(tmp_path / "moved")
    (tmp_path / "sources").symlink_to("moved")
    caches = len(list((tmp_path / "cache/demonstrations").glob("*/manifest.json")))
    build_act(tmp_path)
    assert len(list((tmp_path / "cache/demonstrations").glob("*/manifest.json"))) == caches == 2


@pytest.mark.parametrize("missing", ["a.h5", "parts/b.h5"])
@pytest.mark.parametrize("content", [None, b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"])
def test_a_missing_virtual_source_is_refused(tmp_path, missing, content):
    virtual_episode(tmp_path)
    source = tmp_path / "sources" / missing
    source.unlink()
    if content is not None:
        source.write_bytes(content)
    message = refusal(tmp_path)
    assert f"{tmp_path / 'act/episode_0.hdf5'}: observations/qpos" in message
    assert missing in message and ("git lfs pull" in message) == bool(content)


@pytest.mark.slow
def test_virtual_values_without_a_source_or_beyond_it_are_refused(tmp_path):
    virtual_episode(tmp_path, rows=4)
    message = refusal(tmp_path)
    assert f"{tmp_path / 'act/episode_0.hdf5'}: observations/qpos" in message and "28 of 140" in message
    virtual_episode(tmp_path)
    with h5py.File(tmp_path / "sources/a.h5", "w") as root:
        root["x"] = np.ones((3, 14))
    message = refusal(tmp_path)
    assert "a.h5: x has shape (3, 14)" in message and "episode_0.hdf5: observations/qpos" in message
    with h5py.File(tmp_path / "sources/a.h5", "w") as root:
        root["y"] = np.ones((5, 14))
    assert "`x`" in refusal(tmp_path)


def test_a_virtual_dataset_grows_with_its_source(tmp_path):
    write_act_episode(tmp_path / "act/episode_0.hdf5", 10, replace={"action": None})
    with h5py.File(tmp_path / "source.h5", "w") as root:
        root.create_dataset("x", data=np.full((10, 14), 4.0), maxshape=(None, 14))
    with h5py.File(tmp_path / "act/episode_0.hdf5", "r+") as root:
        layout = h5py.VirtualLayout((5, 14), "f8", maxshape=(None, 14))
        unlimited = slice(h5py.h5s.UNLIMITED)
        layout[unlimited] = h5py.VirtualSource("../source.h5", "x", (5, 14), maxshape=(None, 14))[unlimited]
        root.create_virtual_dataset("action", layout)
    assert (everything(build_act(tmp_path).train_dataset)["actions"] == 4).all()


@pytest.mark.slow
def test_a_missing_target_of_a_link_is_named(tmp_path):
    external_episode(tmp_path)
    (tmp_path / "sources/index.h5").unlink()
    message = refusal(tmp_path)
    assert str(tmp_path / "act/episode_0.hdf5") in message and "sources/index.h5" in message
    external_episode(tmp_path)
    with h5py.File(tmp_path / "act/episode_0.hdf5", "r+") as root:
        del root["action"]
        root["action"] = h5py.SoftLink("/gone")
    message = refusal(tmp_path)
    assert "`action`" in message and "`/gone`" in message
    write_act_episode(tmp_path / "act/episode_0.hdf5", 10)
    with h5py.File(tmp_path / "act/episode_0.hdf5", "r+") as root:
        root["language_instruction"] = h5py.SoftLink("/observations/text")
    message = refusal(tmp_path)
    assert "`language_instruction`" in message and "`/observations/text`" in message
    with h5py.File(tmp_path / "act/episode_0.hdf5", "r+") as root:
        del root["language_instruction"]
        root["language_instruction"] = h5py.ExternalLink("episode_0.hdf5", "language_instruction")  # a loop
    assert "episode_0.hdf5: `language_instruction`" in refusal(tmp_path)


@pytest.mark.parametrize("write", [virtual_episode, external_episode])
@pytest.mark.parametrize("fault", ["locked", "pointer", "truncated", "filter"])
def test_a_source_that_cannot_be_read_is_named(tmp_path, write, fault):
    write(tmp_path)
    source = tmp_path / "sources/a.h5"
    with contextlib.ExitStack() as stack:
        if fault == "locked":
            fcntl.flock(stack.enter_context(source.open("rb")), fcntl.LOCK_EX)
        elif fault == "pointer":
            source.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
        elif fault == "truncated":
            source.write_bytes(source.read_bytes()[:1500])
        else:
            with_filter(source, 32015, "x" if write is virtual_episode else "observations/qpos")
        message = refusal(tmp_path)
    assert "sources/a.h5" in message and "observations" in message
    assert {"locked": "locked", "pointer": "git lfs pull", "truncated": "truncated", "filter": "zstd"}[fault] in message


def test_a_leading_slash_in_a_key_changes_nothing(tmp_path):
    write_act_folder(tmp_path / "act", (10,))
    plain = states(build_act(tmp_path))
    assert (states(build_act(tmp_path, state_keys=["/observations/qpos"], action_key="/action")) == plain).all()
    assert "`/observations/gone`" in refusal(tmp_path, state_keys=["/observations/gone"])


def test_values_in_raw_or_numbered_files_are_refused(tmp_path, monkeypatch):
    """HDF5 returns zeros for what is missing at the end of a raw file, or between numbered ones."""
    write_act_folder(tmp_path / "act", (10,), replace={"action": None})
    monkeypatch.chdir(tmp_path)
    with h5py.File(tmp_path / "act/episode_0.hdf5", "r+") as root:
        root.create_dataset("action", (10, 14), "f8", external=[("raw.bin", 0, 10 * 14 * 8)])[...] = 5
    message = refusal(tmp_path)
    assert "episode_0.hdf5: action" in message and "raw.bin" in message
    with h5py.File(tmp_path / "act/episode_0.hdf5", "r+") as root:
        del root["action"]
        space = h5py.h5s.create_simple((10, 14), (h5py.h5s.UNLIMITED, 14))
        space.select_hyperslab((0, 0), (h5py.h5s.UNLIMITED, 1), (5, 14), (5, 14))
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_virtual(space, b"part_%b.h5", b"x", h5py.h5s.create_simple((5, 14)))
        h5py.h5d.create(root.id, b"action", h5py.h5t.NATIVE_DOUBLE, space, plist)
    message = refusal(tmp_path)
    assert "episode_0.hdf5: action" in message and "part_%b.h5" in message


# --- files that cannot be read ------------------------------------------------------------------------------------


def test_case_blosc_names_the_filter(tmp_path):
    message = refusal(tmp_path, path=case("blosc"))
    assert "episode_0.hdf5: action" in message and "blosc (id 32001)" in message and "hdf5plugin" in message


def with_filter(file, number: int, key: str = "action") -> None:
    """Write a dataset again, in chunks that were passed through the filter of this number, which changes nothing."""
    with h5py.File(file, "r+") as root:
        values = root[key][()]
        del root[key]
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((1, values.shape[1]))
        plist.set_filter(number, h5py.h5z.FLAG_OPTIONAL, ())
        space = h5py.h5s.create_simple(values.shape)
        dataset = h5py.Dataset(h5py.h5d.create(root.id, key.encode(), h5py.h5t.NATIVE_DOUBLE, space, plist))
        for step, row in enumerate(values):
            dataset.id.write_direct_chunk((step, 0), row.tobytes(), 0)


@pytest.mark.parametrize(
    ("number", "name"), [(32001, "blosc"), (32004, "lz4"), (32008, "bitshuffle"), (32015, "zstd"), (32099, "unnamed")]
)
def test_a_missing_filter_is_named(tmp_path, number, name):
    write_act_folder(tmp_path / "act", LENGTHS)
    file = tmp_path / "act/episode_1.hdf5"
    with_filter(file, number)
    message = refusal(tmp_path)
    assert f"{file}: action" in message and f"{name} (id {number})" in message
    assert ("hdf5plugin" in message) == (name != "unnamed")


PLUGIN = """
import ctypes

class Filter(ctypes.Structure):  # H5Z_class2_t
    _fields_ = [("version", ctypes.c_int), ("id", ctypes.c_int), ("encoder", ctypes.c_uint), ("decoder", ctypes.c_uint),
                ("name", ctypes.c_char_p), ("can_apply", ctypes.c_void_p), ("set_local", ctypes.c_void_p),
                ("function", ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_uint, ctypes.c_size_t, ctypes.c_void_p,
                                              ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p))]

same = Filter(1, 32026, 1, 1, b"same", None, None, Filter._fields_[-1][1](lambda f, n, v, size, b, d: size))
path = next(line.split()[-1] for line in open("/proc/self/maps") if "/libhdf5-" in line or "/libhdf5.so" in line)
library = ctypes.CDLL(path)
assert library.H5Zregister(ctypes.byref(same)) >= 0
"""


def test_hdf5plugin_is_imported_if_it_is_installed(tmp_path, monkeypatch):
    """A stand-in registers a filter that changes nothing under blosc2's number, as hdf5plugin does on import."""
    arrays = write_act_folder(tmp_path / "act", (5,))
    with_filter(tmp_path / "act/episode_0.hdf5", 32026)
    assert "blosc2 (id 32026)" in refusal(tmp_path)
    (tmp_path / "hdf5plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        sample = build_act(tmp_path).train_dataset[0]
        np.testing.assert_array_equal(sample["actions"][0], arrays[0]["action"][0].astype(np.float32))
    finally:
        plugin = sys.modules.pop("hdf5plugin", None)
        assert plugin is not None and plugin.library.H5Zunregister(32026) >= 0


def test_a_locked_file_is_told_from_a_damaged_one(tmp_path):
    write_act_folder(tmp_path / "act", LENGTHS)
    file = tmp_path / "act/episode_1.hdf5"
    with file.open("rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        message = refusal(tmp_path)
    assert f"cannot read {file}: " in message and "locked" in message and "damaged" not in message
    build_act(tmp_path)


def test_a_file_whose_writer_did_not_close_it_is_no_damaged_file(tmp_path):
    write_act_folder(tmp_path / "act", LENGTHS)
    file = tmp_path / "act/episode_1.hdf5"
    with h5py.File(tmp_path / "open.h5", "w", libver="latest") as root:
        root["action"] = np.ones((5, 14))
        root.flush()
        shutil.copy(tmp_path / "open.h5", file)
    message = refusal(tmp_path)
    assert f"cannot read {file}: " in message and "h5clear" in message and "damaged" not in message


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "git lfs pull"),
        (b"", "empty"),
        (b"<html><body>404</body></html>" * 10, "<html>"),
        (None, "truncated or damaged"),
    ],
)
def test_pointers_and_damaged_files_are_told_apart(tmp_path, content, word):
    write_act_folder(tmp_path / "act", LENGTHS)
    file = tmp_path / "act/episode_1.hdf5"
    file.write_bytes(file.read_bytes()[:9000] if content is None else content)
    message = refusal(tmp_path)
    assert f"cannot read {file}: " in message
    words = ["git lfs pull", "empty", "<html>", "truncated or damaged", "locked", "hdf5plugin"]
    assert [other for other in words if other in message] == [word]


# --- texts --------------------------------------------------------------------------------------------------------


def test_case_latin1_names_file_and_key(tmp_path):
    message = refusal(tmp_path, path=case("latin1"))
    assert "latin1/episode_0.hdf5: language_instruction" in message


@pytest.mark.parametrize("place", ["attribute", "fixed attribute", "dataset", "fixed dataset", "reasoning", "camera"])
def test_text_that_is_not_utf8_names_file_and_key(tmp_path, place):
    write_act_folder(tmp_path / "act", (5, 6), cameras={"top": (8, 8)})
    file, text = tmp_path / "act/episode_1.hdf5", "prénds".encode("latin-1")
    with h5py.File(file, "r+") as root:
        if place == "attribute":
            kind, space = h5py.h5t.py_create(h5py.string_dtype(), logical=True), h5py.h5s.create(h5py.h5s.SCALAR)
            h5py.h5a.create(root.id, b"language_instruction", kind, space).write(np.array(text, dtype=object))
        elif place == "fixed attribute":
            root.attrs["language_instruction"] = np.bytes_(text)
        elif place == "dataset":
            root.create_dataset("language_instruction", data=text, dtype=h5py.string_dtype())
        elif place == "fixed dataset":
            root["language_instruction"] = np.asarray([text] * 6)
        elif place == "reasoning":
            root["reasoning/plan"] = np.asarray([b"reach"] * 5 + [text])
        else:
            root["observations/images"].move("top", text)
    key = {"reasoning": "reasoning/plan", "camera": "observations/images"}.get(place, "language_instruction")
    message = refusal(tmp_path)
    assert f"{file}: {key} " in message and r"pr\xe9nds" in message.replace(r"\udce9", r"\xe9")


def test_an_instruction_that_is_no_text_is_refused(tmp_path):
    write_act_folder(tmp_path / "act", (5,), attributes={"language_instruction": 3})
    assert "episode_0.hdf5: language_instruction is " in refusal(tmp_path)


@pytest.mark.parametrize("attribute", ["instruction", "language_instruction"])
def test_an_instruction_may_be_an_attribute_of_the_file(tmp_path, attribute):
    write_act_folder(tmp_path / "act", (5, 6), attributes={attribute: "pick up the cube"})
    batch = build_act(tmp_path).train_dataset.__getitems__([0, 7])
    assert batch["instruction"] == ["pick up the cube"] * 2


def test_names_that_are_not_utf8_do_not_matter_elsewhere(tmp_path):
    write_act_folder(tmp_path / "act", (5,))
    with h5py.File(tmp_path / "act/episode_0.hdf5", "r+") as root:
        root.create_dataset("prénds".encode("latin-1"), data=[1])
    assert len(build_act(tmp_path).train_dataset) == 5
    assert r"b'pr\xe9nds'" in refusal(tmp_path, action_key="target")
