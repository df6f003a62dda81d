"""Reads and writes the files of a model and of its training: a part of `Trainer`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tqdm import tqdm
from transformers import TrainerState

from storage import manifest
from storage.checkpoints import checkpoints
from storage.manifest import UNREADABLE
from storage.safe_read import FileTooLarge
from trainer.callbacks.log_files import write_files
from trainer.checkpointing import sharded_optimizer
from trainer.checkpointing.contents import read_pending_work
from trainer.checkpointing.sharded_weights import load_whole_weights, whole_weights
from trainer.distributed import is_sharded
from trainer.optimization.optimizers import apply_changes
from trainer.serialization import rng_state, state_dict_io


class CheckpointIO:
    """Writes the model's files, loads a checkpoint, and applies the hyperparameters that a resume changes."""

    # ---- writing ----

    def weights(self) -> dict[str, Any]:
        """Return the model's state dict as its files hold it: EMA weights, if weights are averaged.

        Sharded weights are gathered on rank 0, with the help of all ranks; the other ranks get an empty dict.
        """
        if self.is_deepspeed_enabled:
            return self.accelerator.get_state_dict(self.model_wrapped) or {}
        if not self.is_unsharded:
            return whole_weights(self.model, keep=self.args.should_save)
        state = self.model.state_dict()
        return state if self.ema is None else self.ema.in_place_of(state)

    def constant_weights(self) -> frozenset[int]:
        """Return the `data_ptr()` of weights that never change: those under an adapter, or quantized ones.

        Frozen weights without an adapter do not count: a model's forward may update them (an EMA teacher).
        """
        if self.adapted is None or not self.adapted.has_constant_weights:
            return frozenset()
        return frozenset(parameter.data_ptr() for parameter in self.model.parameters() if not parameter.requires_grad)

    def write_model(self, folder: Path, weights: Mapping[str, torch.Tensor], final: Path) -> None:
        """Write the model and the files that are needed to use it. No pickled arguments: run.yaml holds them.

        Args:
            folder: Where the files are written.
            final: What `folder` will be renamed to.
        """
        if self.adapted is not None:
            self.adapted.save(folder, weights, final)
        elif hasattr(self.model, "save_pretrained"):
            self.model.save_pretrained(str(folder), state_dict=dict(weights))
        else:
            state_dict_io.write_tensors(folder / "model.safetensors", weights)
        for processor in (self.settings.processor, self.processing_class):
            if processor is not None:
                processor.save_pretrained(folder)
        write_files(folder, self.files)

    def save_final_model(self, output_dir: str | None, state_dict: Mapping[str, torch.Tensor] | None) -> None:
        """Write the final model, without training state, into `output_dir`, or the run's folder."""
        if self.args.should_save or not self.is_unsharded:
            weights = self.weights() if state_dict is None else state_dict
        if self.args.should_save:
            folder = Path(output_dir if output_dir is not None else self.args.output_dir)
            self.checkpointing.save_final(folder, weights)

    # ---- loading ----

    def checkpoint_to_resume(self, wanted: str | Path | bool | None) -> Path | None:
        """The checkpoint to resume from; True: the newest one of this run's folder.

        Raises:
            ValueError: there is none.
        """
        if not isinstance(wanted, bool):
            return Path(wanted) if wanted else None
        saved = checkpoints(self.checkpoint_dir) if wanted else []
        if wanted and not saved:
            raise ValueError(f"no checkpoint in {self.checkpoint_dir} to resume from")
        return saved[-1] if wanted else None

    def load_weights(self, folder: Path, default: Callable[[], None]) -> None:
        """Load the model's weights from a checkpoint; `default` loads those of a model that is not adapted."""
        with checkpoint_load_errors(folder):
            if is_sharded(self.model):
                load_whole_weights(self.model, folder)
            elif self.adapted is None:
                default()
            else:
                self.adapted.load(folder)

    def load_training_state(self, folder: Path) -> None:
        """Load optimizer, schedule, pending work, skipped steps and EMA, and apply changed hyperparameters."""
        with checkpoint_load_errors(folder):
            if self.is_fsdp_enabled or sharded_optimizer.has_parts(folder):
                sharded_optimizer.load_local_state(self.model, self.optimizer, folder)
            elif not self.is_deepspeed_enabled:  # its engine has loaded its own files
                self.optimizer.load_state_dict(state_dict_io.read(folder, "optimizer"))
            self.lr_scheduler.load_state_dict(state_dict_io.read(folder, "scheduler"))
            self.checkpointing.last_good = folder.name
            self.resumed_from, self.pending_work = folder, read_pending_work(folder)
            self.rng_restore_pending = True
            self.guard.load(folder)
            if self.ema is not None:
                self.ema.load(folder)
            self._change_on_resume()
        self._show_schedule(self.lr_scheduler)

    def _change_on_resume(self) -> None:
        """Apply optimizer options that have changed since the checkpoint, and `resume_lr` and `resume_weight_decay`:
        new base values for the parameter groups that use the run's values."""
        rate, decay = self.settings.resume_lr, self.settings.resume_weight_decay
        if self.changed_options is not None:
            apply_changes(self.optimizer, self.lr_scheduler, self.changed_options)
        if rate is None and decay is None:
            return
        new = self.groups_of(
            self.model,
            self.args.learning_rate if rate is None else rate,
            self.args.weight_decay if decay is None else decay,
        )
        new_group_of = {id(parameter): group for group in new for parameter in group["params"]}
        pairs = [(group, new_group_of[id(group["params"][0])]) for group in self.optimizer.param_groups]
        if decay is not None:
            for group, new_group in pairs:
                group["weight_decay"] = new_group["weight_decay"]
        if rate is not None:
            self.lr_scheduler.rebase([new_group["lr"] for _, new_group in pairs])

    def load_best_checkpoint(self) -> None:
        """Load the model of the best checkpoint, or keep the last one if that is corrupted; prints which it is."""
        best = Path(self.state.best_model_checkpoint)
        if reason := self._verify(best):
            line = f"the best checkpoint, {best.name}, {reason}: the final model is that of the last step"
        else:
            self.restore(best)
            metric = self.args.metric_for_best_model
            line = f"the final model is the best checkpoint, {best.name} ({metric} {self.state.best_metric:.4g})"
        if self.is_world_process_zero():
            tqdm.write(line, file=sys.stderr)

    def _verify(self, checkpoint: Path) -> str | None:
        """Verify a checkpoint on rank 0; all ranks get the same answer (see `manifest.verify`)."""
        reason = manifest.verify(checkpoint) if self.is_world_process_zero() else None
        return self.checkpointing.consensus.broadcast_from_rank0(reason)

    def finish_from(self, checkpoint: Path) -> None:
        """Take over the state and the model of a run whose last step is done, instead of training."""
        self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        self.state.is_world_process_zero = self.is_world_process_zero()
        if checkpoint.resolve().parent == self.checkpoint_dir.resolve():  # not a checkpoint of another run
            self.model_checkpoint.on_train_begin(self.args, self.state, self.control)
            self.model_checkpoint.on_save(self.args, self.state, self.control)
        best = Path(self.state.best_model_checkpoint or checkpoint)
        best = best if best.is_dir() else checkpoint.parent / best.name  # the run may have been moved
        takes_best = self.args.load_best_model_at_end and self._verify(best) is None
        self.restore(best if takes_best else checkpoint)

    def restore(self, checkpoint: str | Path) -> None:
        """Load the model from a checkpoint's files: the weights that its evaluation saw."""
        self._load_from_checkpoint(str(checkpoint))
        self.ema = None


