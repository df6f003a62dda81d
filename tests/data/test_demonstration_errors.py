"""Bad data: one line that names the value, the place and the remedy, and nothing written."""

import h5py
import numpy as np
import pytest
from demonstration_files import run_in, write_act_episode, write_act_folder, write_il_studio_episode

from data.demonstrations import Config, build


def refusal(tmp_path, process=None, **config) -> str:
    """The one-line message that `build` ends with; nothing may be left half prepared."""
    with pytest.raises(ValueError) as caught:
        build(Config(**{"path": str(tmp_path / "act")} | config), run_in(tmp_path / "cache", **process or {}))
    assert not list((tmp_path / "cache").glob("*/*/*")), "a failed build leaves no folder"
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_paths(tmp_path):
    assert "dataset.path is not set" in refusal(tmp_path, path=None)
    assert "act does not exist; correct the path, or record" in refusal(tmp_path)
    assert not (tmp_path / "act").exists(), "a mistyped path is never created"
    (tmp_path / "act").mkdir()
    assert "holds no episode" in refusal(tmp_path)
    (tmp_path / "act/.episode_0.hdf5").touch()
    assert "holds no episode" in refusal(tmp_path)
    (tmp_path / "file").touch()
    assert "file is a file, not a folder" in refusal(tmp_path, path=str(tmp_path / "file"))
    assert "empty list" in refusal(tmp_path, path=[])
    with pytest.raises(ValueError, match="dataset.path names act twice"):
        Config(path=["act", "other", "act"])


@pytest.mark.parametrize("lazy", [False, True])
def test_truncated_and_corrupt_files_are_named(tmp_path, lazy):
    write_act_folder(tmp_path / "act", cameras={"top": (24, 32)})
    file = tmp_path / "act/episode_1.hdf5"
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"not hdf5 at all" * 100):
        file.write_bytes(content)
        message = refusal(tmp_path, {"lazy_preprocess": lazy})
        assert f"cannot read {file}: " in message


@pytest.mark.keys("dataset(demonstrations).exclude")
def test_all_bad_files_are_named_at_once(tmp_path):
    """Not one a start; and `dataset.exclude` leaves out what the error says."""
    write_act_folder(tmp_path / "act", (5, 6, 7, 8, 9))
    write_act_episode(tmp_path / "act/episode_1.hdf5", replace={"observations/qpos": None})
    write_act_episode(tmp_path / "act/sub/late.hdf5", 9, dims=(14, 7))
    write_act_episode(tmp_path / "act/episode_3.hdf5", 3, replace={"action": np.full((3, 14), np.nan)})
    with pytest.raises(ValueError) as caught:
        build(Config(path=str(tmp_path / "act")), run_in(tmp_path / "cache"))
    problems = caught.value.problems
    assert len(problems) == 4
    bad = ["episode_1.hdf5", "episode_3.hdf5", "sub/late.hdf5"]
    for line, name in zip(problems, bad, strict=False):
        assert str(tmp_path / "act" / name) in line
    assert f"[{', '.join(bad)}]" in problems[-1] and "dataset.exclude" in problems[-1]
    assert "`nothing*`" in refusal(tmp_path, exclude=["nothing*"])
    assert "leaves no episode" in refusal(tmp_path, exclude=["*"])
    for exclude in (bad, ["episode_[13].hdf5", "sub/*"]):
        bundle = build(Config(path=str(tmp_path / "act"), exclude=exclude), run_in(tmp_path / "cache"))
        assert len(bundle.train_dataset) == 5 + 7 + 9


def test_what_all_files_lack_is_one_line(tmp_path):
    write_act_folder(tmp_path / "act", (3,) * 6, cameras={"top": (24, 32), "wrist": (24, 32)})
    with pytest.raises(ValueError) as caught:
        build(Config(path=str(tmp_path / "act"), cameras=["tpo"]), run_in(tmp_path / "cache"))
    (line,) = caught.value.problems
    assert all(part in line for part in ("dataset.cameras", "`tpo`", "top, wrist", "5 more files"))


def corrupt_last_frame(file) -> None:
    with h5py.File(file) as root:
        frames = root["observations/images/top"]
        place = frames.id.get_chunk_info(len(frames) - 1)
    with file.open("r+b") as stream:
        stream.seek(place.byte_offset)
        stream.write(b"\xff" * place.size)


