"""LeRobot data sets that contradict themselves: one line with value, place and remedy, and nothing written."""

import json
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from demonstration_files import run_in, write_act_folder
from lerobot_files import LENGTHS, SIZE, frame, write_v3, write_video

from data.demonstrations import Config, build, check

DATA = "data/chunk-000/file-000.parquet"
VIDEO = "videos/observation.images.top/chunk-000/file-000.mp4"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"


def refusal(tmp_path, process=None, **config) -> str:
    """The one-line message that `build` ends with; nothing may be left half prepared."""
    config = {"path": str(tmp_path / "robot"), "image_size": list(SIZE), "chunk_size": 5} | config
    with pytest.raises(ValueError) as caught:
        build(Config(**config), run_in(tmp_path / "cache", **process or {}))
    assert not list((tmp_path / "cache").glob("*/*/*")), "a failed build leaves no folder"
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change_info(tmp_path, **changes) -> None:
    file = tmp_path / "robot/meta/info.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def change_column(tmp_path, name, change, file=DATA) -> None:
    """Replace a column by what `change` makes of its values; a column of None is left out."""
    path = tmp_path / "robot" / file
    table = pq.read_table(path)
    at, values = table.schema.get_field_index(name), change(table[name].to_pylist())
    table = table.remove_column(at)
    pq.write_table(table if values is None else table.add_column(at, name, pa.array(values)), path)


@pytest.fixture
def written(tmp_path):
    return write_v3(tmp_path / "robot", cameras=("top",))


def test_info_that_cannot_be_used(tmp_path, written):
    change_info(tmp_path, codebase_version="v1.6")
    assert "meta/info.json" in refusal(tmp_path) and "v1.6" in refusal(tmp_path)
    change_info(tmp_path, codebase_version="v3.0", features={"action": {"shape": [4]}})
    assert "dtype" in refusal(tmp_path)
    (tmp_path / "robot/meta/info.json").write_text("{")
    assert "meta/info.json" in refusal(tmp_path)
    (tmp_path / "robot/meta/info.json").write_text(json.dumps({"codebase_version": "v3.0"}))
    assert "fps" in refusal(tmp_path)


@pytest.mark.parametrize(("name", "value"), [("total_episodes", 4), ("total_frames", 27)])
def test_totals_that_contradict_the_episodes(tmp_path, written, name, value):
    change_info(tmp_path, **{name: value})
    assert f"{name} {value}" in refusal(tmp_path)


@pytest.mark.slow
def test_lengths_that_contradict_the_parquet(tmp_path, written):
    file = tmp_path / "robot" / DATA
    pq.write_table(pq.read_table(file).slice(0, sum(LENGTHS[:2]) - 2), file)
    message = refusal(tmp_path)
    assert str(file) in message and "episode 1 has 5 frames" in message and "length 7" in message
    assert "[episode_1]" in message
    kept = Config(path=str(tmp_path / "robot"), exclude=["episode_1"], cameras=[], chunk_size=5)
    assert build(kept, run_in(tmp_path / "cache")).train_dataset.lengths.tolist() == [LENGTHS[0], LENGTHS[2]]


def test_row_numbers_that_contradict_the_length(tmp_path, written):
    change_column(tmp_path, "dataset_to_index", lambda values: [values[0] + 1, *values[1:]], EPISODES)
    assert "episode 0 has length 12" in refusal(tmp_path) and EPISODES in refusal(tmp_path)


def test_shapes_that_contradict_the_parquet(tmp_path, written):
    change_column(tmp_path, "action", lambda rows: [row[:3] for row in rows])
    message = refusal(tmp_path)
    assert DATA in message and "`action`" in message and "[4]" in message


@pytest.mark.slow
def test_missing_features_say_which_exist(tmp_path, written):
    message = refusal(tmp_path, state_keys=["observation.joints"])
    assert "`observation.joints`" in message and "observation.state, observation.effort, action" in message
    assert "observation.images.top" in refusal(tmp_path, action_key="observation.images.top")
    message = refusal(tmp_path, cameras=["tpo"])
    assert "dataset.cameras" in message and "`tpo`" in message and "it has top" in message
    change_column(tmp_path, "action", lambda rows: None)
    assert DATA in refusal(tmp_path) and "no column `action`" in refusal(tmp_path)
    assert "dataset.control: ee" in refusal(tmp_path, control="ee")
    assert "skip_mirrored_data" in refusal(tmp_path, {"skip_mirrored_data": True})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_name_episode_and_step(tmp_path, written, value):
    def change(rows):
        rows[LENGTHS[0] + 3][1] = float(value)
        return rows

    change_column(tmp_path, "observation.state", change)
    message = refusal(tmp_path)
    assert "`observation.state`" in message and f"{value} in episode 1 at step 3" in message


