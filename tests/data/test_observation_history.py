"""Several states to an observation, and chunks that begin before it, as in Diffusion Policy."""

import numpy as np
import pytest
import torch
from demonstration_files import build_act, everything, run_in, write_act_folder

from data.demonstrations import Config, ObservationEncoder
from data.demonstrations.processor import Processor

LENGTHS, CHUNK = (6, 3), 4
KEYS = {"n_obs_steps": 3, "past_actions": 2, "chunk_size": CHUNK}


@pytest.fixture
def written(tmp_path):
    return write_act_folder(tmp_path / "act", LENGTHS, cameras={"top": (24, 32)})


@pytest.mark.keys("dataset(demonstrations).n_obs_steps", "dataset(demonstrations).past_actions")
def test_windows_are_clamped_to_the_episode(tmp_path, written):
    bundle = build_act(tmp_path, n_obs_steps=3, past_actions=2, chunk_size=CHUNK)
    batch, row = everything(bundle.train_dataset), 0
    for arrays in written:
        states, actions = arrays["observations/qpos"], arrays["action"]
        frames = arrays["observations/images/top"].transpose(0, 3, 1, 2)
        last = len(actions) - 1
        for step in range(len(actions)):
            observed = [max(step + past, 0) for past in (-2, -1, 0)]
            planned = [step - 2 + ahead for ahead in range(CHUNK)]
            np.testing.assert_array_equal(batch["state"][row], np.concatenate(states[observed]).astype(np.float32))
            clamped = np.clip(planned, 0, last)
            np.testing.assert_array_equal(batch["actions"][row], actions[clamped].astype(np.float32))
            assert batch["is_pad"][row].tolist() == [not 0 <= at <= last for at in planned]
            assert len(batch["images"][row]) == 3
            if frames.shape[2:] == batch["images"].shape[3:]:
                np.testing.assert_array_equal(batch["images"][row], frames[observed])
            row += 1
    assert bundle.dims["state_dim"] == 3 * 14 and bundle.dims["num_images"] == 3 and bundle.dims["past_actions"] == 2
    with pytest.raises(ValueError, match="past_actions: 4.*chunk_size: 4"):
        Config(past_actions=4, chunk_size=4)


def test_more_frames_than_states(tmp_path, written):
    bundle = build_act(tmp_path, {"history_images_length": 4}, n_obs_steps=2)
    assert bundle.dims["num_images"] == 4 and bundle.dims["state_dim"] == 2 * 14


def test_a_robot_s_observations_are_those_of_the_samples(tmp_path, written):
    bundle, run = build_act(tmp_path, **KEYS), run_in(tmp_path / "cache")
    kinds = {"normalization": {"state": "identity", "action": "identity"}}
    config, statistics = Config(path=str(tmp_path / "act"), **KEYS, **kinds), bundle.files["statistics.json"]
    encoder, index = ObservationEncoder.from_files(config, run.process, statistics), 0
    for arrays in written:
        encoder.reset()
        for step in range(len(arrays["action"])):
            inputs = encoder.encode({key: values[step] for key, values in arrays.items()})
            assert all(torch.equal(value[0], bundle.train_dataset[index][key]) for key, value in inputs.items())
            index += 1
    for key in ("n_obs_steps", "past_actions"):
        other = Config(path=str(tmp_path / "act"), **{**KEYS, key: 1}, **kinds)
        with pytest.raises(ValueError, match=f"dataset.{key} is 1 but the model was trained with"):
            ObservationEncoder.from_files(other, run.process, statistics)


def test_predictions_begin_at_the_current_step(tmp_path, written):
    """predict.py and the policy server leave out what a chunk has of earlier steps."""
    bundle, run = build_act(tmp_path, **KEYS), run_in(tmp_path / "cache")
    kinds = {"normalization": {"state": "identity", "action": "identity"}}
    config = Config(path=str(tmp_path / "act"), **KEYS, **kinds)
    processor = Processor.from_files(config, run.process, bundle.files["statistics.json"])
    chunk = torch.arange(CHUNK * 14.0).view(1, CHUNK, 14)

    class Model:
        device = torch.device("cpu")

        def __call__(self, **inputs):
            return {"actions": chunk.expand(len(inputs["state"]), -1, -1)}

    session = processor.session(Model())
    observation = {key: values[0] for key, values in written[0].items()}
    np.testing.assert_array_equal(session.act(observation)["actions"], chunk[0, 2:].double())


def test_an_observation_that_is_refused_leaves_no_trace(tmp_path, written):
    bundle, run = build_act(tmp_path, **KEYS), run_in(tmp_path / "cache")
    statistics = bundle.files["statistics.json"]
    kinds = {"normalization": {"state": "identity", "action": "identity"}}
    config = Config(path=str(tmp_path / "act"), **KEYS, **kinds)
    encoder = ObservationEncoder.from_files(config, run.process, statistics)
    steps = [{key: values[step] for key, values in written[0].items()} for step in range(3)]
    expected = [encoder.encode(step) for step in steps]
    encoder.reset()
    for step, inputs in zip(steps, expected, strict=True):
        with pytest.raises(ValueError, match="a frame is float64"):
            encoder.encode({**step, "observations/images/top": np.zeros((24, 32, 3))})
        found = encoder.encode(step)
        assert all(torch.equal(found[name], value) for name, value in inputs.items())
