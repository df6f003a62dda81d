"""New recordings for predict.py, and the files that it writes of them."""

import json

import numpy as np
import pytest
from signal_files import signal_run, walk, write_npz

from data.processor import input_sources
from data.signals import Config, PredictFlags, Processor, build
from data.signals.forecast_files import WRITERS, Forecast


def processor_of(tmp_path, config):
    """The processor of a model that was trained with this configuration."""
    bundle = build(config, signal_run(tmp_path / "cache"))
    (tmp_path / "signals.json").write_text(json.dumps(bundle.files["signals.json"]))
    return Processor.from_pretrained(tmp_path, config, None)


def items(processor, folder):
    return [item for source in input_sources(str(folder), processor.SUFFIXES)[0] for item in processor.read(source)]


def test_recordings_of_one_name_in_several_folders_are_told_apart(tmp_path):
    values = {f"s{number}/run.npz": walk(2, 300, number) for number in range(2)}
    for name, value in values.items():
        write_npz(tmp_path / "in" / name, value)
    processor = processor_of(tmp_path, Config(path=str(tmp_path / "in"), target="values", window=20))
    raws = {item.raw.name: item.raw.values for item in items(processor, tmp_path / "in")}
    assert list(raws) == list(values)
    scaling = processor.scaling
    for name, value in values.items():
        expected = np.clip((value - scaling.shift[:, None]) / scaling.scale[:, None], -5, 5)
        np.testing.assert_allclose(raws[name], expected, atol=1e-5)


def test_endings_may_be_capitals(tmp_path):
    path = write_npz(tmp_path / "in/a.npz", walk(1, 20)).rename(tmp_path / "in/a.NPZ")
    for given in (path, path.parent):
        assert [source.path for source in input_sources(str(given), Processor.SUFFIXES)[0]] == [path]


def test_a_recording_without_a_window_is_refused(tmp_path):
    write_npz(tmp_path / "in/a.npz", walk(1, 300), channels=["x"])
    config = Config(path=str(tmp_path / "in"), target="class", window=40)
    described = build(Config(path=str(tmp_path / "in"), window=20), signal_run(tmp_path / "cache")).files
    (tmp_path / "signals.json").write_text(json.dumps({**described["signals.json"], "target": "class"}))
    processor = Processor.from_pretrained(tmp_path, config, None)
    assert len(items(processor, tmp_path / "in")) == 7
    write_npz(tmp_path / "in/a.npz", walk(1, 39), channels=["x"])
    with pytest.raises(ValueError, match="40 samples"):
        items(processor, tmp_path / "in")


@pytest.mark.parametrize(
    ("target", "flags", "word"),
    [("class", {"steps": 9}, "--steps"), ("class", {"seed": 1}, "--seed"), ("values", {"top_p": 0.5}, "--top_p")],
)
def test_flags_without_effect_are_refused(tmp_path, target, flags, word):
    write_npz(tmp_path / "a.npz", walk(1, 300))
    config = Config(path=str(tmp_path / "a.npz"), target="values", window=20)
    described = build(config, signal_run(tmp_path / "cache")).files["signals.json"]
    (tmp_path / "signals.json").write_text(json.dumps({**described, "target": target}))
    assert Processor.from_pretrained(tmp_path, config, None, PredictFlags()).flags == PredictFlags()
    with pytest.raises(ValueError, match=f"^{word} .*target: {target}"):
        Processor.from_pretrained(tmp_path, config, None, PredictFlags(**flags))


def written(tmp_path, values, channels=("x", "y"), rate=100.0):
    edfio = pytest.importorskip("edfio")
    writer = WRITERS[".edf"](tmp_path / "a.edf")
    writer.write(None, Forecast("a", list(channels), rate, values))
    writer.close()
    return edfio.read_edf(tmp_path / "a.edf").signals


@pytest.mark.parametrize(("rate", "steps"), [(100.0, 20), (360.0, 7), (360.0, 257), (99.998, 20), (0.1, 3)])
def test_an_edf_file_of_any_rate_and_length(tmp_path, rate, steps):
    values = walk(2, steps)[None]
    signals = written(tmp_path, values, rate=rate)
    for signal, truth in zip(signals, values[0], strict=True):
        assert signal.sampling_frequency == pytest.approx(rate, rel=1e-4) and len(signal.data) == steps
        np.testing.assert_allclose(signal.data, truth, atol=1e-3 * np.ptp(truth))


@pytest.mark.parametrize(
    ("values", "channels"),
    [
        (walk(2, 20) * 1e-14, ["x", "y"]),
        (walk(2, 20) * 1e12, ["x", "y"]),
        (walk(2, 20), ["x", "µ"]),
        (walk(2, 20), ["channel number of x", "channel number of y"]),
    ],
    ids=["small", "large", "name", "equal names"],
)
def test_what_an_edf_file_cannot_hold(tmp_path, values, channels):
    with pytest.raises(ValueError, match="^--output: .*npz"):
        written(tmp_path, values[None], channels)


def test_seconds_of_a_recording_that_says_no_rate_are_the_model_s(tmp_path):
    write_npz(tmp_path / "in/a.npz", walk(1, 300), rate=100.0)
    config = Config(path=str(tmp_path / "in"), target="class", window=0.5, unit="seconds")
    described = build(Config(path=str(tmp_path / "in"), window=20), signal_run(tmp_path / "cache")).files
    (tmp_path / "signals.json").write_text(json.dumps({**described["signals.json"], "target": "class"}))
    processor = Processor.from_pretrained(tmp_path, config, None)
    np.save(tmp_path / "b.npy", walk(1, 300))
    assert [item.raw.values.shape for item in items(processor, tmp_path / "b.npy")] == [(1, 50)] * 6


def test_missing_values_are_refused_where_missing_channels_are_filled(tmp_path):
    """`missing: fill` is about channels; `nan` says what happens to values."""
    write_npz(tmp_path / "in/a.npz", walk(2, 300), channels=["x", "y"])
    processor = processor_of(tmp_path, Config(path=str(tmp_path / "in"), target="values", window=20, missing="fill"))
    values = walk(1, 300)
    for channels in (["x"], ["y"]):
        write_npz(tmp_path / "b.npz", values, channels=channels)
        (item,) = items(processor, tmp_path / "b.npz")
        assert np.isfinite(processor.encode(item.raw).values).all()
    values[0, 7] = np.nan
    write_npz(tmp_path / "b.npz", values, channels=["x"])
    (item,) = items(processor, tmp_path / "b.npz")
    with pytest.raises(ValueError, match="^1 values .*dataset.nan"):
        processor.encode(item.raw)
