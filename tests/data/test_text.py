"""Text: windows, their order, resuming, evaluation sets, metrics."""

import json
import math
import pickle
import time

import numpy as np
import pytest
import torch
from text_folders import counting, text_run, write_split, write_text_folder

from data.samplers import random_numbers, spread_stride
from data.text import Config, build, find


def numbers_of(bundle, count, epoch=0, position=0):
    sampler = bundle.sampler(0)
    sampler.set_epoch(epoch)
    sampler.set_position(position)
    return [number for number, _ in zip(sampler, range(count), strict=False)]


def batches_of(bundle, batch, count, epoch=0, position=0, workers=0):
    sampler = bundle.sampler(0)
    sampler.set_epoch(epoch)
    sampler.set_position(position)
    loader = torch.utils.data.DataLoader(
        bundle.train_dataset, batch, sampler=sampler, collate_fn=bundle.collate, num_workers=workers
    )
    return [each for each, _ in zip(loader, range(count), strict=False)]


def assert_equal(one, other):
    assert len(one) == len(other)
    for first, second in zip(one, other, strict=True):
        assert first.keys() == second.keys()
        for key, value in first.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(second[key])), key


@pytest.fixture
def folder(tmp_path):
    return write_text_folder(tmp_path / "words", counting(5000), counting(777), vocab_size=60000)


def test_a_batch_is_windows_of_the_file_and_the_tokens_after_them(tmp_path, folder):
    bundle = build(Config(str(folder), block_size=16), text_run(tmp_path))
    batch = bundle.collate(bundle.train_dataset.__getitems__([7, 3, 900, 3]))
    assert list(batch) == ["input_ids", "shift_labels", "labels"]
    inputs = batch["input_ids"]
    assert inputs.shape == (4, 16) and inputs.dtype == torch.int64 and inputs.is_contiguous()
    assert torch.equal(inputs, inputs[:, :1] + torch.arange(16)), "counting tokens: a window counts on"
    assert torch.equal(batch["shift_labels"], inputs + 1) and batch["shift_labels"].is_contiguous()
    assert torch.equal(batch["labels"], inputs)
    assert torch.equal(inputs[1], inputs[3]) and len(set(inputs[:3, 0].tolist())) == 3
    single = bundle.train_dataset[900]
    assert single["input_ids"].shape == (16,) and torch.equal(single["input_ids"], inputs[2])
    stacked = bundle.collate([bundle.train_dataset[number] for number in (7, 3, 900, 3)])
    assert_equal([stacked], [batch])
    assert bundle.train_dataset.where(900) == f"words token {inputs[2, 0]}"


def test_other_tokens_are_another_identity(tmp_path, folder):
    """Saved with checkpoints: a resumed run sees that its data has changed."""

    def identity(**options):
        return build(Config(str(folder), **options), text_run(tmp_path)).files["data.json"]

    before = identity()
    assert before == identity() != identity(block_size=17)
    tokens = np.fromfile(folder / "train.bin", "<u2")
    tokens[4000] += 1
    tokens.tofile(folder / "train.bin")
    assert identity() != before