@pytest.mark.parametrize("process", [{}, {"lazy_preprocess": True, "preload_data": True}])
def test_corrupt_frames_are_named_while_preparing(tmp_path, process):
    write_act_folder(tmp_path / "act", cameras={"top": (24, 32)}, compression="gzip")
    corrupt_last_frame(tmp_path / "act/episode_2.hdf5")
    assert f"cannot read {tmp_path / 'act/episode_2.hdf5'}: " in refusal(tmp_path, process)


def test_corrupt_frames_are_named_while_training(tmp_path):
    write_act_folder(tmp_path / "act", cameras={"top": (24, 32)}, compression="gzip")
    corrupt_last_frame(tmp_path / "act/episode_2.hdf5")
    bundle = build(Config(path=str(tmp_path / "act")), run_in(tmp_path / "cache", lazy_preprocess=True))
    assert bundle.train_dataset[0]["images"].shape[0] == 1
    with pytest.raises(ValueError, match=r"cannot read .*episode_2.hdf5: "):
        bundle.train_dataset[len(bundle.train_dataset) - 1]


@pytest.mark.slow
def test_missing_keys_say_which_exist(tmp_path):
    write_act_folder(tmp_path / "act")
    write_act_episode(tmp_path / "act/episode_1.hdf5", replace={"observations/qpos": None})
    message = refusal(tmp_path)
    assert "episode_1.hdf5 has no dataset `observations/qpos`; it has action, observations/env_state" in message
    assert "`observations/eef`" in refusal(tmp_path, state_keys=["observations/eef"])
    assert "`target`" in refusal(tmp_path, action_key="target")
    assert "`action_joint`" in refusal(tmp_path, layout="il_studio")
    assert "dataset.control: ee" in refusal(tmp_path, control="ee")


@pytest.mark.parametrize("signal", ["action", "observations/qpos"])
def test_differing_dims_name_both_files(tmp_path, signal):
    write_act_folder(tmp_path / "act")
    write_act_episode(tmp_path / "act/episode_1.hdf5", 20, replace={signal: np.ones((20, 7))})
    message = refusal(tmp_path)
    name = "actions" if signal == "action" else "states"
    assert f"{name} have 14 dimensions in {tmp_path / 'act/episode_0.hdf5'} but 7 in" in message
    assert "episode_1.hdf5" in message


@pytest.mark.parametrize("odd", ["dimensions", "layout"])
def test_the_odd_file_is_accused_not_the_many_good_ones(tmp_path, odd):
    """Also where the odd one is the first; its exclusion leaves data that can be built."""
    write_act_folder(tmp_path / "act")  # episode_0 …
    first, absent = tmp_path / "act/a.hdf5", tmp_path / "act/b.hdf5"
    if odd == "dimensions":
        write_act_episode(first, 20, replace={"action": np.ones((20, 8))})
    else:
        write_il_studio_episode(first)
    write_act_episode(absent, 20, replace={"action": None})
    with pytest.raises(ValueError) as caught:
        build(Config(path=str(tmp_path / "act")), run_in(tmp_path / "cache"))
    assert [file.name for file in caught.value.files] == ["a.hdf5", "b.hdf5"]
    assert str(first) in caught.value.problems[0] and "[a.hdf5, b.hdf5]" in caught.value.problems[-1]
    bundle = build(Config(path=str(tmp_path / "act"), exclude=["a.hdf5", "b.hdf5"]), run_in(tmp_path / "cache"))
    assert bundle.dims["action_dim"] == 14


def test_differing_dims_of_folders_name_both_files(tmp_path):
    write_act_folder(tmp_path / "act")
    write_act_folder(tmp_path / "other", dims=(14, 7))
    with pytest.raises(ValueError, match="14 dimensions in .*act/episode_0.hdf5 but 7 in .*other/episode_0.hdf5"):
        build(Config(path=[str(tmp_path / "act"), str(tmp_path / "other")]), run_in(tmp_path / "cache"))


