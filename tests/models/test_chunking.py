"""Executing chunks, against the naive version that keeps every prediction."""

import math
from types import SimpleNamespace

import pytest
import torch

import models.mlp
from models.chunking import ChunkQueue, TemporalEnsemble, masked_mean

STEPS, CHUNK, ACTION = 13, 5, 2


def predictions() -> torch.Tensor:
    """(STEPS, CHUNK, ACTION): what a policy would predict at each step."""
    return torch.randn(STEPS, CHUNK, ACTION, generator=torch.Generator().manual_seed(0))


def test_queue_executes_the_first_actions_of_each_chunk():
    chunks, queue, executed = predictions(), ChunkQueue(3), []
    for step in range(STEPS):
        assert queue.needs_chunk == (step % 3 == 0)
        if queue.needs_chunk:
            queue.add(chunks[step])
        executed.append(queue.next())
    expected = [chunks[step - step % 3, step % 3] for step in range(STEPS)]
    assert torch.equal(torch.stack(executed), torch.stack(expected))


@pytest.mark.parametrize("coefficient", [0.0, 0.01, 1.0, -0.5])
def test_ensemble_equals_the_naive_table(coefficient):
    chunks, ensemble = predictions(), TemporalEnsemble(coefficient, CHUNK)
    for step in range(STEPS):
        assert ensemble.needs_chunk
        ensemble.add(chunks[step])
        # Oldest first: the chunk predicted at `start` speaks of this step at its index step - start.
        made = [chunks[start, step - start] for start in range(max(0, step - CHUNK + 1), step + 1)]
        weights = [math.exp(-coefficient * i) for i in range(len(made))]
        expected = sum(weight * action for weight, action in zip(weights, made, strict=True)) / sum(weights)
        torch.testing.assert_close(ensemble.next(), expected)


def policy(**keys):
    torch.manual_seed(0)
    sizes = {
        "state_dim": 3,
        "action_dim": ACTION,
        "chunk_size": CHUNK,
        "num_images": 0,
        "image_height": 0,
        "image_width": 0,
    }
    config = models.mlp.Config(**sizes, hidden_dim=8, **keys)
    return models.mlp.build(config, SimpleNamespace(cache_dir=None)).eval()


@torch.no_grad()
def roll(net, states):
    return torch.stack([net.select_action({"state": state[None], "instruction": ["lift"]}) for state in states])


@pytest.mark.keys("model(act).n_action_steps", "model(mlp).n_action_steps")
def test_select_action_predicts_once_per_executed_chunk():
    net, states = policy(n_action_steps=2), torch.randn(6, 3)
    chunks = net(states)["actions"]
    expected = torch.stack([chunks[step - step % 2, step % 2] for step in range(6)])
    torch.testing.assert_close(roll(net, states), expected)


def test_select_action_executes_whole_chunks_by_default():
    net, states = policy(), torch.randn(7, 3)
    expected = torch.cat([net(states[:1])["actions"][0], net(states[5:6])["actions"][0, :2]])
    torch.testing.assert_close(roll(net, states), expected)


@pytest.mark.keys("model(act).temporal_ensemble_coeff", "model(mlp).temporal_ensemble_coeff")
def test_reset_forgets_the_episode_before():
    for keys in ({"n_action_steps": 4}, {"temporal_ensemble_coeff": 0.01}):
        net, states = policy(**keys), torch.randn(3, 3)
        first = roll(net, states)
        assert not torch.equal(first, roll(net, states))
        net.reset()
        assert torch.equal(first, roll(net, states))


def test_ensembling_needs_every_step():
    with pytest.raises(ValueError, match="temporal_ensemble_coeff.*n_action_steps: 2"):
        models.mlp.Config(temporal_ensemble_coeff=0.01, n_action_steps=2)


def test_executed_steps_must_be_in_the_chunk():
    with pytest.raises(ValueError, match="n_action_steps: 6.*chunk_size.*5"):
        models.mlp.Config(n_action_steps=6, chunk_size=5)


def test_masked_mean_by_hand():
    errors = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [70.0, 80.0]]])
    is_pad = torch.tensor([[False, False], [False, True]])
    assert masked_mean(errors, is_pad).item() == pytest.approx((1 + 2 + 3 + 4 + 5 + 6) / 6)
    assert masked_mean(errors, None).item() == pytest.approx(171 / 8)
    assert masked_mean(errors, torch.ones(2, 2, dtype=torch.bool)).item() == 0
