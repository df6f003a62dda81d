"""Trials of different lengths, a class each."""

import numpy as np

MODEL, DATA = "signal_classifier", "signals"


def write_trials(file, count, seed):
    """A .ts file: the class is how fast the first of two channels oscillates."""
    random = np.random.default_rng(seed)
    lines = ["@problemName trials", "@timeStamps false", "@classLabel true slow fast", "@data"]
    for index in range(count):
        time, label = np.arange(12 + index * 5 % 9), ("slow", "fast")[index % 2]
        rows = [np.sin((0.3 + 0.6 * (index % 2)) * time + index), random.standard_normal(len(time))]
        lines.append(":".join([*(",".join(f"{value:.4f}" for value in row) for row in rows), label]))
    file.write_text("\n".join(lines) + "\n")
    return file


def words(folder):
    train, held_out = write_trials(folder / "train.ts", 40, 0), write_trials(folder / "val.ts", 11, 1)
    (folder / "training.yaml").write_text(
        f"dataset: {{name: signals, path: {train}, eval_path: {held_out}, target: class, "
        "datasplitter: {by: session, eval_fraction: 0.0}}\n"
        "model: {name: signal_classifier, hidden_dim: 8, num_heads: 2, feedforward_dim: 8, layers: 1, dropout: 0}\n"
    )
    return ["--training_config", str(folder / "training.yaml")]


def inputs(folder):
    return folder / "val.ts"
