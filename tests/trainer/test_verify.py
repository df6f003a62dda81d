"""`python -m trainer.verify`: what it says of folders that were made, and harmed, by hand."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from storage import manifest
from trainer import verify

ROOT = Path(__file__).resolve().parent.parent.parent


def make(folder, step=40, **facts):
    """A checkpoint's folder: twelve bytes of weights, a JSON file, one file in a folder of its own."""
    (folder / "base").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"twelve bytes")
    (folder / "optimizer.json").write_text("{}")
    (folder / "base" / "part.bin").write_bytes(bytes(2000))
    manifest.write(folder, step=step, world_size=1, **facts)
    return folder


@pytest.fixture
def out(tmp_path):
    for step in (9, 40, 100):
        make(tmp_path / "out" / f"checkpoint-{step}", step)
    return tmp_path / "out"


def verified(capsys, *words):
    code = verify.main([str(word) for word in words])
    shown = capsys.readouterr()
    return code, (shown.out + shown.err).splitlines()


def change_manifest(folder, change):
    content = json.loads((folder / manifest.NAME).read_text())
    change(content)
    (folder / manifest.NAME).write_text(json.dumps(content))


def test_complete_checkpoints_sorted_by_step(out, capsys):
    whole = "complete (3 files, 0.0 MB, step {})"
    lines = [f"checkpoint-{step}: {whole.format(step)}" for step in (9, 40, 100)]
    assert verified(capsys, out) == (0, [*lines, "a resume takes checkpoint-100"])
    (out / "notes.txt").write_text("not part of it")
    (out / "checkpoint-9" / "later.txt").write_text("not part of it")
    (out / "best-checkpoint").symlink_to("checkpoint-9")
    (out / ".saving-checkpoint-101.host.1").mkdir()
    assert verified(capsys, out) == (0, [*lines, "a resume takes checkpoint-100"])


def flipped(folder):
    (folder / "model.safetensors").write_bytes(b"twelve bytez")


HARM = {
    "cut": (
        lambda folder: os.truncate(folder / "model.safetensors", 5),
        "has a truncated model.safetensors (5 of 12 b",
    ),
    "grown": (lambda folder: os.truncate(folder / "optimizer.json", 5), "has a changed optimizer.json (5 of 2 bytes)"),
    "missing": (lambda folder: (folder / "optimizer.json").unlink(), "has no optimizer.json"),
    "missing inside": (lambda folder: (folder / "base/part.bin").unlink(), "has no base/part.bin"),
    "no manifest": (lambda folder: (folder / manifest.NAME).unlink(), "has no manifest.json"),
    "half a manifest": (lambda folder: os.truncate(folder / manifest.NAME, 50), "has a damaged manifest.json"),
    "an empty manifest": (lambda folder: os.truncate(folder / manifest.NAME, 0), "has a damaged manifest.json"),
    "another's manifest": (lambda folder: (folder / manifest.NAME).write_text("[]"), "has a damaged manifest.json"),
    "no files": (lambda folder: change_manifest(folder, lambda c: c["files"].clear()), "that lists no file"),
}


@pytest.mark.parametrize("name", HARM)
def test_damaged_checkpoints(out, capsys, name):
    harm, text = HARM[name]
    harm(out / "checkpoint-100")
    for more in ([], ["--quick"]):
        code, lines = verified(capsys, out, *more)
        assert code == 1 and lines[2].startswith("checkpoint-100: has ") and text in lines[2]
        assert lines[3] == "a resume takes checkpoint-40"
        assert all(": complete" in line for line in lines[:2])


def test_quick_does_not_hash_large_files(out, capsys, monkeypatch):
    monkeypatch.setattr(manifest, "ALWAYS_HASHED", 0)  # small files are always hashed
    flipped(out / "checkpoint-40")
    code, lines = verified(capsys, out)
    assert code == 1 and lines[1] == "checkpoint-40: has a damaged model.safetensors (its SHA-256 differs)"
    assert lines[-1] == "a resume takes checkpoint-100"
    assert verified(capsys, out, "--quick")[0] == 0