def restore_rng(folder: Path, args: Any, step: int) -> None:
    """Restore this rank's random number generators; a rank that the checkpoint does not know gets new seeds."""
    states = rng_state.read(folder, args.process_index)
    if states is not None:
        rng_state.restore(states)
        return
    rng_state.start(args.seed, step, args.process_index)
    known = len(list(folder.glob("rng-*.json")))
    if args.process_index == known:  # the first of the new ranks reports all of them
        line = f"{args.world_size - known} of {args.world_size} processes are new: they draw dropout from new seeds"
        tqdm.write(line, file=sys.stderr)


def check_shapes(checkpoint: Path, weights: Mapping[str, Any]) -> None:
    """Compare the shapes of a checkpoint's weights with the model's, by the file's header.

    Raises:
        ValueError: a weight has another shape.
    """
    path = checkpoint / "model.safetensors"
    if not path.is_file():  # several files: compared when they are loaded
        return
    try:
        with safe_open(path, framework="pt") as stored:
            shapes = {name: stored.get_slice(name).get_shape() for name in set(stored.keys()) & weights.keys()}
    except SafetensorError:  # a damaged file: reported when it is loaded
        return
    for name, shape in sorted(shapes.items()):
        before, now = list(shape), list(weights[name].shape)
        if before != now:
            raise ValueError(
                f"{checkpoint}: the weight `{name}` has shape {before}, but {now} in this run; restore the settings "
                "that determine the network's size"
            )


# ---- errors of checkpoints that pass manifest verification but cannot be loaded ----


class CheckpointLoadError(ValueError):
    """A checkpoint cannot be loaded; the text is one line with the folder, the reason and the remedy."""


@contextlib.contextmanager
def checkpoint_load_errors(checkpoint: str | Path | None, reraise: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn errors that a checkpoint's content causes while it is loaded into a CheckpointLoadError.

    Args:
        checkpoint: The folder that is read; None: nothing is loaded, errors pass unchanged.
        reraise: Errors that already name the value and the remedy and pass unchanged.
    """
    try:
        yield
    except reraise:
        raise
    except Exception as error:
        if checkpoint is None or _is_of_the_machine(error):
            raise
        if _is_of_the_disk(error):
            line = f"{checkpoint} {UNREADABLE} ({error}); it may be intact: start again when the disk can be read"
            raise CheckpointLoadError(line) from error
        reason = " ".join(str(error).split()) or type(error).__name__
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        folder = "" if str(checkpoint) in reason else f"{checkpoint} cannot be loaded: {kind}"
        remedy = "" if "another checkpoint" in reason else "; resume from another checkpoint"
        raise CheckpointLoadError(f"{folder}{reason}{remedy}") from error


def _is_of_the_machine(error: Exception) -> bool:
    """Out of memory, a lost device or a lost process: torch raises subclasses of RuntimeError for these."""
    of_content = (RuntimeError, RecursionError, NotImplementedError)
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and type(error) not in of_content)


def _is_of_the_disk(error: Exception) -> bool:
    """Whether the disk failed to answer, which says nothing about the checkpoint's content."""
    of_content = (FileNotFoundError, NotADirectoryError, IsADirectoryError, FileTooLarge)
    return isinstance(error, OSError) and not isinstance(error, of_content)
