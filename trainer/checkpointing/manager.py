"""When checkpoints are written: saves in the background, their results at step boundaries, failed saves."""

from __future__ import annotations

import contextlib
import copy
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from storage import manifest
from storage.checkpoints import staging_folder
from trainer.callbacks.log_files import LogFile
from trainer.checkpointing import sharded_optimizer
from trainer.checkpointing.async_writer import (
    BackgroundDeletions,
    CheckpointWriter,
    Save,
    SavesFailed,
    failure_line,
    is_storage_error,
)
from trainer.checkpointing.contents import NOTHING_PENDING, CheckpointContents, PendingStepWork
from trainer.distributed import Consensus
from trainer.serialization import rng_state

POLL_INTERVAL = 0.02  # seconds
PREEMPTED_WAIT = 1.0  # seconds for which a preempted run still waits for deletions
LOCK_LOST = "another run has taken over this run's folder; this run stops and writes nothing more"


class RankStatus(NamedTuple):
    """Counters of one rank, all-reduced with MAX; every rank sees the result one step later."""

    stop_requested: int = 0  # 1: this rank received a signal
    last_saved: int = 0  # number of the newest save that is complete
    last_failed: int = 0  # number of the newest save that failed
    lock_lost: int = 0  # 1: another run holds the folder

    def has_ended(self, number: int) -> bool:
        """Whether a save is complete or has failed."""
        return number in (self.last_saved, self.last_failed)


