"""One reader of files that somebody else may have put there: it takes files, and waits for nothing."""

import json
import os
import socket

import pytest

from storage import safe_read


def strange(folder):
    """Name -> what lies there instead of a file, and what is said of it."""
    os.mkfifo(folder / "pipe")
    (folder / "folder").mkdir()
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(folder / "socket"))
    listening.close()
    (folder / "device").symlink_to("/dev/zero")
    (folder / "piped").symlink_to("pipe")
    return {"pipe": "a pipe", "folder": "a folder", "socket": "a socket", "device": "a device", "piped": "a pipe"}


def test_what_is_no_file_is_told_and_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path has a hundred characters at most
    for name, kind in strange(tmp_path).items():
        for reader in (safe_read.read, safe_read.read_json):
            with pytest.raises(safe_read.NoFile) as caught:
                reader(tmp_path / name)
            assert caught.value.strerror == f"is {kind}, not a file" and str(tmp_path / name) in str(caught.value)
    (tmp_path / "round").symlink_to("round")
    with pytest.raises(OSError, match="symbolic links"):
        safe_read.read(tmp_path / "round")
    (tmp_path / "nowhere").symlink_to("nothing")
    for name in ("nothing", "nowhere"):
        with pytest.raises(FileNotFoundError):
            safe_read.read(tmp_path / name)


def test_a_file_is_read_whole_up_to_a_bound(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    assert safe_read.read(tmp_path / "file", most=3) == safe_read.read(tmp_path / "link") == b"abc"
    with pytest.raises(safe_read.NoFile, match="larger than 2 bytes"):
        safe_read.read(tmp_path / "file", most=2)
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(safe_read.NoFile, match="larger than 1,073,741,824 bytes"):
        safe_read.read(tmp_path / "sparse")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b"9" * 10_000, "more than 4,300 digits"),
        (b"\xff", "not UTF-8 text"),
        (b"{", "not JSON"),
        (b"", "not JSON"),
    ],
)
def test_what_is_no_json_is_a_reason(tmp_path, content, reason):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        safe_read.read_json(tmp_path / "file")


def test_json_is_a_value(tmp_path):
    (tmp_path / "file").write_text(json.dumps({"a": [1, None, "é"]}))
    assert safe_read.read_json(tmp_path / "file") == {"a": [1, None, "é"]}


def test_what_nobody_should_open_in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a/file").write_text("x")
    (tmp_path / "a/link").symlink_to("nothing")
    (tmp_path / "a/inner").mkdir()
    assert safe_read.neither_file_nor_folder(tmp_path / "a") is None
    found = {}
    for name in strange(tmp_path):
        (tmp_path / "a/strange").symlink_to(f"../{name}")
        found[name] = safe_read.neither_file_nor_folder(tmp_path / "a")
        (tmp_path / "a/strange").unlink()
    kinds = {"pipe": "a pipe", "piped": "a pipe", "socket": "a socket", "device": "a device"}
    assert found == {name: f"strange, which is {kind}, not a file" for name, kind in kinds.items()} | {"folder": None}
