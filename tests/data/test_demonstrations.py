"""Samples of demonstrations against the arrays that were written to the files."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from demonstration_files import (
    assert_same,
    build_act,
    everything,
    run_in,
    write_act_episode,
    write_act_folder,
    write_il_studio_episode,
)

import data.demonstrations
from data.bundle import collate
from data.demonstrations import Config, build, check

CAMERAS = {"top": (24, 32), "wrist": (24, 32)}
LENGTHS = (20, 12, 31)


@pytest.fixture
def written(tmp_path) -> list[dict]:
    return write_act_folder(tmp_path / "act", LENGTHS, cameras=CAMERAS)


@pytest.mark.slow
def test_every_sample_is_what_the_file_holds(tmp_path, written):
    bundle = build_act(tmp_path, image_size=[24, 32])
    assert len(bundle.train_dataset) == sum(LENGTHS) and bundle.eval_datasets == {}
    index = 0
    for episode, arrays in enumerate(written):
        for step in range(LENGTHS[episode]):
            sample = bundle.train_dataset[index]
            assert (sample["episode"], sample["timestep"]) == (episode, step)
            np.testing.assert_array_equal(sample["state"], arrays["observations/qpos"][step].astype(np.float32))
            ahead = arrays["action"][step : step + 8].astype(np.float32)
            np.testing.assert_array_equal(sample["actions"][: len(ahead)], ahead)
            np.testing.assert_array_equal(sample["actions"][len(ahead) :], np.tile(ahead[-1], (8 - len(ahead), 1)))
            assert sample["is_pad"].tolist() == [False] * len(ahead) + [True] * (8 - len(ahead))
            images = [arrays[f"observations/images/{camera}"][step].transpose(2, 0, 1) for camera in CAMERAS]
            np.testing.assert_array_equal(sample["images"], np.stack(images))
            index += 1
    with pytest.raises(IndexError):
        bundle.train_dataset[index]


@pytest.mark.slow
def test_a_batch_is_its_samples_and_the_dims_fit(tmp_path, written):
    bundle = build_act(tmp_path, image_size=[12, 16])
    loader = torch.utils.data.DataLoader(
        bundle.train_dataset, batch_size=7, sampler=bundle.sampler(0), collate_fn=bundle.collate
    )
    order, dims = list(bundle.sampler(0)), bundle.dims
    batch = next(iter(loader))
    assert_same(batch, bundle.collate([bundle.train_dataset[index] for index in order[:7]]))
    assert batch["state"].shape == (7, dims["state_dim"]) and batch["state"].dtype == torch.float32
    assert batch["actions"].shape == (7, dims["chunk_size"], dims["action_dim"])
    shape = (7, dims["num_images"], 3, dims["image_height"], dims["image_width"])
    assert batch["images"].shape == shape == (7, 2, 3, 12, 16) and batch["images"].dtype == torch.uint8
    assert batch["is_pad"].dtype == torch.bool and batch["episode"].dtype == batch["timestep"].dtype == torch.int64


@pytest.mark.keys("skip_mirrored_data")
def test_skip_mirrored_data_by_name_and_attribute(tmp_path):
    write_act_folder(tmp_path / "act", (10,))
    write_act_episode(tmp_path / "act/episode_1_mirror.hdf5", 11)
    write_act_episode(tmp_path / "act/episode_2.hdf5", 12, attributes={"mirrored": True})
    assert len(build_act(tmp_path).train_dataset) == 33
    bundle = build_act(tmp_path, {"skip_mirrored_data": True})
    assert len(bundle.train_dataset) == 10 and "2 mirrored left out" in bundle.summary[0]
    (tmp_path / "act/episode_0.hdf5").unlink()
    with pytest.raises(ValueError, match="2 mirrored episodes and no other; set skip_mirrored_data: false"):
        build_act(tmp_path, {"skip_mirrored_data": True})


@pytest.mark.slow
@pytest.mark.keys("dataset(demonstrations).eval_fraction", "dataset(demonstrations).split_seed")
def test_held_out_episodes_are_whole_and_stay_the_same(tmp_path, written):
    write_act_folder(tmp_path / "act", (5,) * 10)
    bundle = build_act(tmp_path, eval_fraction=0.3)
    train, validation = (everything(dataset) for dataset in (bundle.train_dataset, bundle.eval_datasets["validation"]))
    held_out = set(validation["episode"].tolist())
    assert len(held_out) == 3 and held_out | set(train["episode"].tolist()) == set(range(10))
    assert not held_out & set(train["episode"].tolist()) and len(validation["episode"]) == 15
    other_run = build(Config(path=str(tmp_path / "act"), eval_fraction=0.3), run_in(tmp_path / "cache", seed=9))
    assert set(everything(other_run.eval_datasets["validation"])["episode"].tolist()) == held_out
    splits = [build_act(tmp_path, eval_fraction=0.3, split_seed=seed).eval_datasets["validation"] for seed in range(4)]
    assert len({tuple(everything(split)["episode"].tolist()) for split in splits}) > 1


@pytest.mark.slow
def test_statistics_are_of_the_training_split_alone(tmp_path, written):
    bundle = build_act(tmp_path, eval_fraction=0.4, normalization={"state": "zscore", "action": "min_max"})
    train = sorted(set(everything(bundle.train_dataset)["episode"].tolist()))
    states = np.concatenate([written[episode]["observations/qpos"] for episode in train])
    actions = np.concatenate([written[episode]["action"] for episode in train])
    statistics = bundle.files["statistics.json"]
    np.testing.assert_allclose(statistics["state"]["std"], states.std(axis=0))
    np.testing.assert_array_equal(statistics["action"]["max"], actions.max(axis=0))
    everywhere = everything(bundle.train_dataset)
    np.testing.assert_allclose(everywhere["state"].numpy(), (states - states.mean(0)) / states.std(0), atol=1e-5)
    assert everywhere["actions"].abs().max() == 1


@pytest.mark.slow
@pytest.mark.keys(
    "dataset(demonstrations).normalization",
    "dataset(demonstrations).normalization_mask",
    "dataset(demonstrations).minimum_std",
)
def test_normalization_mask_and_minimum_std_reach_the_samples(tmp_path, written):
    kinds = {"state": "zscore", "action": "zscore"}
    mask = {"state": [False] + [True] * 13}
    sample = build_act(tmp_path, normalization=kinds, normalization_mask=mask).train_dataset[0]
    plain = build_act(tmp_path, normalization=kinds).train_dataset[0]
    floored = build_act(tmp_path, normalization=kinds, minimum_std=1e6).train_dataset[0]
    assert sample["state"][0] == np.float32(written[0]["observations/qpos"][0, 0]) != plain["state"][0]
    assert torch.equal(sample["state"][1:], plain["state"][1:]) and torch.equal(sample["actions"], plain["actions"])
    assert floored["state"].abs().max() < 1e-3 < plain["state"].abs().max()
    with pytest.raises(ValueError, match="dataset.normalization_mask.action: .* 1 entries but the signal has 14"):
        build_act(tmp_path, normalization_mask={"action": [True]})


@pytest.mark.slow
@pytest.mark.keys("dataset(demonstrations).state_keys", "dataset(demonstrations).action_key")
def test_state_and_action_keys(tmp_path, written):
    keys = ["observations/env_state", "observations/qpos"]
    bundle = build_act(tmp_path, state_keys=keys, action_key="observations/qvel")
    sample = bundle.train_dataset[4]
    expected = np.concatenate([written[0][key][4] for key in keys]).astype(np.float32)
    np.testing.assert_array_equal(sample["state"], expected)
    np.testing.assert_array_equal(sample["actions"][0], written[0]["observations/qvel"][4].astype(np.float32))
    assert bundle.dims["state_dim"] == 21


@pytest.mark.keys("episode_first", "dataset(demonstrations).samples_per_epoch")
def test_sampling_keys_reach_the_sampler(tmp_path):
    write_act_folder(tmp_path / "act", (5, 95))
    assert len(build_act(tmp_path).sampler(0)) == 100
    plain = np.asarray(list(build_act(tmp_path, samples_per_epoch=2000).sampler(0)))
    assert len(plain) == 2000 and np.mean(plain < 5) == pytest.approx(0.05)
    process = {"episode_first": True}
    by_episode = np.asarray(list(build_act(tmp_path, process, samples_per_epoch=2000).sampler(0)))
    assert np.mean(by_episode < 5) == pytest.approx(0.5)


@pytest.mark.slow
@pytest.mark.keys("dataset(demonstrations).max_episodes")
def test_max_episodes_takes_the_first_in_natural_order(tmp_path):
    write_act_folder(tmp_path / "act", tuple(range(3, 15)))
    dataset = build_act(tmp_path, max_episodes=3).train_dataset
    assert dataset.lengths.tolist() == [3, 4, 5], "episode_10 comes after episode_2"


@pytest.mark.slow
@pytest.mark.keys("dataset(demonstrations).path", "dataset(demonstrations).weights")
def test_folders_are_mixed_by_weight(tmp_path, written):
    others = write_act_folder(tmp_path / "other", (40, 50), seed=50, cameras=CAMERAS)
    paths = [str(tmp_path / "act"), str(tmp_path / "other")]
    bundle = build_act(
        tmp_path,
        {"history_images_length": 2},
        path=paths,
        weights=[3, 1],
        image_size=[24, 32],
        samples_per_epoch=4000,
    )
    (shares,) = [line for line in bundle.summary if "75.0%" in line]
    assert f"{paths[0]} 75.0%" in shares and f"{paths[1]} 25.0%" in shares
    order = np.asarray(list(bundle.sampler(0)))
    assert np.mean(order < sum(LENGTHS)) == pytest.approx(0.75, abs=0.03)
    batch = bundle.train_dataset.__getitems__([sum(LENGTHS) + 40 + 7, 3])
    assert batch["episode"].tolist() == [4, 0] and batch["timestep"].tolist() == [7, 3]
    for row, arrays, step in [(0, others[1], 7), (1, written[0], 3)]:
        np.testing.assert_array_equal(batch["state"][row], arrays["observations/qpos"][step].astype(np.float32))
        np.testing.assert_array_equal(batch["actions"][row, 2], arrays["action"][step + 2].astype(np.float32))
        frames = [arrays[f"observations/images/{camera}"][t] for camera in CAMERAS for t in (step - 1, step)]
        np.testing.assert_array_equal(batch["images"][row], np.stack(frames).transpose(0, 3, 1, 2))
    states = np.concatenate([arrays["observations/qpos"] for arrays in [*written, *others]])
    np.testing.assert_allclose(bundle.files["statistics.json"]["state"]["mean"], states.mean(axis=0))
    held_out = build_act(tmp_path, path=paths, eval_fraction=0.4).eval_datasets
    assert {name: len(set(everything(part)["episode"].tolist())) for name, part in held_out.items()} == {
        "act": 1,
        "other": 1,
    }


SUBTASKS = ["reach"] * 4 + ["grasp"] * 6


def write_il_studio_folder(tmp_path, **options) -> dict:
    return write_il_studio_episode(tmp_path / "il/episode_0.hdf5", 10, {"primary": (24, 32)}, **options)


@pytest.mark.keys("dataset(demonstrations).layout", "dataset(demonstrations).control")
@pytest.mark.parametrize("control", ["joint", "ee"])
def test_il_studio_layout(tmp_path, control):
    arrays = write_il_studio_folder(tmp_path)
    for layout in ("auto", "il_studio"):
        bundle = build_act(tmp_path, path=str(tmp_path / "il"), layout=layout, control=control, image_size=[24, 32])
        sample = bundle.train_dataset[2]
        np.testing.assert_array_equal(sample["state"], arrays[f"observations/state_{control}"][2])
        np.testing.assert_array_equal(sample["actions"][1], arrays[f"action_{control}"][3])
        expected = arrays["observations/image/primary"][2].transpose(2, 0, 1)
        np.testing.assert_array_equal(sample["images"][0], expected)
        assert sample["instruction"] == "pick up the red cube" and "reasoning" not in sample


def test_reasoning_and_previous_subtask(tmp_path):
    positions = write_il_studio_folder(tmp_path, subtasks=SUBTASKS)["reasoning/target_position"]
    texts = {}
    for key in ("neither", "use_reasoning", "use_prev_subtask"):
        process = {} if key == "neither" else {key: True}
        dataset = build_act(tmp_path, process, path=str(tmp_path / "il")).train_dataset
        texts[key] = everything(dataset)
        assert_same(collate([dataset[index] for index in (0, 5)]), dataset.__getitems__([0, 5]))
    assert set(texts["neither"]["instruction"]) == {"pick up the red cube"}
    assert texts["use_reasoning"]["reasoning"] == [
        f"subtask: {subtask}\ntarget_position: {x:.4g}, {y:.4g}"
        for subtask, (x, y) in zip(SUBTASKS, positions.tolist(), strict=True)
    ]
    previous = texts["use_prev_subtask"]["instruction"]
    assert previous[:4] == ["pick up the red cube"] * 4, "the first subtask has none before it"
    assert previous[4:] == ["pick up the red cube Previous subtask: reach"] * 6


def test_asking_for_texts_that_are_not_there_is_an_error(tmp_path):
    write_il_studio_folder(tmp_path)
    for key in ("use_reasoning", "use_prev_subtask"):
        with pytest.raises(ValueError, match=f"{key} is true but 0 of 1 episodes in .*il "):
            build_act(tmp_path, {key: True}, path=str(tmp_path / "il"))


@pytest.mark.slow
def test_texts_of_some_episodes_are_counted(tmp_path):
    write_il_studio_folder(tmp_path, subtasks=SUBTASKS)
    write_il_studio_episode(tmp_path / "il/episode_1.hdf5", 10, {"primary": (24, 32)}, instruction=None)
    for _ in range(2):  # from the files, then from the cache
        bundle = build_act(tmp_path, path=str(tmp_path / "il"))
        counts = {line.split()[0] for line in bundle.summary if " is in 1 of 2 episodes " in line}
        assert counts == {"instruction", "reasoning", "subtask"}
        assert everything(bundle.train_dataset)["instruction"] == ["pick up the red cube"] * 10 + [""] * 10
    with pytest.raises(ValueError, match="use_reasoning is true but 1 of 2 episodes"):
        build_act(tmp_path, {"use_reasoning": True}, path=str(tmp_path / "il"))


@pytest.mark.slow
def test_importing_and_checking_are_light(tmp_path):
    (tmp_path / "empty").mkdir()
    program = (
        "import sys; from types import SimpleNamespace as N; import data.demonstrations as d\n"
        "run = N(process=N(image_aspect_ratio='square'))\n"
        "print(d.check(d.Config(path=sys.argv[1]), run))\n"
        "assert not {'torch', 'numpy', 'h5py', 'cv2', 'tqdm'} & sys.modules.keys()"
    )
    root = str(Path(data.__file__).parents[1])
    command = [sys.executable, "-c", program, str(tmp_path / "empty")]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True)
    assert done.returncode == 0 and "holds no episode" in done.stdout, done.stderr


def test_check_says_what_build_would(tmp_path, written):
    assert check(Config(path=str(tmp_path / "act")), run_in(tmp_path)) == []
    assert check(Config(), run_in(tmp_path)) == []
    contradiction = Config(path=str(tmp_path / "act"), image_size=[8, 8])
    assert "keep" in check(contradiction, run_in(tmp_path, image_aspect_ratio="keep"))[0]
