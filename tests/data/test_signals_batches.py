"""Splits, windows, tokenizers, MixUp and batches of signals."""

import importlib
import itertools
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from signal_files import signal_run, sine_trials, walk, write_npz, write_ts

from data.signals import Config, build
from data.signals.config import DataSplitter, MixUp
from data.signals.dataset import collate
from data.signals.mixup import MixTransform
from data.signals.splits import Stretch
from data.signals.tokenizers import MuLaw, Uniform
from data.signals.windows import Windows
from prepare import build_loss

# ---- tokenizers ----


@pytest.mark.parametrize("kind", [MuLaw, Uniform])
@pytest.mark.parametrize("levels", [2, 255, 256, 1024, 65536])
def test_all_ids_survive_decoding_and_encoding(kind, levels):
    tokenizer = kind(levels, 3.0)
    ids = np.arange(levels)
    np.testing.assert_array_equal(tokenizer.encode(tokenizer.decode(ids).astype(np.float64)), ids)
    np.testing.assert_array_equal(tokenizer.encode(tokenizer.decode(ids)), ids)  # in float32, as windows are
    np.testing.assert_array_equal(tokenizer.encode([-1e9, 1e9]), [0, levels - 1])
    assert (np.diff(tokenizer.decode(ids)) > 0).all() and tokenizer.vocab_size == levels


def test_mu_law_by_hand():
    """Compressed, clamped to ± .999, then floor(c · 127.5 + 128)."""
    values = np.array([-5.0, -0.5, 0.0, 0.001, 0.5, 2.5, 5.0])
    scaled = values / 5
    compressed = np.sign(scaled) * np.log(1 + 255 * np.abs(scaled)) / np.log(256)
    truth = np.floor(np.clip(compressed, -0.999, 0.999) * 127.5 + 128)
    np.testing.assert_array_equal(MuLaw(256, 5.0).encode(values), truth)
    assert truth.tolist()[0] == 0 and truth.tolist()[2] == 128 and truth.tolist()[-1] == 255


def test_mu_law_of_tensors_is_that_of_arrays():
    values = np.random.default_rng(0).normal(size=(3, 1000))
    ids = MuLaw(256, 2.0).encode(torch.from_numpy(values))
    assert ids.dtype == torch.int64
    np.testing.assert_array_equal(ids, MuLaw(256, 2.0).encode(values))


def test_uniform_bins_by_hand():
    np.testing.assert_array_equal(Uniform(4, 2.0).encode([-2, -1.01, -0.99, 0, 0.99, 2]), [0, 0, 1, 2, 2, 3])
    np.testing.assert_array_equal(Uniform(4, 2.0).decode(np.arange(4)), [-1.5, -0.5, 0.5, 1.5])


# ---- windows ----


def test_windows_in_order_cover_each_stretch_and_cross_none():
    stretches = [Stretch(0, 0, 0, 35), Stretch(1, 0, 100, 109), Stretch(0, 1, 40, 60)]
    windows = Windows(stretches, length=10, hop=10)
    starts = sorted(map(tuple, windows(range(len(windows))).tolist()))
    assert starts == [(0, 0, 35), (0, 10, 35), (0, 20, 35), (0, 40, 60), (0, 50, 60)]
    overlapping = Windows(stretches, length=10, hop=5)
    assert len(overlapping) == 6 + 3
    first = overlapping(range(3))[:, 1]
    assert len(set(first.tolist())) == 3 and max(first) - min(first) > 10  # the first few are spread over all


def test_random_windows_are_a_function_of_seed_and_number_and_uniform():
    stretches = [Stretch(0, 0, 5, 25), Stretch(1, 0, 0, 15)]
    windows = Windows(stretches, length=10, hop=1, seed=3)
    many = windows(range(17_000))
    np.testing.assert_array_equal(windows([16_123, 4]), many[[16_123, 4]])
    counts = np.bincount(many[:, 0] * 100 + many[:, 1], minlength=106)
    places = [*range(5, 16), *range(100, 106)]  # 11 and 6 starts
    assert counts.sum() == counts[places].sum()
    assert np.abs(counts[places] - 1000).max() < 4 * np.sqrt(1000)
    assert (Windows(stretches, 10, 1, seed=4)(range(50)) != many[:50]).any()


