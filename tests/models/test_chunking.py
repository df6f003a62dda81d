"""Executing chunks, against the naive version that keeps every prediction."""

import math

import pytest
import torch

import models.mlp
from models.chunking import ChunkQueue, RealTimeChunks, TemporalEnsemble, masked_mean

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


def test_real_time_chunks_by_hand():
    plan = RealTimeChunks(steps=2, delay=1)
    plan.add(torch.zeros(5, 1))
    assert [plan.next().item() for _ in range(2)] == [0, 0] and plan.needs_chunk
    plan.add(torch.full((5, 1), 12.0))  # three actions of the first chunk are left; one fills the delay
    assert plan.plan[:, 0].tolist() == pytest.approx([0, 12 / 3, 24 / 3, 12, 12])
    assert [plan.next().item() for _ in range(2)] == pytest.approx([0, 4])


def test_real_time_chunks_are_smooth_at_borders():
    """Chunks of a sine, each with an error of its own; jerk is the third difference of the executed actions."""
    errors = torch.randn(40, generator=torch.Generator().manual_seed(0)) * 0.3

    def jerk(plan):
        executed = []
        for step in range(120):
            if plan.needs_chunk:
                ahead = torch.arange(step, step + 12)
                plan.add((torch.sin(ahead / 20) + errors[step // 4])[:, None])
            executed.append(plan.next())
        return torch.diff(torch.cat(executed), n=3).abs().max()

    assert jerk(RealTimeChunks(steps=4, delay=1)) < jerk(ChunkQueue(4)) / 3


@pytest.mark.slow
@pytest.mark.keys("model(act).inference_delay", "model(mlp).inference_delay")
@pytest.mark.keys("model(diffusion).inference_delay", "model(flow).inference_delay")
@pytest.mark.keys("model(regression).inference_delay")
@pytest.mark.parametrize("name", ["act", "diffusion", "flow", "mlp", "regression"])
def test_the_previous_chunk_goes_on_during_the_delay(build, name):
    net, states = build(name, inference_delay=2, n_action_steps=2).eval(), torch.randn(4, 6)
    first = net.predict_chunk({"state": states[:1]})[0]
    net.reset()
    torch.testing.assert_close(roll(net, states), first[:4])
    for keys in ({"n_action_steps": 3}, {"temporal_ensemble_coeff": 0.1}, {}):
        with pytest.raises(ValueError, match="inference_delay"):
            build(name, inference_delay=2, **keys)


@pytest.mark.slow
@pytest.mark.keys("model(act).past_actions", "model(mlp).past_actions", "model(regression).past_actions")
@pytest.mark.keys("model(diffusion).past_actions", "model(flow).past_actions")
@pytest.mark.parametrize("name", ["act", "diffusion", "flow", "mlp", "regression"])
def test_past_actions_are_not_executed(build, name):
    net, states = build(name, past_actions=2).eval(), torch.randn(3, 6)
    chunk = net.predict_chunk({"state": states[:1]})[0]
    net.reset()
    assert chunk.shape == (5, 3)
    torch.testing.assert_close(roll(net, states), chunk[2:])
    assert net._plan.needs_chunk
    with pytest.raises(ValueError, match="n_action_steps: 4.*past_actions"):
        build(name, past_actions=2, n_action_steps=4)


@torch.no_grad()
def roll(net, states):
    return torch.stack([net.select_action({"state": state[None], "instruction": ["lift"]}) for state in states])


@pytest.mark.keys("model(act).n_action_steps", "model(mlp).n_action_steps", "model(regression).n_action_steps")
@pytest.mark.keys("model(diffusion).n_action_steps", "model(flow).n_action_steps")
@pytest.mark.parametrize(("keys", "steps"), [({"n_action_steps": 2}, 2), ({}, CHUNK)])
def test_select_action_predicts_once_per_executed_chunk(build, keys, steps):
    net, states = build("mlp", **keys).eval(), torch.randn(7, 6)
    chunks = net(states)["actions"]
    expected = torch.stack([chunks[step - step % steps, step % steps] for step in range(7)])
    torch.testing.assert_close(roll(net, states), expected)


@pytest.mark.keys("model(act).temporal_ensemble_coeff", "model(mlp).temporal_ensemble_coeff")
@pytest.mark.keys("model(diffusion).temporal_ensemble_coeff", "model(flow).temporal_ensemble_coeff")
@pytest.mark.keys("model(regression).temporal_ensemble_coeff")
@pytest.mark.parametrize("keys", [{"n_action_steps": 4}, {"temporal_ensemble_coeff": 0.01}])
def test_reset_forgets_the_episode_before(build, keys):
    net, states = build("mlp", **keys).eval(), torch.randn(3, 6)
    first = roll(net, states)
    assert not torch.equal(first, roll(net, states))
    net.reset()
    assert torch.equal(first, roll(net, states))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"temporal_ensemble_coeff": 0.01, "n_action_steps": 2}, "temporal_ensemble_coeff.*n_action_steps: 2"),
        ({"n_action_steps": 6, "chunk_size": 5}, "n_action_steps: 6.*chunk_size.*5"),
    ],
)
def test_executed_steps_must_fit_the_predictions(keys, message):
    with pytest.raises(ValueError, match=message):
        models.mlp.Config(**keys)


def test_masked_mean_by_hand():
    errors = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [70.0, 80.0]]])
    is_pad = torch.tensor([[False, False], [False, True]])
    assert masked_mean(errors, is_pad).item() == pytest.approx((1 + 2 + 3 + 4 + 5 + 6) / 6)
    assert masked_mean(errors, None).item() == pytest.approx(171 / 8)
    assert masked_mean(errors, torch.ones(2, 2, dtype=torch.bool)).item() == 0
