"""Runs of `train.main` that take a fraction of a second: a perceptron on a few synthetic episodes.

Twelve samples to train on and twelve held out; in batches of 4 an epoch has three steps.
"""

import json

import torch
from demonstration_files import write_act_episode
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

import train

STEPS_PER_EPOCH = 3
BASE = """\
task_name: TASK
model_config: mlp
model: {hidden_dim: 8, hidden_layers: 1}
dataset: {chunk_size: 3}
cache_dir: CACHE
report_to: none
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
    """Writes data and a base file under a folder once; calling it trains into `OUT` under that folder."""

    def __init__(self, folder):
        self.folder = folder
        for index in range(2):
            write_act_episode(folder / "episodes" / f"episode_{index}.hdf5", steps=12, seed=index)
        task = f"dataset: {{name: demonstrations, path: {folder / 'episodes'}, eval_fraction: 0.5}}\n"
        (folder / "task.yaml").write_text(task)
        base = BASE.replace("TASK", str(folder / "task.yaml")).replace("CACHE", str(folder / "cache"))
        (folder / "base.yaml").write_text(base)

    def words(self, text="", out="out", **flags):
        """The command line of a run whose training file is the base with `text` on top."""
        file = self.folder / f"{out}.yaml"
        file.write_text(f"extends: {self.folder / 'base.yaml'}\n{text}\n")
        words = ["--training_config", str(file), "--output_dir", str(self.folder / out)]
        for name, value in flags.items():
            words += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
        return words

    def __call__(self, text="", out="out", **flags):
        return train.main(self.words(text, out, **flags))

    def log(self, key, out="out"):
        """`{step: value}` of the lines of metrics.jsonl that have a key."""
        lines = [json.loads(line) for line in (self.folder / out / "metrics.jsonl").read_text().splitlines()]
        return {line["step"]: line[key] for line in lines if key in line}

    def checkpoints(self, out="out"):
        return sorted(int(path.name.split("-")[1]) for path in (self.folder / out).glob("checkpoint-*"))


def weights(trainer):
    """Copies of a trainer's weights as they are now."""
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


class StopsAfter(TrainerCallback):
    """Ends a training after a step; to be named in YAML."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


class Counts(TrainerCallback, ExportableState):
    """How many steps it has seen, kept in checkpoints; to be named in YAML."""

    def __init__(self):
        self.steps = 0

    def on_step_end(self, args, state, control, **kwargs):
        self.steps += 1

    def state(self):
        return {"args": {}, "attributes": {"steps": self.steps}}


class Looks(TrainerCallback):
    """What a training and its evaluations were seen with; to be named in YAML."""

    def __init__(self):
        self.dtypes, self.deterministic = set(), None

    def on_prediction_step(self, args, state, control, model=None, **kwargs):
        self.dtypes |= {parameter.dtype for parameter in model.parameters()}

    def on_step_end(self, args, state, control, **kwargs):
        self.deterministic = torch.are_deterministic_algorithms_enabled()


def named(trainer, kind):
    """A trainer's callback of a class; the module may have been imported twice, so the class's name decides."""
    (found,) = (callback for callback in trainer.callback_handler.callbacks if type(callback).__name__ == kind.__name__)
    return found