@pytest.mark.parametrize("key", ["action", "observations/qpos"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_name_file_and_step(tmp_path, key, value):
    arrays = write_act_folder(tmp_path / "act")
    spoiled = arrays[1][key].copy()
    spoiled[7, 3] = value
    write_act_episode(tmp_path / "act/episode_1.hdf5", 12, replace={key: spoiled})
    assert f"episode_1.hdf5: {key} is {value} at step 7" in refusal(tmp_path)


@pytest.mark.slow
def test_lengths_and_shapes_that_do_not_fit(tmp_path):
    write_act_folder(tmp_path / "act")
    file = tmp_path / "act/episode_2.hdf5"
    write_act_episode(file, 10, replace={"observations/qpos": np.ones((9, 14))})
    assert "observations/qpos has 9 steps but action has 10" in refusal(tmp_path)
    write_act_episode(file, 10, replace={"action": np.ones((0, 14))})
    assert "action holds float64 of shape (0, 14)" in refusal(tmp_path)
    write_act_folder(tmp_path / "act", cameras={"top": (8, 8)})
    write_act_episode(file, 10, replace={"observations/images/top": np.zeros((10, 500), np.uint8)})
    assert f"{file}: observations/images/top step 0: 500 bytes" in refusal(tmp_path)
    write_act_episode(file, 10, replace={"observations/images/top": np.zeros((10, 8, 8), np.uint8)})
    assert f"{file}: observations/images/top holds uint8 of shape (10, 8, 8)" in refusal(tmp_path)


def test_cameras(tmp_path):
    write_act_folder(tmp_path / "act", cameras={"top": (24, 32), "wrist": (24, 32)})
    message = refusal(tmp_path, cameras=["top", "tpo"])
    assert "no camera `tpo`" in message and "observations/images has top, wrist" in message
    write_act_episode(tmp_path / "act/episode_2.hdf5", cameras={"top": (24, 32)})
    message = refusal(tmp_path, cameras=["top", "wrist"])
    assert f"no camera `wrist` in {tmp_path / 'act/episode_2.hdf5'}" in message


def test_frames_of_differing_size(tmp_path):
    write_act_folder(tmp_path / "act", cameras={"top": (24, 32)})
    write_act_episode(tmp_path / "act/episode_1.hdf5", cameras={"top": (12, 16)})
    for mode in ("keep", "square"):
        message = refusal(tmp_path, {"image_aspect_ratio": mode})
        assert "frames are 24x32 in" in message and "but 12x16 in" in message and "image_size" in message
    build(Config(path=str(tmp_path / "act"), image_size=[8, 8]), run_in(tmp_path / "cache"))
    (tmp_path / "cache").rename(tmp_path / "used")
    assert "dataset.image_size [8, 8] contradicts image_aspect_ratio: keep" in refusal(
        tmp_path, {"image_aspect_ratio": "keep"}, image_size=[8, 8]
    )


@pytest.mark.slow
def test_folders_with_differing_cameras(tmp_path):
    write_act_folder(tmp_path / "act", cameras={"top": (24, 32)})
    write_il_studio_episode(tmp_path / "other/episode_0.hdf5", cameras={"primary": (24, 32)})
    write_act_folder(tmp_path / "small", cameras={"top": (12, 16)})

    def mixed(other):
        paths = [str(tmp_path / "act"), str(tmp_path / other)]
        with pytest.raises(ValueError) as caught:
            build(Config(path=paths, state_keys=None), run_in(tmp_path / "cache"))
        return str(caught.value)

    assert "14 dimensions in" in mixed("other")
    assert "images are 24x24 from" in mixed("small")
    write_act_folder(tmp_path / "small", cameras={"wrist": (24, 32)})
    assert "has top but" in mixed("small")


def test_holding_out_everything(tmp_path):
    write_act_folder(tmp_path / "act", (5, 5))
    assert "eval_fraction 0.9 leaves none of the 2 episodes" in refusal_after_build(tmp_path, eval_fraction=0.9)


def refusal_after_build(tmp_path, **config) -> str:
    with pytest.raises(ValueError) as caught:
        build(Config(path=str(tmp_path / "act"), **config), run_in(tmp_path / "cache"))
    return str(caught.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"path": ["a", "b"], "weights": [1.0]}, "weights has 1 entries but dataset.path names 2 folders"),
        ({"path": ["a", "b"], "weights": [1.0, 0.0]}, "must be positive"),
        ({"image_size": [240]}, r"dataset.image_size \[240\] is no \[height, width\]"),
        ({"state_keys": []}, "dataset.state_keys is empty"),
    ],
)
def test_configurations_that_contradict_themselves(config, message):
    with pytest.raises(ValueError, match=message):
        Config(**config)