def ramp_bundle(tmp_path, *, run=None, samples=400, **given):
    """A bundle of a ramp per channel, so that a value says where it is from; not standardised."""
    values = np.arange(samples) + 1000.0 * np.arange(2)[:, None]
    path = tmp_path / "ramp.npz"
    if not path.exists():
        write_npz(path, values)
    given = {"target": "values", "window": 20, "standardise": "none", "clip": None} | given
    splitter = DataSplitter(**given.pop("datasplitter", {}))
    return build(Config(path=str(path), datasplitter=splitter, **given), run or signal_run(tmp_path / "cache"))


@pytest.mark.keys(
    "dataset(signals).window", "dataset(signals).overlap", "dataset(signals).unit", "dataset(signals).sampling"
)
def test_length_overlap_and_order_of_windows(tmp_path):
    grid = ramp_bundle(tmp_path, sampling="grid", overlap=5)
    (validation,) = grid.eval_datasets.values()
    signal = grid.train_dataset.__getitems__(list(range(len(grid.train_dataset))))["signal"]
    assert sorted(signal[:, 0, 0].int().tolist()) == list(range(0, 341, 15)) and signal.shape[1:] == (2, 20)
    assert sorted(validation[i]["signal"][0, 0].item() for i in range(len(validation))) == [360, 375]
    sampler = grid.sampler(0)
    assert sorted(sampler) == list(range(len(grid.train_dataset)))
    seconds = ramp_bundle(tmp_path, window=0.3, overlap=0.1, unit="seconds", sampling="grid")
    assert seconds.dims["context"] == 30 and len(seconds.train_dataset) == (360 - 30) // 20 + 1
    assert len(ramp_bundle(tmp_path, window=0.3, unit="seconds", sampling="grid").train_dataset) == 12
    with pytest.raises(ValueError, match="dataset.window: 0.004"):
        ramp_bundle(tmp_path, window=0.004, unit="seconds")
    random = ramp_bundle(tmp_path)
    starts = random.train_dataset.__getitems__(list(range(200)))["signal"][:, 0, 0].int()
    assert starts.max() <= 340 and (starts % 5 != 0).any()
    in_order = ramp_bundle(tmp_path, run=signal_run(tmp_path / "cache", shuffle=False))
    assert len(in_order.train_dataset) == 18


def test_the_sampler_goes_on_where_a_run_stopped(tmp_path):
    """Numbers continue over the epochs, and an epoch is whole steps of four samples."""
    bundle = ramp_bundle(tmp_path)
    sampler = bundle.sampler(0)
    assert len(sampler) == len(bundle.train_dataset) == 16
    sampler.set_epoch(2)
    sampler.set_position(5)
    assert list(sampler) == list(range(37, 48))


@pytest.mark.keys("dataset(signals).target", "dataset(signals).path")
def test_labels_are_the_next_values_and_unknown_at_a_stretch_s_end(tmp_path):
    batch = ramp_bundle(tmp_path, sampling="grid", datasplitter={"eval_fraction": 0.0}).train_dataset
    everything = batch.__getitems__(list(range(len(batch))))
    signal, labels = everything["signal"], everything["labels"]
    assert signal.dtype == labels.dtype == torch.float32 and everything["channels"].tolist() == [[0, 1]] * len(batch)
    last = signal[:, 0, -1] == 399
    assert last.sum() == 1 and torch.isnan(labels[last][:, :, -1]).all()
    assert (labels[~last] == signal[~last] + 1).all() and (labels[last][:, :, :-1] == signal[last][:, :, 1:]).all()


@pytest.mark.keys("dataset(signals).tokenizer", "dataset(signals).levels")
def test_tokens_are_those_of_the_values(tmp_path):
    given = {"clip": 5.0, "standardise": "zscore", "sampling": "grid"}
    values = ramp_bundle(tmp_path, **given)
    for name, truth in (("mu_law", MuLaw(64, 5.0)), ("uniform", Uniform(64, 5.0))):
        tokens = ramp_bundle(tmp_path, target="tokens", tokenizer=name, levels=64, **given)
        assert tokens.dims.items() >= {"context": 20, "vocab_size": 64, "channels": 2}.items()
        batch, plain = (each.train_dataset.__getitems__([3, 5]) for each in (tokens, values))
        np.testing.assert_array_equal(batch["input_ids"], truth.encode(plain["signal"].numpy()))
        known = ~torch.isnan(plain["labels"])
        assert (batch["labels"][~known] == -100).all()
        np.testing.assert_array_equal(batch["labels"][known], truth.encode(plain["labels"][known].numpy()))
        ((_, ids),) = tokens.train_dataset.recording_ids()
        ((_, all_values),) = values.train_dataset.recordings()
        np.testing.assert_array_equal(ids, truth.encode(all_values))


