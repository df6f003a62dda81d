"""Fixtures of the trainer's tests."""

import threading

import pytest

from trainer.checkpointing import async_writer


@pytest.fixture
def slow_disk(monkeypatch):
    """Deletions wait until the returned event is set."""
    allowed, discard = threading.Event(), async_writer.discard

    def late(path):
        allowed.wait(20)
        discard(path)

    monkeypatch.setattr(async_writer, "discard", late)
    yield allowed
    allowed.set()
