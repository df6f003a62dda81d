"""The fenced blocks of a document, its YAML examples with their placeholders filled in, and `--check` of a command."""

import contextlib
import io
import os
import re
from pathlib import Path

import pytest
import yaml

from loader.command_line.entry import command_line, run_config

SHARED = Path(os.environ.get("KEEL_SHARED", Path(__file__).resolve().parent.parent.parent / "shared"))
FENCE = re.compile(r"^([ \t]*)```([\w+-]*)[ \t]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)
PLACEHOLDER = re.compile(r"<[a-z][^<>\n]*>")
# What stands for a placeholder, by key where the type alone does not say it.
BY_KEY = {
    "optimizer.name": "AdamW",
    "scheduler.name": "ReduceLROnPlateau",
    "scheduler.mode": "min",
    "scheduler.threshold_mode": "rel",
    "logging.logger_type": "WandbLogger",
    "trainer.accelerator": "cpu",
    "trainer.devices": 1,
    "checkpointing.monitor": ["val_loss"],
    "optimizer.betas": [0.9, 0.95],
    "dataset.train_dataset.anchors": "centroid",
    "dataset.train_dataset.clip_length": 4,
    "dataset.train_dataset.crop_size": 8,
    "dataset.train_dataset.dir.labels_suffix": ".csv",
    "dataset.train_dataset.dir.vid_suffix": ".tif",
    "model.activation": "relu",
    "model.d_model": 16,
    "model.embedding_meta.pos.mode": "learned",
    "model.embedding_meta.pos.temperature": 100,
    "model.embedding_meta.temp.mode": "learned",
    "model.embedding_meta.temp.temperature": 100,
    "model.encoder_cfg.model_name": "resnet18",
    "model.encoder_cfg.backend": "timm",
    "model.encoder_cfg.in_chans": 3,
    "model.encoder_cfg.pretrained": False,
}
BY_TYPE = {"int": 2, "float": 0.5, "bool": True, "dict": {}, "list[int]": [1], "list[float]": [0.5]}


def blocks(path: Path) -> list[tuple[str, str]]:
    """(language, text) of each fenced block."""
    return [(language.lower(), text) for _, language, text in FENCE.findall(path.read_text(encoding="utf-8"))]


def filled(text: str) -> dict:
    """A YAML example as a mapping, each `<type>` replaced by a value of that type."""
    return _fill(yaml.safe_load(_readable(text)) or {}, "")


def _readable(text: str) -> str:
    """A placeholder with keys below it says that they are optional: it gives way to them."""
    lines = text.splitlines()
    for index, line in enumerate(lines):
        below = next((each for each in lines[index + 1 :] if each.strip() and not each.lstrip().startswith("#")), "")
        if PLACEHOLDER.search(line) and _indent(below) > _indent(line):
            lines[index] = PLACEHOLDER.sub("", line)
    return "\n".join(lines)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _fill(value, path: str):
    if isinstance(value, dict):
        return {key: _fill(each, f"{path}.{key}".strip(".")) for key, each in value.items()}
    if not (isinstance(value, str) and PLACEHOLDER.fullmatch(value)):
        return value
    kinds = [kind.strip() for kind in value.strip("<>").split("|")]
    if path in BY_KEY:
        return BY_KEY[path]
    if "null" in kinds:
        return None
    return BY_TYPE.get(kinds[0], "word")


def checked(*words: str) -> tuple[int, list[str]]:
    """Exit code and error lines of `train.py … --check`."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as left:
        command_line(run_config, [*words, "--check"])
    return left.value.code or 0, err.getvalue().splitlines()
