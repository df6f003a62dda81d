"""A writer may be killed at any of its system calls: a reader finds the old content or the new."""

import contextlib
import errno
import os
import subprocess
import sys
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from storage import atomic


def content(folder):
    return {path.name: path.read_text() for path in folder.iterdir()} if folder.is_dir() else None


def made(folder, **files):
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


class Killed(BaseException):
    """Simulates SIGKILL: no error handler runs."""


CALLS = ("rename", "replace", "fsync")


def killed_at(monkeypatch, count):
    """From the `count`-th system call on, every call raises Killed."""
    seen = [0]

    def wrapped(original):
        def call(*arguments, **options):
            if seen[0] >= count:
                raise Killed
            seen[0] += 1
            return original(*arguments, **options)

        return call

    for name in CALLS:
        monkeypatch.setattr(os, name, wrapped(getattr(os, name)))
    monkeypatch.setattr(atomic.shutil, "rmtree", wrapped(lambda path, **options: _tree(path)))
    return seen


def _tree(path):
    if path.is_dir():
        for file in path.iterdir():
            file.unlink()
        path.rmdir()


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("count", range(12))
@pytest.mark.parametrize("is_there", [True, False])
def test_publish_killed_at_any_call(tmp_path, monkeypatch, count, is_there, exchange):
    staged, final = made(tmp_path / "staged", a="new", b="new"), tmp_path / "final"
    if is_there:
        made(final, a="old")
    if not exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    with monkeypatch.context() as patch:
        seen = killed_at(patch, count)
        try:
            atomic.publish(staged, final)
            is_dead = False
        except Killed:
            is_dead = True
    old, new = {"a": "old"}, {"a": "new", "b": "new"}
    assert content(final) in ([old, new] if is_there and exchange else [old, new, None] if is_there else [None, new])
    assert is_dead or content(final) == new
    assert seen[0] > 3 or count <= 3
    if not staged.is_dir():
        made(staged, a="newer")
    atomic.publish(staged, final)  # the next run, in the same folder
    assert content(final) in (new, {"a": "newer"}, old)
    assert sorted(os.listdir(tmp_path)) == ["final"]


def test_exchange_of_names(tmp_path):
    one, other = made(tmp_path / "one", a="1"), made(tmp_path / "other", b="2")
    if not atomic._exchange(one, other):
        pytest.skip("this system or file system has no exchange of names")
    assert content(one) == {"b": "2"} and content(other) == {"a": "1"}


def test_publish_replaces_a_symlink(tmp_path):
    outside = made(tmp_path / "outside", precious="1")
    (tmp_path / "final").symlink_to(outside)
    atomic.publish(made(tmp_path / "staged", a="new"), tmp_path / "final")
    assert content(tmp_path / "final") == {"a": "new"} and content(outside) == {"precious": "1"}


@pytest.mark.parametrize("count", range(4))
def test_write_text_killed_at_any_call(tmp_path, monkeypatch, count):
    path = tmp_path / "note.json"
    path.write_text("old")
    with monkeypatch.context() as patch:
        killed_at(patch, count)
        try:
            atomic.write_text(path, "new")
        except Killed:
            assert path.read_text() in ("old", "new")
        else:
            assert path.read_text() == "new"


