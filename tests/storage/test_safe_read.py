"""Small files are read up to a size; damaged JSON is a ValueError."""

import json

import pytest

from storage import safe_read


def test_a_file_is_read_up_to_a_size(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    assert safe_read.read(tmp_path / "file", max_bytes=3) == safe_read.read(tmp_path / "link") == b"abc"
    with pytest.raises(safe_read.FileTooLarge):
        safe_read.read(tmp_path / "file", max_bytes=2)
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(safe_read.FileTooLarge):
        safe_read.read(tmp_path / "sparse")
    with pytest.raises(FileNotFoundError):
        safe_read.read(tmp_path / "nothing")


@pytest.mark.parametrize("content", [b"[" * 100_000, b"9" * 10_000, b"\xff", b"{", b""])
def test_damaged_json_is_a_value_error(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match="JSON"):
        safe_read.read_json(tmp_path / "file")


def test_json_is_a_value(tmp_path):
    (tmp_path / "file").write_text(json.dumps({"a": [1, None, "é"]}))
    assert safe_read.read_json(tmp_path / "file") == {"a": [1, None, "é"]}
