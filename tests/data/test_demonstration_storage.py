"""Cached, lazy and preloaded demonstrations: the same samples, never stale ones."""

import itertools
import os
import pickle
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from demonstration_files import (
    assert_same,
    build_act,
    everything,
    write_act_folder,
)

CAMERAS = {"top": (24, 32), "wrist": (24, 32)}
LENGTHS = (20, 12, 31)


@pytest.fixture
def written(tmp_path) -> list[dict]:
    return write_act_folder(tmp_path / "act", LENGTHS, cameras=CAMERAS)


@pytest.mark.slow
def test_cached_lazy_and_preloaded_are_identical(tmp_path, written):
    options = list(itertools.product([False, True], repeat=2))
    batches = []
    for lazy, preload in options:
        process = {"lazy_preprocess": lazy, "preload_data": preload, "history_images_length": 2}
        bundle = build_act(tmp_path, process, image_size=[10, 12])
        batches.append(everything(bundle.train_dataset))
        # A worker process that is not forked gets a pickled copy.
        assert_same(batches[-1], everything(pickle.loads(pickle.dumps(bundle)).train_dataset))
    for batch in batches[1:]:
        assert_same(batch, batches[0])


@pytest.mark.slow
@pytest.mark.keys("lazy_preprocess")
def test_lazy_keeps_no_cache_and_opens_each_file_once(tmp_path, written, monkeypatch):
    bundle = build_act(tmp_path, {"lazy_preprocess": True}, image_size=[10, 12])
    assert not (tmp_path / "cache").exists()
    opened, original = [], h5py.File
    monkeypatch.setattr(h5py, "File", lambda *args: opened.append(args[0]) or original(*args))
    everything(bundle.train_dataset), everything(bundle.train_dataset)
    assert len(opened) == len(set(opened)) == len(LENGTHS)


def test_lazy_keeps_only_so_many_files_open(tmp_path, written, monkeypatch):
    monkeypatch.setattr("data.demonstrations.frames.OPEN_FILES", 1)
    plain = everything(build_act(tmp_path, image_size=[10, 12]).train_dataset)
    dataset = build_act(tmp_path, {"lazy_preprocess": True}, image_size=[10, 12]).train_dataset
    assert_same(dataset.__getitems__([0, 63 - 1, 0, 21]), {key: value[[0, 62, 0, 21]] for key, value in plain.items()})
    links = [Path(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
    targets = [os.path.realpath(link) for link in links if link.exists()]
    assert [Path(target).name for target in targets if target.startswith(str(tmp_path))] == ["episode_1.hdf5"]


@pytest.mark.slow
@pytest.mark.keys("preload_data")
def test_preloading_needs_neither_cache_nor_files_afterwards(tmp_path, written):
    bundle = build_act(tmp_path, {"preload_data": True}, image_size=[10, 12])
    before = everything(bundle.train_dataset)
    shutil.rmtree(tmp_path / "cache")
    shutil.rmtree(tmp_path / "act")
    assert_same(everything(bundle.train_dataset), before)


def test_preloading_too_much_is_refused(tmp_path, written, monkeypatch):
    monkeypatch.setattr("data.cache.free_memory", lambda: 1000)
    with pytest.raises(ValueError, match="preload_data needs .* GB is free; set preload_data: false"):
        build_act(tmp_path, {"preload_data": True})


def caches(tmp_path) -> list[Path]:
    return sorted(entry for entry in (tmp_path / "cache/demonstrations").iterdir() if entry.is_dir())


@pytest.mark.slow
def test_the_cache_follows_the_content(tmp_path, written):
    build_act(tmp_path, image_size=[10, 12])
    made = caches(tmp_path)
    build_act(tmp_path, image_size=[10, 12], chunk_size=3, eval_fraction=0.4)
    (tmp_path / "act").rename(tmp_path / "moved")
    build_act(tmp_path, image_size=[10, 12], path=str(tmp_path / "moved"))
    assert caches(tmp_path) == made, "what does not change the prepared arrays reuses them"


@pytest.mark.slow
def test_whatever_decides_the_prepared_arrays_makes_another_cache(tmp_path, written):
    base = {"image_size": [10, 12], "state_keys": ["observations/qpos"], "action_key": "action"}
    variants = [
        ({}, {}),
        ({}, {"image_size": [11, 12]}),
        ({}, {"cameras": ["wrist"]}),
        ({}, {"state_keys": ["observations/qvel"]}),
        ({}, {"action_key": "observations/qvel"}),
        ({}, {"layout": "act"}),
        ({}, {"control": "ee"}),
        ({}, {"max_episodes": 2}),
        ({"image_aspect_ratio": "pad"}, {}),
        ({"skip_mirrored_data": True}, {}),
        ({"is_multimodal": False}, {}),
    ]
    for number, (process, config) in enumerate(variants):
        build_act(tmp_path, process, **base | config)
        assert len(caches(tmp_path)) == number + 1, (process, config)


@pytest.mark.slow
def test_changed_data_is_seen(tmp_path, written):
    file = tmp_path / "act/episode_1.hdf5"
    build_act(tmp_path)
    status = file.stat()
    with h5py.File(file, "r+") as root:
        root["action"][3] = 42.0
    bundle = build_act(tmp_path)
    np.testing.assert_array_equal(bundle.train_dataset[20 + 3]["actions"][0], np.full(14, 42.0))
    assert file.stat().st_size == status.st_size


@pytest.mark.slow
def test_many_frames_are_prepared_by_several_processes(tmp_path, monkeypatch):
    write_act_folder(tmp_path / "act", (30, 25), cameras={"top": (24, 32)})
    alone = everything(build_act(tmp_path, {"lazy_preprocess": True}, image_size=[10, 12]).train_dataset)
    monkeypatch.setattr("data.demonstrations.frames.SERIAL_FRAMES", 0)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1})
    assert_same(everything(build_act(tmp_path, image_size=[10, 12]).train_dataset), alone)


@pytest.mark.slow
def test_workers_deliver_the_same_batches(tmp_path, written):
    bundle = build_act(tmp_path, {"lazy_preprocess": True}, image_size=[10, 12])

    def batches(workers):
        return list(
            torch.utils.data.DataLoader(
                bundle.train_dataset,
                9,
                sampler=bundle.sampler(0),
                collate_fn=bundle.collate,
                num_workers=workers,
            )
        )

    for alone, shared in zip(batches(0), batches(2), strict=True):
        assert_same(alone, shared)
