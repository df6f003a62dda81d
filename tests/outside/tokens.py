"""Sequences of token ids that follow a rule, for models of transformers: each next token is the last plus a step."""

from dataclasses import dataclass, field

PROCESS_KEYS = frozenset()


@dataclass
class Config:
    vocab_size: int = field(default=16, metadata={"help": "different tokens"})
    length: int = field(default=8, metadata={"help": "tokens a sequence"})
    count: int = field(default=24, metadata={"help": "sequences"})


def build(config, run):
    import torch

    class Sequences(torch.utils.data.Dataset):
        def __init__(self, first, count):
            steps = torch.arange(first, first + count)[:, None] % 5 + 1
            self.ids = (torch.arange(config.length)[None] * steps + steps) % config.vocab_size

        def __len__(self):
            return len(self.ids)

        def __getitem__(self, index):
            return {"input_ids": self.ids[index], "labels": self.ids[index]}

    class Order:
        def __init__(self, seed):
            self.seed, self.epoch = seed, 0

        def set_epoch(self, epoch):
            self.epoch = epoch

        def __len__(self):
            return config.count

        def __iter__(self):
            generator = torch.Generator().manual_seed(1000 * self.seed + self.epoch)
            return iter(torch.randperm(config.count, generator=generator).tolist())

    class Bundle:
        train_dataset = Sequences(0, config.count)
        eval_datasets = {"eval": Sequences(100, 6)}
        collate = staticmethod(torch.utils.data.default_collate)
        sampler = Order
        dims = {"vocab_size": config.vocab_size}
        files = {}
        summary = [f"{config.count} sequences"]
        metrics = None

    return Bundle
