"""`Trainer`: transformers' own, with only what it lacks.

Batches are dicts; the model's `forward(**batch)` returns a dict with `loss` and, where it has several, `losses`: named
scalars that are averaged into the log as `loss_<name>`.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from .callbacks import Console, MetricsFile
from .losses import NamedMeans
from .module_walks import restore_walks, spare_walks
from .optimizers import GroupSpec, parameter_groups, torch_optimizer
from .run_folder import write_files


class Trainer(transformers.Trainer):
    """Trains `model` and keeps the run's folder.

    Args:
        model: Returns a dict with `loss`.
        args: TrainingArguments.
        collate: List of samples (or what the data set's `__getitems__` returns) -> batch.
        sampler: `sampler(seed)` -> an index sampler with `set_epoch`; its order is a function of seed and epoch, so
            that a resumed run sees the samples the uninterrupted one would have seen. None: transformers' own.
        files: Saved beside the model in every checkpoint: file name -> text or JSON value.
        optimizer_name, optimizer_options: A torch.optim class and its options; a TrainingArguments name otherwise.
        param_groups, parts: See `optimizers.parameter_groups`.
    """

    def __init__(
        self,
        model: nn.Module,
        args: transformers.TrainingArguments,
        *,
        train_dataset: Any,
        eval_dataset: Any = None,
        collate: Callable[[Any], dict[str, Any]],
        sampler: Callable[[int], Any] | None = None,
        files: Mapping[str, Any] | None = None,
        optimizer_name: str | None = None,
        optimizer_options: Mapping[str, Any] | None = None,
        param_groups: Sequence[GroupSpec] = (),
        parts: Mapping[str, str] | None = None,
    ):
        self.sampler, self.files = sampler, dict(files or {})
        self.param_groups, self.parts = param_groups, dict(parts or {})
        self.optimizer_name, self.optimizer_options = optimizer_name or args.optim, dict(optimizer_options or {})
        self.train_terms, self.eval_terms = NamedMeans(), None
        self.last_log: tuple[float, int] | None = None
        self.clipped_parameters: list[nn.Parameter] | None = None
        self.try_optimization(model, args)
        super().__init__(
            model=model, args=args, data_collator=collate, train_dataset=train_dataset, eval_dataset=eval_dataset
        )
        # `**context` in a forward means «what else the batch knows», not «num_items_in_batch scales my loss».
        self.model_accepts_loss_kwargs = getattr(model, "accepts_loss_kwargs", False)
        if args.disable_tqdm:
            transformers.logging.disable_progress_bar()  # saving shows one too
        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)
        self.add_callback(MetricsFile(Path(args.output_dir) / "metrics.jsonl"))
        self.add_callback(Console(bar=not args.disable_tqdm))

    # ---- data ----

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.sampler is None:
            return super()._get_train_sampler(train_dataset)
        seed = self.args.data_seed if self.args.data_seed is not None else self.args.seed
        return self.sampler(seed)

    def _get_collator_with_removed_columns(self, data_collator: Callable, description: str | None = None) -> Callable:
        """`remove_unused_columns` on whole batches: keys that the model's forward does not name are left out."""
        if not self.args.remove_unused_columns:
            return data_collator
        return _OnlyNamedKeys(data_collator, frozenset(_forward_names(self.model)))

    # ---- optimization ----

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = self.new_optimizer(self.model if model is None else model, self.args)
        return self.optimizer

    def new_optimizer(self, model: nn.Module, args: transformers.TrainingArguments) -> torch.optim.Optimizer:
        """The named optimizer over the model's parameter groups."""
        groups = parameter_groups(model, args.learning_rate, args.weight_decay, self.param_groups, self.parts)
        if not _is_hf_name(self.optimizer_name):
            kind = torch_optimizer(self.optimizer_name, self.optimizer_options)
            takes = inspect.signature(kind).parameters
            known = {"lr": args.learning_rate, "betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
            # `eps` is a pair in some classes; theirs stays as it is.
            fits = {
                k: v
                for k, v in known.items()
                if k in takes and not (k == "eps" and isinstance(takes[k].default, tuple))
            }
            return kind(groups, **fits | self.optimizer_options)
        kind, options = self.get_optimizer_cls_and_kwargs(args, model)
        options = {name: value for name, value in options.items() if name not in ("params", "model", "optimizer_dict")}
        return kind(groups, **options | self.optimizer_options)

    def try_optimization(self, model: nn.Module, args: transformers.TrainingArguments) -> None:
        """Builds optimizer and schedule once to throw them away: what is wrong with them is said before the run's
        folder is made, not after the data is loaded.

        Raises:
            ValueError: a name, an option or a parameter group does not fit; a package that one needs is missing.
        """
        try:
            self.new_optimizer(model, args)
            transformers.get_scheduler(
                args.lr_scheduler_type,
                torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=args.learning_rate),
                num_warmup_steps=1,
                num_training_steps=2,
                scheduler_specific_kwargs=args.lr_scheduler_kwargs,
            )
        except (TypeError, ImportError, RuntimeError, NotImplementedError) as error:
            where = f"optimizer `{self.optimizer_name}` or schedule `{args.lr_scheduler_type.value}`"
            raise ValueError(f"{where} cannot be built: {' '.join(str(error).split())}") from error

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: the stock estimate walks every parameter on every micro-step and knows only tokens."""
        return 0

    def _prepare_for_training(self, *arguments: Any, **options: Any) -> tuple[nn.Module, Any]:
        model, loader = super()._prepare_for_training(*arguments, **options)
        if self.accelerator.distributed_type in ("NO", "MULTI_GPU", "MULTI_CPU"):
            spare_walks(model)
            self.clipped_parameters = list(model.parameters())
        return model, loader

    def _clip_grad_norm(self, model: nn.Module) -> torch.Tensor:
        """Clips in place and returns the norm before it; for unsharded parameters without a walk to find them."""
        if self.clipped_parameters is None:
            return super()._clip_grad_norm(model)
        self.accelerator.unscale_gradients()
        return nn.utils.clip_grad_norm_(self.clipped_parameters, self.args.max_grad_norm)

    # ---- losses ----

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        terms = outputs.get("losses") if isinstance(outputs, dict) else None
        if terms and model.training:
            self.train_terms.add(terms)
        return (loss, outputs) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """One evaluation batch: its loss, whatever the batch's target is called, and its named terms."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        if self.eval_terms is not None and outputs.get("losses"):
            names = sorted(outputs["losses"])
            terms = torch.stack([outputs["losses"][name].detach().float() for name in names])
            # Each sample carries its batch's mean, so that a short last batch weighs what it should.
            gathered = self.gather_function(terms.repeat(self.args.eval_batch_size, 1))
            self.eval_terms.append(
                dict(zip(names, gathered.double().sum(0).tolist(), strict=True)) | {"": len(gathered)}
            )
        return loss.detach().mean(), None, None

    def evaluation_loop(self, *arguments: Any, **options: Any) -> Any:
        self.eval_terms = []
        output = super().evaluation_loop(*arguments, **options)
        prefix = options.get("metric_key_prefix", "eval")
        samples = sum(terms[""] for terms in self.eval_terms)
        for name in sorted({name for terms in self.eval_terms for name in terms} - {""}):
            output.metrics[f"{prefix}_loss_{name}"] = sum(terms.get(name, 0.0) for terms in self.eval_terms) / samples
        self.eval_terms = None
        return output

    # ---- logs and files ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            averaged = self.train_terms.take(self._mean_over_processes)
            logs |= {f"loss_{name}": value for name, value in averaged.items()}
            now, step = time.monotonic(), self.state.global_step
            if self.last_log is not None and step > self.last_log[1]:
                samples = (step - self.last_log[1]) * self.get_total_train_batch_size(self.args)
                logs["samples_per_second"] = round(samples / (now - self.last_log[0]), 2)
            self.last_log = (now, step)
        logs.pop("total_flos", None)
        super().log(logs, start_time)

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:
        began = time.monotonic()
        metrics = super().evaluate(*arguments, **options)
        if self.last_log is not None:  # the time spent here is not training time
            self.last_log = (self.last_log[0] + time.monotonic() - began, self.last_log[1])
        return metrics

    def train(self, resume_from_checkpoint: str | None = None, **options: Any) -> Any:
        self.last_log = None
        try:
            return super().train(resume_from_checkpoint=resume_from_checkpoint, **options)
        finally:
            restore_walks(self.model_wrapped)
            self.clipped_parameters = None

    def begin_run_folder(self) -> None:
        """run.yaml and the other small files, before the first step: a run that dies still says what it was."""
        write_files(Path(self.args.output_dir), self.files)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """The model, and beside it what is needed to use it again. No pickled arguments: run.yaml holds them."""
        folder = Path(output_dir if output_dir is not None else self.args.output_dir)
        super()._save(str(folder), state_dict)
        if self.args.should_save:
            (folder / "training_args.bin").unlink(missing_ok=True)
            write_files(folder, self.files)

    def _mean_over_processes(self, values: torch.Tensor) -> torch.Tensor:
        return self.accelerator.reduce(values.to(self.args.device), reduction="mean")


class _OnlyNamedKeys:
    """A collate function whose batches hold only the keys a forward names; picklable for loader workers."""

    def __init__(self, collate: Callable, names: frozenset[str]):
        self.collate, self.names = collate, names

    def __call__(self, samples: Any) -> dict[str, Any]:
        return {name: value for name, value in self.collate(samples).items() if name in self.names}


def _forward_names(model: nn.Module) -> list[str]:
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [name for name, each in inspect.signature(model.forward).parameters.items() if each.kind in named]


def _is_hf_name(name: Any) -> bool:
    from transformers.training_args import OptimizerNames

    return getattr(name, "value", name) in {each.value for each in OptimizerNames}
