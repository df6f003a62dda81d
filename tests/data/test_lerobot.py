"""Samples of LeRobot data sets against the arrays and frames that the test itself wrote into their files."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from demonstration_files import assert_same, everything, run_in, write_act_folder
from lerobot_files import CAMERAS, LENGTHS, SIZE, TASKS, frame, level, write_v3, write_v21

from data.demonstrations import Config, Processor, build, check
from data.processor import input_sources

IDENTITY = {"state": "identity", "action": "identity"}
PIXELS = 6  # of 255: what the encoder loses


def build_lerobot(tmp_path, process=None, **config):
    """The bundle of `tmp_path/robot`, in the data set's own units."""
    defaults = {"path": str(tmp_path / "robot"), "chunk_size": 5, "normalization": IDENTITY, "image_size": list(SIZE)}
    return build(Config(**defaults | config), run_in(tmp_path / "cache", **process or {}))


def write(tmp_path, version, **options):
    return {"v3": write_v3, "v2.1": write_v21}[version](tmp_path / "robot", **options)


@pytest.mark.slow
@pytest.mark.parametrize("version", ["v3", "v2.1"])
def test_every_sample_is_what_the_files_hold(tmp_path, version):
    signals = write(tmp_path, version)
    dataset = build_lerobot(tmp_path).train_dataset
    assert len(dataset) == sum(LENGTHS)
    index = 0
    for episode, length in enumerate(LENGTHS):
        for step in range(length):
            sample = dataset[index]
            assert (sample["episode"], sample["timestep"]) == (episode, step)
            np.testing.assert_array_equal(sample["state"], signals[episode]["observation.state"][step])
            rows = np.minimum(step + np.arange(5), length - 1)  # the last action is repeated …
            np.testing.assert_array_equal(sample["actions"], signals[episode]["action"][rows])
            assert sample["is_pad"].tolist() == [step + ahead >= length for ahead in range(5)]  # … and marked
            assert sample["instruction"] == TASKS[episode % 2]
            for camera in range(len(CAMERAS)):
                expected = frame(episode, step, camera).transpose(2, 0, 1).astype(int)
                inside = np.abs(sample["images"][camera].numpy() - expected)[:, 28:, 36:]  # away from the edge
                corner = np.abs(sample["images"][camera].numpy() - expected)[:, :20, :28]
                assert inside.max() <= 2 and corner.max() <= PIXELS, (episode, step, camera)
            index += 1


@pytest.mark.slow
def test_images_in_parquet_are_exact(tmp_path):
    write_v3(tmp_path / "robot", dtype="image")
    batch = everything(build_lerobot(tmp_path).train_dataset)
    rows = [(episode, step) for episode, length in enumerate(LENGTHS) for step in range(length)]
    for row, (episode, step) in enumerate(rows):
        expected = np.stack([frame(episode, step, camera).transpose(2, 0, 1) for camera in range(2)])
        np.testing.assert_array_equal(batch["images"][row], expected)
    other_order = everything(build_lerobot(tmp_path, cameras=["wrist", "top"]).train_dataset)
    assert torch.equal(other_order["images"], batch["images"].flip(1))


@pytest.mark.slow
def test_several_processes_decode_the_same_frames_and_memory_needs_no_cache(tmp_path, monkeypatch):
    write_v3(tmp_path / "robot")
    in_memory = build_lerobot(tmp_path, {"lazy_preprocess": True, "preload_data": True})
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr("data.demonstrations.frames.SERIAL_FRAMES", 0)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1})
    assert_same(everything(build_lerobot(tmp_path).train_dataset), everything(in_memory.train_dataset))


@pytest.mark.slow
def test_training_opens_no_video(tmp_path, monkeypatch):
    write_v3(tmp_path / "robot")
    before = everything(build_lerobot(tmp_path).train_dataset)
    monkeypatch.setattr("av.open", None)
    assert_same(everything(build_lerobot(tmp_path).train_dataset), before)
    with pytest.raises(ValueError, match="lazy_preprocess: false"):
        build_lerobot(tmp_path, {"lazy_preprocess": True})


