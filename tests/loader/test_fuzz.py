"""Whatever stands in a configuration or on a command line, the answer is an answer: exit code 0, or 2 with lines that
say why; never a traceback, a hang or a trace on the disk.
"""

import contextlib
import io
import os
import shutil

import pytest
from audited import watching
from configurations import cases, fuzz, time_limit

from loader.command_line.entry import command_line, run_config

pytestmark = pytest.mark.slow

LONGEST = 20  # seconds; an answer takes a hundredth of one


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """The working folder of all examples, with what a configuration may stumble over."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("KEEL_NO_SUCH", raising=False)
    return folder


def prepared(folder, case):
    """The folder emptied and filled with a case's files."""
    for entry in os.scandir(folder):
        shutil.rmtree(entry) if entry.is_dir(follow_symlinks=False) else os.unlink(entry)
    os.mkfifo(folder / "pipe")
    (folder / "folder.yaml").mkdir()
    (folder / "latin.yaml").write_bytes(b"run_name: caf\xe9\n")
    for name, content in case.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def answer(words):
    """(exit code, stderr) of a command line in this process, as a terminal would get them."""
    out, err = (
        io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors=errors) for errors in ("strict", "backslashreplace")
    )
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as left:
        command_line(run_config, words)
    err.flush()
    return left.value.code or 0, err.buffer.getvalue().decode()


def check(folder, case):
    """Runs one case; returns its exit code."""
    prepared(folder, case)
    with time_limit(LONGEST), watching(folder) as changes:
        code, err = answer(case.words)
    assert changes == []
    assert code in (0, 2), (code, err)
    lines = err.split("\n")
    assert lines.pop() == ""
    assert (code == 2) == bool(lines), (code, lines)
    for line in lines:
        assert line.startswith("error: ") and len(line) > len("error: x"), line
        assert line.isprintable() and len(line) < 2100, line
    return code


def test_sixty_broken_configurations(workplace):
    assert {0, 2} <= set(fuzz(cases(), lambda case: check(workplace, case), 60))


def test_two_thousand_broken_configurations(workplace):
    codes = fuzz(cases(), lambda case: check(workplace, case), 2000)
    # Mutations that were all refused at the first line would try nothing.
    assert len(codes) / 20 < codes.count(0) < len(codes) * 19 / 20
