"""Conversion between HDF5 and LeRobot, judged with h5py, pyarrow, PyAV and NumPy on what was written."""

import dataclasses
import json

import av
import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
from demonstration_files import (
    build_act,
    everything,
    write_act_episode,
    write_act_folder,
    write_il_studio_episode,
)
from lerobot_files import LENGTHS, SIZE, TASKS, frame, write_v3, write_v21

import prepare
from data.demonstrations import Config
from data.demonstrations.lerobot import writer
from data.demonstrations.lerobot.convert import Settings, convert
from data.demonstrations.lerobot.statistics import PixelCounts, of_values
from data.demonstrations.lerobot.writer import Encoding
from loader.errors import ConfigError

LOSSLESS_ENOUGH = Encoding("libx264", 5)
SETTINGS = Settings(50.0, "stack the cubes", LOSSLESS_ENOUGH, "aloha")
QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}


def rows_of(folder, parts="data") -> list[dict]:
    return [row for file in sorted((folder / parts).rglob("*.parquet")) for row in pq.read_table(file).to_pylist()]


@pytest.mark.slow
def test_hdf5_to_lerobot_is_what_the_format_asks_for(tmp_path):
    written = write_act_folder(tmp_path / "act", (20, 12, 31), cameras={"top": SIZE, "wrist": SIZE})
    out = tmp_path / "out"
    assert convert(tmp_path / "act", out, SETTINGS).startswith("3 episodes as a LeRobot data set")
    info = json.loads((out / "meta/info.json").read_text())
    totals = [info[f"total_{name}"] for name in ("episodes", "frames", "tasks")]
    assert (info["codebase_version"], info["fps"], totals) == ("v3.0", 50, [3, 63, 1])
    assert info["features"]["observation.images.top"]["info"]["video.codec"] == "h264"
    assert info["features"]["observation.state"] == {"dtype": "float32", "shape": [14], "names": None}
    data = rows_of(out)
    expected = np.concatenate([arrays["observations/qpos"] for arrays in written]).astype(np.float32)
    np.testing.assert_array_equal(np.asarray([row["observation.state"] for row in data], np.float32), expected)
    poses = np.concatenate([arrays["observations/env_state"] for arrays in written]).astype(np.float32)
    np.testing.assert_array_equal(np.float32([row["observation.environment_state"] for row in data]), poses)
    assert [row["index"] for row in data] == list(range(63)) and data[20]["frame_index"] == 0
    assert data[25]["timestamp"] == np.float32(5 / 50) and data[25]["episode_index"] == 1
    assert pq.ParquetFile(out / "data/chunk-000/file-000.parquet").num_row_groups == 3
    episodes = rows_of(out, "meta/episodes")
    assert [row["length"] for row in episodes] == [20, 12, 31] and episodes[2]["dataset_from_index"] == 32
    assert episodes[2]["videos/observation.images.top/from_timestamp"] == 32 / 50
    assert episodes[0]["tasks"] == ["stack the cubes"]
    tasks = pq.read_table(out / "meta/tasks.parquet").to_pandas()
    assert tasks.index.tolist() == ["stack the cubes"] and tasks["task_index"].tolist() == [0]
    with av.open(str(out / "videos/observation.images.wrist/chunk-000/file-000.mp4")) as video:
        stream = video.streams.video[0]
        frames = [
            (picture.pts * stream.time_base, picture.to_ndarray(format="rgb24")) for picture in video.decode(stream)
        ]
    assert [time * 50 for time, _ in frames] == list(range(63)), "frame n is at n / fps exactly"
    pictures = np.concatenate([arrays["observations/images/wrist"] for arrays in written])
    distance = np.abs(np.stack([picture for _, picture in frames]).astype(int) - pictures)
    assert distance.mean() < 2 and distance.max() < 16


