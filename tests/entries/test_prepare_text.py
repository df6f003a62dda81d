"""`prepare.py --dataset`: the command line that prepares a text, and what it refuses."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
from fresh_interpreter import ROOT, python
from run_results import error_line

import prepare as entry


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("KEEL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("to be or not to be, that is the question\n" * 200)
    return path


def prepare(*words):
    entry.main([*map(str, words)])


def refusal(capsys, *words):
    return error_line(capsys, prepare, *words)


def refusal_of_flags(capsys, **flags):
    return refusal(capsys, *(word for name, value in flags.items() for word in (f"--{name}", value)))


@pytest.mark.slow
def test_a_text_becomes_a_data_set_that_training_reads(home, text_file, capsys):
    from data.text.folder import read_folder

    prepare("--dataset", "mine", "--text", text_file, "--tokenizer", "bpe:300", "--val_fraction", "0.25")
    shown = capsys.readouterr().out
    folder = read_folder(home / "datasets/mine")
    assert folder.method == "bpe:300" and folder.vocab_size <= 300
    assert all(f"{split.tokens:,} {name}" in shown for name, split in folder.splits.items())
    assert folder.splits["val"].text_bytes == 2050
    prepare("--dataset", "mine")
    assert "already prepared" in capsys.readouterr().out
    prepare("--dataset", "mine", "--text", text_file, "--tokenizer", "char", "--overwrite", "--num_workers", "1")
    assert read_folder(home / "datasets/mine").method == "char"
    assert "char, not bytes" in refusal(capsys, "--dataset", "mine", "--tokenizer", "bytes")


@pytest.mark.slow
def test_every_flag_of_a_text_has_an_effect(home, tmp_path):
    lines = "".join(json.dumps({"body": letter * 3}) + "\n" for letter in "abcd")
    (tmp_path / "t.jsonl").write_text(lines)
    (tmp_path / "v.jsonl").write_text(json.dumps({"body": "ee"}) + "\n")
    words = ["--dataset", "mine", "--text", tmp_path / "t.jsonl", "--text_column", "body", "--tokenizer", "bytes"]
    prepare(*words, "--val_text", tmp_path / "v.jsonl", "--out", tmp_path / "here")
    assert np.fromfile(tmp_path / "here/train.bin", "<u2").astype("u1").tobytes() == b"aaa\nbbb\nccc\nddd\n"
    assert np.fromfile(tmp_path / "here/val.bin", "<u2").astype("u1").tobytes() == b"ee\n"
    assert not home.exists()
    prepare(*words, "--val_fraction", "0.5")
    assert np.fromfile(home / "datasets/mine/val.bin", "<u2").astype("u1").tobytes() == b"bbb\nddd\n"


def test_shakespeare_from_a_local_file(home, shared):
    prepare("--dataset", "shakespeare_char", "--text", shared / "data/tinyshakespeare.txt")
    meta = json.loads((home / "datasets/shakespeare_char/meta.json").read_text())
    assert (meta["vocab_size"], meta["splits"]["train"]["tokens"]) == (65, 1_003_854)


def test_flags_of_a_recording_are_refused_for_a_text_and_vice_versa(capsys, home):
    for flag in ("--task_name", "--num_episodes", "--seed", "--jitter", "--set"):
        line = refusal(capsys, "--dataset", "x", flag, "1")
        assert f"`{flag} " in line and "--dataset" in line
    for flag in ("--text", "--tokenizer", "--val_fraction", "--val_text", "--text_column", "--split", "--out"):
        line = refusal(capsys, flag, "0.5")
        assert f"`{flag} " in line and "--dataset" in line
    assert "`--overwrite " in refusal(capsys, "--overwrite")
    line = refusal_of_flags(capsys, dataset="x", text="t", tokenizer="char", val_text="v", val_fraction="0.5")
    assert "--val_fraction" in line and not home.exists()


@pytest.mark.parametrize("name", ["../x", "a/b", "..", ".hidden", "/x", "-x"])
def test_a_name_is_a_plain_name(capsys, home, name):
    assert f"`--dataset {name}`" in refusal(capsys, f"--dataset={name}")


@pytest.mark.parametrize(
    "flag", ["text", "val_text", "tokenizer", "text_column", "split", "out", "dataset", "task_name"]
)
def test_empty_values(capsys, home, text_file, flag):
    """An empty path, as of an unset variable of a script, would mean the working folder."""
    flags = {"dataset": "mine", "text": text_file, "tokenizer": "char"}
    assert f"`--{flag}` is empty" in refusal_of_flags(capsys, **flags | {flag: ""})
    assert not home.exists()


BAD_VALUES = [
    ({"dataset": "mine"}, ("--text", "`python_docstrings`, `python_stdlib`, `shakespeare_char`")),
    ({"dataset": "shakespear_char"}, ("`shakespeare_char`",)),
    ({"dataset": "mine", "text": "text.txt"}, ("--tokenizer",)),
    ({"dataset": "mine", "text": "text.txt", "val_fraction": "1"}, ("val_fraction",)),
    ({"dataset": "mine", "text": "nowhere.txt", "tokenizer": "char"}, ("nowhere.txt",)),
    ({"dataset": "mine", "text": "bad.txt", "tokenizer": "char"}, ("bad.txt", "0xff at offset 0")),
    ({"dataset": "mine", "text": "/proc/self/mem", "tokenizer": "char"}, ("/proc/self/mem",)),  # cannot be read
    ({"dataset": "mine", "text": "text.txt", "tokenizer": "bpe:" + "9" * 5000}, ("`bpe:9999", "bpe:N")),
]


@pytest.mark.parametrize(("flags", "keys"), BAD_VALUES)
def test_refusals_name_the_value(capsys, monkeypatch, home, text_file, flags, keys):
    monkeypatch.chdir(text_file.parent)
    Path("bad.txt").write_bytes(b"\xff")
    line = refusal_of_flags(capsys, **flags)
    assert all(key in line for key in keys) and len(line) < 400, line
    assert not (home / "datasets").exists() or not list((home / "datasets").iterdir())


def test_data_of_another_kind_by_name(monkeypatch, capsys, home):
    import data.records

    made = []
    monkeypatch.setattr(data.records, "prepare", lambda name, folder: made.append((name, folder)))
    prepare("--dataset", "python_docstrings")
    assert made == [("python_docstrings", home / "datasets/python_docstrings")]
    line = refusal(capsys, "--dataset", "python_docstrings", "--tokenizer", "char")
    assert "`--tokenizer " in line and "python_docstrings" in line


def test_training_prepares_data_by_name():
    @dataclasses.dataclass
    class Config:
        path: str = "a_name"

    @dataclasses.dataclass
    class Run:
        dataset: object
        env: object = None

    seen = []
    module = types.SimpleNamespace(prepared=lambda config, run: seen.append(run) or Config("a_folder"))

    @dataclasses.dataclass
    class Component:
        module: object
        config: object

    run = Run(Component(module, Config()))
    assert entry.with_prepared_data(run).dataset.config.path == "a_folder"
    assert seen == [run] and run.dataset.config.path == "a_name"


@pytest.mark.slow
def test_help_imports_nothing_heavy():
    code = "import sys, prepare\ntry: prepare.main(['--help'])\nexcept SystemExit as e: assert e.code == 0\n"
    code += "assert not {'torch', 'transformers', 'numpy', 'tokenizers'} & set(sys.modules)"
    assert "--tokenizer" in python(code)


def children_of(process):
    listing = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True).stdout
    return [int(pid) for pid in listing.split()]


def accept_interrupts():
    """Processes that a shell starts in the background inherit that SIGINT is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "kind"), [(signal.SIGINT, "path"), (signal.SIGKILL, "bpe")])
