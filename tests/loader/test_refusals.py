"""What the operating system refuses, as one line that says what to do."""

import errno
import os

import pytest

from loader.command_line.entry import command_line, in_words, refusing, run_config


def said(capsys, build, *arguments):
    with pytest.raises(SystemExit) as left:
        command_line(build, *arguments)
    lines = capsys.readouterr().err.splitlines()
    assert left.value.code == 2 and len(lines) == 1, lines
    return lines[0]


def test_an_error_names_its_file_and_a_remedy(tmp_path, capsys):
    def fails(*arguments):
        raise OSError(*arguments)

    full = errno.ENOSPC, os.strerror(errno.ENOSPC)
    assert said(capsys, refusing, fails, *full, "out/a") == "error: out/a: No space left on device; make room"
    renamed = said(capsys, refusing, fails, errno.EISDIR, "Is a directory", "out/.a.1.tmp", None, "out/a")
    assert renamed == "error: out/a: Is a directory"
    assert said(capsys, refusing, fails, "a library's own words") == "error: a library's own words"
    assert len(in_words(OSError(*full, "a" * 5000))) < 300
    assert "shorten it" in said(capsys, refusing, (tmp_path / ("a" * 300)).mkdir)


def test_a_working_folder_that_is_gone(tmp_path, capsys, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    line = said(capsys, run_config, ["--dataset", "data", "--output_dir", "x", "--check"])
    assert line == said(capsys, refusing, os.getcwd) and "the working folder is gone; change into" in line


@pytest.mark.parametrize("folder", ["round", "nowhere", "nowhere/deeper/out"])
def test_folders_that_cannot_be_made(in_root, tmp_path, capsys, folder):
    (tmp_path / "round").symlink_to("round")
    (tmp_path / "nowhere").symlink_to("nothing")
    (tmp_path / "run.yaml").write_text("max_steps: 2\n")
    words = ["--training_config", str(tmp_path / "run.yaml"), "--output_dir", str(tmp_path / folder), "--check"]
    line = said(capsys, run_config, words)
    assert "`output_dir" in line and f"{folder.split('/')[0]} is no folder" in line