@pytest.mark.slow
def test_statistics_are_exact(tmp_path):
    written = write_act_folder(tmp_path / "act", (20, 12), cameras={"top": SIZE})
    convert(tmp_path / "act", tmp_path / "out", SETTINGS)
    statistics = json.loads((tmp_path / "out/meta/stats.json").read_text())
    actions = np.concatenate([arrays["action"] for arrays in written]).astype(np.float32).astype(float)
    pixels = np.concatenate([arrays["observations/images/top"] for arrays in written]).reshape(-1, 3) / 255
    for feature, values, shape in (("action", actions, (14,)), ("observation.images.top", pixels, (3, 1, 1))):
        truth = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
        truth |= {name: np.quantile(values, share, axis=0) for name, share in QUANTILES.items()}
        for name, expected in truth.items():
            np.testing.assert_allclose(statistics[feature][name], expected.reshape(shape), atol=1e-9, err_msg=name)
        assert statistics[feature]["count"] == [32]
    second = rows_of(tmp_path / "out", "meta/episodes")[1]
    truth = np.quantile(written[1]["action"].astype(np.float32).astype(float), 0.9, axis=0)
    np.testing.assert_allclose(second["stats/action/q90"], truth)


def test_pixel_counts_merge_to_the_counts_of_all(tmp_path):
    generator = np.random.default_rng(0)
    frames = generator.integers(0, 256, (5, 7, 9, 3)).astype(np.uint8)
    parts = [PixelCounts(), PixelCounts()]
    for number, picture in enumerate(frames):
        parts[number > 1].add(picture)
    parts[0].merge(parts[1])
    truth = of_values(frames.reshape(-1, 3) / 255)
    for name in set(truth) - {"count"}:
        np.testing.assert_allclose(np.ravel(parts[0].statistics()[name]), truth[name], atol=1e-12, err_msg=name)


@pytest.mark.slow
def test_what_was_converted_trains_as_the_original(tmp_path):
    write_act_folder(tmp_path / "act", (20, 12), cameras={"top": SIZE})
    convert(tmp_path / "act", tmp_path / "robot", SETTINGS)
    original, converted = (
        everything(build_act(tmp_path, path=str(tmp_path / name), image_size=list(SIZE)).train_dataset)
        for name in ("act", "robot")
    )
    for key in ("state", "actions", "is_pad", "episode", "timestep"):
        assert (original[key] == converted[key]).all(), key
    assert (original["images"].int() - converted["images"].int()).abs().float().mean() < 2
    assert set(converted["instruction"]) == {"stack the cubes"}


@pytest.mark.slow
@pytest.mark.parametrize("write", [write_v3, write_v21])
def test_lerobot_to_act(tmp_path, write):
    signals = write(tmp_path / "robot")
    assert convert(tmp_path / "robot", tmp_path / "out", SETTINGS).startswith("3 episodes in ACT's HDF5 layout")
    for episode, length in enumerate(LENGTHS):
        with h5py.File(tmp_path / f"out/episode_{episode}.hdf5") as root:
            np.testing.assert_array_equal(root["observations/qpos"], signals[episode]["observation.state"])
            np.testing.assert_array_equal(root["observations/effort"], signals[episode]["observation.effort"])
            np.testing.assert_array_equal(root["action"], signals[episode]["action"])
            assert root["language_instruction"].asstr()[0] == TASKS[episode % 2] and root.attrs["fps"] == 30
            pictures = np.stack([frame(episode, step, 1) for step in range(length)]).astype(int)
            assert np.abs(root["observations/images/wrist"][:] - pictures)[:, 28:, 36:].max() <= 2


@pytest.mark.slow
def test_there_and_back_keeps_texts_and_names(tmp_path):
    written = [
        write_il_studio_episode(
            tmp_path / f"il/episode_{n}.hdf5", 10, {"primary": SIZE}, n, f"task {n}", ["reach"] * 4 + ["grasp"] * 6
        )
        for n in range(2)
    ]
    settings = Settings(None, "unused", LOSSLESS_ENOUGH, None)
    convert(tmp_path / "il", tmp_path / "robot", settings)
    assert json.loads((tmp_path / "robot/meta/info.json").read_text())["fps"] == 20, "freq of IL-Studio"
    convert(tmp_path / "robot", tmp_path / "act", settings)
    batch = everything(build_act(tmp_path, {"use_reasoning": True}).train_dataset)
    assert batch["instruction"] == ["task 0"] * 10 + ["task 1"] * 10
    assert "grasp" in batch["reasoning"][19] and "reach" in batch["reasoning"][0]
    expected = np.concatenate([arrays["observations/state_joint"] for arrays in written])
    np.testing.assert_array_equal(batch["state"], expected)