@pytest.mark.slow
def test_equal_ids_of_other_symbols_are_another_identity(tmp_path):
    """A text and the same one in a permuted alphabet: the token files are equal to the byte."""

    def digest(symbols=None, meta=True, **changes):
        folder = write_text_folder(tmp_path / "set", counting(500, 3), vocab_size=3, symbols=symbols, meta=meta)
        if changes:
            file = folder / "tokenizer.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | changes, indent=2))
        identity = build(Config(str(folder), block_size=16), text_run(tmp_path)).files["data.json"]
        assert json.loads(json.dumps(identity)) == identity
        return identity["data"][0]["tokenizer"]

    assert digest() is None
    before = digest({"a": 0, "b": 1, "c": 2})
    assert before == digest({"c": 2, "b": 1, "a": 0}) != digest({"a": 1, "b": 0, "c": 2})
    assert before == digest({"a": 0, "b": 1, "c": 2}, padding=None), "how it is written does not matter"
    for name in ("meta.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "set" / name).unlink()
    found = []
    for table in ("abc", "bac", "abc"):
        (tmp_path / "set/meta.pkl").write_bytes(pickle.dumps({"vocab_size": 3, "itos": list(table)}))
        found.append(digest(meta=False))
    assert found[0] == found[2] != found[1] and None not in found


@pytest.mark.keys("dataset(text).block_size")
def test_block_size_and_what_the_model_is_built_for(tmp_path, folder):
    for block_size in (1, 100):
        bundle = build(Config(str(folder), block_size=block_size), text_run(tmp_path))
        assert bundle.dims == {"vocab_size": 60000, "block_size": block_size}
        assert bundle.units == {"tokens": block_size}
        assert bundle.train_dataset.__getitems__([0, 1])["input_ids"].shape == (2, block_size)
    assert bundle.summary[0].startswith(
        "words: 5,000 training and 777 validation tokens, vocabulary 60,000 (uint16, char)"
    )


def test_the_hash_is_splitmix64():
    """First numbers for seed 1234567, as published with other implementations."""
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert random_numbers(np.uint64(1234567), np.arange(1, 5, dtype=np.uint64)).tolist() == expected


@pytest.mark.slow
def test_windows_are_uniform_and_depend_on_the_seed(tmp_path):
    folder = write_text_folder(tmp_path / "a", counting(116), counting(30), vocab_size=60000)
    drawn = {}
    for seed in (1, 2):
        bundle = build(Config(str(folder), block_size=16), text_run(tmp_path, seed=seed))
        drawn[seed] = bundle.train_dataset.__getitems__(list(range(200_000)))["input_ids"][:, 0].numpy()
        counts = np.bincount(drawn[seed], minlength=100)
        assert len(counts) == 100, "the last window ends with the last token"
        chi_square = ((counts - 2000) ** 2 / 2000).sum()
        assert 60 < chi_square < 149, chi_square  # 99 degrees of freedom: 0.1 % at either end
    assert (drawn[1] == drawn[2]).mean() < 0.02
    pairs = np.bincount(drawn[1][:-1] // 10 * 10 + drawn[1][1:] // 10, minlength=100)
    assert ((pairs - 2000) ** 2 / 2000).sum() < 149, "one window does not say which comes next"


def test_data_seed_stands_in_for_the_seed(tmp_path, folder):
    def first(**run):
        return build(Config(str(folder), block_size=16), text_run(tmp_path, **run)).train_dataset[5]["input_ids"]

    assert torch.equal(first(seed=1, trainer={"data_seed": 9}), first(seed=2, trainer={"data_seed": 9}))
    assert torch.equal(first(seed=9), first(seed=2, trainer={"data_seed": 9}))
    assert not torch.equal(first(seed=1), first(seed=2))


def test_an_epoch_is_the_text_once_in_whole_steps(tmp_path, folder, monkeypatch):
    config = Config(str(folder), block_size=16)  # 312 windows
    assert len(build(config, text_run(tmp_path, batch=4)).train_dataset) == 312
    assert len(build(config, text_run(tmp_path, batch=5)).train_dataset) == 310
    accumulated = text_run(tmp_path, batch=5, trainer={"gradient_accumulation_steps": 4})
    bundle = build(config, accumulated)
    assert len(bundle.train_dataset) == len(bundle.sampler(0)) == 300
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert len(build(config, accumulated).train_dataset) == 280
    assert len(build(config, text_run(tmp_path, batch=500)).train_dataset) == 1000, "at least one step"


def test_the_sampler_counts_on_over_the_epochs(tmp_path, folder):
    bundle = build(Config(str(folder), block_size=16), text_run(tmp_path))
    assert numbers_of(bundle, 3) == [0, 1, 2]
    assert numbers_of(bundle, 3, epoch=2, position=310) == [934, 935]
    sampler = bundle.sampler(0)
    sampler.set_position(100)
    assert next(iter(sampler)) == 100 and next(iter(sampler)) == 0, "a position is for one pass"
    first, second = (bundle.train_dataset.__getitems__(numbers_of(bundle, 312, epoch)) for epoch in (0, 1))
    assert not torch.equal(first["input_ids"], second["input_ids"])


def test_resuming_draws_what_an_uninterrupted_run_draws(tmp_path, folder):
    config = Config(str(folder), block_size=16)
    whole = batches_of(build(config, text_run(tmp_path)), 4, 78, epoch=3)
    resumed = batches_of(build(config, text_run(tmp_path)), 4, 78, epoch=3, position=40)
    assert len(whole) == 78
    assert_equal(resumed, whole[10:])


def test_a_position_in_a_huge_epoch_is_reached_at_once(tmp_path, folder):
    sampler = build(Config(str(folder), block_size=16), text_run(tmp_path)).sampler(0)
    sampler.samples = 10**15
    sampler.set_epoch(10**3)
    sampler.set_position(10**15 - 2)
    began = time.perf_counter()
    assert list(iter(sampler)) == [10**18 + 10**15 - 2, 10**18 + 10**15 - 1]
    assert time.perf_counter() - began < 0.1


def test_processes_take_different_samples_and_together_all(tmp_path, folder, monkeypatch):
    from accelerate.data_loader import BatchSamplerShard

    monkeypatch.setenv("WORLD_SIZE", "3")
    bundle = build(Config(str(folder), block_size=16), text_run(tmp_path))
    taken = []
    for rank in range(3):
        batches = torch.utils.data.BatchSampler(bundle.sampler(0), 4, drop_last=False)
        taken.append([number for batch in BatchSamplerShard(batches, 3, rank) for number in batch])
    assert len(taken[0]) == len(taken[1]) == len(taken[2]) == 104
    assert sorted(sum(taken, [])) == list(range(312))


def test_without_shuffle_windows_come_as_stored(tmp_path, folder):
    bundle = build(Config(str(folder), block_size=16), text_run(tmp_path, shuffle=False))
    first = bundle.train_dataset.__getitems__([0, 1, 2, 311, 312, 313])["input_ids"][:, 0]
    assert first.tolist() == [0, 16, 32, 4976, 0, 16]


@pytest.mark.slow
def test_loader_workers_give_the_same_batches(tmp_path, folder):
    bundle = build(Config(str(folder), block_size=16), text_run(tmp_path))
    assert_equal(batches_of(bundle, 4, 6, workers=2), batches_of(bundle, 4, 6))


def test_a_pickled_bundle_holds_names_of_files_not_their_content(tmp_path):
    folder = write_text_folder(tmp_path / "a", counting(100_000), vocab_size=60000)
    bundle = build(Config(str(folder), block_size=16), text_run(tmp_path))
    bundle.train_dataset[0]  # the windows are mapped
    stored = pickle.dumps(bundle)
    assert len(stored) < 20_000
    copy = pickle.loads(stored)
    assert_equal([copy.train_dataset.__getitems__([1, 2])], [bundle.train_dataset.__getitems__([1, 2])])
    assert copy.metrics["validation"].compute(1.0) == bundle.metrics["validation"].compute(1.0)
    assert len(copy.sampler(0)) == 6248


def test_32_bit_tokens(tmp_path):
    folder = write_text_folder(tmp_path / "wide", counting(500) + 70_000, vocab_size=128_000, dtype="uint32")
    bundle = build(Config(str(folder), block_size=16), text_run(tmp_path))
    batch = bundle.train_dataset.__getitems__([0, 1])
    assert batch["input_ids"].min() >= 70_000 and torch.equal(batch["shift_labels"], batch["input_ids"] + 1)
    assert "(uint32, char)" in bundle.summary[0]


@pytest.mark.parametrize(("magic", "version", "dtype"), [(20240520, 1, "uint16"), (20240801, 7, "uint32")])
def test_files_with_a_header(tmp_path, magic, version, dtype):
    """llm.c's files, without a meta: the header says how wide tokens are."""
    for name, count in (("train", 500), ("val", 100)):
        write_split(tmp_path / f"{name}.bin", counting(count), dtype, magic, version)
    bundle = build(Config(str(tmp_path), block_size=16, vocab_size=70_000), text_run(tmp_path / "cache", shuffle=False))
    assert bundle.train_dataset[0]["input_ids"].tolist() == list(range(16)), "the header is no text"
    assert "500 training and 100 validation tokens" in bundle.summary[0] and dtype in bundle.summary[0]


# ---- evaluation ----


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 10, 12, 30, 97, 100, 1742])
def test_the_spread_order_visits_each_once(count):
    stride = spread_stride(count)
    assert sorted(number * stride % count for number in range(count)) == list(range(count))


