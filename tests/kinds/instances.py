"""Data: samples with a variable number of instances, each a point with a class.

A sample is {"points": (n, 2), "classes": (n,), "size": ()}; batches hold lists of tensors in a nested dict.
"""

from dataclasses import dataclass
from functools import partial

from storage.config_keys import key

PROCESS_KEYS = frozenset()
CLASSES = 3


@dataclass
class Config:
    samples: int = key(40, "training samples", ge=1)
    sampler: str = key("weighted", "weighted or grouped")
    noise: float = key(0.0, "of the transform, which moves the points of training batches", ge=0)
    damaged: int = key(-1, "index of a sample that is not finite")


def check(config, run):
    return []


def build(config, run):
    from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

    from data.bundle import Bundle
    from data.samplers import LengthGroupedSampler, WeightedSampler
    from metrics.metric import TorchMetrics

    train, validation, test = (make(count, seed) for count, seed in ((config.samples, 0), (11, 1), (9, 2)))
    if config.damaged >= 0:
        train.samples[config.damaged]["points"] *= float("nan")
    lengths = [len(sample["classes"]) for sample in train.samples]
    if config.sampler == "weighted":
        sampler = partial(WeightedSampler, [1 + length for length in lengths])
    else:
        step = run.hyper.per_device_train_batch_size * run.trainer.get("gradient_accumulation_steps", 1)
        sampler = partial(LengthGroupedSampler, lengths, step)
    metric = TorchMetrics(
        {
            "accuracy": MulticlassAccuracy(CLASSES, average="micro"),
            "macro_f1": MulticlassF1Score(CLASSES, average="macro"),
        },
        {"accuracy": "max", "macro_f1": "max"},
        predictions_and_targets,
    )
    return Bundle(
        train,
        {"validation": validation},
        collate,
        sampler,
        dims={},
        metrics={"validation": metric, "test": metric},
        units={"instances": 3},
        test_datasets={"test": test},
        train_transform=partial(moved, noise=config.noise) if config.noise else None,
    )


def make(count, seed):
    import torch

    generator = torch.Generator().manual_seed(seed)
    samples = []
    for _ in range(count):
        size = int(torch.randint(1, 6, (), generator=generator))
        points = torch.randn(size, 2, generator=generator)
        classes = (points[:, 0] > 0).long() + (points[:, 1] > 0.3).long()
        samples.append({"points": points, "classes": classes, "size": torch.tensor(float(size))})
    return Samples(samples)


class Samples:
    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


def collate(samples):
    import torch

    return {
        "points": [sample["points"] for sample in samples],
        "truth": {
            "classes": [sample["classes"] for sample in samples],
            "sizes": torch.stack([sample["size"] for sample in samples]),
        },
    }


def moved(batch, generator, noise):
    import torch

    points = [part + noise * torch.randn(part.shape, generator=generator) for part in batch["points"]]
    return {**batch, "points": points}


def predictions_and_targets(batch, outputs):
    import torch

    return outputs["logits"], torch.cat(batch["truth"]["classes"])
