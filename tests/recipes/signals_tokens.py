"""Windows of quantised signals, two channels in one sequence; the end of each recording is held out."""

import numpy as np

MODEL, DATA = "signal_gpt", "signals"
SMALL = "n_layer: 1, n_head: 2, n_embd: 16"


def write_signals(file, channels=2, samples=560, seed=0):
    """Two sines with noise in each channel; returns the file."""
    random, time = np.random.default_rng(seed), np.arange(samples)
    rows = [np.sin(0.3 * time + index) + np.sin(0.07 * time) for index in range(channels)]
    np.savez(file, data=np.stack(rows) + 0.1 * random.standard_normal((channels, samples)), sampling_rate=100.0)
    return file


def words(folder, model=f"{{name: signal_gpt, layout: flattened, {SMALL}}}", levels=32, **dataset):
    write_signals(folder / "signals.npz")
    keys = {"name": "signals", "path": folder / "signals.npz", "window": 10, "sampling": "grid", **dataset}
    keys |= {} if levels is None else {"levels": levels}
    inner = ", ".join(f"{name}: {value}" for name, value in keys.items())
    (folder / "training.yaml").write_text(
        f"dataset: {{{inner}, datasplitter: {{eval_fraction: 0.21}}}}\nmodel: {model}\n"
    )
    return ["--training_config", str(folder / "training.yaml")]
