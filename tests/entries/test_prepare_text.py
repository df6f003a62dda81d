"""`prepare.py --dataset`: the command line of a text, as a user runs it, and what it refuses."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


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
    from prepare import main

    main([*map(str, words)])


def refusal(capsys, *words):
    with pytest.raises(SystemExit) as caught:
        prepare(*words)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_text_becomes_a_data_set_that_training_reads(home, text_file, capsys):
    from data.text.folder import read_folder

    prepare("--dataset", "mine", "--text", text_file, "--tokenizer", "bpe:300", "--val_fraction", "0.25")
    said = capsys.readouterr().out
    folder = read_folder(home / "datasets/mine")
    assert folder.method == "bpe:300" and folder.vocab_size <= 300
    assert f"{folder.splits['train'].tokens:,} train and {folder.splits['val'].tokens:,} val tokens" in said
    assert folder.splits["val"].text_bytes == 2050
    prepare("--dataset", "mine")
    assert "is already prepared" in capsys.readouterr().out
    prepare("--dataset", "mine", "--text", text_file, "--tokenizer", "char", "--overwrite", "--num_workers", "1")
    assert read_folder(home / "datasets/mine").method == "char"
    assert "was prepared with tokenizer char, not bytes" in refusal(capsys, "--dataset", "mine", "--tokenizer", "bytes")


def test_every_flag_of_a_text_reaches_it(home, tmp_path):
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


def test_shakespeare_by_name_and_a_text_at_hand(home, shared):
    prepare("--dataset", "shakespeare_char", "--text", shared / "data/tinyshakespeare.txt")
    meta = json.loads((home / "datasets/shakespeare_char/meta.json").read_text())
    assert (meta["vocab_size"], meta["splits"]["train"]["tokens"]) == (65, 1_003_854)


def test_what_belongs_to_a_recording_is_refused_for_a_text_and_the_other_way_round(capsys, home):
    for flag in ("--task_name", "--num_episodes", "--seed", "--jitter", "--set"):
        line = refusal(capsys, "--dataset", "x", flag, "1")
        assert line == f"error: flag `{flag}` is for a recording in simulation; leave it out, or --dataset"
    for flag in ("--text", "--tokenizer", "--val_fraction", "--val_text", "--text_column", "--split", "--out"):
        assert (
            refusal(capsys, flag, "0.5") == f"error: flag `{flag}` is for a text: name its data set with --dataset NAME"
        )
    assert "flag `--overwrite` is for a text" in refusal(capsys, "--overwrite")
    assert "leave --val_fraction out" in refusal(
        capsys, "--dataset", "x", "--text", "t", "--tokenizer", "char", "--val_text", "v", "--val_fraction", "0.5"
    )
    assert not home.exists()


@pytest.mark.parametrize("name", ["../x", "a/b", "..", ".hidden", "/x", "-x"])
def test_a_name_is_a_plain_name(capsys, home, name):
    assert f"`--dataset {name}` is not a plain name; --out gives the folder" in refusal(capsys, f"--dataset={name}")


@pytest.mark.parametrize(
    "flag", ["text", "val_text", "tokenizer", "text_column", "split", "out", "dataset", "task_name"]
)
def test_an_empty_value_is_no_value(capsys, home, text_file, flag):
    """An unset variable of a script: an empty path would mean the working folder."""
    words = {"dataset": "mine", "text": text_file, "tokenizer": "char"} | {flag: ""}
    line = refusal(capsys, *(word for name, value in words.items() for word in (f"--{name}", value)))
    assert line == f"error: `--{flag}` is empty; give it a value, or leave it out"
    assert not home.exists()


@pytest.mark.parametrize("flag", ["text", "val_text", "tokenizer", "out", "dataset"])
def test_names_that_no_file_system_has(capsys, home, text_file, flag):
    words = {"dataset": "mine", "text": text_file, "tokenizer": "char"} | {flag: "x" * 300}
    line = refusal(capsys, *(word for name, value in words.items() for word in (f"--{name}", value)))
    assert line.startswith("error: ") and "File name too long" in line
    assert not list(home.glob("datasets/*"))


def test_a_vocabulary_of_thousands_of_digits(capsys, home, text_file):
    words = ["--dataset", "mine", "--text", text_file, "--tokenizer", "bpe:" + "9" * 5000]
    assert "tokenizer `bpe:9999" in (line := refusal(capsys, *words)) and "write bpe:N with N tokens" in line
    prepare(*words[:-1], "bytes")
    capsys.readouterr()
    assert "was prepared with tokenizer bytes, not bpe:9" in refusal(capsys, *words[:2], *words[4:])


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="a file of Linux that fails when it is read")
def test_a_text_that_cannot_be_read_is_named(capsys, home):
    words = ["--dataset", "mine", "--tokenizer", "char", "--text", "/proc/self/mem"]
    assert refusal(capsys, *words) == "error: /proc/self/mem: Input/output error"


def test_what_is_missing_is_named(capsys, home, text_file):
    assert "needs --text: FILE" in (line := refusal(capsys, "--dataset", "mine"))
    assert "`python_docstrings`, `python_stdlib`, `shakespeare_char`" in line
    assert refusal(capsys, "--dataset", "shakespear_char").endswith("; did you mean `shakespeare_char`?")
    assert "needs --tokenizer: char, bytes" in refusal(capsys, "--dataset", "mine", "--text", text_file)
    assert "must be" in refusal(capsys, "--dataset", "mine", "--text", text_file, "--val_fraction", "1")
    mine = ["--dataset", "mine", "--tokenizer", "char", "--text"]
    assert refusal(capsys, *mine, "nowhere.txt") == "error: nowhere.txt does not exist"
    text_file.write_bytes(b"\xff")
    assert "is not UTF-8 text: byte 0xff at offset 0" in refusal(capsys, *mine, text_file)
    assert not (home / "datasets").exists() or not list((home / "datasets").iterdir())


def test_another_kind_of_data_makes_its_own_by_name(monkeypatch, capsys, home):
    import data.records

    made = []
    monkeypatch.setattr(data.records, "prepare", lambda name, folder: made.append((name, folder)))
    prepare("--dataset", "python_docstrings")
    assert made == [("python_docstrings", home / "datasets/python_docstrings")]
    line = refusal(capsys, "--dataset", "python_docstrings", "--tokenizer", "char")
    assert "flag `--tokenizer` has no meaning for python_docstrings" in line


def test_training_prepares_what_is_ready_by_name(monkeypatch):
    import dataclasses
    import types

    import prepare as entry

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


def test_help_imports_nothing_heavy():
    code = "import sys, prepare\ntry: prepare.main(['--help'])\nexcept SystemExit as e: assert e.code == 0\n"
    code += "assert not {'torch', 'transformers', 'numpy', 'tokenizers'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "--tokenizer" in done.stdout, done.stderr


def children_of(process):
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True).stdout
    return [int(part) for part in found.split()]


def heed_interrupts():
    """What a shell starts in the background ignores SIGINT, and so does all that it starts: not here."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
