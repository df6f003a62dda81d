"""Free runs: a model continues held-out signals, beside what followed and what simple predictors expect.

Shapes: W windows, C channels, T time steps of a window, k steps ahead, S samples of each continuation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.signals.codes import Codes
from data.signals.dataset import SignalSet
from metrics import report as files
from metrics.signal_baselines import Autoregression

WINDOWS = 8
DRAWN_WINDOWS, DRAWN_SAMPLES, DRAWN_PAST = 3, 3, 2  # of the picture; the past, as a multiple of k
ORDER = 32  # of the autoregression


@dataclass(frozen=True)
class FreeRun:
    """Continue windows of a held-out set. Called by eval.py and after checkpoints; picklable.

    Args:
        train: The training split, to which the autoregression is fitted.
        rate: Hz; None: unknown.
    """

    train: SignalSet
    rate: float | None

    @property
    def without_effect(self) -> dict[str, str]:
        """Settings of sampling that change nothing, and why."""
        is_of_values = self.train.tokenizer is None
        return dict.fromkeys(("top_k", "top_p"), "values are not drawn from ids") if is_of_values else {}

    def __call__(
        self, model: Any, dataset: SignalSet, folder: Path, seed: int, steps: int, samples: int, **sampling: Any
    ) -> dict[str, float]:
        """Write free_run.csv (errors by horizon) and free_run.png; returns the errors at horizons 1, 2, 4 … k.

        Args:
            dataset: Its windows are longer than `steps`, the last of which are continued.
            samples: S; their mean is the forecast.
            sampling: `temperature`, `top_k`, `top_p` of the model's `generate`.

        Raises:
            ValueError: the model continues no signals, or the windows are too short.
        """
        past, truth, drawn = continued(model, dataset, seed, steps, samples, **sampling)
        order = min(ORDER, past.shape[-1])
        regression = Autoregression(order).fit(lambda: (values for _, values in decoded(self.train)))
        forecasts = {
            "model": drawn.mean(1),
            "last value": np.repeat(past[..., -1:], truth.shape[-1], axis=-1),
            f"ar{order}": np.stack([regression.forecast(window, truth.shape[-1]) for window in past]),
        }
        errors = {name: np.sqrt(np.nanmean((values - truth) ** 2, (0, 1))) for name, values in forecasts.items()}
        folder.mkdir(parents=True, exist_ok=True)
        rows = [
            {"horizon": step + 1, **{name: float(values[step]) for name, values in errors.items()}}
            for step in range(truth.shape[-1])
        ]
        files.write_table(folder / "free_run.csv", rows)
        self.draw(folder / "free_run.png", past, truth, drawn, errors)
        shown = [2**power for power in range(truth.shape[-1].bit_length() - 1)] + [truth.shape[-1]]
        return {
            f"free_run_rmse_{step}.{name.replace(' ', '_')}": float(values[step - 1])
            for step in dict.fromkeys(shown)
            for name, values in errors.items()
        }

    def draw(
        self, path: Path, past: np.ndarray, truth: np.ndarray, drawn: np.ndarray, errors: dict[str, np.ndarray]
    ) -> None:
        """Context, truth and samples of some windows; errors by horizon; power spectra of truth and samples."""
        from matplotlib.figure import Figure

        steps, rate = truth.shape[-1], self.rate or 1.0
        figure = Figure(figsize=(13, 8), layout="constrained")
        grid = figure.add_gridspec(DRAWN_WINDOWS, 2, width_ratios=(3, 2))
        behind = past[..., -DRAWN_PAST * steps :]
        before, ahead = np.arange(-behind.shape[-1], 0) / rate, np.arange(steps) / rate
        for window in range(min(DRAWN_WINDOWS, len(past))):
            axes = figure.add_subplot(grid[window, 0])
            axes.plot(before, behind[window, 0], color="black", label="context")
            axes.plot(ahead, truth[window, 0], color="C0", linewidth=2, label="truth")
            for number, sample in enumerate(drawn[window, :DRAWN_SAMPLES, 0]):
                axes.plot(ahead, sample, color="C1", alpha=0.6, label=None if number else "samples")
            axes.set(xlabel="seconds" if self.rate else "steps")
        axes.legend(loc="upper left")
        axes = figure.add_subplot(grid[: DRAWN_WINDOWS - 1, 1])
        frequencies = np.fft.rfftfreq(steps, 1 / rate)
        axes.semilogy(frequencies[1:], spectrum(truth)[1:], label="truth")
        axes.semilogy(frequencies[1:], spectrum(drawn)[1:], label="samples")
        axes.set(xlabel="Hz" if self.rate else "cycles a step", title="Power spectrum, mean of channels")
        axes.legend()
        axes = figure.add_subplot(grid[-1, 1])
        for name, values in errors.items():
            axes.plot(np.arange(1, steps + 1) / rate, values, label=name)
        axes.set(xlabel="horizon" + (", seconds" if self.rate else ", steps"), ylabel="RMSE, standardised")
        axes.legend()
        figure.savefig(path, dpi=100)


def continued(
    model: Any, dataset: SignalSet, seed: int, steps: int, samples: int, **sampling: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values (W, C, T - k) before, (W, C, k) that follow, and (W, S, C, k) that the model draws instead.

    With a learned tokenizer the steps are codes, and the values those of the frames.
    """
    import torch

    if not hasattr(model, "generate") or not hasattr(dataset, "windows"):
        raise ValueError("a free run needs a model that continues signals, and target: tokens or values")
    length = dataset.windows.length
    if steps >= length:
        raise ValueError(f"a free run of {steps} steps needs windows that are longer than {length}; lower the steps")
    numbers = np.unique(np.linspace(0, len(dataset) - 1, WINDOWS).astype(int)).tolist()
    batch = dataset.__getitems__(numbers)
    inputs = batch["signal" if dataset.tokenizer is None else "input_ids"]
    prompts = inputs[..., :-steps].repeat_interleave(samples, dim=0)
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    channels = batch["channels"].repeat_interleave(samples, dim=0).to(device)
    drawn = model.generate(prompts.to(device), steps, channels=channels, generator=generator, **sampling).cpu()
    decode = decoder_of(dataset.tokenizer)
    values, lines = decode(drawn.numpy()), decode(inputs.numpy())
    ahead = max(1, round(steps * values.shape[-1] / length))
    values = values.reshape(len(numbers), samples, *values.shape[1:])
    return lines[..., :-ahead], lines[..., -ahead:], values[..., -ahead:]


def decoder_of(tokenizer: Any) -> Callable[[np.ndarray], np.ndarray]:
    """Ids or values (N, C, T) -> values (N, C, n)."""
    if tokenizer is None:
        return np.asarray
    if isinstance(tokenizer, Codes):
        return lambda ids: tokenizer.decode(ids.reshape(-1, ids.shape[-1])).reshape(*ids.shape[:2], -1)
    return tokenizer.decode


def decoded(dataset: SignalSet) -> Any:
    """`recordings()` as values, those of a learned tokenizer decoded."""
    if not isinstance(dataset.tokenizer, Codes):
        return dataset.recordings()
    quantizers = dataset.tokenizer.quantizers
    whole = ((name, ids[:, : ids.shape[1] // quantizers * quantizers]) for name, ids in dataset.recording_ids())
    return ((name, dataset.tokenizer.decode(np.maximum(ids, 0))) for name, ids in whole)


def spectrum(values: np.ndarray) -> np.ndarray:
    """Mean power of (…, k) at each frequency, with a Hann window."""
    centred = (values - values.mean(-1, keepdims=True)) * np.hanning(values.shape[-1])
    return (np.abs(np.fft.rfft(centred)) ** 2).reshape(-1, values.shape[-1] // 2 + 1).mean(0)
