"""What a model and its training are on disk, and how they come back: a part of `Trainer`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch import nn
from tqdm import tqdm
from transformers import TrainerState

from storage import manifest
from trainer.callbacks.log_files import write_files
from trainer.checkpointing.load_errors import checkpoint_load_errors
from trainer.checkpointing.manager import write_weights
from trainer.checkpointing.pending_work import unfinished
from trainer.checkpointing.sharded_weights import load_whole_weights, whole_weights
from trainer.distributed.shards import is_divided
from trainer.optimization.hparam_changes import apply_changes, changed_options
from trainer.optimization.optimizers import parameter_groups


class StateOnDisk(transformers.Trainer):
    """Writes the model's files, reads a checkpoint's, and changes on resume what was asked to be changed."""

    def weights(self) -> dict[str, Any]:
        """The model's state dict as its files hold it: averaged where weights are averaged.

        Divided weights are gathered on the first process, with the help of all; the others have none.
        """
        if self.is_deepspeed_enabled:
            return self.accelerator.get_state_dict(self.model_wrapped) or {}
        if not self.is_unsharded:
            return whole_weights(self.model, keep=self.args.should_save)
        state = self.model.state_dict()
        return state if self.ema is None else self.ema.in_place_of(state)

    def constant_weights(self) -> frozenset[int]:
        """`data_ptr()`s of the weights that nothing changes: those under an adapter, or quantized.

        A model's own frozen weights may follow the others in its forward, as a teacher's do.
        """
        if self.adapted is None or not self.adapted.has_constant_weights:
            return frozenset()
        return frozenset(each.data_ptr() for each in self.model.parameters() if not each.requires_grad)

    def write_model(self, folder: Path, weights: Mapping[str, torch.Tensor], final: Path) -> None:
        """The model, and beside it what is needed to use it again. No pickled arguments: run.yaml holds them.

        Args:
            folder: Written into.
            final: What `folder` will be called when it is ready.
        """
        if self.adapted is None:
            write_weights(self.model, folder, weights)
        else:
            self.adapted.save(folder, weights, final)
        if self.settings.tokenizer is not None:
            self.settings.tokenizer.save_pretrained(folder)
        write_files(folder, self.files)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """The model for use, not to go on from: `save_model` comes here."""
        if self.args.should_save or not self.is_unsharded:
            weights = self.weights() if state_dict is None else state_dict
        if self.args.should_save:
            folder = Path(output_dir if output_dir is not None else self.args.output_dir)
            self.checkpointing.save_final(folder, weights)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if self.is_unsharded:
            super().save_model(output_dir, _internal_call)
        else:
            self._save(output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        with checkpoint_load_errors(resume_from_checkpoint):
            if is_divided(self.model):
                load_whole_weights(self.model, Path(resume_from_checkpoint))
            elif self.adapted is None:
                super()._load_from_checkpoint(resume_from_checkpoint, model)
            else:
                self.adapted.load(Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        with checkpoint_load_errors(checkpoint):
            self.checkpointing.restore(Path(checkpoint))
            self.resumed_from, self.unfinished = checkpoint, unfinished(Path(checkpoint))
            self.generators_are_due = True
            self.guard.load(checkpoint)
            if self.ema is not None:
                self.ema.load(checkpoint)
            self._change_on_resume()
        self._show_schedule()

    def _load_scaler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            with checkpoint_load_errors(checkpoint):
                self.checkpointing.restore_scaler(Path(checkpoint))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self.generators_are_due:  # else an evaluation has gone on from there
            with checkpoint_load_errors(checkpoint):
                self.checkpointing.restore_random(Path(checkpoint))

    def _change_on_resume(self) -> None:
        """Options of the optimizer that are others now; `resume_lr` and `resume_weight_decay`: new bases for the groups
        that follow the run's own values."""
        earlier, rate, decay = (
            self.settings.earlier_optimizer,
            self.settings.resume_lr,
            self.settings.resume_weight_decay,
        )
        if earlier is not None:
            changes = changed_options(earlier, self._optimizer_plan(), self.model, self.args, self.settings.parts)
            apply_changes(self.optimizer, self.lr_scheduler, changes)
        if rate is None and decay is None:
            return
        new = parameter_groups(
            self.model,
            self.args.learning_rate if rate is None else rate,
            self.args.weight_decay if decay is None else decay,
            self.settings.param_groups,
            self.settings.parts,
        )
        of = {id(each): group for group in new for each in group["params"]}
        groups = [(group, of[id(group["params"][0])]) for group in self.optimizer.param_groups]
        if decay is not None:
            for group, fresh in groups:
                group["weight_decay"] = fresh["weight_decay"]
        if rate is not None:
            self.lr_scheduler.rebase([fresh["lr"] for _, fresh in groups])

    def _load_best_model(self) -> None:
        best = Path(self.state.best_model_checkpoint)
        if why := self._fault_of(best):
            if self.is_world_process_zero():
                tqdm.write(f"{best.name}, the best, {why}: the final model is that of the last step", file=sys.stderr)
            return
        self.restore(best)

    def _fault_of(self, checkpoint: Path) -> str | None:
        """What the first process finds wrong with a checkpoint: every process goes by that."""
        return self.checkpointing.agreement.first_says(
            manifest.verify(checkpoint) if self.is_world_process_zero() else None
        )

    def stand_at_the_end(self, checkpoint: Path) -> None:
        """Of a run whose last step is done: what had yet to follow its save is done, and the model is the run's."""
        self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        self.state.is_world_process_zero = self.is_world_process_zero()
        if checkpoint.resolve().parent == self.checkpoint_dir.resolve():  # not one that was named, of another run
            self.model_checkpoint.on_train_begin(self.args, self.state, self.control)
            self.model_checkpoint.on_save(self.args, self.state, self.control)
        best = Path(self.state.best_model_checkpoint or checkpoint)
        best = best if best.is_dir() else checkpoint.parent / best.name  # the run may have been moved
        takes_best = self.args.load_best_model_at_end and self._fault_of(best) is None
        self.restore(best if takes_best else checkpoint)

    def restore(self, checkpoint: str | Path) -> None:
        """The model as a checkpoint's files hold it: what its evaluation saw."""
        self._load_from_checkpoint(str(checkpoint))
        self.ema = None


def check_shapes(checkpoint: Path, weights: Mapping[str, Any]) -> None:
    """Compares a checkpoint's weights with a model's, by what the file's header says.

    Raises:
        ValueError: one is of another shape.
    """
    path = checkpoint / "model.safetensors"
    if not path.is_file():  # in several files: told when they are read
        return
    try:
        with safe_open(path, framework="pt") as stored:
            shapes = {name: stored.get_slice(name).get_shape() for name in set(stored.keys()) & weights.keys()}
    except SafetensorError:  # damaged: told when it is read
        return
    for name, shape in sorted(shapes.items()):
        before, now = list(shape), list(weights[name].shape)
        if before != now:
            raise ValueError(
                f"{checkpoint}: its weight `{name}` is of shape {before}, here it is of {now}; set back what the "
                "network's size follows from"
            )