@pytest.mark.parametrize(("how", "kind"), [(signal.SIGINT, "path"), (signal.SIGKILL, "path"), (signal.SIGKILL, "bpe")])
def test_stopped_and_started_again_it_ends_with_the_same_bytes(home, tmp_path, how, kind):
    """Two worker processes over 5 MB, stopped in the middle: no process stays, and the next run goes on."""
    draw = np.random.default_rng(0)
    words = ["".join(map(chr, draw.integers(97, 123, size=draw.integers(2, 9)))) for _ in range(20_000)]
    text = tmp_path / "text.txt"
    tokenizer = "bpe:1000"
    if kind == "path":
        from data.text.tokenizers import train_bpe

        tokenizer = tmp_path / "tokenizer"
        train_bpe(words, 1000).save_pretrained(tokenizer)
    line = [
        sys.executable,
        "prepare.py",
        "--dataset",
        "x",
        "--text",
        text,
        "--tokenizer",
        tokenizer,
        "--num_workers",
        "2",
    ]
    line = [*map(str, line)]
    journal = home / "datasets/.x.preparing/journal.json"
    for size in (700_000, 2_000_000, 6_000_000):
        text.write_text(" ".join(words[integer] for integer in draw.integers(len(words), size=size)))
        process = subprocess.Popen(
            line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts
        )
        while process.poll() is None and not (journal.exists() and json.loads(journal.read_text())["pieces"]):
            time.sleep(0.01)
        workers = children_of(process)
        process.send_signal(how)
        said, errors = process.communicate(timeout=60)
        if process.returncode != 0:
            break
        shutil.rmtree(home / "datasets/x")  # on a busy machine it may be done before this process has a turn
    assert process.returncode == (130 if how == signal.SIGINT else -how), said + errors
    assert len(workers) >= 2 and not (home / "datasets/x").exists()
    if how == signal.SIGINT:
        assert "interrupted" in said and not errors
    deadline = time.monotonic() + 10
    while any(os.path.exists(f"/proc/{worker}") for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(os.path.exists(f"/proc/{each}") for each in workers)
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "going on after" in done.stdout, done.stdout + done.stderr
    prepare(*line[2:-2], "--num_workers", "1", "--out", tmp_path / "whole" / "x")
    for path in (tmp_path / "whole/x").iterdir():
        assert path.read_bytes() == (home / "datasets/x" / path.name).read_bytes(), path.name
