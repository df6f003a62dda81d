"""Whole or absent: what a reader finds when a writer is killed at any of its calls."""

import os

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
    """As SIGKILL: nothing that handles errors comes to run."""


CALLS = ("rename", "replace", "fsync")


def killed_at(monkeypatch, count):
    """From its count-th call of the operating system on, the process is dead."""
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
        for each in path.iterdir():
            each.unlink()
        path.rmdir()


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("count", range(12))
@pytest.mark.parametrize("is_there", [True, False])
def test_publishing_killed_anywhere(tmp_path, monkeypatch, count, is_there, exchange):
    staged, final = made(tmp_path / "staged", a="new", b="new"), tmp_path / "final"
    if is_there:
        made(final, a="old")
    if not exchange:
        monkeypatch.setattr(atomic, "_exchanged", lambda one, other: False)
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


def test_two_names_change_places_in_one_call(tmp_path):
    one, other = made(tmp_path / "one", a="1"), made(tmp_path / "other", b="2")
    if not atomic._exchanged(one, other):
        pytest.skip("this system or file system has no exchange of names")
    assert content(one) == {"b": "2"} and content(other) == {"a": "1"}


def test_a_link_of_that_name_is_replaced_not_followed(tmp_path):
    outside = made(tmp_path / "outside", precious="1")
    (tmp_path / "final").symlink_to(outside)
    atomic.publish(made(tmp_path / "staged", a="new"), tmp_path / "final")
    assert content(tmp_path / "final") == {"a": "new"} and content(outside) == {"precious": "1"}


@pytest.mark.parametrize("count", range(4))
def test_a_text_killed_anywhere(tmp_path, monkeypatch, count):
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


def test_a_text_that_does_not_fit_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "note.json"
    path.write_text("old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        atomic.write_text(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["note.json"]


def test_removed_as_a_whole(tmp_path):
    made(tmp_path / "checkpoint-1", a="1")
    made(tmp_path / f"{atomic.LEAVING}checkpoint-1", b="of an earlier kill")
    atomic.remove(tmp_path / "checkpoint-1")
    atomic.remove(tmp_path / "checkpoint-1")  # somebody was faster
    assert not os.listdir(tmp_path)


def test_nan_is_not_json(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        atomic.write_json(tmp_path / "x.json", float("nan"))
    assert not (tmp_path / "x.json").exists()