@pytest.mark.slow
def test_a_changed_video_is_seen(tmp_path):
    write_v3(tmp_path / "robot", cameras=("top",))
    build_lerobot(tmp_path)
    for video in (tmp_path / "robot/videos").rglob("*.mp4"):
        video.unlink()
    with pytest.raises(ValueError, match=r"file-000\.mp4 cannot be read"):
        build_lerobot(tmp_path)


@pytest.mark.slow
@pytest.mark.keys("dataset(demonstrations).rename")
def test_rename_reaches_the_keys_the_cameras_and_the_policy(tmp_path):
    signals = write_v3(tmp_path / "robot")
    rename = {"observation.images.wrist": "observations/images/hand", "observation.effort": "observations/qpos"}
    bundle = build_lerobot(tmp_path, rename=rename, cameras=["hand"], state_keys=["observations/qpos"])
    sample = bundle.train_dataset[3]
    assert sample["images"][0, :, 40, 60].tolist() == pytest.approx([level(0, 3, 1)] * 3, abs=2)
    np.testing.assert_array_equal(sample["state"], signals[0]["observation.effort"][3])
    saved = bundle.files["statistics.json"]["observation"]
    assert (saved["state_keys"], saved["image_keys"]) == (["observations/qpos"], ["observations/images/hand"])
    both = {"observation.images.wrist": "observation.images.top"}
    for wrong, words in (({"observation.imgs": "x"}, "observation.imgs"), (both, "observation.images.top")):
        with pytest.raises(ValueError, match=words):
            build_lerobot(tmp_path, rename=wrong)
    write_act_folder(tmp_path / "act", (5,))
    assert "dataset.rename" in check(Config(path=str(tmp_path / "act"), rename=rename), run_in(tmp_path))[0]


@pytest.mark.keys("dataset(demonstrations).layout")
def test_layout(tmp_path):
    write_v3(tmp_path / "robot", cameras=())
    assert len(build_lerobot(tmp_path, layout="lerobot", image_size=None).train_dataset) == sum(LENGTHS)
    for layout, words in (("act", "holds no episode"), ("il_studio", "holds no episode")):
        with pytest.raises(ValueError, match=words):
            build_lerobot(tmp_path, layout=layout)
    write_act_folder(tmp_path / "act", (5,))
    with pytest.raises(ValueError, match=r"meta/info\.json"):
        build_lerobot(tmp_path, layout="lerobot", path=str(tmp_path / "act"))


def test_hub_ids_are_checked_without_a_network_and_fail_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = Config(path="lab-of-nobody/no_such_data", layout="lerobot")
    assert check(config, run_in(tmp_path)) == []
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"^dataset\.path: lab-of-nobody/no_such_data") as caught:
        build(config, run_in(tmp_path / "cache"))
    assert "\n" not in str(caught.value)


@pytest.mark.keys("cache_dir")
def test_a_hubs_data_set_is_downloaded_into_the_cache_dir(tmp_path, monkeypatch):
    write_v3(tmp_path / "robot", cameras=())
    asked = []

    def download(name, repo_type, cache_dir):
        asked.append((name, repo_type, cache_dir))
        return str(tmp_path / "robot")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    build_lerobot(tmp_path, {"cache_dir": "/big/disk"}, path="lab/cubes_v2.1", layout="lerobot", image_size=None)
    assert asked == [("lab/cubes_v2.1", "dataset", "/big/disk")]
    assert check(Config(path="lab/cubes.hdf5", layout="lerobot"), run_in(tmp_path)) != []


def test_a_line_of_json_may_have_any_separator_of_unicode(tmp_path):
    write_v21(tmp_path / "robot", cameras=())
    file, text = tmp_path / "robot/meta/tasks.jsonl", "pick\u2028up\x85the cube"
    lines = [{"task_index": 0, "task": text}, {"task_index": 1, "task": TASKS[1]}]
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\r\n" for line in lines), encoding="utf-8")
    assert build_lerobot(tmp_path, image_size=None).train_dataset[0]["instruction"] == text