class CheckpointManager:
    """Saves the checkpoints of one Trainer. All ranks must make the same calls.

    A save begins at one step and ends at a later one, or at once if a user's callback listens to `on_save`. Only then
    `on_save` is fired, with the state of the step that was saved, and only then an older checkpoint may be deleted.

    Args:
        trainer: The Trainer whose state is saved.
        in_background: Copy the state and write it on a thread while training continues; otherwise write it at once.
        max_failed: Saves in a row that may fail before the run ends.
    """

    def __init__(self, trainer: Any, in_background: bool, max_failed: int):
        self.trainer, self.in_background, self.max_failed = trainer, in_background, max_failed
        self.deletions = BackgroundDeletions(in_background)
        self.writer = CheckpointWriter(in_background or trainer.is_fsdp_enabled, self.deletions)
        self.consensus = Consensus()
        self.contents = CheckpointContents(trainer, self.consensus, copies=in_background)
        self.saving_state: Any = None  # TrainerState of the save that is being written
        self.previous_best: str | None = None  # `best_model_checkpoint` before that save
        self.number = 0  # of the newest save, the same on every rank
        self.last_saved = self.last_failed = 0  # numbers of saves on this rank
        self.failed_in_a_row = 0
        self.last_good: str | None = None  # name of the newest complete checkpoint
        self.status = RankStatus()

    # ---- step boundaries ----

    def poll(self) -> bool:
        """Exchange status with the other ranks; return whether all ranks know that the run was asked to stop."""
        self._fetch_result(wait=False)
        self.status = RankStatus(*self.consensus.all_reduce_max_async(self._own_status()))
        return bool(self.status.stop_requested)

    def dispatch_on_save(self) -> None:
        """Fire `on_save` for a background save that finished since the last step.

        Raises:
            SavesFailed: too many saves in a row failed, or another run holds the folder.
        """
        if self.status.lock_lost:
            raise SavesFailed(LOCK_LOST)
        if self.saving_state is None or not self.status.has_ended(self.number):
            return
        state, self.saving_state = self.saving_state, None
        if self.number == self.status.last_failed:  # perhaps on another rank
            self._on_save_failed(state)
        else:
            self.failed_in_a_row = 0
            self._fire_on_save(state)

    def wait_saved(self) -> None:
        """Wait until the save that is being written has ended on every rank, and dispatch its result."""
        is_joint = self.trainer.is_fsdp_enabled  # each rank writes a part: the others must learn of one that failed
        while self.saving_state is not None and not self.status.has_ended(self.number):
            self._fetch_result(wait=not is_joint)
            self.status = RankStatus(*self.consensus.all_reduce_max(self._own_status()))
            time.sleep(POLL_INTERVAL if is_joint else 0)
        self.wait_written()
        self.dispatch_on_save()

    def wait_written(self) -> None:
        """Wait until this rank has written its files, without dispatching the result."""
        self._fetch_result(wait=True)

    @property
    def was_saved(self) -> bool:
        """Whether the newest save is complete."""
        return self.number > 0 and self.status.last_saved == self.number

    def close(self) -> None:
        """End saving when training ends, with or without an error."""
        self.writer.abandon_soon()
        try:
            self.wait_written()
            if self.last_failed == self.number:
                self._delete_staged()
        finally:
            self.consensus.close()
            is_preempted = self._own_status().stop_requested or self.status.stop_requested
            self.deletions.wait(PREEMPTED_WAIT if is_preempted else None)

    def _own_status(self) -> RankStatus:
        signals = self.trainer.signals
        is_signalled = signals is not None and signals.received is not None
        return RankStatus(int(is_signalled), self.last_saved, self.last_failed, int(self.is_lock_lost))

    @property
    def is_lock_lost(self) -> bool:
        """Whether another run has taken over a folder of this run: nothing may be written any more."""
        return any(lock.lost for lock in self.trainer.locks)

    def _fetch_result(self, wait: bool) -> None:
        if self.writer.save is not None and self.status.last_failed == self.number:
            self.writer.save.abandoned.set()
        result = self.writer.poll(wait)
        if result is None:
            return
        if result.error is None:
            if self.writer.save.publishes:  # the other ranks wrote a part; rank 0 knows when all parts are there
                self.last_saved, self.last_good = self.number, result.final.name
        elif is_storage_error(result.error):
            self.last_failed = self.number
            line = failure_line(result, self.failed_in_a_row + 1, self.max_failed, self.last_good)
            tqdm.write(line, file=sys.stderr)
        else:
            raise result.error
        if self.status.last_failed == self.number:
            self._delete_staged()

    def _fire_on_save(self, state: Any) -> None:
        """Fire `on_save` with the state of the saved step; a save that is due at the current step stays due."""
        trainer, handler = self.trainer, self.trainer.callback_handler
        is_due = trainer.control.should_save
        # In the middle of a step the instance's `on_save` may be that of `deferred_on_save`: call the class's.
        trainer.control = type(handler).on_save(handler, trainer.args, state, trainer.control)
        trainer.control.should_save = is_due

    def _on_save_failed(self, state: Any) -> None:
        self.failed_in_a_row += 1
        self._delete_staged()
        self.trainer.state.best_model_checkpoint = self.previous_best
        self.trainer.model_checkpoint.save_failed(state)
        if self.failed_in_a_row >= self.max_failed:
            raise SavesFailed(
                f"{self.failed_in_a_row} checkpoints in a row could not be saved, the last at step {state.global_step};"
                " free disk space or raise max_failed_saves, and run the same command again"
            )

    def _delete_staged(self) -> None:
        """Delete the staging folder of a failed save once this rank has ended its part; the last rank deletes all."""
        if self.writer.save is not None and not self.writer.is_busy:
            with contextlib.suppress(OSError):
                self.deletions.delete(self.writer.save.staged)

    # ---- saving ----

    def save(
        self,
        pending: PendingStepWork = NOTHING_PENDING,
        is_preemption: bool = False,
        rng: Mapping[str, Any] | None = None,
        resumable: bool = False,
    ) -> None:
        """Begin to save the current state; wait for the previous save first.

        Args:
            pending: Work that is left of this step.
            is_preemption: This step would not have been saved without the preemption.
            rng: `rng_state.states()` to resume from; None: the current ones.
            resumable: Include all state that training needs to continue, also with `save_only_model`. A second save of
                a step never holds less than the first.

        Raises:
            SavesFailed: as in `dispatch_on_save`.
        """
        trainer = self.trainer
        self.wait_saved()
        if self.status.lock_lost:
            raise SavesFailed(LOCK_LOST)
        step = trainer.state.global_step
        final = trainer.checkpoint_dir / f"checkpoint-{step}"
        trainer.store_flos()
        self._update_best(final)
        resumable |= not trainer.args.save_only_model or trainer.model_checkpoint.is_resumable(step)
        trainer.model_checkpoint.save_begun(trainer.state, is_preemption, resumable)
        if not trainer.is_unsharded:  # other ranks write too, as soon as they know the staging folder
            self.deletions.wait()
        # The number keeps a late part of a failed save out of the next one.
        staged = str(staging_folder(trainer.checkpoint_dir, f"{final.name}.{self.number}"))
        staged = Path(self.consensus.broadcast_from_rank0(staged))
        if trainer.is_deepspeed_enabled:  # its engine writes its own files, on all ranks together
            trainer.model_wrapped.save_checkpoint(str(staged))
        write = self.contents.snapshot(final, pending, resumable, rng or rng_state.states())
        facts = self.contents.manifest_facts() | {"resumable": resumable}
        has_parts = resumable and trainer.is_fsdp_enabled
        save = Save(
            step, staged, final, write, facts,
            awaited=_parts_of_other_ranks(trainer.args.world_size) if has_parts else (),
            publishes=bool(trainer.args.should_save),
            logs=self._logs(),
        )  # fmt: skip
        self.saving_state, self.number = copy.copy(trainer.state), self.number + 1
        if save.publishes or has_parts:
            self.writer.begin(save)
        if not self.in_background:
            self.wait_saved()

    def _update_best(self, final: Path) -> None:
        """Set transformers' `best_model_checkpoint`, which it would know only after the save."""
        state = self.trainer.state
        self.previous_best = state.best_model_checkpoint
        if state.best_global_step:
            best = final.with_name(f"checkpoint-{state.best_global_step}")
            if self.consensus.broadcast_from_rank0(best == final or best.is_dir()):
                state.best_model_checkpoint = str(best)

    def _logs(self) -> list[Path]:
        """Files that callbacks append lines to, see `Save.logs`."""
        callbacks = self.trainer.callback_handler.callbacks
        return [callback.path for callback in callbacks if isinstance(callback, LogFile)]

    def save_final(self, folder: Path, weights: Mapping[str, torch.Tensor]) -> None:
        """Write the final model into the run's folder: each file atomically, the manifest last.

        Raises:
            SavesFailed: another run holds the folder.
        """
        if self.is_lock_lost:
            raise SavesFailed(LOCK_LOST)
        self.deletions.wait()
        staged = staging_folder(folder, "model")
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
        try:
            self.trainer.write_model(staged, weights, folder)
            facts = self.contents.manifest_facts()
            manifest.publish_into(staged, folder, step=self.trainer.state.global_step, **facts)
        finally:
            shutil.rmtree(staged, ignore_errors=True)


def _parts_of_other_ranks(world_size: int) -> list[str]:
    """The last file that each other rank writes of a sharded optimizer state."""
    return [f"{sharded_optimizer.part_name(rank, world_size)}.json" for rank in range(1, world_size)]