def test_single_samples_and_workers(tmp_path):
    """A sample alone is the batch's without its axis; the data set can be pickled."""
    dataset = ramp_bundle(tmp_path).train_dataset
    dataset.__getitems__([0])
    copy = pickle.loads(pickle.dumps(dataset))
    batch, alone = copy.__getitems__([4, 9]), collate([dataset[4], dataset[9]])
    assert all(torch.equal(batch[key], alone[key]) for key in batch)
    assert dataset.where(4) == f"ramp.npz sample {int(dataset[4]['signal'][0, 0])}"


# ---- splits ----


def sessions(tmp_path, subjects=6, per_subject=2):
    """sub-K_ses-L.npz, the values of each its own number."""
    for subject, session in itertools.product(range(subjects), range(per_subject)):
        number = subject * per_subject + session
        write_npz(tmp_path / "in" / f"sub-{subject:02}_ses-{session}_eeg.npz", number + walk(1, 60) * 1e-3)
    return tmp_path / "in"


def recordings_of(bundle):
    """Names of the recordings of each side."""
    sides = {"train": bundle.train_dataset, **bundle.eval_datasets, **bundle.test_datasets}
    return {side: {name for name, _ in dataset.recordings()} for side, dataset in sides.items()}


@pytest.mark.slow
@pytest.mark.keys("dataset(signals).datasplitter")
@pytest.mark.parametrize(("by", "held_out"), [("session", (2, 3)), ("subject", (2, 4))])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_session_and_no_subject_is_on_two_sides(tmp_path, by, held_out, seed):
    folder, run = sessions(tmp_path), signal_run(tmp_path / "cache")
    run.seed = seed
    pattern = r"(sub-\d+_ses-\d+)" if by == "session" else r"(sub-\d+)"
    splitter = DataSplitter(
        by=by,
        eval_fraction=0.2,
        test_fraction=0.25,
        session_pattern=pattern,
        subject_pattern=r"sub-(\d+)",
    )
    bundle = build(Config(path=str(folder), target="values", window=10, datasplitter=splitter), run)
    sides = recordings_of(bundle)
    assert set.union(*sides.values()) == {path.name for path in folder.iterdir()}
    keys = {side: {name[: 12 if by == "session" else 6] for name in names} for side, names in sides.items()}
    for first, second in itertools.combinations(keys.values(), 2):
        assert not first & second
    assert (len(sides["validation"]), len(sides["test"])) == held_out


@pytest.mark.slow
@pytest.mark.keys("dataset(signals).datasplitter")
def test_named_subjects_and_data_sets_are_held_out(tmp_path):
    folder, run = sessions(tmp_path), signal_run(tmp_path / "cache")
    splitter = DataSplitter(by="subject", eval=["01"], test=["04", "05"])
    sides = recordings_of(build(Config(path=str(folder), target="values", window=10, datasplitter=splitter), run))
    assert {name[:6] for name in sides["validation"]} == {"sub-01"} and len(sides["train"]) == 6
    assert {name[:6] for name in sides["test"]} == {"sub-04", "sub-05"}
    other = write_npz(tmp_path / "other" / "x.npz", walk(1, 60))
    splitter = DataSplitter(by="dataset", eval=["other"])
    paths = [str(folder), str(other.parent)]
    sides = recordings_of(build(Config(path=paths, target="values", window=10, datasplitter=splitter), run))
    assert sides["validation"] == {"x.npz"} and len(sides["train"]) == 12
    with pytest.raises(ValueError, match="dataset.datasplitter.eval: no subject 99"):
        splitter = DataSplitter(by="subject", eval=["99"])
        build(Config(path=str(folder), target="values", window=10, datasplitter=splitter), run)


@pytest.mark.keys("dataset(signals).datasplitter")
@pytest.mark.parametrize("given", ["in", "~/in", "ABSOLUTE/in"])
def test_sessions_are_named_by_their_path_below_the_entry(tmp_path, monkeypatch, given):
    for name in "ab":
        write_npz(tmp_path / "in/night" / f"{name}.npz", walk(1, 300))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    splitter = DataSplitter(by="session", eval=["night/b.npz"])
    config = Config(path=given.replace("ABSOLUTE", str(tmp_path)), window=20, datasplitter=splitter)
    (held_out,) = build(config, signal_run(tmp_path / "cache")).eval_datasets["validation"].stretches
    assert held_out.file == 1