def test_no_complete_checkpoint(out, capsys):
    for step in (9, 40, 100):
        flipped(out / f"checkpoint-{step}")
    code, lines = verified(capsys, out)
    assert code == 1 and lines[-1].startswith("a resume finds no")


def test_an_empty_folder(out, capsys):
    (out / "checkpoint-200").mkdir()
    code, lines = verified(capsys, out)
    assert code == 1 and lines[3:] == ["checkpoint-200: has no manifest.json", "a resume takes checkpoint-100"]


def test_a_single_checkpoint(out, capsys, monkeypatch):
    assert verified(capsys, out / "checkpoint-9") == (0, ["checkpoint-9: complete (3 files, 0.0 MB, step 9)"])
    monkeypatch.chdir(out / "checkpoint-9")
    flipped(out / "checkpoint-9")
    assert verified(capsys, ".") == (1, ["checkpoint-9: has a damaged model.safetensors (its SHA-256 differs)"])


def test_the_final_model(out, capsys):
    (out / "model.safetensors").write_bytes(b"final")
    manifest.write(out, step=101, world_size=1, names=["model.safetensors"])
    code, lines = verified(capsys, out)
    assert code == 0 and lines[3:] == [
        "final model: complete (1 file, 0.0 MB, step 101)",
        "a resume takes checkpoint-100",
    ]
    (out / "model.safetensors").write_bytes(b"finaL")
    assert verified(capsys, out)[1][3] == "final model: has a damaged model.safetensors (its SHA-256 differs)"


def test_a_final_model_without_checkpoints(tmp_path, capsys):
    make(tmp_path / "out")
    code, lines = verified(capsys, tmp_path / "out")
    assert code == 0 and lines[0].startswith("final model: complete") and lines[1].startswith("a resume finds no")


@pytest.mark.parametrize("kind", ["relative", "absolute"])
def test_checkpoints_in_another_folder(tmp_path, capsys, kind):
    make(tmp_path / "elsewhere" / "checkpoint-7", 7)
    (tmp_path / "out").mkdir()
    folder = "../elsewhere" if kind == "relative" else str(tmp_path / "elsewhere")
    (tmp_path / "out" / "checkpoints.json").write_text(json.dumps({"folder": folder}))
    assert verified(capsys, tmp_path / "out")[1] == [
        "checkpoint-7: complete (3 files, 0.0 MB, step 7)",
        "a resume takes checkpoint-7",
    ]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"folder": 3}', '{"folder": "\\u0000"}', '{"folder": "gone"}'])
def test_a_damaged_checkpoints_json(out, capsys, content):
    (out / "checkpoints.json").write_text(content)
    assert verified(capsys, out)[1][-1] == "a resume takes checkpoint-100"


