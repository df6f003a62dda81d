"""How training and evaluation get their batches: the first part of `Trainer`."""

from __future__ import annotations

import contextlib
import inspect
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import transformers
from torch import nn

from trainer.dataloading.samplers import eval_shuffle_sampler, limited_count, limited_dataset, limited_sampler
from trainer.optimization.nonfinite_guard import IndexedCollate, IndexedSamples
from trainer.preemption import IgnoringSignals


class Loading(transformers.Trainer):
    """Samplers with an order of their own, shares of the data, batches that know their samples."""

    def _samples_per_epoch(self, dataset: Any, args: transformers.TrainingArguments) -> int:
        whole = len(self.sampler(args.seed)) if self.sampler is not None and self.settings.shuffle else len(dataset)
        batch = args.train_batch_size * args.world_size
        share, drop_last = self.settings.limit_train_batches, args.dataloader_drop_last
        return limited_count(whole, share, batch, drop_last, "limit_train_batches")

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset = train_dataset if train_dataset is not None else self.train_dataset
        if not self.settings.shuffle:
            sampler = torch.utils.data.SequentialSampler(dataset)
        elif self.sampler is None:
            sampler = super()._get_train_sampler(train_dataset)
        else:
            sampler = self.sampler(self.args.data_seed if self.args.data_seed is not None else self.args.seed)
        batch = self._train_batch_size * self.args.world_size
        return limited_sampler(sampler, self.settings.limit_train_batches, batch, self.args.dataloader_drop_last)

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        if self.settings.eval_shuffle:
            return eval_shuffle_sampler(eval_dataset, self.args.seed)
        return super()._get_eval_sampler(eval_dataset)

    def _limit_evaluation(self) -> None:
        share, batch = self.settings.limit_val_batches, self.args.eval_batch_size * self.args.world_size
        if self.eval_dataset is None or (isinstance(share, float) and share == 1.0):
            return
        if isinstance(self.eval_dataset, dict):
            self.eval_dataset = {name: limited_dataset(each, share, batch) for name, each in self.eval_dataset.items()}
        else:
            self.eval_dataset = limited_dataset(self.eval_dataset, share, batch)

    def _get_dataloader(
        self,
        dataset: Any,
        description: str,
        batch_size: int,
        sampler_fn: Any = None,
        is_training: bool = False,
        **more: Any,
    ) -> Any:
        if is_training:
            indexed = IndexedSamples(dataset)
            loader = super()._get_dataloader(indexed, description, batch_size, sampler_fn, is_training, **more)
            return self._with_own_generator(loader)
        with self._evaluation_loader():
            loader = super()._get_dataloader(dataset, description, batch_size, sampler_fn, is_training, **more)
        return self._with_own_generator(loader)

    def _with_own_generator(self, loader: Any) -> Any:
        """A loader draws its workers' seed whenever it makes workers, which kept ones spare: not from the generator
        that dropout draws from, or a resumed run, which makes them anew, would go another way."""
        inner = getattr(loader, "base_dataloader", loader)
        inner.generator = torch.Generator().manual_seed(self.args.seed)
        inner.worker_init_fn = IgnoringSignals(inner.worker_init_fn)
        return loader

    @contextlib.contextmanager
    def _evaluation_loader(self) -> Iterator[None]:
        """Evaluation sees every sample, and may have workers of its own."""
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

    def _get_collator_with_removed_columns(self, data_collator: Callable, description: str | None = None) -> Callable:
        """`remove_unused_columns` on whole batches: keys that the model's forward does not name are left out.

        Training batches also say which samples they hold.
        """
        if self.args.remove_unused_columns:
            data_collator = _OnlyNamedKeys(data_collator, frozenset(_forward_names(self.model)))
        return IndexedCollate(data_collator) if (description or "").lower() == "training" else data_collator

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        self.meter.started_step()
        began = time.perf_counter()
        batches = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.meter.waited(time.perf_counter() - began)
        return batches


class _OnlyNamedKeys:
    """A collate function whose batches hold only the keys a forward names; picklable for loader workers."""

    def __init__(self, collate: Callable, names: frozenset[str]):
        self.collate, self.names = collate, names

    def __call__(self, samples: Any) -> dict[str, Any]:
        return {name: value for name, value in self.collate(samples).items() if name in self.names}


def _forward_names(model: nn.Module) -> list[str]:
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [
        name
        for name, each in inspect.signature(without_adapter(model).forward).parameters.items()
        if each.kind in named
    ]


def without_adapter(model: nn.Module) -> nn.Module:
    """PEFT's wrapper passes everything on, so it is the model inside that says what it takes."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
