"""State of the step that a checkpoint was saved at (log_interval.json): sums since the last log line, pending work."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from storage import safe_read
from trainer.serialization import state_dict_io

FILE = "log_interval.json"


@dataclass(frozen=True)
class PendingStepWork:
    """Work still pending for the current step when training was preempted; it is done first on resume.

    It is false if nothing is pending.

    Attributes:
        evaluate: An evaluation, perhaps one that was interrupted.
        save: A checkpoint, after the evaluation or the epoch's end.
        epoch: The end of the epoch.
        stop: The end of training, for another reason than the last step.
        grad_norm, learning_rate: Of the step, for a log line at the epoch's end.
    """

    evaluate: bool = False
    save: bool = False
    epoch: bool = False
    stop: bool = False
    grad_norm: float | None = None
    learning_rate: float | None = None

    def __bool__(self) -> bool:
        return self.evaluate or self.save or self.epoch or self.stop


NOTHING_PENDING = PendingStepWork()


def read_pending_work(checkpoint: Path) -> PendingStepWork:
    """Return the work that is pending in a checkpoint."""
    return PendingStepWork(**_read(checkpoint)["pending"])


def step_state(trainer: Any, pending: PendingStepWork) -> dict[str, Any]:
    """Return the content of log_interval.json: sums are averaged over ranks, so all ranks must call this."""
    terms = trainer.train_terms
    names = sorted(terms.sums)
    sums = [trainer._tr_loss, trainer.followed_loss, *(terms.sums[name] for name in names)]
    counts = [torch.as_tensor(terms.counts[name], dtype=torch.float32) for name in names]
    device = trainer.args.device
    values = torch.stack([value.detach().to(device, torch.float32) for value in [*sums, *counts]])
    loss, followed, *rest = trainer._mean_over_processes(values).tolist()
    state = {
        "last_logged": trainer._globalstep_last_logged,
        "loss": loss,
        "followed_loss": followed,
        "followed_steps": trainer.followed_steps,
        "terms": {name: [rest[i], rest[len(names) + i]] for i, name in enumerate(names)},
        "norms": [int(trainer.guard.clipped), trainer.guard.steps],
        "skipped": trainer.guard.skipped_since_log,
        "pending": dataclasses.asdict(pending),
    }
    return state_dict_io.split(state)[0]  # a loss may be infinite, which JSON cannot hold


def restore_log_interval(trainer: Any, checkpoint: Path | str) -> None:
    """Restore the sums since the last log line; called after transformers has set its own to zero."""
    state = _read(Path(checkpoint))
    device = trainer.args.device
    trainer._globalstep_last_logged = state["last_logged"]
    trainer._tr_loss.fill_(state["loss"])
    # The summary's mean loss (`train_loss`) is of the steps since this start only.
    trainer._total_loss_scalar -= state["loss"]
    trainer.followed_loss.fill_(state["followed_loss"])
    trainer.followed_steps = state["followed_steps"]
    terms = trainer.train_terms
    terms.sums = {name: torch.tensor(total, device=device) for name, (total, _) in state["terms"].items()}
    terms.counts = {name: count for name, (_, count) in state["terms"].items()}
    terms.mark()
    trainer.guard.clipped, trainer.guard.steps = state["norms"]
    trainer.guard.skipped_since_log = state["skipped"]


def _read(checkpoint: Path) -> dict[str, Any]:
    return state_dict_io.join(safe_read.read_json(checkpoint / FILE), {})