@pytest.mark.keys("dataset(signals).datasplitter")
@pytest.mark.parametrize("is_list_of_files", [True, False])
def test_the_entries_of_a_list_may_be_the_subjects(tmp_path, is_list_of_files):
    """Files of one name in folders of subjects: each has its own subject and session."""
    files = [write_npz(tmp_path / f"sub-{s}/ses-1/rec.npz", walk(1, 300, s)) for s in range(3)]
    paths = [str(file if is_list_of_files else file.parent.parent) for file in files]
    for splitter in (DataSplitter(by="subject", eval=["1"]), DataSplitter(by="session", eval=["sub-1/ses-1"])):
        config = Config(path=paths, window=20, datasplitter=splitter)
        bundle = build(config, signal_run(tmp_path / "cache"))
        (held_out,) = bundle.eval_datasets["validation"].stretches
        assert held_out.file == 1 and len(bundle.train_dataset.stretches) == 2


@pytest.mark.keys("dataset(signals).datasplitter")
def test_a_session_folder_may_be_renamed(tmp_path):
    """Its files are prepared already, when it had another name."""
    for number, name in enumerate(("day1", "day2")):
        part = {"data": walk(1, 300, number), "ch_names": ["a"], "sfreq": 100.0}
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "0.npy").write_bytes(pickle.dumps(part))
    for name in ("day1", "day3"):
        splitter = DataSplitter(by="session", eval=[name])
        config = Config(path=str(tmp_path / "in"), window=20, datasplitter=splitter)
        assert "validation" in build(config, signal_run(tmp_path / "cache")).eval_datasets
        if name == "day1":
            (tmp_path / "in/day1").rename(tmp_path / "in/day3")


def test_the_end_of_time_is_held_out_after_a_gap(tmp_path):
    bundle = ramp_bundle(
        tmp_path, datasplitter={"by": "time", "eval_fraction": 0.2, "test_fraction": 0.25, "gap_seconds": 0.1}
    )
    sides = {"train": bundle.train_dataset, **bundle.eval_datasets, **bundle.test_datasets}
    spans = {side: next(dataset.recordings())[1][0] for side, dataset in sides.items()}
    bounds = {side: (int(values[0]), int(values[-1])) for side, values in spans.items()}
    assert bounds == {"train": (0, 219), "validation": (230, 299), "test": (310, 399)}
    batches = bundle.train_dataset.__getitems__(list(range(500)))
    assert batches["signal"][:, 0].max() <= 219 and np.nanmax(batches["labels"][:, 0]) <= 219


@pytest.mark.keys("dataset(signals).eval_path", "dataset(signals).test_path")
def test_recordings_of_their_own_validate_and_test(tmp_path):
    for name in ("a", "b", "c"):
        write_npz(tmp_path / f"{name}.npz", walk(1, 100))
    paths = {
        key: str(tmp_path / f"{name}.npz") for key, name in zip(("path", "eval_path", "test_path"), "abc", strict=True)
    }
    bundle = build(Config(**paths, target="values", window=10), signal_run(tmp_path / "cache"))
    assert recordings_of(bundle) == {"train": {"a.npz"}, "validation": {"b.npz"}, "test": {"c.npz"}}
    assert bundle.train_dataset.stretches == [Stretch(0, 0, 0, 100)]


# ---- classes ----


def trial_config(tmp_path, **given):
    """24 trials, 12 of each class, for training; 8 for validation."""
    trials = write_ts(tmp_path / "train.ts", *sine_trials(24)), write_ts(tmp_path / "val.ts", *sine_trials(8, seed=1))
    given = {"path": str(trials[0]), "eval_path": str(trials[1]), "target": "class"} | given
    return Config(**given)


