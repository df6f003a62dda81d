"""Whatever stands in a configuration or on a command line, the answer is an answer: exit code 0, or 2 with lines that
say why; never a traceback, a hang or a trace on the disk.

KEEL_FUZZ_EXAMPLES and KEEL_FUZZ_SEED look further than CI does.
"""

import contextlib
import io
import os
import shutil
import signal

import pytest
from audited import watching
from configurations import cases
from hypothesis import HealthCheck, given, seed, settings

from loader.command_line.entry import run_config_or_exit

EXAMPLES = int(os.environ.get("KEEL_FUZZ_EXAMPLES", "2000"))
LONGEST = 20  # seconds; an answer takes a hundredth of one


class Hang(BaseException):
    """No Exception: nothing on the way may take it for one of its own."""


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
        run_config_or_exit(words)
    err.flush()
    return left.value.code or 0, err.buffer.getvalue().decode()


def ring(*_):
    raise Hang(f"no answer after {LONGEST} seconds")


def check(folder, case):
    """Runs one case; returns its exit code."""
    prepared(folder, case)
    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(LONGEST)
    try:
        with watching(folder) as changes:
            code, err = answer(case.words)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert changes == []
    assert code in (0, 2), (code, err)
    lines = err.split("\n")
    assert lines.pop() == ""
    assert (code == 2) == bool(lines), (code, lines)
    for line in lines:
        assert line.startswith("error: ") and len(line) > len("error: x"), line
        assert line.isprintable() and len(line) < 2100, line
    return code


def fuzz(folder, examples):
    """Exit codes of that many mutated configurations."""
    codes = []

    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(cases())
    def each(case):
        codes.append(check(folder, case))

    if "KEEL_FUZZ_SEED" in os.environ:
        each = seed(int(os.environ["KEEL_FUZZ_SEED"]))(each)
    each()
    assert len(codes) >= examples
    return codes


def test_sixty_broken_configurations(workplace):
    assert {0, 2} <= set(fuzz(workplace, 60))


@pytest.mark.slow
def test_two_thousand_broken_configurations(workplace):
    codes = fuzz(workplace, max(EXAMPLES, 2000))
    # Mutations that were all refused at the first line would try nothing.
    assert len(codes) / 20 < codes.count(0) < len(codes) * 19 / 20
