"""Small recordings for tests, and a run that data modules read."""

from types import SimpleNamespace

import numpy as np


def signal_run(cache, **process):
    """What `data.signals` reads of a run."""
    return SimpleNamespace(
        seed=0,
        cache_dir=cache,
        task="signals",
        trainer={},
        samples_per_step=4,
        process=SimpleNamespace(**{"shuffle": True} | process),
        hyper=SimpleNamespace(per_device_train_batch_size=4),
    )


def walk(channels, samples, seed=0):
    """Random walks (C, T) float64."""
    return np.random.default_rng(seed).normal(size=(channels, samples)).cumsum(1)


def write_npz(path, data, rate=100.0, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, data=data, sampling_rate=rate, **more)
    return path


def write_edf(path, data, rate=100, names=None, record_seconds=1):
    """An EDF file by edfio; data (C, T) must be whole records."""
    import edfio

    names = names or [f"EEG {index}" for index in range(len(data))]
    signals = [
        edfio.EdfSignal(row, sampling_frequency=rate, label=name, physical_range=(row.min() - 1, row.max() + 1))
        for row, name in zip(data, names, strict=True)
    ]
    edfio.Edf(signals, data_record_duration=record_seconds).write(path)
    return path


def sine_trials(count, seed=0, channels=2, shortest=20, longest=30):
    """Trials of sines of class a (slow) or b (fast), of different lengths: [(C, T)], [class]."""
    generator = np.random.default_rng(seed)
    trials, labels = [], []
    for index in range(count):
        time = np.arange(generator.integers(shortest, longest + 1))
        wave = np.sin(2 * np.pi * time / (20 if index % 2 else 5) + generator.uniform(0, 6))
        trials.append(wave + 0.1 * generator.normal(size=(channels, len(time))))
        labels.append("b" if index % 2 else "a")
    return trials, labels


def write_ts(path, trials, labels):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["@problemName test", "@classLabel true a b", "@data"]
    for trial, label in zip(trials, labels, strict=True):
        lines.append(":".join([*(",".join(f"{value:.6f}" for value in row) for row in trial), label]))
    path.write_text("\n".join(lines) + "\n")
    return path
