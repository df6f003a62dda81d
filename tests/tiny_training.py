"""A model and data small enough to check a trainer by hand."""

import dataclasses

import torch
from torch import nn
from transformers import TrainingArguments

from trainer.settings import TrainerSettings
from trainer.trainer import Trainer


class Regression(nn.Module):
    """y = norm(x) W + b with two loss terms; everything a trainer needs and nothing else."""

    def __init__(self, seed: int = 0, dropout: float = 0.0):
        super().__init__()
        torch.manual_seed(seed)
        self.norm = nn.LayerNorm(4)
        self.linear = nn.Linear(4, 2)
        self.head = nn.Linear(2, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, y, **context):
        prediction = self.head(self.dropout(torch.tanh(self.linear(self.norm(x)))))[:, 0]
        error = ((prediction - y) ** 2).mean()
        size = prediction.abs().mean()
        return {"loss": error + 0.1 * size, "losses": {"error": error, "size": size}}


class Samples(torch.utils.data.Dataset):
    """(x, y) pairs, seeded; `index` tells which sample a batch holds."""

    def __init__(self, count: int = 22, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(count, 4, generator=generator)
        self.y = torch.randn(count, generator=generator)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return {"x": self.x[index], "y": self.y[index], "index": torch.tensor(index)}


class EpochSampler(torch.utils.data.Sampler):
    """An order that is a function of (seed, epoch) alone."""

    def __init__(self, count: int, seed: int):
        self.count, self.seed, self.epoch = count, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self):
        generator = torch.Generator().manual_seed(1000 * self.seed + self.epoch)
        return iter(torch.randperm(self.count, generator=generator).tolist())

    def __len__(self):
        return self.count


def make_trainer(folder, model=None, count=22, eval_count=7, files=None, sampler=True, data=None, **settings):
    """A Trainer on `Samples`; keywords that `Settings` has go there, all others to TrainingArguments."""
    own = [field.name for field in dataclasses.fields(TrainerSettings) if field.name in settings]
    options = {name: settings.pop(name) for name in own}
    defaults = {
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "learning_rate": 0.05,
        "logging_steps": 2,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "logging_nan_inf_filter": False,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    args = TrainingArguments(output_dir=str(folder), **{**defaults, **settings})
    return Trainer(
        model or Regression(),
        args,
        train_dataset=Samples(count) if data is None else data,
        eval_dataset=Samples(eval_count, seed=1),
        data_collator=torch.utils.data.default_collate,
        sampler=(lambda seed: EpochSampler(count, seed)) if sampler else None,
        files=files,
        settings=TrainerSettings(**options),
    )
