"""Several data sets: drawn, moved to other probabilities, interleaved, or read side by side."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from text_folders import counting, text_run, write_text_folder

from data.text import Config, build
from data.text.sampling import Drawn, interleaving, probabilities, whole_proportions

SYMBOLS = {letter: number for number, letter in enumerate("abcde")}


@pytest.fixture
def folders(tmp_path):
    """Three data sets, of tokens that tell them apart: 0 …, 20000 …, 40000 …."""
    return [
        str(
            write_text_folder(
                tmp_path / name, counting(length) + first, counting(200) + first, vocab_size=60000, symbols=SYMBOLS
            )
        )
        for name, first, length in (("one", 0, 4000), ("two", 20000, 2000), ("three", 40000, 1000))
    ]


def mixture(tmp_path, folders, batch=4, max_steps=1000, **config):
    run = text_run(tmp_path / "cache", batch=batch, max_steps=max_steps)
    return build(Config(folders, mode="multidataset", **{"block_size": 16} | config), run)


def choices(bundle, batches, batch=4):
    """Which data set each micro-batch of a run is of, read off its tokens."""
    found = []
    for number in range(batches):
        sets = (
            bundle.train_dataset.__getitems__(list(range(number * batch, (number + 1) * batch)))["input_ids"] // 20000
        )
        assert (sets == sets[0, 0]).all(), "a batch is of one data set, and no window crosses into another"
        found.append(int(sets[0, 0]))
    return np.array(found)


@pytest.mark.slow
def test_equal_probabilities_where_none_are_given(tmp_path, folders):
    shares = np.bincount(choices(mixture(tmp_path, folders), 2000), minlength=3) / 2000
    assert np.abs(shares - 1 / 3).max() < 0.035


@pytest.mark.slow
@pytest.mark.keys("dataset(text).sampling_probs")
def test_sampling_probs_are_reached(tmp_path, folders):
    bundle = mixture(tmp_path, folders, sampling_probs=[0.7, 0.3, 0.0])
    counts = np.bincount(choices(bundle, 3000), minlength=3)
    assert abs(counts[0] - 2100) < 80 and counts[2] == 0  # three standard deviations: 75
    assert "drawn: one 0.7, two 0.3, three 0" in bundle.summary[-1]


def test_probabilities_that_move():
    first, final = [0.9, 0.1], [0.1, 0.9]

    def at(transition, progress):
        return probabilities(first, final, transition, progress)

    for transition in ("linear", "cosine", "exponential"):
        assert at(transition, 0.0) == pytest.approx(first) and at(transition, 1.0) == pytest.approx(final)
        assert at(transition, 0.5) == pytest.approx([0.5, 0.5])
    assert at("linear", 0.25) == pytest.approx([0.7, 0.3])
    assert at("cosine", 0.25) == pytest.approx([0.9 - 0.8 * (1 - math.sqrt(0.5)) / 2, 0.1 + 0.4 * (1 - math.sqrt(0.5))])
    assert at("exponential", 0.25) == pytest.approx([0.75, 0.25])  # 0.9 / √3 to 0.1 × √3 is 3 to 1
    assert sum(probabilities([0.5, 0.3, 0.2], [0.2, 0.3, 0.5], "exponential", 0.5)) == pytest.approx(1)


@pytest.mark.keys("dataset(text).sampling_probs_final", "dataset(text).sampling_transition")
@pytest.mark.slow
@pytest.mark.parametrize("transition", [None, "linear", "cosine", "exponential"])
def test_sampling_probs_final_and_sampling_transition(tmp_path, folders, transition):
    """Over a run of 2,000 batches the shares follow the curve, a fifth of the run at a time."""
    first, final = [0.8, 0.1, 0.1], [0.1, 0.1, 0.8]
    bundle = mixture(
        tmp_path,
        folders,
        max_steps=2000,
        sampling_probs=first,
        sampling_probs_final=final,
        sampling_transition=transition,
    )
    found = choices(bundle, 2000).reshape(5, 400)
    for fifth, drawn in enumerate(found):
        steps = (fifth * 400 + np.arange(400)) / 2000
        expected = np.mean([probabilities(first, final, transition or "linear", step) for step in steps], axis=0)
        assert np.abs(np.bincount(drawn, minlength=3) / 400 - expected).max() < 0.075
    assert f"three 0.1 -> 0.8 ({transition or 'linear'})" in bundle.summary[-1]


def test_the_run_is_as_long_as_its_epochs_where_max_steps_is_not_set(tmp_path, folders):
    move = {"sampling_probs": [1.0, 0.0, 0.0], "sampling_probs_final": [0.0, 0.0, 1.0]}
    config = Config(folders, mode="multidataset", block_size=16, **move)
    run = text_run(tmp_path / "cache", max_steps=-1, num_train_epochs=2.5, trainer={"gradient_accumulation_steps": 2})
    bundle = build(config, run)
    epoch = len(bundle.train_dataset)  # 437 windows in steps of 8
    assert epoch == 432 and bundle.train_dataset.choose.steps == math.ceil(2.5 * 432 / 8)
    found = choices(bundle, bundle.train_dataset.choose.steps, batch=8)
    assert found[:30].max() == 0 or (found[:30] == 0).mean() > 0.8
    assert (found[-30:] == 2).mean() > 0.8


@pytest.mark.slow
def test_drawing_follows_from_the_seed_alone(tmp_path, folders):
    def drawn(seed):
        run = text_run(tmp_path / "cache", seed=seed)
        return choices(build(Config(folders, mode="multidataset", block_size=16), run), 100)

    assert (drawn(1) == drawn(1)).all() and (drawn(1) != drawn(2)).any()


@pytest.mark.slow
def test_windows_and_data_sets_are_drawn_apart(tmp_path, folders):
    """The choice of a data set says nothing about the windows."""
    bundle = mixture(tmp_path, folders[:2], batch=1, sampling_probs=[0.5, 0.5])
    starts = [bundle.train_dataset.__getitems__([n])["input_ids"][0, 0].item() for n in range(4000)]
    first = np.array([start for start in starts if start < 20000])
    assert abs(first.mean() - 3984 / 2) < 80


@pytest.mark.parametrize("interleave", [False, True])
def test_a_mixture_resumed_draws_what_an_uninterrupted_one_draws(tmp_path, folders, interleave):
    def batches(position):
        moved = {} if interleave else {"sampling_probs_final": [0.2, 0.3, 0.5]}
        bundle = mixture(
            tmp_path, folders, sampling_probs=[0.5, 0.3, 0.2], separate_embeddings=True, interleave=interleave, **moved
        )
        sampler = bundle.sampler(0)
        sampler.set_epoch(2)
        sampler.set_position(position)
        loader = torch.utils.data.DataLoader(bundle.train_dataset, 4, sampler=sampler, collate_fn=bundle.collate)
        return list(loader)

    whole, resumed = batches(0), batches(40 * 4)
    assert len(whole) == 109 and len(resumed) == 69
    for one, other in zip(whole[40:], resumed, strict=True):
        assert one["dataset_index"] == other["dataset_index"] and torch.equal(one["input_ids"], other["input_ids"])
        assert torch.equal(one["shift_labels"], other["shift_labels"])


def test_a_name_for_each_sample(tmp_path, folders):
    bundle = mixture(tmp_path, folders)
    for number in range(0, 40, 4):
        token = bundle.train_dataset.__getitems__([number])["input_ids"][0, 0].item()
        name = ("one", "two", "three")[token // 20000]
        assert bundle.train_dataset.where(number) == f"{name} token {token % 20000}"
        assert torch.equal(bundle.train_dataset[number + 1]["input_ids"], batch_row(bundle, number, 1))


def batch_row(bundle, number, row):
    return bundle.train_dataset.__getitems__([number, number + 1, number + 2, number + 3])["input_ids"][row]


# ---- in turns ----


@pytest.mark.parametrize(
    "values", [[0.5, 0.5], [0.5, 0.3, 0.2], [0.999, 0.001], [0.0, 1.0], [0.05] * 20, [0.9, 0.02, 0.02, 0.03, 0.03]]
)
def test_interleave_stays_within_one_of_its_shares(tmp_path, folders, values):
    shares = whole_proportions(values)
    pattern = interleaving(shares)
    had = np.cumsum(np.eye(len(shares), dtype=int)[pattern * 2], axis=0)
    turns = np.arange(1, len(had) + 1)
    assert (np.abs(had - turns[:, None] * np.array(values)) < 1).all()


@pytest.mark.slow
def test_any_proportions_have_a_pattern():
    generator = np.random.default_rng(0)
    for _ in range(60):
        shares = generator.integers(0, 30, size=generator.integers(2, 9)).tolist()
        if not sum(shares):
            continue
        whole, had = sum(shares), [0] * len(shares)
        for turn, chosen in enumerate(interleaving(shares), 1):
            had[chosen] += 1
            assert all(abs(had[i] - Fraction(turn * share, whole)) < 1 for i, share in enumerate(shares))
        assert had == shares


@pytest.mark.keys("dataset(text).interleave")
def test_interleave_counts(tmp_path, folders):
    bundle = mixture(tmp_path, folders, sampling_probs=[0.5, 0.3, 0.2], interleave=True)
    found = choices(bundle, 100)
    assert found[:10].tolist() == found[10:20].tolist() and np.bincount(found).tolist() == [50, 30, 20]
    assert "in turns: one 0.5" in bundle.summary[-1]
    third = mixture(tmp_path, folders, sampling_probs=[0.333333, 0.333333, 0.333334], interleave=True)
    assert np.bincount(choices(third, 9)).tolist() == [3, 3, 3]


def test_interleaved_in_stored_order_leaves_no_gap(tmp_path, folders):
    run = text_run(tmp_path / "cache", shuffle=False)
    config = Config(folders, mode="multidataset", block_size=16, sampling_probs=[0.5, 0.3, 0.2], interleave=True)
    bundle, read = build(config, run), [[], [], []]
    for batch in range(30):
        rows = bundle.train_dataset.__getitems__(list(range(4 * batch, 4 * batch + 4)))["input_ids"]
        read[int(rows[0, 0]) // 20000] += (rows[:, 0] % 20000 // 16).tolist()
    assert read == [list(range(60)), list(range(36)), list(range(24))]


# ---- embeddings, evaluation ----


@pytest.mark.keys("dataset(text).separate_embeddings")
def test_separate_embeddings(tmp_path):
    paths = [
        write_text_folder(tmp_path / f"{kind}/notes.v1", counting(500, size), vocab_size=size, text_bytes=400)
        for kind, size in (("a", 50), ("b", 70))
    ]
    bundle = mixture(tmp_path, list(map(str, paths)), separate_embeddings=True, sampling_probs=[0.5, 0.5])
    names = ["notes_v1", "notes_v1_2"]
    assert bundle.dims == {"vocab_size": 70, "block_size": 16, "vocab_sizes": [50, 70], "dataset_names": names}
    assert list(bundle.eval_datasets) == names
    for number, name in enumerate(names):
        batch = bundle.collate(bundle.eval_datasets[name].__getitems__([0, 1]))
        assert type(batch["dataset_index"]) is int and batch["dataset_index"] == number
        assert bundle.collate([bundle.eval_datasets[name][0]])["dataset_index"] == number
        values = bundle.metrics[name].compute(1.0)
        assert values["better_than_chance"] == pytest.approx((50, 70)[number] / math.e)
        assert values["bits_per_byte"] == pytest.approx(200 / 400 / math.log(2))
    assert "train" not in bundle.metrics, "chance differs from batch to batch"
    indices = {bundle.train_dataset.__getitems__([n * 4])["dataset_index"] for n in range(20)}
    assert indices == {0, 1}
    with pytest.raises(ValueError, match="cannot share a batch"):
        bundle.collate([bundle.eval_datasets[name][0] for name in names])


def test_one_embedding_for_all_has_no_index(tmp_path, folders):
    bundle = mixture(tmp_path, folders)
    assert bundle.dims == {"vocab_size": 60000, "block_size": 16}
    assert "dataset_index" not in bundle.train_dataset[0]
    assert "dataset_index" not in bundle.eval_datasets["one"][0]
    assert bundle.metrics["train"].compute(0.0) == pytest.approx({"better_than_chance": 60000})
    starts = bundle.eval_datasets["two"].__getitems__([0, 1])["input_ids"]
    assert starts.min() >= 20000 and starts.max() < 40000


@pytest.mark.keys("dataset(text).mode")
def test_multicontext_reads_the_same_offsets(tmp_path):
    words = write_text_folder(tmp_path / "words", counting(1000), vocab_size=60000, text_bytes=900)
    tags = write_text_folder(tmp_path / "tags", counting(1000) + 70000, vocab_size=80000, dtype="uint32")
    config = Config([str(words), str(tags)], mode="multicontext", block_size=16)
    bundle = build(config, text_run(tmp_path / "cache"))
    batch = bundle.train_dataset.__getitems__([0, 1, 2, 3])
    assert batch["input_ids"].shape == (4, 2, 16) and batch["input_ids"].is_contiguous()
    assert torch.equal(batch["input_ids"][:, 1], batch["input_ids"][:, 0] + 70000)
    assert torch.equal(batch["shift_labels"], batch["input_ids"] + 1)
    assert bundle.train_dataset[2]["input_ids"].shape == (2, 16)
    assert bundle.train_dataset.where(0) == f"words, tags token {batch['input_ids'][0, 0, 0]}"
    names = ["words", "tags"]
    assert bundle.dims == {
        "vocab_size": 80000,
        "block_size": 16,
        "vocab_sizes": [60000, 80000],
        "context_names": names,
    }
    assert len(bundle.train_dataset) == 60, "windows of one stream"
    (held_out,) = bundle.eval_datasets.values()
    assert held_out[3]["input_ids"].shape == (2, 16)
    values = bundle.metrics["validation"].compute(2.0)
    assert values == pytest.approx(
        {"better_than_chance": math.sqrt(60000 * 80000) / math.exp(2), "perplexity": math.exp(2)}
    )


def test_a_probability_of_zero_is_never_drawn_at_the_edges():
    drawn = Drawn(0, [0.0, 0.5, 0.5, 0.0])
    assert {drawn(batch) for batch in range(2000)} == {1, 2}
