"""The mean loss over a held-out set, against sums by hand."""

import random

import numpy as np
import pytest
import torch
from tiny_training import Regression, Samples
from torch.utils.data import default_collate

from trainer.checkpoint_scores import CheckpointScores
from trainer.evaluator import evaluate


@pytest.mark.parametrize("batch_size", [1, 4, 7, 100])
def test_every_sample_counts_alike(batch_size):
    model, data = Regression().eval(), Samples(11)
    found = evaluate(model, data, default_collate, batch_size, "cpu")
    singly = [model(**default_collate([data[index]])) for index in range(11)]
    error = sum(each["losses"]["error"].item() for each in singly) / 11
    assert found["loss_error"] == pytest.approx(error, rel=1e-6)
    assert found["loss"] == pytest.approx(sum(each["loss"].item() for each in singly) / 11, rel=1e-5)


class Sequences:
    """Sequences of which only some tokens carry loss."""

    def __len__(self):
        return 3

    def __getitems__(self, indices):
        rows = torch.tensor([[1, 2, -100, -100], [3, 4, 5, 6], [-100] * 4])
        return {"input_ids": rows[indices], "shift_labels": rows[indices]}


class Mean(torch.nn.Module):
    def forward(self, input_ids, shift_labels):
        return {"loss": shift_labels[shift_labels != -100].float().mean()}


def test_scoring_a_checkpoint_leaves_all_random_generators_as_they_were(tmp_path):
    def load(folder):
        random.random(), np.random.random(), torch.rand(1)
        return Regression().eval()

    score = CheckpointScores(load, Samples(11), default_collate, None, None, 2, 4, None, tmp_path)
    for generator in (random.seed, np.random.seed, torch.manual_seed):
        generator(7)
    expected = random.random(), np.random.random(), torch.rand(1)
    for generator in (random.seed, np.random.seed, torch.manual_seed):
        generator(7)
    assert "loss_error" in score(tmp_path / "checkpoint-1")
    assert (random.random(), np.random.random(), torch.rand(1)) == expected


def test_every_token_of_text_counts_alike():
    for size in (1, 2, 3):
        assert evaluate(Mean(), Sequences(), lambda batch: batch, size, "cpu") == {"loss": pytest.approx(21 / 6)}
