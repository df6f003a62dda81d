"""Cameras that some episodes or folders lack: refused, or black images with a mask; and observations without them."""

import numpy as np
import pytest
import torch
from demonstration_files import everything, run_in, write_act_episode
from lerobot_files import LENGTHS, SIZE, write_v3

from data.demonstrations import Config, ObservationEncoder, build

BOTH = {"top": (24, 32), "wrist": (24, 32)}
SETTINGS = {"chunk_size": 4, "image_size": [24, 32], "missing_cameras": "mask"}
DECODING = [{}, {"preload_data": True}, {"lazy_preprocess": True}]


@pytest.fixture
def written(tmp_path):
    """Two episodes with both cameras, the second without `wrist`."""
    return [
        write_act_episode(tmp_path / "act/episode_0.hdf5", 5, cameras=BOTH),
        write_act_episode(tmp_path / "act/episode_1.hdf5", 4, cameras={"top": (24, 32)}, seed=1),
    ]


def built(tmp_path, path="act", process=None, **config):
    paths = [str(tmp_path / name) for name in ([path] if isinstance(path, str) else path)]
    run = run_in(tmp_path / "cache", **process or {})
    return build(Config(path=paths, **SETTINGS | config), run), run


@pytest.mark.keys("dataset(demonstrations).missing_cameras")
@pytest.mark.parametrize("process", DECODING)
def test_missing_images_are_black_and_masked(tmp_path, written, process):
    bundle, _ = built(tmp_path, process={**process, "history_images_length": 2})
    batch = everything(bundle.train_dataset)
    assert batch["images"].shape[1] == bundle.dims["num_images"] == 4 and bundle.dims["num_cameras"] == 2
    assert batch["image_mask"].tolist() == [[True] * 4] * 5 + [[True, True, False, False]] * 4
    assert not batch["images"][5:, 2:].any()
    for start, arrays in ((0, written[0]), (5, written[1])):
        for number, camera in enumerate(BOTH):
            frames = arrays.get(f"observations/images/{camera}")
            if frames is not None:
                found = batch["images"][start : start + len(frames), 2 * number + 1]
                assert np.array_equal(found.numpy(), frames.transpose(0, 3, 1, 2))
    assert any("wrist is in 1 of 2" in line for line in bundle.summary)


@pytest.mark.slow
def test_without_missing_images_there_is_no_mask(tmp_path, written):
    bundle, _ = built(tmp_path, cameras=["top"])
    assert "image_mask" not in everything(bundle.train_dataset)
    plain, _ = built(tmp_path, missing_cameras="error")
    assert everything(plain.train_dataset)["images"].shape[1] == 1  # `top`, which all episodes have
    with pytest.raises(ValueError, match="no camera `wrist`.*missing_cameras: mask"):
        built(tmp_path, missing_cameras="error", cameras=["top", "wrist"])
    with pytest.raises(ValueError, match="no episode of .*act has a camera `wirst`; there are top"):
        built(tmp_path, cameras=["top", "wirst"])


@pytest.mark.slow
def test_folders_of_a_mixture_with_other_cameras(tmp_path, written):
    """HDF5 with top and wrist, LeRobot with `laptop`, which is renamed, and one without images."""
    signals = write_v3(tmp_path / "robot", cameras=("laptop", "hand"))
    shape = {"dims": (5, 4), "cameras": BOTH}
    write_act_episode(tmp_path / "arm/episode_0.hdf5", 5, **shape)
    write_act_episode(tmp_path / "blind/episode_0.hdf5", 3, dims=(5, 4), seed=2)
    rename = {"observation.images.laptop": "observation.images.top"}
    keys = {"rename": rename, "normalization": {"state": "identity", "action": "identity"}}
    bundle, _ = built(tmp_path, ("arm", "robot", "blind"), **keys)
    batch, steps = everything(bundle.train_dataset), sum(LENGTHS)
    # In the order of their names: hand, top, wrist.
    expected = [[False, True, True]] * 5 + [[True, True, False]] * steps + [[False] * 3] * 3
    assert batch["image_mask"].tolist() == expected
    assert not batch["images"][~batch["image_mask"]].any() and batch["images"][5 : 5 + steps, :2].amin() > 0
    states = np.concatenate([episode["observation.state"] for episode in signals])
    assert np.array_equal(batch["state"][5 : 5 + steps].numpy(), states)
    with pytest.raises(ValueError, match="missing_cameras: mask"):
        built(tmp_path, ("arm", "robot", "blind"), missing_cameras="error", **keys)
    with pytest.raises(ValueError, match="no folder .* feature `observation.images.lap`"):
        built(tmp_path, ("arm", "robot"), rename={"observation.images.lap": "observation.images.top"})
    assert SIZE != (24, 32)  # frames were resized to one size
    with pytest.raises(ValueError, match="24x24 from .*arm.* 48x48 from .*robot"):
        built(tmp_path, ("blind", "arm", "robot"), **keys, image_size=None)


def test_an_observation_without_a_camera_is_that_of_its_sample(tmp_path, written):
    bundle, run = built(tmp_path, process={"history_images_length": 2})
    config, statistics = Config(path=str(tmp_path / "act"), **SETTINGS), bundle.files["statistics.json"]
    encoder, index = ObservationEncoder.from_files(config, run.process, statistics), 0
    for arrays in written:
        encoder.reset()
        for step in range(len(arrays["action"])):
            inputs = encoder.encode({key: values[step] for key, values in arrays.items()})
            sample = bundle.train_dataset[index]
            assert inputs.keys() == {"state", "images", "image_mask"}
            assert all(torch.equal(value[0], sample[key]) for key, value in inputs.items())
            index += 1
