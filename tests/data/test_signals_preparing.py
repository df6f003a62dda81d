"""Preparation of recordings: filters and rates against scipy, channels, missing values, the cache."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import signal
from signal_files import signal_run, walk, write_edf, write_npz

from data.signals import Config, build, preparing
from data.signals.alignment import align
from data.signals.pipeline import processed, ratio_of, resampled, sections_of
from data.signals.preparing import KEYS, files_of, prepare, without
from data.signals.scaling import SAMPLED_BLOCK, blocks_of, moments


def cut(values, sizes):
    """Blocks of changing sizes."""
    start, number = 0, 0
    while start < values.shape[1]:
        stop = start + sizes[number % len(sizes)]
        yield values[:, start:stop].copy()
        start, number = stop, number + 1


def joined(blocks):
    return np.concatenate(list(blocks), 1)


def settings(**given):
    return dict.fromkeys(KEYS) | given


def prepared(tmp_path, path, **given):
    (file,) = prepare([path], settings(**given), tmp_path / "cache", 1)
    return file


# ---- filters and rates ----


@pytest.mark.parametrize(("rate", "new_rate"), [(100, 50), (1000, 360), (64, 100), (360, 100), (250, 256)])
def test_resampling_in_blocks_is_that_of_the_whole(rate, new_rate):
    """Against scipy's resample_poly of the stretch with its ends repeated, cut to the stretch."""
    values = walk(3, 10_007)
    up, down = ratio_of(rate, new_rate)
    assert rate * up / down == new_rate
    pad = 50 * down
    padded = np.pad(values, ((0, 0), (pad, pad)), mode="edge")
    length = -(-values.shape[1] * up // down)
    truth = signal.resample_poly(padded, up, down, axis=1)[:, pad * up // down :][:, :length]
    for sizes in ([20_000], [100, 7, 1300, 1]):
        np.testing.assert_allclose(joined(resampled(cut(values, sizes), up, down)), truth, rtol=0, atol=1e-12)


def test_resampling_keeps_what_is_slow_and_removes_what_would_alias():
    """5 Hz stays; 180 Hz, which at 100 Hz would be 20 Hz, goes."""
    time = np.arange(3600) / 360
    slow, fast = (np.sin(2 * np.pi * hertz * time)[None] for hertz in (5, 180))
    kept, removed = (joined(resampled(iter([each]), 5, 18))[0, 50:-50] for each in (slow, fast))
    np.testing.assert_allclose(kept, np.sin(2 * np.pi * 5 * np.arange(1000) / 100)[50:-50], atol=2e-3)
    assert np.abs(removed).max() < 5e-3


@pytest.mark.keys("dataset(signals).highpass", "dataset(signals).lowpass", "dataset(signals).notch")
def test_filters_in_blocks_are_those_of_the_whole(tmp_path):
    """Butterworth of order 4 and a notch of quality 30, causal: of the past alone, and no filter at rest at 0."""
    values = walk(2, 3000) + 50
    path = write_npz(tmp_path / "a.npz", values)
    array = prepared(tmp_path, path, highpass=1.0, lowpass=30.0, notch=[20.0]).array()
    sections = np.concatenate(
        [
            signal.butter(4, 1, "highpass", fs=100, output="sos"),
            signal.butter(4, 30, "lowpass", fs=100, output="sos"),
            signal.tf2sos(*signal.iirnotch(20, 30, fs=100)),
        ]
    )
    for channel, row in enumerate(values):
        truth, _ = signal.sosfilt(sections, row, zi=signal.sosfilt_zi(sections) * row[0])
        np.testing.assert_allclose(array[:, channel], truth, rtol=1e-5, atol=1e-5)
    blocks = joined(processed(cut(values, [100, 7, 1300, 1]), sections_of(100, 1, 30, [20]), 1, 1))
    np.testing.assert_allclose(blocks, array.T, rtol=1e-5, atol=1e-5)
    assert np.abs(array[0]).max() < 1e-6  # the high-pass starts where the signal does


@pytest.mark.parametrize(("up", "down"), [(1, 1), (1, 2), (25, 64), (3, 1)])
def test_missing_values_stay_missing_and_spread_to_no_other(up, down):
    """A value is missing where the nearest one was; the others are those of the signal held over the gap."""
    values = walk(2, 4000)
    held = values.copy()
    held[0, 1000:1040] = held[0, 999]
    values[0, 1000:1040] = np.nan
    sections = sections_of(100, None, 10, None)
    whole, blocks = (joined(processed(cut(values, sizes), sections, up, down)) for sizes in ([5000], [100, 7, 901]))
    np.testing.assert_array_equal(whole, blocks)
    truth = joined(processed(cut(held, [5000]), sections, up, down))
    is_missing = np.isnan(whole)
    np.testing.assert_array_equal(whole[~is_missing], truth[~is_missing])
    nearest = np.rint(np.arange(whole.shape[1]) * down / up)
    np.testing.assert_array_equal(is_missing[0], (nearest >= 1000) & (nearest < 1040))
    assert not is_missing[1].any()


@pytest.mark.keys("dataset(signals).resample", "dataset(signals).sampling_rate")
def test_rates_of_files(tmp_path):
    np.save(tmp_path / "a.npy", walk(1, 1000))
    with pytest.raises(ValueError, match="^a.npy .*dataset.sampling_rate"):
        prepared(tmp_path, tmp_path / "a.npy", resample=50.0)
    file = prepared(tmp_path, tmp_path / "a.npy", resample=50.0, sampling_rate=200.0)
    assert (file.rate, file.rows) == (50, 250)
    with pytest.raises(ValueError, match="dataset.lowpass: 60 .* 50 Hz"):
        prepared(tmp_path, write_npz(tmp_path / "b.npz", walk(1, 100)), lowpass=60.0)


@pytest.mark.parametrize("rate", [99.998, 100.001, 100.06])
def test_clocks_that_are_not_exact_come_to_the_rate_that_is_asked_for(tmp_path, rate):
    """So that recordings with such clocks are of one rate."""
    assert prepared(tmp_path, write_npz(tmp_path / "a.npz", walk(1, 1000), rate=rate), resample=100.0).rate == 100
    up, down = ratio_of(rate, 100.0)
    assert abs(rate * up / down / 100 - 1) < 1e-4


# ---- channels ----


@pytest.mark.keys("dataset(signals).channels", "dataset(signals).rename", "dataset(signals).reference")
def test_channels_are_picked_renamed_and_referenced(tmp_path):
    values = walk(4, 100)
    path = write_npz(tmp_path / "a.npz", values, channels=["EEG A", "EEG B", "ref", "x[1]"])
    file = prepared(tmp_path, path, channels=["x[1]", "EEG*"], rename={"EEG B": "EEG C"})
    assert file.channels == ["x[1]", "EEG A", "EEG C"]
    np.testing.assert_array_equal(file.array(), values[[3, 0, 1]].T.astype(np.float32))
    average = prepared(tmp_path, path, reference="average").array()
    np.testing.assert_allclose(average, (values - values.mean(0)).T, rtol=1e-5, atol=1e-5)
    one = prepared(tmp_path, path, reference=["ref"], channels=["EEG A"]).array()
    np.testing.assert_allclose(one[:, 0], values[0] - values[2], rtol=1e-5, atol=1e-5)
    for given, key in (({"channels": ["EOG"]}, "channels EOG"), ({"reference": "M1"}, "dataset.reference")):
        with pytest.raises(ValueError, match=key):
            prepared(tmp_path, path, **given)


@pytest.mark.keys("dataset(signals).channels", "dataset(signals).rename")
def test_names_that_are_in_no_recording(tmp_path):
    """A channel is refused; of a table of new names that serves several data sets, those without effect are named."""
    path = str(write_npz(tmp_path / "a.npz", walk(3, 400), channels=["T3", "T4", "x"]))
    run = signal_run(tmp_path / "cache")
    with pytest.raises(ValueError, match="dataset.channels: T33 "):
        build(Config(path=path, window=20, channels=["T3", "T33"]), run)
    renamed = build(Config(path=path, window=20, channels=["T7", "x"], rename={"T3": "T7", "T5": "P7"}), run)
    assert renamed.files["signals.json"]["channel_names"] == ["T7", "x"]
    (note,) = [line for line in renamed.summary if "dataset.rename" in line]
    assert "T5" in note and "T3" not in note
    with pytest.raises(ValueError, match="a.npz: dataset.rename .* T4"):
        build(Config(path=path, window=20, rename={"T3": "T4"}), run)


@pytest.mark.slow
def test_channels_by_type_and_the_average_of_eeg_alone(tmp_path):
    mne = pytest.importorskip("mne")
    values = walk(3, 200) * 1e-5
    raw = mne.io.RawArray(values, mne.create_info(["a", "b", "s"], 100, ["eeg", "eeg", "stim"]), verbose="ERROR")
    raw.save(tmp_path / "a_raw.fif", fmt="double", verbose="ERROR")
    file = prepared(tmp_path, tmp_path / "a_raw.fif", channels=["eeg"], reference="average")
    assert file.channels == ["a", "b"] and file.types == ["eeg", "eeg"]
    np.testing.assert_allclose(file.array(), (values[:2] - values[:2].mean(0)).T, rtol=1e-5, atol=1e-10)


def pair(tmp_path, first, second, **more):
    """Two files with channels of the given names, each of its own constant slope."""
    slopes = {"A": 1.0, "B": 2.0, "C": 3.0}
    for name, channels in (("0", first), ("1", second)):
        ramps = np.stack([slopes[channel] * np.arange(256.0) for channel in channels])
        write_npz(tmp_path / "in" / f"{name}.npz", ramps, channels=list(channels))
    return Config(path=str(tmp_path / "in"), target="values", window=16, standardise="none", clip=None, **more)


@pytest.mark.keys("dataset(signals).missing", "dataset(signals).fill_value")
def test_channels_that_differ(tmp_path):
    run = signal_run(tmp_path / "cache")
    with pytest.raises(ValueError, match=r"0.npz lacks C, .*dataset.missing"):
        build(pair(tmp_path, "AB", "CA"), run)
    bundle = build(pair(tmp_path, "AB", "CA", missing="drop"), run)
    assert bundle.dims["channels"] == 1 and bundle.files["signals.json"]["channel_names"] == ["A"]
    bundle = build(pair(tmp_path, "AB", "CA", missing="fill", fill_value=7.0), run)
    assert bundle.files["signals.json"]["channel_names"] == ["A", "B", "C"]
    values = dict(bundle.train_dataset.recordings())
    np.testing.assert_array_equal(values["1.npz"][0], np.arange(230.0))
    assert np.isnan(values["1.npz"][1]).all() and np.isnan(values["0.npz"][2]).all()
    batch = bundle.train_dataset.__getitems__(list(range(8)))
    has_no_c = batch["labels"][:, 2].isnan().all(1)
    assert has_no_c.any() and (batch["signal"][has_no_c][:, 2] == 7).all() and not batch["signal"].isnan().any()


@pytest.mark.keys("dataset(signals).merge_by")
def test_channels_are_merged_by_position_and_type(tmp_path):
    """Other names, positions that differ in the fifth decimal, and an order of their own; a type that differs."""
    places = np.array([[0.1, 0.2], [0.3, 0.4]])
    for number, (names, shift, kinds) in enumerate(
        ((["a", "b"], 0, ["mag", "mag"]), (["c", "d"], 2e-5, ["mag", "mag"]), (["e", "f"], 0, ["mag", "grad"]))
    ):
        folder = tmp_path / "root" / f"session{number}"
        folder.mkdir(parents=True)
        order = [1, 0] if number == 1 else [0, 1]
        part = {"data": np.arange(2.0)[order, None] + np.arange(40), "ch_names": names, "sfreq": 100.0}
        np.save(folder / "0.npy", part | {"pos_2d": places[order] + shift, "ch_types": kinds}, allow_pickle=True)
    paths = [str(tmp_path / "root" / f"session{number}") for number in range(3)]
    files = prepare([Path(path, "0.npy") for path in paths], settings(), tmp_path / "cache", 1)
    config = Config(path=paths, merge_by="position", missing="fill")
    alignment, _ = align(files, 3, config)
    assert alignment.names == ["a", "b", "f"] and alignment.types == ["mag", "mag", "grad"]
    assert [columns.tolist() for columns in alignment.columns] == [[0, 1, -1], [1, 0, -1], [0, -1, 1]]


# ---- NaN and flat channels ----


@pytest.mark.keys("dataset(signals).nan")
def test_missing_values_are_refused_filled_or_a_gap(tmp_path):
    values = walk(2, 200)
    values[1, 50:60] = np.nan
    path = str(write_npz(tmp_path / "a.npz", values))
    run = signal_run(tmp_path / "cache")
    given = {"path": path, "target": "tokens", "window": 20, "datasplitter": {"eval_fraction": 0.0}}
    with pytest.raises(ValueError, match=r"a.npz: 10 NaN in 200 samples of 1 channels, most in ch1; .*dataset.nan"):
        build(config_of(**given), run)
    bundle = build(config_of(**given, nan="fill", sampling="grid", overlap=10), run)
    assert any("10 NaN" in line for line in bundle.summary)
    batch = bundle.train_dataset.__getitems__(list(range(len(bundle.train_dataset))))
    assert (batch["labels"][:, 1] == -100).any() and not (batch["labels"][:, 0, :-1] == -100).any()
    (_, ids), *_ = bundle.train_dataset.recording_ids()
    assert (ids[1] == -1).nonzero()[0].tolist() == list(range(50, 60))
    windows = build(config_of(**given, nan="drop"), run).train_dataset.windows.table
    assert windows.tolist() == [[0, 0, 50], [0, 60, 200]]


def test_infinite_values_are_missing_ones(tmp_path):
    """Single precision ends at 3.4e38."""
    values = walk(2, 200)
    values[0, [20, 30, 40]], values[1, 50] = [np.inf, -1e300, 3e38], -np.inf
    file = prepared(tmp_path, write_npz(tmp_path / "a.npz", values))
    assert [part.missing for part in file.parts] == [[2, 1]]
    assert file.parts[0].missing_rows == [[[20, 21], [30, 31]], [[50, 51]]]
    assert np.isfinite(file.array()[40]).all()


@pytest.mark.filterwarnings("error")
def test_where_nothing_is_known_there_is_no_warning(tmp_path):
    """Rows without a reference, and a channel without a value in training."""
    values = walk(3, 200)
    values[:, 50:60], values[0, :195] = np.nan, np.nan
    path = str(write_npz(tmp_path / "a.npz", values))
    config = config_of(path=path, target="values", window=10, nan="fill", reference="average", standardise="robust")
    ((_, read), *_) = build(config, signal_run(tmp_path / "cache")).train_dataset.recordings()
    assert np.isnan(read[:, 50:60]).all() and np.isfinite(read[1:, :50]).all() and np.isnan(read[0]).all()


def test_channels_that_are_not_used_make_no_gaps(tmp_path):
    """One has no value at all, another is of one recording alone."""
    values = walk(4, 200)
    values[1], values[2, 50:60], values[3, 100] = np.nan, np.nan, np.nan
    write_npz(tmp_path / "in/a.npz", values, channels=list("xdyz"))
    write_npz(tmp_path / "in/b.npz", walk(2, 200), channels=list("xy"))
    config = config_of(
        path=str(tmp_path / "in"),
        target="values",
        window=20,
        nan="drop",
        flat="drop",
        missing="drop",
        datasplitter={"eval_fraction": 0.0},
    )
    bundle = build(config, signal_run(tmp_path / "cache"))
    assert bundle.files["signals.json"]["channel_names"] == ["x", "y"]
    assert bundle.train_dataset.windows.table.tolist() == [[0, 0, 50], [0, 60, 200], [1, 0, 200]]


def config_of(**given):
    """A Config whose sections may be plain mappings."""
    from data.signals.config import DataSplitter, MixUp

    kinds = {"datasplitter": DataSplitter, "mixup": MixUp}
    return Config(**{key: kinds[key](**value) if key in kinds else value for key, value in given.items()})


@pytest.mark.keys("dataset(signals).flat")
def test_constant_channels_are_refused_filled_or_dropped(tmp_path):
    for name, values in (("0", walk(2, 100)), ("1", np.stack([walk(1, 100)[0], np.full(100, 3.0)]))):
        write_npz(tmp_path / "in" / f"{name}.npz", values, channels=["a", "b"])
    run, path = signal_run(tmp_path / "cache"), str(tmp_path / "in")
    with pytest.raises(ValueError, match=r"1.npz: constant in all of it: b; .*dataset.flat"):
        build(Config(path=path, target="values", window=10), run)
    filled = build(Config(path=path, target="values", window=10, flat="fill"), run)
    values = dict(filled.train_dataset.recordings())
    assert np.isnan(values["1.npz"][1]).all() and not np.isnan(values["0.npz"]).any()
    dropped = build(Config(path=path, target="values", window=10, flat="drop"), run)
    assert dropped.files["signals.json"]["channel_names"] == ["a"]
    assert any("1.npz" in line and "b" in line for line in dropped.summary)


# ---- gaps, bad spans and events ----


def test_gaps_and_bad_spans_divide_a_recording_and_events_are_kept(tmp_path):
    mne = pytest.importorskip("mne")
    info = mne.create_info(["a"], 100, "eeg")
    parts = [mne.io.RawArray(walk(1, 300, seed) * 1e-5, info, verbose="ERROR") for seed in (0, 1)]
    raw = mne.concatenate_raws(parts, verbose="ERROR")
    raw.annotations.append([1.0, 4.0], [0.5, 0.2], ["BAD movement", "blink"])
    raw.save(tmp_path / "a_raw.fif", verbose="ERROR")
    (part,) = prepared(tmp_path, tmp_path / "a_raw.fif", resample=50.0).parts
    assert part.stretches == [[0, 50], [75, 150], [150, 300]]
    assert [200, 10, "blink"] in part.events


def test_removing_spans_from_stretches():
    assert without([[0, 10], [20, 30]], [[5, 7], [8, 25], [29, 40]]) == [[0, 5], [7, 8], [25, 29]]
    assert without([[0, 10]], [[0, 10]]) == []
    assert without([[0, 10]], []) == [[0, 10]]
    assert without([[0, 10], [12, 30]], [[1, 20], [2, 3], [25, 25]]) == [[0, 1], [20, 25], [25, 30]]


@pytest.mark.parametrize("seed", range(5))
def test_removing_many_spans_is_removing_each_row(seed):
    generator = np.random.default_rng(seed)
    removed = [[int(start), int(start + generator.integers(1, 9))] for start in generator.integers(0, 300, 30)]
    is_kept = np.ones(320, bool)
    for start, stop in removed:
        is_kept[start:stop] = False
    pieces = without([[0, 100], [120, 320]], removed)
    is_kept[100:120] = False
    rows = [row for start, stop in pieces for row in range(start, stop)]
    assert rows == np.flatnonzero(is_kept).tolist()


# ---- the cache ----


def test_a_file_is_prepared_once_and_again_if_it_or_the_settings_change(tmp_path, monkeypatch):
    path = write_npz(tmp_path / "a.npz", walk(1, 100))
    opened = []
    original = preparing.open_recordings
    monkeypatch.setattr(preparing, "open_recordings", lambda file, *more: opened.append(file) or original(file, *more))
    first = prepared(tmp_path, path)
    assert prepared(tmp_path, path) == first and len(opened) == 1
    prepared(tmp_path, path, resample=50.0)
    write_npz(path, walk(1, 100, seed=1))
    changed = prepared(tmp_path, path)
    assert len(opened) == 3 and changed.path != first.path


def test_an_interrupted_preparation_goes_on_with_what_is_left(tmp_path, monkeypatch):
    paths = [write_npz(tmp_path / f"{number}.npz", walk(1, 100, number)) for number in range(3)]
    original, opened = preparing.open_recordings, []

    def interrupted(file, *more):
        if file == paths[1]:
            raise KeyboardInterrupt
        return original(file, *more)

    monkeypatch.setattr(preparing, "open_recordings", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(paths, settings(), tmp_path / "cache", 1)
    monkeypatch.setattr(preparing, "open_recordings", lambda file, *more: opened.append(file) or original(file, *more))
    assert [file.rows for file in prepare(paths, settings(), tmp_path / "cache", 1)] == [100, 100, 100]
    assert opened == paths[1:]


@pytest.mark.slow
@pytest.mark.keys("dataset(signals).num_workers")
def test_preparation_by_several_processes_is_the_same(tmp_path, monkeypatch):
    paths = [write_npz(tmp_path / f"{number}.npz", walk(2, 1000, number)) for number in range(3)]
    monkeypatch.setattr(preparing, "SMALL", 0)
    alone = prepare(paths, settings(lowpass=20.0), tmp_path / "alone", workers=1)
    together = prepare(paths, settings(lowpass=20.0), tmp_path / "together", workers=2)
    for first, second in zip(alone, together, strict=True):
        np.testing.assert_array_equal(first.array(), second.array())
    config = Config(path=[str(path) for path in paths], target="values", window=50, num_workers=1)
    assert build(config, signal_run(tmp_path / "cache")).dims["channels"] == 2


def test_files_that_belong_to_a_header_are_part_of_the_key(tmp_path):
    for name in ("a.vhdr", "a.vmrk", "b.eeg", "c.eeg"):
        (tmp_path / name).write_text("DataFile=b.eeg")
    assert [file.name for file in files_of(tmp_path / "a.vhdr")] == ["a.vhdr", "a.vmrk", "b.eeg"]


def test_a_folder_of_a_header_s_name_is_none_of_its_files(tmp_path):
    for name in ("100.hea", "100.dat", "100.atr", "1000.dat"):
        (tmp_path / name).write_text("100 1 360")
    (tmp_path / "100").mkdir()
    assert [file.name for file in files_of(tmp_path / "100.hea")] == ["100.atr", "100.dat", "100.hea"]


def test_an_edf_file_is_prepared_in_blocks(tmp_path, monkeypatch):
    """Blocks shorter than a record, against MNE's reading of all of it."""
    mne = pytest.importorskip("mne")
    path = write_edf(tmp_path / "a.edf", walk(2, 1000))
    monkeypatch.setattr(preparing, "BLOCK_VALUES", 74)
    truth = mne.io.read_raw(path, preload=True, verbose="ERROR").get_data()
    np.testing.assert_array_equal(prepared(tmp_path, path).array(), truth.T.astype(np.float32))


# ---- standardising ----


@pytest.mark.keys("dataset(signals).standardise", "dataset(signals).clip")
def test_statistics_are_those_of_the_training_split_alone(tmp_path):
    values = walk(2, 1000)
    values[:, 800:] += 1000
    path = str(write_npz(tmp_path / "a.npz", values))
    run = signal_run(tmp_path / "cache")
    stored = values.astype(np.float32).astype(np.float64)
    train = stored[:, :800]
    for kind, shift, scale in (
        ("zscore", train.mean(1), train.std(1)),
        ("robust", np.median(train, 1), np.subtract(*np.percentile(train, [75, 25], 1)) / 1.3489795),
        ("none", [0, 0], [1, 1]),
    ):
        config = config_of(path=path, target="values", window=50, standardise=kind, datasplitter={"eval_fraction": 0.2})
        bundle = build(config, run)
        np.testing.assert_allclose(bundle.files["signals.json"]["shift"], shift, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(bundle.files["signals.json"]["scale"], scale, rtol=1e-6)
        ((_, found),) = bundle.train_dataset.recordings()
        truth = np.clip((train - np.reshape(shift, (2, 1))) / np.reshape(scale, (2, 1)), -5, 5)
        np.testing.assert_allclose(found, truth, rtol=1e-4, atol=1e-5)
        ((_, held_out),) = bundle.eval_datasets["validation"].recordings()
        assert (held_out == 5).all()
    unclipped = build(
        config_of(path=path, target="values", window=50, clip=None, datasplitter={"eval_fraction": 0.2}), run
    )
    ((_, held_out),) = unclipped.eval_datasets["validation"].recordings()
    assert held_out.min() > 5


def test_a_channel_that_is_constant_in_training_alone_is_named(tmp_path):
    values = walk(2, 1000)
    values[1, :900] = 7.0
    path = str(write_npz(tmp_path / "a.npz", values, channels=["x", "y"]))
    bundle = build(Config(path=path, target="values", window=50), signal_run(tmp_path / "cache"))
    described = bundle.files["signals.json"]
    assert (described["shift"][1], described["scale"][1]) == (7, 1)
    assert [line.endswith(": y") for line in bundle.summary if "constant" in line] == [True]


def test_moments_of_blocks_are_those_of_the_whole():
    values = walk(3, 5000).T + 1e6
    values[100:200, 1] = np.nan
    values[:, 2] = np.nan
    mean, deviation = moments((block.T for block in cut(values.T, [7, 900])), 3)
    np.testing.assert_allclose(mean[:2], np.nanmean(values[:, :2], 0), rtol=1e-12)
    np.testing.assert_allclose(deviation[:2], np.nanstd(values[:, :2], 0), rtol=1e-9)
    assert (mean[2], deviation[2]) == (0, 0)


def test_quartiles_of_much_data_are_of_evenly_spread_blocks(tmp_path):
    from data.signals.splits import Stretch

    path = write_npz(tmp_path / "a.npz", np.arange(40.0 * SAMPLED_BLOCK)[None])
    file = prepared(tmp_path, path)
    stretches = [Stretch(0, 0, 0, file.rows)]
    blocks = list(blocks_of([file], [np.array([0])], stretches, 10 * SAMPLED_BLOCK))
    assert [int(block[0, 0]) // SAMPLED_BLOCK for block in blocks] == list(range(0, 40, 4))


def test_what_is_saved_beside_a_model_is_json(tmp_path):
    path = str(write_npz(tmp_path / "a.npz", walk(2, 600), channels=["x", "y"]))
    bundle = build(Config(path=path, window=50), signal_run(tmp_path / "cache"))
    saved = json.loads(json.dumps(bundle.files["signals.json"]))
    assert saved["channel_names"] == ["x", "y"] and saved["rate"] == 100 and len(saved["scale"]) == 2
