"""Checkpoint folders as a run of some configuration would leave them, without training: for what reads small files."""

import json

from loader import show
from storage import manifest

STEP, TOTAL, STEPS_PER_EPOCH = 40, 100, 25


def write_checkpoint(folder, run, batch=(8, 1, 1), step=STEP, total=TOTAL, course=None):
    """`folder/checkpoint-STEP` of `run`, a RunConfig.

    Args:
        batch: per device, accumulated, processes.
        total: steps of the whole run.
        course: what scheduler.json says of it.
    """
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    position = {"steps_per_epoch": STEPS_PER_EPOCH, "samples_per_epoch": 200, "samples_per_step": 8, "steps_before": 0}
    state = {"global_step": step, "max_steps": total, "stateful_callbacks": {"position in the data": position}}
    schedule = {"course": course or {"length": total, "total": total, "start": 0, "position": 0, "held": False}}
    for name, value in {"trainer_state": state, "scheduler": schedule, "optimizer": {}, "rng-0": {}}.items():
        (checkpoint / f"{name}.json").write_text(json.dumps(value))
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    (checkpoint / "run.yaml").write_text(show.as_yaml(run) + show.END)
    names = ("per_device_train_batch_size", "gradient_accumulation_steps", "world_size")
    manifest.write(checkpoint, step=step, **dict(zip(names, batch, strict=True)))
    return checkpoint