@pytest.mark.slow
def test_recordings_are_read_episode_by_episode_with_their_texts(tmp_path):
    """Of several data sets in one folder, each named after its own; all texts that a policy may read."""
    for name in ("a", "b"):
        write_v3(tmp_path / f"in/{name}", cameras=("top",), texts=True)
    key = "observation.images.top"
    encoder = Processor(None, None, ["observation.state"], [key], None, 1)
    encoder.config = Config(rename={"observation.images.laptop": key})  # of another data set of its mixture
    files, _ = input_sources(str(tmp_path / "in"), Processor.SUFFIXES, Processor.LISTS)
    found = []
    for file in files:
        for recording in encoder.recordings(file):
            items = list(encoder.read(recording))
            found.append(recording.name)
            number = int(recording.name[-1])
            assert {item.source for item in items} == {recording} and len(items) == LENGTHS[number]
            assert [item.raw["subtask"] for item in items[2:4]] == ["reach", "grasp"]
            assert items[1].raw["instruction"] == TASKS[number % 2] and items[1].raw[key].shape == (*SIZE, 3)
    assert found == [f"{name}/episode_{number}" for name in "ab" for number in range(3)]


def test_state_keys_and_action_key_are_features(tmp_path):
    signals = write_v3(tmp_path / "robot", cameras=())
    keys = ["observation.effort", "observation.state"]
    bundle = build_lerobot(tmp_path, state_keys=keys, action_key="observation.effort")
    expected = np.concatenate([signals[1][key][2] for key in keys])
    np.testing.assert_array_equal(bundle.train_dataset[LENGTHS[0] + 2]["state"], expected)
    assert (bundle.dims["state_dim"], bundle.dims["action_dim"], bundle.dims["num_images"]) == (7, 2, 0)


@pytest.mark.slow
@pytest.mark.keys("dataset(demonstrations).exclude", "dataset(demonstrations).max_episodes")
def test_exclude_and_max_episodes_choose_episodes(tmp_path):
    signals = write_v3(tmp_path / "robot")
    dataset = build_lerobot(tmp_path, exclude=["episode_1"]).train_dataset
    assert dataset.lengths.tolist() == [LENGTHS[0], LENGTHS[2]]
    sample = dataset[LENGTHS[0] + 4]
    np.testing.assert_array_equal(sample["state"], signals[2]["observation.state"][4])
    assert sample["images"][0, :, 40, 60].tolist() == pytest.approx([level(2, 4, 0)] * 3, abs=2)
    assert build_lerobot(tmp_path, max_episodes=2).train_dataset.lengths.tolist() == list(LENGTHS[:2])
    with pytest.raises(ValueError, match="`episode_7`"):
        build_lerobot(tmp_path, exclude=["episode_7"])
    with pytest.raises(ValueError, match="leaves no episode"):
        build_lerobot(tmp_path, exclude=["episode_*"])


def test_statistics_and_evaluation_split_are_those_of_demonstrations(tmp_path):
    signals = write_v3(tmp_path / "robot", cameras=())
    bundle = build_lerobot(tmp_path, eval_fraction=0.34, normalization={"state": "zscore", "action": "min_max"})
    (held_out,) = set(everything(bundle.eval_datasets["validation"])["episode"].tolist())
    train = np.concatenate([s["observation.state"] for e, s in enumerate(signals) if e != held_out])
    np.testing.assert_allclose(bundle.files["statistics.json"]["state"]["mean"], train.mean(axis=0, dtype=float))
    assert everything(bundle.train_dataset)["actions"].abs().max() == 1