def test_write_text_on_a_full_disk(tmp_path, monkeypatch):
    path = tmp_path / "note.json"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(OSError):
        atomic.write_text(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["note.json"]


def test_remove(tmp_path):
    made(tmp_path / "checkpoint-1", a="1")
    made(tmp_path / f"{atomic.DELETING}checkpoint-1", b="of an earlier kill")
    atomic.remove(tmp_path / "checkpoint-1")
    atomic.remove(tmp_path / "checkpoint-1")  # it does not exist any more
    assert not os.listdir(tmp_path)


def test_nan_is_refused(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        atomic.write_json(tmp_path / "x.json", float("nan"))
    assert not (tmp_path / "x.json").exists()


def recorded(monkeypatch, folder):
    """The order of fsyncs, renames and deletions: (call, name below a folder)."""
    done, folder = [], os.path.realpath(folder)

    def noting(call, original, path_of):
        def noted(*arguments, **options):
            done.append((call, os.path.relpath(path_of(*arguments), folder)))
            return original(*arguments, **options)

        return noted

    def open_file(descriptor):
        return os.readlink(f"/proc/self/fd/{descriptor}")

    monkeypatch.setattr(os, "fsync", noting("sync", os.fsync, open_file))
    for name in ("rename", "replace"):
        renamed = noting("rename", getattr(os, name), lambda source, target: os.path.abspath(target))
        monkeypatch.setattr(os, name, renamed)
    monkeypatch.setattr(atomic.shutil, "rmtree", noting("delete", atomic.shutil.rmtree, os.path.abspath))
    return done


needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="file descriptors have no names here")


@needs_proc
@pytest.mark.parametrize("there", ["nothing", "an older one", "an older one, and no exchange of names"])
def test_publish_syncs_before_the_rename_and_deletes_after_it(tmp_path, monkeypatch, there):
    staged = made(tmp_path / "staged", a="new")
    made(staged / "sub", b="new")
    if there != "nothing":
        made(tmp_path / "final", a="old")
    exchanges = atomic._exchange if there == "an older one" else lambda one, other: False
    can_exchange = []
    monkeypatch.setattr(atomic, "_exchange", lambda *names: can_exchange.append(exchanges(*names)) or can_exchange[0])
    done = recorded(monkeypatch, tmp_path)
    atomic.publish(staged, tmp_path / "final")
    before = [("sync", "staged/sub/b"), ("sync", "staged/sub"), ("sync", "staged/a"), ("sync", "staged")]
    names = {(): ["final"], (True,): [".replaced-final"], (False,): [".replaced-final", "final"]}[tuple(can_exchange)]
    after = [("delete", ".replaced-final")] if there != "nothing" else []
    assert done == [*before, *(("rename", name) for name in names), ("sync", "."), *after]


@needs_proc
def test_write_text_syncs_the_file_and_its_folder(tmp_path, monkeypatch):
    done = recorded(monkeypatch, tmp_path)
    atomic.write_text(tmp_path / "sub" / "note", "new")
    assert done == [("sync", f"sub/.note.{os.getpid()}.tmp"), ("rename", "sub/note"), ("sync", "sub")]


@pytest.mark.parametrize(
    ("number", "is_fault"),
    [(errno.EINVAL, False), (errno.ENOTSUP, False), (errno.EBADF, False), (errno.EIO, True), (errno.ENOSPC, True)],
)
def test_sync_folder_ignores_unsupported_file_systems_only(tmp_path, monkeypatch, number, is_fault):
    monkeypatch.setattr(os, "fsync", Mock(side_effect=OSError(number, os.strerror(number))))
    with pytest.raises(OSError) if is_fault else contextlib.nullcontext():
        atomic.sync_folder(tmp_path)


@pytest.mark.parametrize("library", [SimpleNamespace(renameat2=lambda *arguments: -1), SimpleNamespace()])
def test_publish_without_an_exchange_of_names(tmp_path, monkeypatch, library):
    """The system call fails, as on network file systems, or the C library does not have it."""
    staged, final = made(tmp_path / "staged", a="new"), made(tmp_path / "final", a="old")
    monkeypatch.setattr(atomic.ctypes, "CDLL", lambda *arguments, **options: library)
    atomic.publish(staged, final)
    assert content(final) == {"a": "new"} and os.listdir(tmp_path) == ["final"]


@pytest.mark.slow
def test_apply_umask(tmp_path):
    """With a umask of 027, files that their writer made private become readable for the group."""
    made(tmp_path / "sub", private="1")
    os.chmod(tmp_path / "sub" / "private", 0o600)
    lines = "import pathlib, sys; from storage import atomic; folder = pathlib.Path(sys.argv[1])"
    lines += "; (folder / 'new').touch(); atomic.write_text(folder / 'note', '')"
    lines += "; atomic.apply_umask(folder / 'sub')"
    root = os.path.dirname(os.path.dirname(atomic.__file__))
    subprocess.run([sys.executable, "-c", lines, str(tmp_path)], cwd=root, umask=0o027, check=True)
    rights = {name: (tmp_path / name).stat().st_mode & 0o777 for name in ("new", "note", "sub/private")}
    assert rights == dict.fromkeys(rights, 0o640)


def test_discard_does_not_follow_symlinks(tmp_path):
    precious = made(tmp_path / "precious", a="1")
    (tmp_path / "link").symlink_to(precious)
    atomic.discard(tmp_path / "link")
    assert os.listdir(tmp_path) == ["precious"] and content(precious) == {"a": "1"}
    atomic.discard(tmp_path / "link")


def test_write_text_does_not_replace_a_folder(tmp_path):
    (tmp_path / "run.yaml").mkdir()
    (tmp_path / "run.yaml/precious").write_text("x")
    with pytest.raises(IsADirectoryError) as error:
        atomic.write_text(tmp_path / "run.yaml", "a: 1")
    assert error.value.filename == str(tmp_path / "run.yaml")
    assert os.listdir(tmp_path) == ["run.yaml"] and (tmp_path / "run.yaml/precious").exists()