def test_an_interrupted_preparation_resumes_to_the_same_bytes(home, tmp_path, number, kind):
    """Two worker processes are stopped in the middle: no process stays, and the next start continues."""
    draw = np.random.default_rng(0)
    words = ["".join(map(chr, draw.integers(97, 123, size=draw.integers(2, 9)))) for _ in range(20_000)]
    text = tmp_path / "text.txt"
    tokenizer = "bpe:1000"
    if kind == "path":
        from data.text.tokenizers import train_bpe

        tokenizer = tmp_path / "tokenizer"
        train_bpe(words, 1000).save_pretrained(tokenizer)
    line = [sys.executable, "prepare.py", "--dataset", "x", "--text", str(text), "--tokenizer", str(tokenizer)]
    line += ["--num_workers", "2"]
    journal = home / "datasets/.x.preparing/journal.json"
    for size in (700_000, 2_000_000, 6_000_000):
        text.write_text(" ".join(words[index] for index in draw.integers(len(words), size=size)))
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(line, cwd=ROOT, preexec_fn=accept_interrupts, **pipes)
        while process.poll() is None and not (journal.exists() and json.loads(journal.read_text())["pieces"]):
            time.sleep(0.01)
        workers = children_of(process)
        process.send_signal(number)
        shown, errors = process.communicate(timeout=60)
        if process.returncode != 0:
            break
        shutil.rmtree(home / "datasets/x")  # the preparation was complete before the signal came
    assert process.returncode == (130 if number == signal.SIGINT else -number), shown + errors
    assert len(workers) >= 2 and not (home / "datasets/x").exists()
    if number == signal.SIGINT:
        assert "interrupted" in shown and not errors
    deadline = time.monotonic() + 10
    while any(os.path.exists(f"/proc/{worker}") for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(os.path.exists(f"/proc/{worker}") for worker in workers)
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "going on after" in done.stdout, done.stdout + done.stderr
    prepare(*line[2:-2], "--num_workers", "1", "--out", tmp_path / "whole" / "x")
    for path in (tmp_path / "whole/x").iterdir():
        assert path.read_bytes() == (home / "datasets/x" / path.name).read_bytes(), path.name
