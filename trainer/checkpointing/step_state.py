"""What has been summed up since the last log line: kept in a checkpoint, so that a resumed run's next line is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from storage import safe_read
from trainer.serialization.state_dict_io import join

FILE = "log_interval.json"


def interval_facts(trainer: Any) -> dict[str, Any]:
    """The running sums, averaged over processes, as JSON values; every process calls it."""
    terms = trainer.train_terms
    names = sorted(terms.sums)
    sums = [trainer._tr_loss, trainer.followed_loss, *(terms.sums[name] for name in names)]
    counts = [torch.as_tensor(terms.counts[name], dtype=torch.float32) for name in names]
    device = trainer.args.device
    values = torch.stack([each.detach().to(device, torch.float32) for each in [*sums, *counts]])
    loss, followed, *rest = trainer._mean_over_processes(values).tolist()
    return {
        "last_logged": trainer._globalstep_last_logged,
        "loss": loss,
        "followed_loss": followed,
        "followed_steps": trainer.followed_steps,
        "terms": {name: [rest[i], rest[len(names) + i]] for i, name in enumerate(names)},
        "norms": [int(trainer.norms.over), trainer.norms.steps],
        "skipped": trainer.guard.skipped_since_log,
    }


def read_interval(folder: Path) -> dict[str, Any]:
    """What a checkpoint says; empty where it says nothing."""
    try:
        return join(safe_read.read_json(folder / FILE), {})  # a loss may be infinite
    except FileNotFoundError:
        return {}


def load_interval(trainer: Any, folder: Path | str) -> None:
    """Takes the sums up again; called once the Trainer has set its own to zero."""
    facts = read_interval(Path(folder))
    device = trainer.args.device
    trainer._globalstep_last_logged = facts["last_logged"]
    trainer._tr_loss.fill_(facts["loss"])
    # The mean loss at the end (`train_loss`) is of the steps since this start alone.
    trainer._total_loss_scalar -= facts["loss"]
    trainer.followed_loss.fill_(facts["followed_loss"])
    trainer.followed_steps = facts["followed_steps"]
    terms = trainer.train_terms
    terms.sums = {name: torch.tensor(total, device=device) for name, (total, _) in facts["terms"].items()}
    terms.counts = {name: int(count) for name, (_, count) in facts["terms"].items()}
    terms.mark()
    trainer.norms.over, trainer.norms.steps = facts["norms"]
    trainer.guard.skipped_since_log = facts["skipped"]
