"""Whose fault it is that a checkpoint cannot be loaded: its own, the disk's, or the machine's."""

import errno
import os

import pytest
import torch
from safetensors import SafetensorError

from storage.safe_read import NoFile
from trainer.checkpointing.load_errors import UnusableCheckpoint, reading

CONTENT = [ValueError("x"), KeyError("x"), RuntimeError("x"), RecursionError("x"), SafetensorError("x"), NoFile("x")]
CONTENT += [FileNotFoundError(errno.ENOENT, "gone"), NotImplementedError("x")]


@pytest.mark.parametrize("error", CONTENT, ids=lambda each: type(each).__name__)
def test_its_own(error):
    with pytest.raises(UnusableCheckpoint, match="resume from another checkpoint"), reading("out/checkpoint-4"):
        raise error


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.EACCES])
def test_the_disks(number):
    with pytest.raises(UnusableCheckpoint, match="start again when it can be read") as caught, reading("checkpoint-4"):
        raise OSError(number, os.strerror(number))
    assert "another checkpoint" not in str(caught.value) and os.strerror(number) in str(caught.value)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("x"), MemoryError(), torch.distributed.DistNetworkError("x")])
def test_the_machines(error):
    with pytest.raises(type(error)), reading("checkpoint-4"):
        raise error
