"""A model, data and a callback as code written for transformers' Trainer has them."""

import torch
from torch import nn
from transformers import TrainerCallback


class Points(torch.utils.data.Dataset):
    """Samples as dicts: `x` (4,), and `labels`, a float, if they are labelled."""

    def __init__(self, count=16, seed=0, labelled=True):
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(count, 4, generator=generator)
        self.y = self.x.sum(1)
        self.labelled, self.scale = labelled, 1.0

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        sample = {"x": self.x[index] * self.scale}
        return sample | {"labels": self.y[index]} if self.labelled else sample


class Line(nn.Module):
    """Linear regression with labels that may be left out; records the inputs that it is given."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.0))
        self.head = nn.Linear(3, 1)
        self.seen = []

    def forward(self, x, labels=None):
        if self.training:
            self.seen.append(x.detach().clone())
        prediction = self.head(self.body(x))[:, 0]
        if labels is None:
            return {"prediction": prediction}
        return {"loss": ((prediction - labels) ** 2).mean(), "prediction": prediction}


class At(TrainerCallback):
    """Calls `action(args, state, control, **kwargs)` at an event of one step, or of every step."""

    def __init__(self, event, action, step=None):
        def call(args, state, control, **kwargs):
            if step is None or state.global_step == step:
                action(args, state, control, **kwargs)

        setattr(self, event, call)


class Stream(torch.utils.data.IterableDataset):
    """`count` samples in each pass, all different; a pass begins with `set_epoch`."""

    def __init__(self, count=20):
        self.count, self.epoch = count, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        for index in range(self.count):
            x = torch.full((4,), (100 * self.epoch + index) / 100)
            yield {"x": x, "labels": x.sum()}
