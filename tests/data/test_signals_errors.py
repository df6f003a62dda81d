"""Bad recordings and bad settings: one line that names the value, the place and the remedy, and exit code 2."""

import numpy as np
import pytest
from documents import checked
from run_results import error_line
from signal_files import signal_run, sine_trials, walk, write_edf, write_npz, write_ts

from data.signals import Config, build, check
from data.signals.config import DataSplitter, MixUp


def refusal(tmp_path, **config):
    """The line with which `build` ends."""
    with pytest.raises(ValueError) as caught:
        build(Config(**config), signal_run(tmp_path / "cache"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def recordings(tmp_path, **arrays):
    """A folder with a recording for each array (data, rate, channel names)."""
    for name, (data, rate, channels) in arrays.items():
        named = {} if channels is None else {"channels": channels}
        write_npz(tmp_path / "in" / f"{name}.npz", data, rate=rate, **named)
    return str(tmp_path / "in")


def missing_at(values, *places):
    for place in places:
        values[place] = np.nan
    return values


# What is wrong -> (recordings, settings, what the line names).
BAD_DATA = {
    "channels that differ": (
        {"a": (walk(2, 400), 100, ["x", "y"]), "b": (walk(2, 400), 100, ["x", "z"])},
        {},
        ["a.npz", "z", "dataset.channels", "dataset.missing"],
    ),
    "rates that differ": (
        {"a": (walk(1, 400), 100, ["x"]), "b": (walk(1, 400), 250, ["x"])},
        {},
        ["a.npz 100 Hz", "b.npz 250 Hz", "dataset.resample"],
    ),
    "a window longer than every recording": (
        {"a": (walk(1, 400), 100, ["x"])},
        {"window": 500},
        ["dataset.window: 500", "360"],
    ),
    "a window longer than what validates": (
        {"a": (walk(1, 400), 100, ["x"])},
        {"window": 50},
        ["dataset.window: 50", "eval (40)", "datasplitter.eval_fraction"],
    ),
    "NaN": ({"a": (missing_at(walk(1, 400), (0, 7)), 100, ["x"])}, {}, ["a.npz: 1 NaN", "x", "dataset.nan"]),
    "a constant channel": ({"a": (np.ones((1, 400)), 100, ["x"])}, {}, ["a.npz", "x", "dataset.flat"]),
    "an empty side": (
        {"a": (walk(1, 400), 100, ["x"])},
        {"datasplitter": DataSplitter(by="session")},
        ["dataset.datasplitter", "eval", "by: session"],
    ),
    "no subject": (
        {"a": (walk(1, 400), 100, ["x"])},
        {"datasplitter": DataSplitter(by="subject")},
        ["a.npz", "dataset.datasplitter.subject_pattern"],
    ),
    "no labels": ({"a": (walk(1, 400), 100, ["x"])}, {"target": "class"}, ["dataset.target: class", "classes"]),
    "samples first": ({"a": (walk(5000, 10), 100, None)}, {}, ["a.npz", "5,000", "10", "transpose"]),
    "one on two sides": (
        {"a": (walk(1, 400), 100, ["x"]), "b": (walk(1, 400), 100, ["x"])},
        {"datasplitter": DataSplitter(by="session", eval=["a.npz"], test=["a.npz"])},
        ["dataset.datasplitter", "a.npz"],
    ),
}


@pytest.mark.parametrize("what", BAD_DATA)
def test_recordings_that_cannot_be_used_together(tmp_path, what):
    arrays, config, words = BAD_DATA[what]
    line = refusal(tmp_path, path=recordings(tmp_path, **arrays), **({"window": 20} | config))
    assert all(word in line for word in words), line
    assert "cache/signals" not in line


@pytest.mark.slow
def test_an_edf_header_that_lies_about_its_length(tmp_path):
    path = write_edf(tmp_path / "a.edf", walk(1, 500))
    content = path.read_bytes()
    path.write_bytes(content[:236] + b"9       " + content[244:])
    line = refusal(tmp_path, path=str(path))
    assert line.startswith("a.edf: ") and "9 records" in line and f"{len(content):,}" in line
    path.write_bytes(content[:236] + b"-1      " + content[244:])
    assert (
        build(Config(path=str(path), window=40), signal_run(tmp_path / "cache")).train_dataset.stretches[0].stop == 450
    )


def test_seconds_and_gaps_need_a_rate(tmp_path):
    np.save(tmp_path / "a.npy", walk(1, 400))
    path = str(tmp_path / "a.npy")
    assert "dataset.sampling_rate" in refusal(tmp_path, path=path, window=1.0, unit="seconds")
    splitter = DataSplitter(gap_seconds=1.0)
    assert "dataset.sampling_rate" in refusal(tmp_path, path=path, window=20, datasplitter=splitter)


def test_classes_that_training_does_not_know(tmp_path):
    train = write_ts(tmp_path / "train.ts", *sine_trials(8))
    trials, labels = sine_trials(4)
    other = write_ts(tmp_path / "val.ts", trials, [*labels[:3], "c"])
    line = refusal(tmp_path, path=str(train), eval_path=str(other), target="class")
    assert "val.ts#3" in line and " c;" in line and "a, b" in line
    mixup = MixUp(mixup_alpha=0.4, num_classes=3)
    assert "num_classes: 3" in refusal(tmp_path, path=str(train), target="class", mixup=mixup)


def test_trials_that_are_shorter_than_the_window(tmp_path):
    path = write_ts(tmp_path / "train.ts", *sine_trials(8))
    line = refusal(tmp_path, path=str(path), target="class", window=256)
    assert line.startswith("dataset.window: 256") and "null" in line


def test_recordings_that_are_too_short_are_named(tmp_path):
    path = recordings(tmp_path, a=(walk(1, 400), 100, ["x"]), b=(walk(1, 30), 100, ["x"]))
    bundle = build(Config(path=path, window=40), signal_run(tmp_path / "cache"))
    lines = [line for line in bundle.summary if "b.npz" in line]
    assert [line.split(":")[0] for line in lines] == ["train", "eval"] and not any("a.npz" in line for line in lines)


def test_a_path_that_is_not_there(tmp_path):
    run = signal_run(tmp_path / "cache")
    assert "dataset.path is not set" in check(Config(), run)[0]
    (line,) = check(Config(path=str(tmp_path), eval_path=str(tmp_path / "b")), run)
    assert line.startswith(f"dataset.eval_path: {tmp_path / 'b'} ")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"clip": None}, ["clip: null", "target: tokens"]),
        ({"overlap": 3.0}, ["overlap", "window"]),
        ({"overlap": 4.0, "window": 4.0}, ["overlap: 4", "window: 4"]),
        ({"window": 100.5}, ["window: 100.5", "unit: seconds"]),
        ({"window": 100.0, "overlap": 0.5}, ["overlap: 0.5", "unit: seconds"]),
        ({"unit": "seconds"}, ["unit: seconds", "window"]),
        ({"mixup": MixUp(mixup_alpha=1.0)}, ["mixup", "target: tokens"]),
        ({"mixup": MixUp(mixup_alpha=1.0), "target": "class"}, ["mixup.num_classes"]),
        ({"mixup": MixUp(quantize=True), "target": "values"}, ["mixup.quantize", "values"]),
        ({"target": "values", "tokenizer": "uniform"}, ["tokenizer", "target: values"]),
        ({"target": "class", "group": 20}, ["group", "target: class"]),
        ({"classes": ["a", "b"]}, ["classes", "target: tokens"]),
        ({"target": "text", "tokenizer": "folder"}, ["target: text", "tokenizer: folder"]),
    ],
)
def test_settings_that_contradict_each_other(config, words):
    with pytest.raises(ValueError) as caught:
        Config(**config)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("splitter", "word"),
    [
        ({"eval": ["a"]}, "by"),
        ({"by": "session", "gap_seconds": 1.0}, "gap_seconds"),
        ({"eval_fraction": 0.6, "test_fraction": 0.4}, "eval_fraction"),
    ],
)
def test_splits_that_contradict_themselves(splitter, word):
    with pytest.raises(ValueError, match=word):
        DataSplitter(**splitter)


@pytest.mark.slow
def test_train_py_ends_with_one_line_and_writes_nothing(tmp_path, capsys):
    from train import main

    values = walk(1, 400)
    values[0, 3] = np.nan
    path = write_npz(tmp_path / "a.npz", values)
    (tmp_path / "task.yaml").write_text(
        f"dataset: {{name: signals, path: {path}, window: 20}}\nmodel: {{name: signal_gpt, n_layer: 1, n_embd: 16}}\n"
    )
    (tmp_path / "training.yaml").write_text(f"task_name: {tmp_path / 'task.yaml'}\nmax_steps: 1\n")
    words = ["--training_config", str(tmp_path / "training.yaml"), "--output_dir", str(tmp_path / "out")]
    line = error_line(capsys, main, words)
    assert "a.npz: 1 NaN" in line and not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("words", [["window=64"], ["window=0.5", "unit=seconds"]])
def test_a_window_alone_may_be_given_beside_the_default_recipe(tmp_path, in_root, words):
    words = [f"dataset.path={write_npz(tmp_path / 'a.npz', walk(1, 600))}", *(f"dataset.{word}" for word in words)]
    assert checked("--task_name", "signals", "--output_dir", str(tmp_path / "out"), "--set", *words) == (0, [])