OUTSIDE = ["../secret", "/etc/passwd", "base/../../secret", "..", ".", "", "base\\..\\x", "a\0b", "manifest.json"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_manifest_that_names_files_outside_its_folder(out, capsys, name, monkeypatch):
    """Even with the true size and hash of what it points at."""
    secret = out / "secret"
    secret.write_text("secret")
    change_manifest(out / "checkpoint-100", lambda content: content["files"].update({name: manifest.entry(secret)}))
    opened = []
    monkeypatch.setattr(manifest, "entry", lambda path: opened.append(path))
    code, lines = verified(capsys, out / "checkpoint-100")
    assert code == 1 and "manifest.json" in lines[0] and len(lines) == 1 and not opened


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_symlinks_are_not_followed(out, capsys, kind):
    folder = out / "checkpoint-100"
    (out / "base").mkdir()
    name = "model.safetensors" if kind == "file" else "base"
    (folder / name).rename(out / "moved")
    (folder / name).symlink_to(out / "moved")
    code, lines = verified(capsys, folder)
    assert code == 1 and "symlink" in lines[0]


def test_control_characters_are_not_printed(out, capsys):
    change_manifest(out / "checkpoint-9", lambda content: content["files"].update({"\x1b[2J": {"size": 0}}))
    assert "\x1b" not in verified(capsys, out / "checkpoint-9")[1][0]
    digest = "0" * 64
    change = {"files": {"a\nb\x1b[2J": {"size": 1, "sha256": digest}}}
    change_manifest(out / "checkpoint-9", lambda content: content.update(change))
    assert r"a\nb\x1b[2J" in verified(capsys, out / "checkpoint-9")[1][0]


def test_nothing_to_verify(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for folder, text in (
        (tmp_path, "holds no checkpoint"),
        (tmp_path / "x", "no such"),
        (tmp_path / "file", "no such"),
    ):
        code, lines = verified(capsys, folder)
        assert code == 2 and len(lines) == 1 and lines[0].startswith("error: ")
        assert str(folder) in lines[0] and (text in lines[0] or "is not a folder" in lines[0])


def elsewhere(out, tmp_path, text="checkpointing: {dirpath: FOLDER}\n"):
    """The checkpoints in a folder of their own, which run.yaml names; a killed run has no checkpoints.json yet."""
    (tmp_path / "there").mkdir()
    for path in list(out.iterdir()):
        path.rename(tmp_path / "there" / path.name)
    (out / "run.yaml").write_text(text.replace("FOLDER", str(tmp_path / "there")))


def test_checkpoints_in_another_folder_before_checkpoints_json(out, tmp_path, capsys):
    elsewhere(out, tmp_path)
    code, lines = verified(capsys, out)
    assert code == 0 and len(lines) == 4 and lines[-1] == "a resume takes checkpoint-100"


def test_run_yaml_precedes_checkpoints_json(out, tmp_path, capsys):
    elsewhere(out, tmp_path)
    make(tmp_path / "old" / "checkpoint-7", 7)
    (out / "checkpoints.json").write_text(json.dumps({"folder": "../old"}))
    assert verified(capsys, out)[1][-1] == "a resume takes checkpoint-100"
    (tmp_path / "there").rename(tmp_path / "moved")  # what run.yaml names is not there any more
    assert verified(capsys, out)[1][-1] == "a resume takes checkpoint-7"


NO_FOLDERS = ["FOLDER/x", "", "null", "7", "[a]", "{a: b}", '"\\0"', "a" * 5000, "!!python/name:os.x ''", "*a"]


@pytest.mark.slow
@pytest.mark.parametrize("said_folder", [*NO_FOLDERS, "[" * 20_000], ids=range(len(NO_FOLDERS) + 1))
def test_a_run_yaml_without_a_valid_folder(out, tmp_path, capsys, said_folder):
    (out / "run.yaml").write_text(f"checkpointing:\n  dirpath: {said_folder}\n")
    assert verified(capsys, out)[1][-1] == "a resume takes checkpoint-100"


def test_a_deleted_working_folder(tmp_path, capsys, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    code, lines = verified(capsys, "out")
    assert code == 2 and len(lines) == 1 and lines[0].startswith("error: out ")


@pytest.mark.slow
def test_command_line(out):
    """It imports no torch."""
    code = (
        "import runpy, sys\nsys.argv = ['verify', sys.argv[1]]\n"
        "try: runpy.run_module('trainer.verify', run_name='__main__')\n"
        "finally: assert not {'torch', 'transformers', 'numpy', 'yaml'} & set(sys.modules), 'heavy'\n"
    )
    flipped(out / "checkpoint-100")
    done = subprocess.run([sys.executable, "-c", code, str(out)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stdout.splitlines()[-1] == "a resume takes checkpoint-40"
    words = [sys.executable, "-m", "trainer.verify"]
    helped = subprocess.run([*words, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert helped.returncode == 0 and "--quick" in helped.stdout
    for wrong in ([], [str(out), "--quik"], [str(out / "nothing")]):
        done = subprocess.run([*words, *wrong], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2 and "Traceback" not in done.stderr
