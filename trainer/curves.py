"""Draw the curves of runs from their metrics.jsonl: `python -m trainer.curves OUT [OUT2 …] [PICTURE.png]`.

Without a picture's name, that of one run is OUT/curves.png, that of several curves.png in the working folder.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

# Panels: title, and which logged names go in it.
PANELS = (
    ("loss", lambda name: "loss" in name and name != "train_loss"),
    ("learning rate", lambda name: name == "learning_rate"),
    ("gradient norm", lambda name: name == "grad_norm"),
)


PICTURES = (".png", ".pdf", ".svg", ".jpg", ".jpeg")


def draw_curves(run_folders: Sequence[Path], picture: Path) -> Path:
    """Draw loss terms, learning rate and gradient norm of the runs over the steps.

    Raises:
        ValueError: a folder has no metrics.jsonl, or there is nothing in it.
    """
    series: dict[str, list[tuple[int, float]]] = {}
    for folder in run_folders:
        prefix = f"{folder}: " if len(run_folders) > 1 else ""
        of_run = read_series(folder / "metrics.jsonl")
        series |= {f"{prefix}{name}": points for name, points in of_run.items()}
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(5 * len(PANELS), 3.6), constrained_layout=True)
    for axis, (title, belongs) in zip(axes, PANELS, strict=True):
        drawn = [label for label in series if belongs(label.rpartition(": ")[2])]
        for name in drawn:
            steps, values = zip(*series[name], strict=True)
            axis.plot(steps, values, label=name, linewidth=1.4, marker="." if len(steps) < 12 else None)
        shown = [value for name in drawn for _, value in series[name]]
        if title != "learning rate" and shown and min(shown) > 1e-6 * max(shown):  # a zero would flatten the rest
            axis.set_yscale("log")
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
        if len(axis.lines) > 1:
            axis.legend(fontsize=8)
    figure.suptitle(", ".join(folder.name for folder in run_folders))
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


def main(arguments: list[str] | None = None) -> None:
    """Command line: the runs' folders, and optionally the name of the picture."""
    words = sys.argv[1:] if arguments is None else arguments
    pictures = [word for word in words if word.endswith(PICTURES) and not Path(word).is_dir()]
    folders = [Path(word) for word in words if word not in pictures]
    if not folders or len(pictures) > 1:
        raise SystemExit("usage: python -m trainer.curves OUT [OUT2 …] [PICTURE.png]")
    default = folders[0] / "curves.png" if len(folders) == 1 else Path("curves.png")
    try:
        print(draw_curves(folders, Path(pictures[0]) if pictures else default))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
