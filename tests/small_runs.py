"""Runs of `train.main` that take a fraction of a second: an MLP on a few synthetic episodes.

Twelve samples for training and twelve for evaluation; in batches of 4 an epoch has three steps.
"""

import torch
from demonstration_files import write_act_folder
from run_results import metrics
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

import train
from storage.checkpoints import step_of

STEPS_PER_EPOCH = 3
BASE = """\
task_name: TASK
model_config: mlp
model: {hidden_dim: 8, hidden_layers: 1}
dataset: {chunk_size: 3}
cache_dir: CACHE
report_to: none
report: false
save_strategy: 'no'
logging_steps: 1
eval_steps: 100
max_steps: 4
learning_rate: 0.01
lr_scheduler_type: constant
per_device_train_batch_size: 4
per_device_eval_batch_size: 4
"""


class SmallRuns:
    """Writes data and a base file under a folder once; calling it trains into `OUT` under that folder.

    Attributes:
        out: the latest run; `log` and `checkpoints` read it by default.
    """

    def __init__(self, folder):
        self.folder, self.out, self.count = folder, "out", 0
        write_act_folder(folder / "episodes", (12, 12))
        task = f"dataset: {{name: demonstrations, path: {folder / 'episodes'}, eval_fraction: 0.5}}\n"
        (folder / "task.yaml").write_text(task)
        base = BASE.replace("TASK", str(folder / "task.yaml")).replace("CACHE", str(folder / "cache"))
        (folder / "base.yaml").write_text(base)

    def words(self, text="", out="out", **flags):
        """The command line of a run whose training file is the base with the lines of `text` on top.

        If two lines have the same key, the later one counts.
        """
        file = self.folder / f"{out}.yaml"
        lines = {line.partition(":")[0]: line for line in text.splitlines()}
        file.write_text("\n".join([f"extends: {self.folder / 'base.yaml'}", *lines.values(), ""]))
        words = ["--training_config", str(file), "--output_dir", str(self.folder / out)]
        for name, value in flags.items():
            words += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
        return words

    def __call__(self, text="", out="out", **flags):
        self.out = out
        return train.main(self.words(text, out, **flags))

    def new(self, text="", **flags):
        """Train into a folder that no other run has."""
        self.count += 1
        return self(text, f"new-{self.count}", **flags)

    def log(self, key, out=None):
        return metrics(self.folder / (out or self.out), key)

    def checkpoints(self, out=None):
        return sorted(step_of(path) for path in (self.folder / (out or self.out)).glob("checkpoint-*"))


def weights(trainer):
    """Copies of a trainer's current weights."""
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


class StopsAfter(TrainerCallback):
    """Ends a training after a step; named in YAML, as the callbacks below."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


class Counts(TrainerCallback, ExportableState):
    """Counts steps; the count is saved in checkpoints."""

    def __init__(self):
        self.steps = 0

    def on_step_end(self, args, state, control, **kwargs):
        self.steps += 1

    def state(self):
        return {"args": {}, "attributes": {"steps": self.steps}}


class Determinism(TrainerCallback):
    """Records whether torch's deterministic algorithms were enabled in training."""

    deterministic = None

    def on_step_end(self, args, state, control, **kwargs):
        self.deterministic = torch.are_deterministic_algorithms_enabled()


def named(trainer, kind):
    """A trainer's callback of a class, found by its name: this module may have been imported twice."""
    (callback,) = (each for each in trainer.callback_handler.callbacks if type(each).__name__ == kind.__name__)
    return callback


def stop_workers(*loaders):
    """End persistent workers; if the garbage collector finds their loader first, torch waits 5 s for each."""
    for loader in loaders:
        iterator = getattr(getattr(loader, "base_dataloader", loader), "_iterator", None)
        if iterator is not None:
            iterator._shutdown_workers()
