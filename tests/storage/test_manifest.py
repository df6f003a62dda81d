"""Manifests against damaged files, and damaged manifests."""

import hashlib
import json
import os

import pytest

from storage import manifest


@pytest.fixture
def folder(tmp_path):
    checkpoint = tmp_path / "checkpoint-7"
    (checkpoint / "base").mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    (checkpoint / "run.yaml").write_text("a: 1\n")
    (checkpoint / "base" / "config.json").write_text("{}")
    manifest.write(checkpoint, step=7, world_size=2, versions={"torch": "2.13.0"})
    return checkpoint


def test_content(folder):
    content = json.loads((folder / "manifest.json").read_text())
    assert content["step"] == 7 and content["world_size"] == 2 and content["versions"] == {"torch": "2.13.0"}
    assert sorted(content["files"]) == ["base/config.json", "model.safetensors", "run.yaml"]
    entry = content["files"]["model.safetensors"]
    assert entry == {"size": 10240, "sha256": hashlib.sha256(bytes(range(256)) * 40).hexdigest()}
    assert manifest.verify(folder) is None and manifest.read(folder) == content


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "gone": (lambda path: path.unlink(), "has no"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:12]), "12 of 10240 "),
    "longer": (lambda path: path.write_bytes(path.read_bytes() + b"x"), "changed"),
    "flipped at the start": (lambda path: flip(path, 0), "SHA-256"),
    "flipped in the middle": (lambda path: flip(path, 5119), "SHA-256"),
    "flipped at the end": (lambda path: flip(path, 10239), "SHA-256"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "folder"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_files(folder, name, monkeypatch):
    monkeypatch.setattr(manifest, "ALWAYS_HASHED", 0)
    damage, text = DAMAGE[name]
    damage(folder / "model.safetensors")
    fault = manifest.verify(folder)
    assert text in fault and "model.safetensors" in fault
    assert (manifest.verify(folder, deep=False) is None) == name.startswith("flipped")  # the size is the same


def test_small_files_are_always_hashed(folder):
    (folder / "run.yaml").write_text("a: 2\n")
    fault = manifest.verify(folder, deep=False)
    assert "run.yaml" in fault and fault == manifest.verify(folder)


def test_symlinks_inside_the_folder_are_refused(folder, tmp_path):
    (tmp_path / "elsewhere").write_bytes((folder / "model.safetensors").read_bytes())
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    assert "symlink" in manifest.verify(folder)
    os.rename(folder / "base", tmp_path / "base")
    (folder / "base").symlink_to(tmp_path / "base")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").write_bytes((tmp_path / "elsewhere").read_bytes())
    assert "base/config.json" in manifest.verify(folder)


def test_a_symlink_to_the_folder_is_followed(folder, tmp_path):
    (tmp_path / "best-checkpoint").symlink_to("checkpoint-7")
    assert manifest.verify(tmp_path / "best-checkpoint") is None


BAD = {
    "truncated": lambda text: text[:100],
    "not utf-8": lambda text: b"\xff\xfe" + text.encode(),
    "a list": lambda text: "[]",
    "nested": lambda text: "[" * 100_000,
    "no files": lambda text: text.replace('"files"', '"file"'),
    "a word for a step": lambda text: text.replace('"step": 7', '"step": "7"'),
    "a negative step": lambda text: text.replace('"step": 7', '"step": -7'),
    "true for a step": lambda text: text.replace('"step": 7', '"step": true'),
    "older": lambda text: text.replace('"format": 2', '"format": 1'),
    "without a format": lambda text: text.replace('"format": 2,', ""),
    "no digest": lambda text: text.replace('"sha256"', '"md5"'),
    "a size that is none": lambda text: text.replace('"size": 10240', '"size": 1e4'),
    "out of the folder": lambda text: text.replace("run.yaml", "../run.yaml"),
    "absolute": lambda text: text.replace('"run.yaml"', '"/etc/passwd"'),
    "with backslashes": lambda text: text.replace("run.yaml", "..\\\\run.yaml"),
    "itself": lambda text: text.replace("run.yaml", "manifest.json"),
    "a number of five thousand digits": lambda text: text.replace("10240", "1" * 5000),
    "with a zero": lambda text: text.replace("run.yaml", "run\\u0000.yaml"),
    "empty name": lambda text: text.replace('"run.yaml"', '""'),
}


@pytest.mark.parametrize("name", BAD)
def test_a_damaged_manifest(folder, name):
    text = BAD[name]((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match="manifest.json"):
        manifest.read(folder)
    assert "manifest.json" in manifest.verify(folder)


@pytest.mark.parametrize("kind", ["absent", "a folder", "a symlink"])
def test_no_manifest(folder, kind):
    (folder / "manifest.json").unlink()
    if kind == "a folder":
        (folder / "manifest.json").mkdir()
    elif kind == "a symlink":
        (folder / "manifest.json").symlink_to("run.yaml")
    assert "manifest.json" in manifest.verify(folder)


def test_publish_into_a_folder_with_other_files(folder, tmp_path):
    """The final model beside metrics and checkpoints; files of the previous model are replaced."""
    out, staged = tmp_path / "out", tmp_path / "staged"
    files = {"out/metrics.jsonl": "m", "out/base/old": "o", "out/config.json": "old"}
    for name, text in (files | {"staged/config.json": "new", "staged/base/config.json": "{}"}).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    manifest.publish_into(staged, out, step=3, world_size=1)
    assert sorted(manifest.read(out)["files"]) == ["base/config.json", "config.json"]
    assert manifest.verify(out) is None and (out / "metrics.jsonl").read_text() == "m"
    assert (out / "config.json").read_text() == "new" and not (out / "base/old").exists()


def test_file_names_in_messages_are_shortened_and_printable(folder):
    content = json.loads((folder / "manifest.json").read_text())
    for name, shown in (("a" * 5000, "a" * 200 + " …"), ("a\x1b[2J\nb", "a\\x1b[2J\\nb")):
        for prefix in ("", "../"):
            files = {f"{prefix}{name}": {"size": 1, "sha256": "0" * 64}}
            (folder / "manifest.json").write_text(json.dumps(content | {"files": files}))
            fault = manifest.verify(folder)
            assert f" {prefix}{shown}"[:200] in fault and len(fault) < 300 and fault.isprintable()
