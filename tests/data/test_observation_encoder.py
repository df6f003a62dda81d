"""At the robot a model gets what training gave it, bit for bit, from the saved files alone."""

import json
import shutil

import numpy as np
import pytest
import torch
from demonstration_files import run_in, write_act_folder, write_il_studio_episode

from data.demonstrations import Config, ObservationEncoder, build

CAMERAS = {"top": (30, 40), "wrist": (20, 50)}


def built(tmp_path, process=None, **config):
    """A bundle, and an encoder made from what would be saved, with the data gone."""
    config = Config(**{"path": str(tmp_path / "data"), "chunk_size": 5} | config)
    run = run_in(tmp_path / "cache", **{"preload_data": True} | (process or {}))
    bundle = build(config, run)
    statistics = json.loads(json.dumps(bundle.files["statistics.json"]))
    shutil.rmtree(tmp_path / "data")
    return bundle, ObservationEncoder.from_files(config, run.process, statistics)


def observation(arrays: dict, step: int) -> dict:
    return {key: values[step] for key, values in arrays.items() if len(values) > step}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["square", "pad", "keep"])
@pytest.mark.parametrize("history", [1, 3])
@pytest.mark.parametrize("kind", ["zscore", "min_max", "percentiles", "identity"])
def test_inputs_are_bit_identical_to_the_samples(tmp_path, mode, history, kind):
    cameras = {"top": (30, 40), "wrist": (30, 40)} if mode == "keep" else CAMERAS
    written = write_act_folder(tmp_path / "data", (9, 6), cameras=cameras)
    bundle, encoder = built(
        tmp_path,
        {"image_aspect_ratio": mode, "history_images_length": history},
        image_size=None if mode == "keep" else [24, 20],
        state_keys=["observations/qpos", "observations/env_state"],
        normalization={"state": kind, "action": kind},
    )
    index = 0
    for arrays in written:
        encoder.reset()
        for step in range(len(arrays["action"])):
            inputs, sample = encoder.encode(observation(arrays, step)), bundle.train_dataset[index]
            assert inputs.keys() == {"state", "images"}
            for key, value in inputs.items():
                assert torch.equal(value[0], sample[key]) and value.dtype == sample[key].dtype
            decoded = encoder.decode_action(sample["actions"].numpy())
            assert decoded.dtype == np.float64 and decoded.shape == (5, 14)
            np.testing.assert_allclose(decoded[0], arrays["action"][step], atol=1e-5)
            index += 1


def test_il_studio_and_no_images(tmp_path):
    arrays = write_il_studio_episode(tmp_path / "data/episode_0.hdf5", 10, {"primary": (24, 32)})
    bundle, encoder = built(tmp_path, {"is_multimodal": False})
    inputs = encoder.encode(observation(arrays, 4))
    assert inputs.keys() == {"state"} and torch.equal(inputs["state"][0], bundle.train_dataset[4]["state"])


def test_observations_that_do_not_fit(tmp_path):
    (arrays,) = write_act_folder(tmp_path / "data", (9,), cameras={"top": (24, 32)})
    _, encoder = built(tmp_path, {"image_aspect_ratio": "keep"})
    good = observation(arrays, 0)
    with pytest.raises(ValueError, match="no `observations/images/top`, which the model was trained on; it has act"):
        encoder.encode({key: value for key, value in good.items() if "images" not in key})
    with pytest.raises(ValueError, match="has 7 dimensions but the model was trained on 14"):
        encoder.encode(good | {"observations/qpos": np.zeros(7)})
    with pytest.raises(ValueError, match="a frame is 12x16 where others are 24x32"):
        encoder.encode(good | {"observations/images/top": np.zeros((12, 16, 3), np.uint8)})
    with pytest.raises(ValueError, match="expected uint8"):
        encoder.encode(good | {"observations/images/top": np.zeros((24, 32, 3), np.float32)})


def test_another_configuration_than_the_trained_one_is_refused(tmp_path):
    write_act_folder(tmp_path / "data", (9,), cameras={"top": (24, 32)})
    bundle, _ = built(tmp_path)
    statistics = bundle.files["statistics.json"]
    for process, key in [
        ({"history_images_length": 2}, "history_images_length is 2"),
        ({"image_aspect_ratio": "pad"}, "image_aspect_ratio is pad"),
        ({"is_multimodal": False}, "is_multimodal is False"),
    ]:
        with pytest.raises(ValueError, match=key):
            ObservationEncoder.from_files(Config(), run_in(tmp_path, **process).process, statistics)
    with pytest.raises(ValueError, match="dataset.normalization.state is identity but .* trained with zscore"):
        config = Config(normalization={"state": "identity"})
        ObservationEncoder.from_files(config, run_in(tmp_path).process, statistics)


@pytest.mark.parametrize("part", ["state", "action", "observation"])
def test_damaged_statistics_are_refused(tmp_path, part):
    write_act_folder(tmp_path / "data", (9,))
    bundle, _ = built(tmp_path)
    whole = bundle.files["statistics.json"]
    for damaged in (
        {key: value for key, value in whole.items() if key != part},
        whole | {part: {}},
        None,
        [],
    ):
        with pytest.raises(ValueError, match="statistics.json is damaged"):
            ObservationEncoder.from_files(Config(), run_in(tmp_path).process, damaged)