@pytest.mark.slow
def test_a_state_of_another_name(tmp_path):
    """Recordings without joints have `observations/state`, or what the task's state_keys name."""
    states = np.random.default_rng(0).normal(size=(2, 8, 3)).astype(np.float32)
    without = {"observations/qpos": None, "observations/qvel": None}
    extra = {"observations/state": states[0], "observations/goal": states[1]}
    write_act_episode(tmp_path / "act/episode_0.hdf5", 8, replace=without | extra)
    convert(tmp_path / "act", tmp_path / "plain", SETTINGS)
    row = rows_of(tmp_path / "plain")[5]
    assert row["observation.state"] == states[0, 5].tolist() and row["observation.goal"] == states[1, 5].tolist()
    write_act_episode(tmp_path / "act/episode_0.hdf5", 8, replace=without | {"observations/goal": states[1]})
    keys = Config(state_keys=["observations/goal"])
    convert(tmp_path / "act", tmp_path / "chosen", dataclasses.replace(SETTINGS, config=keys))
    assert rows_of(tmp_path / "chosen")[5]["observation.state"] == states[1, 5].tolist()
    write_act_episode(tmp_path / "act/episode_0.hdf5", 8, replace={"observations/state": states[0]})
    assert "would both be `observation.state`" in refused(tmp_path)


@pytest.mark.slow
def test_files_of_limited_size(tmp_path, monkeypatch):
    """A file that is full is followed by another; episodes stay whole, and frames are found in the right one."""
    monkeypatch.setattr(writer, "VIDEO_MEGABYTES", 0)
    monkeypatch.setattr(writer, "DATA_MEGABYTES", 0)
    write_act_folder(tmp_path / "act", (6, 5, 7), cameras={"top": SIZE})
    convert(tmp_path / "act", tmp_path / "robot", SETTINGS)
    assert len(list((tmp_path / "robot/data").rglob("*.parquet"))) == 3
    videos = sorted((tmp_path / "robot/videos").rglob("*.mp4"))
    assert [file.name for file in videos] == ["file-000.mp4", "file-001.mp4", "file-002.mp4"]
    one, other = (build_act(tmp_path, path=str(tmp_path / name), image_size=list(SIZE)) for name in ("act", "robot"))
    images = [everything(bundle.train_dataset)["images"].int() for bundle in (one, other)]
    assert (images[0] - images[1]).abs().float().mean() < 2


@pytest.mark.slow
@pytest.mark.parametrize("fps", [10.0, 23.976, 29.97, 59.94, 240.0])
def test_frames_are_found_at_every_rate(tmp_path, fps):
    """float32 timestamps and the video's own unit of time must not move a step to its neighbour's frame."""
    levels = (np.arange(400) * 37 % 256).astype(np.uint8)  # neighbours are far apart
    for episode in range(2):
        pictures = np.broadcast_to(levels[episode * 200 :][:200, None, None, None], (200, 16, 16, 3))
        replace = {"observations/images/top": np.ascontiguousarray(pictures)}
        write_act_episode(tmp_path / f"act/episode_{episode}.hdf5", 200, seed=episode, replace=replace)
    convert(tmp_path / "act", tmp_path / "robot", Settings(fps, "x", LOSSLESS_ENOUGH, None))
    batch = everything(build_act(tmp_path, path=str(tmp_path / "robot"), image_size=[16, 16]).train_dataset)
    assert np.abs(batch["images"][:, 0, 0, 8, 8].numpy().astype(int) - levels).max() <= 4


