"""Loggers beside metrics.jsonl: a CSV table, and the section `logging` as environment variables of other loggers."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from storage.atomic import write_text
from trainer.callbacks.log_files import MetricsFile, append, is_of_the_past
from trainer.settings import LoggingConfig

BACKENDS = {"TensorBoardLogger": "tensorboard", "WandbLogger": "wandb"}  # logger_type -> backend


class CsvLog(MetricsFile):
    """`metrics.csv`: one row for each log event, one column for each name, in order of first appearance.

    A new name rewrites the table with one more column. A resumed run drops the rows of steps that it will repeat, and a
    row that a killed process left unfinished.
    """

    def __init__(self, folder: Path):
        super().__init__(Path(folder) / "metrics.csv")
        self.columns: list[str] | None = None  # None: the file has not been read yet

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.columns, rows = read_table(self.path)
            kept = [row for row in rows if is_of_the_past({**row, "step": int(row["step"])}, state)]
            if self.path.exists():
                self._rewrite(kept)

    def _append(self, records: Sequence[dict[str, Any]]) -> None:
        if self.columns is None:
            self.columns, _ = read_table(self.path)
        new = [name for record in records for name in record if name not in self.columns]
        if new:
            _, before = read_table(self.path)
            self.columns = [*self.columns, *dict.fromkeys(new)]
            self._rewrite([*before, *records])
        else:
            append(self.path, self._text(records))

    def _rewrite(self, rows: Sequence[dict[str, Any]]) -> None:
        write_text(self.path, self._text([dict(zip(self.columns, self.columns, strict=True)), *rows]))

    def _text(self, rows: Sequence[dict[str, Any]]) -> str:
        text = io.StringIO()
        csv.DictWriter(text, self.columns, lineterminator="\n").writerows(rows)
        return text.getvalue()


def read_table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Return the columns and complete rows of a `metrics.csv`; none if there is no such table."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    try:
        rows = list(csv.reader(io.StringIO(text)))
    except csv.Error:
        rows = []
    if rows and not text.endswith("\n"):
        rows.pop()  # its writer was killed
    if not rows or "step" not in rows[0]:
        return [], []
    columns, step = rows[0], rows[0].index("step")
    # int() refuses thousands of digits, which a damaged file may have.
    complete = [row for row in rows[1:] if len(row) == len(columns) and row[step].isdecimal() and len(row[step]) < 19]
    return columns, [dict(zip(columns, row, strict=True)) for row in complete]


def log_folder(settings: LoggingConfig, output_dir: Path, subfolder: str = "") -> Path:
    """Return the folder of a logger without a server: the run's name in `save_dir`, or in the run's folder."""
    base = Path(settings.save_dir).expanduser().absolute() if settings.save_dir else Path(output_dir) / subfolder
    return base / settings.name if settings.name else base


def logger_environment(settings: LoggingConfig, output_dir: Path, report_to: Sequence[str] = ()) -> dict[str, str]:
    """Return the environment variables that pass the section to the loggers.

    The loader also passes the run's name as `TrainingArguments.run_name`, and trackio's project as `project`.

    Args:
        report_to: Backends by name; `logger_type` adds its own. Without any the section has no effect.

    Raises:
        ValueError: no logger can use a key.
    """
    backends = {*report_to, BACKENDS.get(settings.logger_type, "")} - {""}
    useless = [name for name in settings.of_wandb if not (name == "project" and "trackio" in backends)]
    if useless and backends and "wandb" not in backends:
        raise ValueError(f"`logging.{useless[0]}` cannot be used by {', '.join(sorted(backends))}; WandbLogger has it")
    environment: dict[str, str] = {}
    if "tensorboard" in backends:
        environment["TENSORBOARD_LOGGING_DIR"] = str(log_folder(settings, output_dir, "logs"))
    if "wandb" in backends:
        environment |= _for_wandb(settings, output_dir)
    return environment


def _for_wandb(settings: LoggingConfig, output_dir: Path) -> dict[str, str]:
    """The files lie in `save_dir`, $WANDB_DIR or the run's folder.

    `checkpoint` uploads each checkpoint when it is saved, `end` the final model: the best one, if that is loaded."""
    folder = settings.save_dir or os.environ.get("WANDB_DIR") or str(output_dir)
    given = {
        "WANDB_NAME": settings.name,
        "WANDB_PROJECT": settings.project,
        "WANDB_ENTITY": settings.entity,
        "WANDB_RUN_GROUP": settings.group,
        "WANDB_NOTES": settings.notes,
        "WANDB_MODE": settings.mode,
        "WANDB_DIR": str(Path(folder).expanduser().absolute()),
        "WANDB_LOG_MODEL": {"all": "checkpoint", "best": "end", True: "end", False: "false"}.get(settings.log_model),
    }
    return {name: value for name, value in given.items() if value}
