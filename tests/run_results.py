"""What a run leaves behind: metrics, weights, and the error lines of a run that is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file

from loader.command_line.entry import command_line


def metrics(folder, key):
    """`{step: value}` of the lines of metrics.jsonl that have a key."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[key] for line in lines if key in line}


def tensors(source):
    """The tensors of a trainer's model, or of a safetensors file (of a folder: its model)."""
    if hasattr(source, "model"):
        return source.model.state_dict()
    return load_file(source / "model.safetensors" if source.is_dir() else source)


def same(left, right):
    """Whether two of what `tensors` takes are equal bit for bit; dicts of tensors are compared as they are."""
    left, right = (source if isinstance(source, dict) else tensors(source) for source in (left, right))
    return left.keys() == right.keys() and all(torch.equal(left[name].cpu(), right[name].cpu()) for name in left)


def error_lines(capsys, call, *arguments, code=2, **options):
    """The error lines of a call that must end with this exit code, without a traceback."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as error:
        command_line(call, *arguments, **options)
    shown = capsys.readouterr().err
    lines = [line for line in shown.splitlines() if line.startswith("error: ")]
    assert error.value.code == code and lines and "Traceback" not in shown, (error.value.code, shown)
    return lines


def error_line(capsys, call, *arguments, **options):
    (line,) = error_lines(capsys, call, *arguments, **options)
    return line