def refused(tmp_path, source="act", settings=SETTINGS) -> str:
    with pytest.raises(ValueError) as caught:
        convert(tmp_path / source, tmp_path / "out", settings)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))
    return str(caught.value)


@pytest.mark.slow
def test_what_cannot_be_converted_leaves_nothing(tmp_path):
    assert "is no folder" in refused(tmp_path)
    (tmp_path / "act").mkdir()
    assert "holds no episode" in refused(tmp_path)
    write_act_folder(tmp_path / "act", (5, 6))
    assert "--fps" in refused(tmp_path, settings=Settings(None, "x", LOSSLESS_ENOUGH, None))
    write_act_episode(tmp_path / "act/episode_1.hdf5", 6, attributes={"fps": 20.0})
    assert "episode_1.hdf5 has 20 frames per second" in refused(tmp_path)
    write_act_episode(tmp_path / "act/episode_1.hdf5", 6, dims=(14, 7))
    assert "`action`" in refused(tmp_path)
    for number, cameras in enumerate([("top",), ("top", "wrist"), ("top",)]):
        sizes = dict.fromkeys(cameras, SIZE)
        write_act_episode(tmp_path / f"some/episode_{number}.hdf5", 5, cameras=sizes)
    assert "`observation.images.wrist` is not in all episodes: in episode 1" in refused(tmp_path, "some")
    (tmp_path / "some/episode_0.hdf5").unlink()
    assert "`observation.images.wrist` is not in all episodes: not in episode 1" in refused(tmp_path, "some")
    write_act_folder(tmp_path / "odd", (5,), cameras={"top": (15, 21)})
    assert "15x21" in refused(tmp_path, "odd")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").touch()
    with pytest.raises(ValueError, match="not empty"):
        convert(tmp_path / "odd", tmp_path / "full", SETTINGS)


@pytest.mark.slow
def test_the_command_line(tmp_path, capsys, monkeypatch):
    write_act_folder(tmp_path / "act", (6, 5), cameras={"top": SIZE})
    words = ["--convert", str(tmp_path / "act"), "--out", str(tmp_path / "out"), "--fps", "25", "--vcodec", "libx264"]
    prepare.main([*words, "--crf", "5", "--instruction", "wave"])
    assert "2 episodes" in capsys.readouterr().out
    assert json.loads((tmp_path / "out/meta/info.json").read_text())["fps"] == 25
    assert rows_of(tmp_path / "out", "meta/episodes")[0]["tasks"] == ["wave"]
    (tmp_path / "task.yaml").write_text(f"dataset: {{name: demonstrations, path: {tmp_path / 'act'}}}\n")
    export = ["--export", "lerobot", "--task_name", str(tmp_path / "task.yaml"), "--fps", "50"]
    prepare.main([*export, "--out", str(tmp_path / "exported"), "--vcodec", "libx264"])
    assert [row["tasks"] for row in rows_of(tmp_path / "exported", "meta/episodes")] == [["task"]] * 2
    fewer = ["--set", "dataset.exclude=[episode_0.hdf5]", "dataset.cameras=[]"]
    prepare.main([*export, "--out", str(tmp_path / "fewer"), *fewer])
    info = json.loads((tmp_path / "fewer/meta/info.json").read_text())
    assert info["total_frames"] == 5 and "observation.images.top" not in info["features"] and not info["video_path"]
    for wrong, words in (
        (["--convert", str(tmp_path / "act")], "--out"),
        (["--convert", str(tmp_path / "out"), "--out", str(tmp_path / "x"), "--fps", "3"], "--fps"),
        (["--convert", str(tmp_path / "act"), "--out", str(tmp_path / "x"), "--task_name", "t"], "--task_name"),
        (["--task_name", "t", "--crf", "3"], "--crf"),
        ([*export, "--out", str(tmp_path / "x"), "--num_episodes", "3"], "--num_episodes"),
    ):
        with pytest.raises(ConfigError, match=words) as caught:
            prepare.main(wrong)
        assert caught.value.exit_code == 2
    assert not (tmp_path / "x").exists()