@pytest.mark.slow
@pytest.mark.keys("use_reasoning", "use_prev_subtask")
def test_string_columns_are_texts(tmp_path):
    write_v3(tmp_path / "robot", cameras=(), texts=True)
    batch = everything(build_lerobot(tmp_path, {"use_reasoning": True, "use_prev_subtask": True}).train_dataset)
    second = LENGTHS[0]
    assert batch["reasoning"][second + 2] == "reason 1 2"
    assert batch["instruction"][0] == TASKS[0]
    assert batch["instruction"][second + 2] == TASKS[1]
    assert batch["instruction"][second + 5] == f"{TASKS[1]} Previous subtask: reach"
    plain = tmp_path / "plain"
    write_v3(plain, cameras=())
    for key in ("use_reasoning", "use_prev_subtask"):
        with pytest.raises(ValueError, match=f"{key} is true"):
            build_lerobot(tmp_path, {key: True}, path=str(plain))


def test_subtasks_by_number_and_an_instruction_column(tmp_path):
    """lerobot may number the subtasks; other data sets have the instruction itself in a column of another name."""
    folder = tmp_path / "robot"
    write_v3(folder, cameras=(), per_file=3)
    file = folder / "data/chunk-000/file-000.parquet"
    table = pq.read_table(file)
    steps = table["frame_index"].to_numpy()
    table = table.append_column("subtask_index", pa.array((steps >= 4).astype(int)))
    table = table.append_column("annotation.text", pa.array([f"step {step}" for step in steps]))
    pq.write_table(table, file)
    pq.write_table(pa.table({"subtask": ["reach", "lift"], "subtask_index": [0, 1]}), folder / "meta/subtasks.parquet")
    info = json.loads((folder / "meta/info.json").read_text())
    info["features"] |= {
        "subtask_index": {"dtype": "int64", "shape": [1], "names": None},
        "annotation.text": {"dtype": "string", "shape": [1], "names": None},
    }
    (folder / "meta/info.json").write_text(json.dumps(info))
    rename = {"annotation.text": "instruction"}
    batch = everything(build_lerobot(tmp_path, {"use_prev_subtask": True}, rename=rename).train_dataset)
    assert batch["instruction"][2] == "step 2" and batch["instruction"][5] == "step 5 Previous subtask: reach"


@pytest.mark.slow
def test_images_may_be_stored_channels_first_in_the_metadata(tmp_path):
    write_v3(tmp_path / "robot", cameras=("top",))
    file = tmp_path / "robot/meta/info.json"
    info = json.loads(file.read_text())
    names = ["channels", "height", "width"]
    info["features"]["observation.images.top"] |= {"shape": [3, *SIZE], "names": names}
    file.write_text(json.dumps(info))
    bundle = build_lerobot(tmp_path, image_size=None)
    assert (bundle.dims["image_height"], bundle.dims["image_width"]) == (min(SIZE), min(SIZE))


def test_rows_in_another_order_and_other_encodings_of_lists(tmp_path):
    """A merged data set may have its rows in any order; lists may have a fixed or a variable size."""
    signals = write_v3(tmp_path / "robot", cameras=())
    file = tmp_path / "robot/data/chunk-000/file-000.parquet"
    table = pq.read_table(file)
    table = table.take(np.random.default_rng(0).permutation(len(table)))
    variable = table["action"].combine_chunks().cast(pa.list_(pa.float64()))
    pq.write_table(table.set_column(table.schema.get_field_index("action"), "action", variable), file)
    batch = everything(build_lerobot(tmp_path).train_dataset)
    expected = np.concatenate([s["action"] for s in signals])
    assert torch.equal(batch["actions"][:, 0], torch.from_numpy(expected))


@pytest.mark.slow
def test_a_mixture_with_hdf5(tmp_path):
    write_v3(tmp_path / "robot", cameras=("top",))
    write_act_folder(tmp_path / "act", (6,), dims=(5, 4), cameras={"top": SIZE})
    bundle = build_lerobot(tmp_path, path=[str(tmp_path / "robot"), str(tmp_path / "act")])
    assert len(bundle.train_dataset) == sum(LENGTHS) + 6
    batch = bundle.train_dataset.__getitems__([0, sum(LENGTHS) + 1])
    assert batch["episode"].tolist() == [0, 3] and batch["images"].shape == (2, 1, 3, *SIZE)