def test_evaluation_is_each_window_once_and_spread(tmp_path):
    folder = write_text_folder(tmp_path / "a", counting(500), counting(16 * 100 + 3), vocab_size=60000)
    held_out = build(Config(str(folder), block_size=16), text_run(tmp_path)).eval_datasets
    assert list(held_out) == ["validation"]
    windows = held_out["validation"]
    assert len(windows) == 100
    batch = windows.__getitems__(list(range(100)))
    starts = batch["input_ids"][:, 0]
    assert sorted(starts.tolist()) == list(range(0, 1600, 16))
    assert torch.equal(batch["shift_labels"], batch["input_ids"] + 1)
    assert abs(starts[:10].double().mean() - 800) < 120, "the first ones are from everywhere"
    assert np.diff(sorted(starts[:10].tolist())).max() < 400
    with pytest.raises(IndexError):
        windows[100]


def test_the_last_window_needs_the_token_after_it(tmp_path):
    for extra, windows in ((0, 9), (1, 10)):
        folder = write_text_folder(tmp_path / f"a{extra}", counting(500), counting(160 + extra), vocab_size=60000)
        held_out = build(Config(str(folder), block_size=16), text_run(tmp_path)).eval_datasets["validation"]
        assert len(held_out) == windows


# ---- figures ----