@pytest.mark.slow
@pytest.mark.keys("dataset(demonstrations).timestamp_tolerance_s")
def test_timestamps_off_by_more_than_the_tolerance_name_the_frame(tmp_path, written):
    def change(times):
        times[LENGTHS[0] + 4] += 2e-3
        return times

    change_column(tmp_path, "timestamp", change)
    message = refusal(tmp_path)
    assert DATA in message and "episode 1 frame 4" in message and "timestamp_tolerance_s 0.0001" in message
    config = Config(path=str(tmp_path / "robot"), timestamp_tolerance_s=3e-3, chunk_size=5)
    assert len(build(config, run_in(tmp_path / "cache")).train_dataset) == sum(LENGTHS)


def test_a_video_whose_frames_are_at_other_times_names_the_frame(tmp_path, written):
    steps = sum(LENGTHS[:2])
    pts = [number if number < 15 else number + 1 for number in range(steps)]  # a frame was lost at step 3 of episode 1
    write_video(tmp_path / "robot" / VIDEO, [frame(0, 0, 0)] * steps, pts=pts)
    message = refusal(tmp_path)
    assert VIDEO in message and "episode 1 has frame 3 at 0.5000 s" in message


def test_a_video_shorter_than_its_episodes(tmp_path, written):
    write_video(tmp_path / "robot" / VIDEO, [frame(0, 0, 0)] * (sum(LENGTHS[:2]) - 3))
    message = refusal(tmp_path)
    assert VIDEO in message and "16 frames" in message and "episode 1 has frame 4 at" in message


def test_a_missing_codec_is_named(tmp_path, written):
    file = tmp_path / "robot" / VIDEO
    file.write_bytes(file.read_bytes().replace(b"avc1", b"zzz9"))
    message = refusal(tmp_path)
    assert str(file) in message and "codec" in message


def test_a_missing_package_is_named(tmp_path, written, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    assert "pip install av" in refusal(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install pyarrow av" in refusal(tmp_path)


@pytest.mark.slow
def test_a_damaged_video_is_named(tmp_path, written):
    file = tmp_path / "robot" / VIDEO
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 3])
    assert str(file) in refusal(tmp_path)
    file.write_bytes(content)
    write_video(file, [frame(0, 0, 0, (32, 32))] * sum(LENGTHS[:2]))
    assert "32x32" in refusal(tmp_path) and "48x64" in refusal(tmp_path)


def test_frames_that_cannot_be_decoded_name_the_video(tmp_path, written):
    file = tmp_path / "robot" / VIDEO
    content = bytearray(file.read_bytes())
    start = content.index(b"mdat") + 4
    length = len(content) - start if content.index(b"moov") < start else content.index(b"moov") - 4 - start
    content[start : start + length] = b"\xff" * length
    file.write_bytes(bytes(content))
    assert str(file) in refusal(tmp_path)


@pytest.mark.slow
def test_unequal_rates_in_a_mixture(tmp_path, written):
    write_v3(tmp_path / "slow", cameras=("top",), fps=10)
    paths = [str(tmp_path / "robot"), str(tmp_path / "slow")]
    with pytest.raises(ValueError) as caught:
        build(Config(path=paths, chunk_size=5), run_in(tmp_path / "cache"))
    assert "has 30 frames per second" in str(caught.value) and "has 10" in str(caught.value)
    assert all(path in str(caught.value) for path in paths)
    write_act_folder(tmp_path / "act", (6,), dims=(5, 4), cameras={"top": SIZE})  # without a rate, and first
    with pytest.raises(ValueError, match="has 30 frames per second"):
        build(Config(path=[str(tmp_path / "act"), *paths], chunk_size=5), run_in(tmp_path / "cache"))


def test_damaged_metadata_and_missing_files_are_named(tmp_path, written):
    (tmp_path / "robot" / DATA).unlink()
    assert DATA in refusal(tmp_path)
    (tmp_path / "robot" / EPISODES).write_bytes(b"PAR1 and no more")
    assert EPISODES in refusal(tmp_path)


def test_check_reads_no_parquet(tmp_path, written):
    (tmp_path / "robot" / EPISODES).unlink()
    assert check(Config(path=str(tmp_path / "robot")), run_in(tmp_path)) == []
