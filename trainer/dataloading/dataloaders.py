"""Samplers, dataloaders and collate functions of training and evaluation: a part of `Trainer`."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import has_length

from trainer.dataloading.batches import EvalBatches, record_batches, share_train_batches
from trainer.dataloading.resume_position import samples_of_stream
from trainer.dataloading.samplers import GroupedByLength, limited_count, limited_dataset, limited_sampler
from trainer.preemption import IgnoringSignals


class DataLoading:
    """Samplers whose order follows from seed and epoch, limits, batches whose samples are known."""

    def _samples_per_epoch(self, dataset: Any, args: Any) -> int:
        if not has_length(dataset):
            return samples_of_stream(args, self.settings.limit_train_batches)
        whole = len(self.sampler(args.seed)) if self.sampler is not None and self.settings.shuffle else len(dataset)
        batch = args.train_batch_size * args.world_size
        share, drop_last = self.settings.limit_train_batches, args.dataloader_drop_last
        return limited_count(whole, share, batch, drop_last, "limit_train_batches")

    def train_sampler(self, train_dataset: Any, default: Callable[[Any], Any]) -> Any:
        """Return the sampler of the data, or sequential order, or `default(train_dataset)`, limited to its share."""
        dataset = train_dataset if train_dataset is not None else self.train_dataset
        if not self.settings.shuffle:
            sampler = torch.utils.data.SequentialSampler(dataset)
        elif self.sampler is None:
            sampler = default(train_dataset)
            if isinstance(sampler, LengthGroupedSampler):
                sampler = GroupedByLength(sampler.lengths, sampler.batch_size * self.args.world_size, self._data_seed())
        else:
            sampler = self.sampler(self._data_seed())
        batch = self._train_batch_size * self.args.world_size
        return limited_sampler(sampler, self.settings.limit_train_batches, batch, self.args.dataloader_drop_last)

    def _data_seed(self) -> int:
        return self.args.data_seed if self.args.data_seed is not None else self.args.seed

    def _limit_evaluation(self) -> None:
        limit, batch = self.settings.limit_val_batches, self.args.eval_batch_size * self.args.world_size
        if isinstance(self.eval_dataset, dict):
            sets = self.eval_dataset.items()
            self.eval_dataset = {name: limited_dataset(dataset, limit, batch) for name, dataset in sets}
        elif self.eval_dataset is not None:
            self.eval_dataset = limited_dataset(self.eval_dataset, limit, batch)

    def train_dataloader(self, dataset: Any, build: Callable[[Any], Any]) -> Any:
        """Return `build(dataset)`, which knows the samples of its batches if it returns them in the sampler's order.

        Several processes need that order: one may have a last batch that does not count.
        """
        loader = share_train_batches(build(dataset))
        inner = getattr(loader, "base_dataloader", loader)
        inner.in_order = inner.in_order or self.args.world_size > 1
        return self._with_own_generator(record_batches(loader) if inner.in_order else loader)

    def transformed(self, batches: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Apply `train_transform` to each micro-batch of a step.

        Its random numbers are a function of (seed, step, micro-batch, process), so that a resumed run draws the same.
        """
        if self.settings.train_transform is None:
            return batches
        return (self._transformed(batch, number) for number, batch in enumerate(batches))

    def _transformed(self, batch: dict[str, Any], number: int) -> dict[str, Any]:
        batch = self._prepare_inputs(batch)
        place = (self.args.seed, self.state.global_step, number, self.args.process_index)
        seed = int.from_bytes(hashlib.blake2b(repr(place).encode(), digest_size=7).digest(), "little")
        generator = torch.Generator(self.args.device).manual_seed(seed)
        return self.settings.train_transform(batch, generator)

    def eval_dataloader(self, dataset: Any, build: Callable[[Any], Any]) -> Any:
        """`build(dataset)`; of several processes each gets its own share of the batches, no sample twice."""
        with self._evaluation_arguments():
            if self.args.world_size == 1 or isinstance(dataset, torch.utils.data.IterableDataset):
                return self._with_own_generator(build(dataset))
            args = self.args
            indices = self._get_eval_sampler(dataset) or torch.utils.data.SequentialSampler(dataset)
            loader = torch.utils.data.DataLoader(
                dataset,
                batch_sampler=EvalBatches(indices, args.eval_batch_size, args.process_index, args.world_size),
                collate_fn=self._get_collator_with_removed_columns(self.data_collator),
                num_workers=args.dataloader_num_workers,
                prefetch_factor=args.dataloader_prefetch_factor,
                multiprocessing_context=args.dataloader_multiprocessing_context,
                pin_memory=args.dataloader_pin_memory,
            )
            return self._with_own_generator(loader)

    def _with_own_generator(self, loader: Any) -> Any:
        """Give a loader its own generator for the seeds of its workers.

        With the global generator, starting workers would change the random numbers of dropout, and a resumed run,
        which starts them once more, would differ from an uninterrupted one.
        """
        inner = getattr(loader, "base_dataloader", loader)
        inner.generator = torch.Generator().manual_seed(self.args.seed)
        inner.worker_init_fn = IgnoringSignals(inner.worker_init_fn)
        return loader

    @contextlib.contextmanager
    def _evaluation_arguments(self) -> Iterator[None]:
        """Arguments for an evaluation loader: no sample is dropped, and the number of workers may differ."""
        names = (
            "dataloader_multiprocessing_context",
            "dataloader_drop_last",
            "dataloader_num_workers",
            "dataloader_prefetch_factor",
            "dataloader_persistent_workers",
        )
        before = {name: getattr(self.args, name) for name in names}
        self.args.dataloader_drop_last = False
        if self.settings.eval_num_workers is not None:
            self.args.dataloader_num_workers = self.settings.eval_num_workers
        if not self.args.dataloader_num_workers:
            self.args.dataloader_prefetch_factor, self.args.dataloader_persistent_workers = None, False
            self.args.dataloader_multiprocessing_context = None
        try:
            yield
        finally:
            for name, value in before.items():
                setattr(self.args, name, value)


def collate_named_keys(collate: Callable, names: frozenset[str], samples: Any) -> Any:
    """Collate without other columns of the samples than `names`, and without other keys of the batch.

    Samples of which the forward names no column keep all: then the collate function makes the model's inputs of them.
    """
    if isinstance(samples, list) and isinstance(samples[0], Mapping) and names & samples[0].keys():
        samples = [{name: value for name, value in sample.items() if name in names} for sample in samples]
    batch = collate(samples)
    if not isinstance(batch, Mapping):
        return batch
    return {name: value for name, value in batch.items() if name in names}


def without_adapter(model: nn.Module) -> nn.Module:
    """Return the model inside PEFT's wrapper, whose forward names the inputs that it takes, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