def test_trials_of_any_length_are_padded(tmp_path):
    bundle = build(trial_config(tmp_path), signal_run(tmp_path / "cache"))
    trials, labels = sine_trials(24)
    assert bundle.dims.items() >= {"context": 30, "classes": 2, "channels": 2}.items()
    assert bundle.files["signals.json"]["classes"] == ["a", "b"]
    batch = bundle.train_dataset.__getitems__([0, 1, 2, 5])
    assert batch["lengths"].tolist() == [trials[index].shape[1] for index in (0, 1, 2, 5)]
    assert batch["labels"].tolist() == [0, 1, 0, 1] and batch["signal"].shape == (4, 2, max(batch["lengths"]))
    shift, scale = (np.array(bundle.files["signals.json"][key])[:, None] for key in ("shift", "scale"))
    for row, length, index in zip(batch["signal"], batch["lengths"], (0, 1, 2, 5), strict=True):
        np.testing.assert_allclose(row[:, :length].numpy() * scale + shift, trials[index], atol=1e-5)
        assert (row[:, length:] == 0).all()
    assert sorted(bundle.sampler(0)) == list(range(24)) and len(set(batch["group"].tolist())) == 4


def test_trials_are_held_out_whole(tmp_path):
    bundle = build(trial_config(tmp_path, eval_path=None), signal_run(tmp_path / "cache"))
    sides = recordings_of(bundle)
    assert len(sides["train"]) == 22 and len(sides["validation"]) == 2 and not sides["train"] & sides["validation"]


@pytest.mark.keys("dataset(signals).classes")
def test_windows_of_events_are_classified(tmp_path):
    """One window at a short event, several in a long one; an event without room for a window has none."""
    rows = ["time,x,state"]
    states = ["other"] * 30 + ["rest"] * 25 + ["walk"] * 40 + ["rest"] * 5
    rows += [f"{index / 100},{index},{state}" for index, state in enumerate(states)]
    (tmp_path / "a.csv").write_text("\n".join(rows) + "\n")
    given = {"target": "class", "window": 12, "label_column": "state", "standardise": "none", "clip": None}
    splitter = DataSplitter(eval_fraction=0.0)
    config = Config(path=str(tmp_path / "a.csv"), classes=["walk", "rest"], datasplitter=splitter, **given)
    bundle = build(config, signal_run(tmp_path / "cache"))
    found = [(int(sample["signal"][0, 0]), int(sample["labels"])) for sample in bundle.train_dataset]
    assert found == [(30, 1), (42, 1), (55, 0), (67, 0), (79, 0)]
    assert bundle.files["signals.json"]["classes"] == ["walk", "rest"]


# ---- MixUp ----


def mixed_batch(seed=0, count=6, classes=3, **given):
    generator = torch.Generator().manual_seed(seed)
    batch = {
        "signal": torch.randn(count, 2, 8, generator=torch.Generator().manual_seed(1)),
        "labels": torch.arange(count) % classes,
        "lengths": torch.arange(count) + 3,
    }
    return batch, MixTransform(MixUp(num_classes=classes, **given))(batch, generator)


@pytest.mark.slow
def test_a_batch_is_mixed_with_one_share_of_at_least_a_half():
    """The share is found from the soft targets; the signals are mixed with the same share and order."""
    shares = []
    for seed in range(400):
        batch, mixed = mixed_batch(seed, count=2, classes=2, mixup_alpha=0.4)
        targets = mixed["labels"]
        assert targets.dtype == torch.float32 and torch.allclose(targets.sum(1), torch.ones(2))
        share = targets[0, 0].item()
        assert share >= 0.5 and torch.allclose(targets[1], torch.tensor([1 - share, share]), atol=1e-6)
        shares.append(share)
        signal = share * batch["signal"] + (1 - share) * batch["signal"].flip(0)
        torch.testing.assert_close(mixed["signal"], signal, rtol=0, atol=1e-5)
    shares = np.array([share for share in shares if share < 1])
    from scipy.stats import beta, kstest

    assert 150 < len(shares) < 250  # half of the orders of two are the identity
    folded = lambda x: beta(0.4, 0.4).cdf(x) - beta(0.4, 0.4).cdf(1 - np.asarray(x))  # noqa: E731
    assert kstest(shares, folded).pvalue > 0.01


@pytest.mark.slow
def test_the_share_of_batches_that_are_mixed():
    changed = 0
    for seed in range(300):
        batch, mixed = mixed_batch(seed, mixup_alpha=1.0, mixup_prob=0.3)
        changed += not torch.equal(batch["signal"], mixed["signal"])
        assert mixed["labels"].shape == (6, 3)
        assert (mixed["lengths"] >= batch["lengths"]).all()
    assert abs(changed - 90) < 3 * np.sqrt(300 * 0.3 * 0.7)


