"""Whether a run's learning rate has any say in the rates of its schedule."""

from __future__ import annotations

from loader.errors import Problems
from loader.resolve.run_config import RunConfig

# Schedules that take rates of their own, with the options that are all of them.
OWN_RATES = {"OneCycleLR": ("max_lr",), "CyclicLR": ("base_lr", "max_lr")}


def ignores_learning_rate(run: RunConfig) -> bool:
    """Whether another `learning_rate` would change no rate: neither the schedule's, nor those of a warm-up before it,
    nor a group's that keeps a rate of its own in proportion to it."""
    hyper, process = run.hyper, run.process
    if hyper.warmup_steps or hyper.warmup_ratio or process.warmup_epochs or hyper.min_lr:
        return False
    if process.lora_lr is not None or any(each.lr is not None for each in run.param_groups):
        return False
    options = {**(run.trainer.get("lr_scheduler_kwargs") or {}), **run.scheduler}
    own = OWN_RATES.get(hyper.lr_scheduler_type, ())
    return bool(own) and all(options.get(each) is not None for each in own)


def check_rates(run: RunConfig, problems: Problems) -> None:
    """A rate that was asked for on the command line, or for a resumed run, and that no step would have."""
    if not ignores_learning_rate(run):
        return
    for key, said in (("learning_rate", run.on_command_line("learning_rate")), ("resume_lr", run.process.resume_lr)):
        if said:
            problems.add(
                f"`{key}: {getattr(run.process, key, run.hyper.learning_rate):g}`{run.place(key)} would do nothing: "
                f"lr_scheduler_type {run.hyper.lr_scheduler_type}{run.place('lr_scheduler_type')} has all its rates "
                "from its own options; change scheduler.max_lr"
            )
