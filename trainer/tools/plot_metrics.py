"""Draw the curves of a run from its metrics.jsonl: `python -m trainer.curves OUT [OUT/curves.png]`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

# Panels: title, and which logged names go in it.
PANELS = (
    ("loss", lambda name: "loss" in name and name != "train_loss"),
    ("learning rate", lambda name: name == "learning_rate"),
    ("gradient norm", lambda name: name == "grad_norm"),
)


def draw_curves(run_folder: Path, picture: Path) -> Path:
    """Draw loss terms, learning rate and gradient norm over the steps into a PNG.

    Raises:
        ValueError: the folder has no metrics.jsonl, or there is nothing in it.
    """
    series = read_series(run_folder / "metrics.jsonl")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(5 * len(PANELS), 3.6), constrained_layout=True)
    for axis, (title, belongs) in zip(axes, PANELS, strict=True):
        for name in filter(belongs, series):
            steps, values = zip(*series[name], strict=True)
            axis.plot(steps, values, label=name, linewidth=1.4, marker="." if len(steps) < 12 else None)
        shown = [value for name in filter(belongs, series) for _, value in series[name]]
        if title != "learning rate" and shown and min(shown) > 1e-6 * max(shown):  # a zero would flatten the rest
            axis.set_yscale("log")
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
        if len(axis.lines) > 1:
            axis.legend(fontsize=8)
    figure.suptitle(run_folder.name)
    figure.savefig(picture, dpi=110)
    pyplot.close(figure)
    return picture


def read_series(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Return logged name -> (step, value) pairs, in order."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist; name a run's output directory")
    series: dict[str, list[tuple[int, float]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        for name, value in record.items():
            if name != "step" and isinstance(value, (int, float)):
                series.setdefault(name, []).append((record["step"], value))
    if not series:
        raise ValueError(f"{path} is empty: the run has logged nothing yet")
    return series


def main() -> None:
    """Command line: the run's folder, and optionally where the picture goes."""
    if not 2 <= len(sys.argv) <= 3:
        raise SystemExit("usage: python -m trainer.curves OUT [PICTURE.png]")
    folder = Path(sys.argv[1])
    try:
        print(draw_curves(folder, Path(sys.argv[2]) if len(sys.argv) == 3 else folder / "curves.png"))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