@pytest.mark.parametrize("given", [{}, {"mixup_alpha": 0.4}, {"mixup_alpha": 0.4, "mixup_prob": 0.0}])
def test_quantised_batches_have_one_type_mixed_or_not(given):
    batch, mixed = mixed_batch(quantize=True, mu=15, max_val=2.0, **given)
    assert mixed["signal"].dtype == torch.int64 and mixed["signal"].min() >= 0 and mixed["signal"].max() <= 15
    if given.get("mixup_prob", 1) == 0 or not given:
        np.testing.assert_array_equal(mixed["signal"], MuLaw(16, 2.0).encode(batch["signal"].numpy()))


@pytest.mark.slow
@pytest.mark.keys("dataset(signals).mixup")
def test_validation_is_quantised_and_never_mixed(tmp_path):
    mixup = MixUp(mixup_alpha=0.4, num_classes=2, quantize=True)
    bundle = build(trial_config(tmp_path, mixup=mixup), signal_run(tmp_path / "cache"))
    plain = build(trial_config(tmp_path), signal_run(tmp_path / "cache"))
    validation, truth = (each.eval_datasets["validation"].__getitems__([0, 3]) for each in (bundle, plain))
    assert validation["labels"].dtype == torch.int64
    for row, values, length in zip(validation["signal"], truth["signal"], truth["lengths"], strict=True):
        np.testing.assert_array_equal(row[:, :length], MuLaw(256, 10.0).encode(values[:, :length].numpy()))
    train = bundle.train_dataset.__getitems__([0, 1])
    assert train["signal"].dtype == torch.float32  # quantised by the transform, after mixing
    assert bundle.train_transform(train, torch.Generator())["signal"].dtype == torch.int64


def test_next_values_are_mixed_too(tmp_path):
    bundle = ramp_bundle(tmp_path, mixup=MixUp(mixup_alpha=0.4))
    batch = bundle.train_dataset.__getitems__([0, 1, 2])
    mixed = [bundle.train_transform(batch, torch.Generator().manual_seed(seed)) for seed in range(5)]
    assert all(torch.allclose(each["labels"], each["signal"] + 1, equal_nan=True) for each in mixed)
    assert any(not torch.equal(each["signal"], batch["signal"]) for each in mixed)


# ---- losses ----


@pytest.mark.parametrize(
    ("target", "fitting", "others"),
    [
        ("class", ("cross_entropy", "focal"), ("mse", "bce")),
        ("tokens", ("cross_entropy", "focal"), ("gaussian_nll",)),
        ("values", ("mse", "gaussian_nll"), ("cross_entropy",)),
    ],
)
def test_losses_that_do_not_fit_the_target_are_refused_at_the_start(tmp_path, target, fitting, others):
    write_ts(tmp_path / "a.ts", *sine_trials(8))
    bundle = build(Config(path=str(tmp_path / "a.ts"), target=target, window=20), signal_run(tmp_path / "cache"))
    for name in (*fitting, *others):
        module = importlib.import_module(f"models.losses.{name}")
        loss = SimpleNamespace(name=name, module=module, config=module.Config())
        run = SimpleNamespace(loss=loss, place=lambda key: "")
        if name in fitting:
            build_loss(run, bundle)
            continue
        with pytest.raises(ValueError, match=f"loss.name: {name}.*{fitting[0]}"):
            build_loss(run, bundle)


def test_focal_loss_of_mixed_classes_is_that_of_classes(tmp_path):
    """Shares of classes are in floating point, and no independent labels."""
    write_ts(tmp_path / "a.ts", *sine_trials(8))
    config = Config(path=str(tmp_path / "a.ts"), target="class", mixup=MixUp(mixup_alpha=0.4, num_classes=2))
    bundle = build(config, signal_run(tmp_path / "cache"))
    module = importlib.import_module("models.losses.focal")
    focal = SimpleNamespace(name="focal", module=module, config=module.Config(gamma=2.0))
    loss = build_loss(SimpleNamespace(loss=focal, place=lambda key: ""), bundle)
    batch = bundle.train_transform(bundle.train_dataset.__getitems__([0, 1, 2]), torch.Generator().manual_seed(0))
    logits = torch.randn(3, 2, generator=torch.Generator().manual_seed(1))
    entropy = -(batch["labels"] * logits.log_softmax(1)).sum(1)
    expected = ((1 - (-entropy).exp()) ** 2 * entropy).mean()
    assert loss({"logits": logits}, batch)["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
