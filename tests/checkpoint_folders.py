"""Checkpoint folders of a configuration, made without training: for tests that read the small files."""

import json

from loader.output import render
from storage import manifest

STEP, TOTAL, STEPS_PER_EPOCH = 40, 100, 25


def write_checkpoint(folder, run, batch=(8, 1, 1), step=STEP, total=TOTAL):
    """Make `folder/checkpoint-STEP` of `run`, a RunConfig.

    Args:
        batch: per device, accumulated, processes.
        total: steps of the whole run.
    """
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    position = {"steps_per_epoch": STEPS_PER_EPOCH, "samples_per_epoch": 200, "samples_per_step": 8, "steps_before": 0}
    callbacks = {"TrainerControl": {}, "data_position": position}
    state = {"global_step": step, "max_steps": total, "log_history": [], "stateful_callbacks": callbacks}
    mapping = {"length": total, "total": total, "start": 0, "position": 0, "frozen_after_end": False}
    schedule = {
        "name": "constant",
        "step_count": step,
        "metrics_seen": 0,
        "base_lrs": [],
        "last_rates": [],
        "curve": {},
    }
    schedule["course"] = mapping
    interval = {"last_logged": step, "loss": 0.0, "followed_loss": 0.0, "followed_steps": 0, "terms": {}, "pending": {}}
    interval |= {"norms": [0, 0], "skipped": 0}
    files = {"trainer_state": state, "scheduler": schedule, "log_interval": interval, "optimizer": {}, "rng-0": {}}
    for name, value in files.items():
        (checkpoint / f"{name}.json").write_text(json.dumps(value))
    adapter = ("adapter_model.safetensors", "adapter_config.json", "adaptation.json")
    for name in adapter if run.process.lora_enable else ("model.safetensors",):
        (checkpoint / name).write_bytes(b"weights")
    (checkpoint / "run.yaml").write_text(render.as_yaml(run) + render.END)
    names = ("per_device_train_batch_size", "gradient_accumulation_steps", "world_size")
    manifest.write(checkpoint, step=step, **dict(zip(names, batch, strict=True)))
    return checkpoint