def test_metrics(tmp_path):
    folder = write_text_folder(tmp_path / "a", counting(500, 64), counting(100, 64), vocab_size=64, text_bytes=250)
    metrics = build(Config(str(folder), block_size=16), text_run(tmp_path)).metrics
    assert metrics["train"].compute(math.log(4)) == pytest.approx({"better_than_chance": 16})
    held_out = metrics["validation"].compute(math.log(4))
    assert held_out == pytest.approx({"better_than_chance": 16, "perplexity": 4, "bits_per_byte": 2 * 100 / 250})
    assert metrics["validation"].compute(1e4)["perplexity"] == math.inf


def test_no_bytes_no_bits_per_byte(tmp_path, folder):
    metrics = build(Config(str(folder), block_size=16), text_run(tmp_path)).metrics
    assert "bits_per_byte" not in metrics["validation"].compute(1)


# ---- where data sets are found ----


def test_names_are_looked_for_in_three_places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cache = tmp_path / "cache"
    assert find("words", cache) is None
    write_text_folder(cache / "datasets/words", counting(100))
    assert find("words", cache) == cache / "datasets/words"
    write_text_folder(tmp_path / "data/words", counting(100))
    assert find("words", cache).resolve() == tmp_path / "data/words"
    (tmp_path / "words").mkdir()
    assert find("words", cache).resolve() == tmp_path / "data/words", "an empty folder hides nothing"
    write_text_folder(tmp_path / "words", counting(100))
    assert find("words", cache).resolve() == tmp_path / "words"
    assert find(str(tmp_path / "data/words"), cache) == tmp_path / "data/words"
