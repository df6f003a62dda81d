"""What a checkpoint holds, when it is written, and how training goes on from it.

config.json, model.safetensors …      the model as transformers and PEFT read it (averaged, where weights are)
optimizer.json, optimizer.safetensors  scheduler.json  scaler.json  ema.*   what training goes on with
rng-0.json                             the random number generators of each process
trainer_state.json  log_interval.json  skipped_steps.json   where it stood
run.yaml and the data's files          what it was
manifest.json                          the proof, written last
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import json
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm
from transformers.trainer_callback import ExportableState

from storage import manifest
from storage.atomic import write_text
from storage.checkpoints import staging_folder
from trainer.callbacks.csv_logger import CsvLog
from trainer.callbacks.log_files import write_files
from trainer.callbacks.progress import MetricsFile
from trainer.callbacks.text_samples import WriteSamples
from trainer.checkpointing import sharded_optimizer
from trainer.checkpointing.async_writer import CheckpointWriter, Save, SavesFailed, failure_line, is_storage_error
from trainer.checkpointing.deletions import Deletions
from trainer.checkpointing.pending_work import NOTHING, Unfinished
from trainer.checkpointing.pinned_staging import HostCopies
from trainer.checkpointing.step_state import FILE as INTERVAL
from trainer.checkpointing.step_state import interval_facts
from trainer.distributed.consensus import Agreement
from trainer.optimization.ema import write_averages
from trainer.serialization import rng_state, state_dict_io

BETWEEN_LOOKS = 0.02  # seconds
MOMENT = 1.0  # seconds that a run which was told to stop still waits for deletions
LOST = "another run has taken over this run's folder; this one writes nothing more and ends"
WRITTEN_WITH = ("torch", "transformers", "accelerate", "safetensors", "peft", "bitsandbytes")


class News(NamedTuple):
    """What one process knows, and by the next step's end all of them: whole numbers, of which the largest counts."""

    told: int = 0  # to stop
    saved: int = 0  # number of the newest save that is there
    not_saved: int = 0  # and of the newest that failed
    lost: int = 0  # another run has the folder

    def ended(self, number: int) -> bool:
        """Whether a save has, well or not."""
        return number in (self.saved, self.not_saved)


class Checkpointing:
    """The checkpoints of one `Trainer`: its processes call every method alike.

    A save is begun in one step and found finished at a later one: only then do callbacks hear `on_save`, with the state
    of the step that was saved, and only then may an older checkpoint go.

    Args:
        trainer: Whose state is saved.
        in_background: Copy the state and write it in a thread while training goes on; otherwise write it at once.
        max_failed: Saves in a row that may fail before the run ends.
    """

    def __init__(self, trainer: Any, in_background: bool, max_failed: int):
        self.trainer, self.in_background, self.max_failed = trainer, in_background, max_failed
        self.deletions = Deletions(in_background)
        self.writer = CheckpointWriter(in_background or trainer.is_fsdp_enabled, self.deletions)
        self.copies = HostCopies() if in_background else None
        self.agreement = Agreement()
        self.saving_state: Any = None  # the trainer's state as it is in the save under way
        self.best_before: str | None = None
        self.number = 0  # of the newest save begun: the same on every process
        self.saved = self.not_saved = 0  # the newest that has ended, well or not
        self.failed = 0  # in a row
        self.last_good: str | None = None
        self.news = News()

    # ---- at step boundaries ----

    def look(self) -> bool:
        """Whether all processes know that the run was told to stop; and notes how the save under way does."""
        self._fetch(wait=False)
        self.news = News(*self.agreement.exchange(self._own_news()))
        return bool(self.news.told)

    def heed(self) -> None:
        """Tells callbacks of a save that has ended since the last call.

        Raises:
            SavesFailed: too many in a row did not.
        """
        if self.news.lost:
            raise SavesFailed(LOST)
        if self.saving_state is None or not self.news.ended(self.number):
            return
        state, self.saving_state = self.saving_state, None
        if self.number == self.news.not_saved:  # perhaps one process's part of it
            self._forget(state)
        else:
            self.failed = 0
            self._tell(state)

    def settle(self) -> None:
        """Waits until the save under way has ended, on every process."""
        several = self.trainer.is_fsdp_enabled  # each writes a part: one that cannot must be heard by those that wait
        while self.saving_state is not None and not self.news.ended(self.number):
            self._fetch(wait=not several)
            self.news = News(*self.agreement.at_once(self._own_news()))
            time.sleep(BETWEEN_LOOKS if several else 0)
        self._fetch(wait=True)
        self.heed()

    @property
    def was_saved(self) -> bool:
        """Whether the newest save has ended well."""
        return self.number > 0 and self.news.saved == self.number

    def finish(self) -> None:
        """Waits until what this process writes is written; nobody is told yet."""
        self._fetch(wait=True)

    def close(self) -> None:
        """The training is over, whichever way."""
        self.writer.give_up_soon()
        try:
            self.finish()
            if self.not_saved == self.number:
                self._clear_away()
        finally:
            self.agreement.close()
            is_told = self._own_news().told or self.news.told
            self.deletions.wait(MOMENT if is_told else None)

    def _own_news(self) -> News:
        signals = self.trainer.signals
        told = signals is not None and signals.received is not None
        return News(int(told), self.saved, self.not_saved, int(self.is_lost))

    @property
    def is_lost(self) -> bool:
        """Whether another run has taken the folder over: nothing of it is written any more."""
        return any(lock.lost for lock in self.trainer.locks)

    def _fetch(self, wait: bool) -> None:
        if self.writer.save is not None and self.news.not_saved == self.number:
            self.writer.save.given_up.set()
        outcome = self.writer.finished(wait)
        if outcome is None:
            return
        if outcome.error is None:
            # Other processes write their part only; the first one says when all of it is there.
            if self.writer.save.publishes:
                self.saved, self.last_good = self.number, outcome.final.name
        elif is_storage_error(outcome.error):
            self.not_saved = self.number
            line = failure_line(outcome, self.failed + 1, self.max_failed, self.last_good)
            tqdm.write(line, file=sys.stderr)
        else:
            raise outcome.error
        if self.news.not_saved == self.number:
            self._clear_away()

    def _tell(self, state: Any) -> None:
        """`on_save`, as it was due when the save was begun; what is due now stays due."""
        trainer, handler = self.trainer, self.trainer.callback_handler
        due = trainer.control.should_save
        # The class's own: in the middle of a step the handler's may be the one of `quietly_deferred`.
        trainer.control = type(handler).on_save(handler, trainer.args, state, trainer.control)
        trainer.control.should_save = due

    def _forget(self, state: Any) -> None:
        self.failed += 1
        self._clear_away()
        self.trainer.state.best_model_checkpoint = self.best_before
        self.trainer.model_checkpoint.save_failed(state)
        if self.failed >= self.max_failed:
            raise SavesFailed(
                f"{self.failed} checkpoints in a row could not be saved, the last at step {state.global_step}; make "
                "room, or let more fail with max_failed_saves, and run the same command again"
            )

    def _clear_away(self) -> None:
        """What is staged of a save that has failed, once this process has done writing its part: of several, whoever is
        last leaves nothing."""
        if self.writer.save is not None and not self.writer.is_busy:
            with contextlib.suppress(OSError):
                self.deletions.delete(self.writer.save.staged)

    # ---- saving ----

    def save(
        self,
        left: Unfinished = NOTHING,
        is_stopgap: bool = False,
        generators: Mapping[str, Any] | None = None,
        goes_on: bool = False,
    ) -> None:
        """Begins to save the state as it is now; one that is still being written is waited for.

        Args:
            left: What this step still has to do.
            is_stopgap: Nobody would have saved here, had the run not been told to stop.
            generators: `random_states.states()` to go on from, where they are not those of now.
            goes_on: Training shall be able to go on from it, also with `save_only_model`. A second save of a step never
                holds less than the first.
        """
        trainer = self.trainer
        self.settle()
        if self.news.lost:
            raise SavesFailed(LOST)
        step = trainer.state.global_step
        final = trainer.checkpoint_dir / f"checkpoint-{step}"
        trainer.store_flos()
        self._note_best(final)
        goes_on |= not trainer.args.save_only_model or trainer.model_checkpoint.is_resumable(step)
        trainer.model_checkpoint.save_begun(trainer.state, is_stopgap, goes_on)
        if not trainer.is_unsharded:  # where others write too: they begin when they have heard where to
            self.deletions.wait()
        # A part that another process was late with must not be taken for one of the next try.
        staged = Path(
            self.agreement.first_says(str(staging_folder(trainer.checkpoint_dir, f"{final.name}.{self.number}")))
        )
        if trainer.is_deepspeed_enabled:  # its engine writes by itself, all processes together
            trainer.model_wrapped.save_checkpoint(str(staged))
        contents = self._contents(final, left, goes_on, generators or rng_state.states())
        facts = self._facts() | {"resumable": goes_on}
        save = Save(step, staged, final, contents, facts, *self._parts(goes_on), self._logs())
        self.saving_state, self.number = copy.copy(trainer.state), self.number + 1
        if save.publishes or (goes_on and trainer.is_fsdp_enabled):  # of several processes those that have a part
            self.writer.begin(save)
        if not self.in_background:
            self.settle()

    def _parts(self, goes_on: bool) -> tuple[list[str], bool]:
        """Files that other processes add, the last of each, and whether this one publishes."""
        trainer = self.trainer
        divided = goes_on and trainer.is_fsdp_enabled
        others = range(1, trainer.args.world_size) if divided else ()
        names = [f"{sharded_optimizer.part_name(process, trainer.args.world_size)}.json" for process in others]
        return names, bool(trainer.args.should_save)

    def _note_best(self, final: Path) -> None:
        """transformers' `best_model_checkpoint`: known by the time the best step is saved."""
        state = self.trainer.state
        self.best_before = state.best_model_checkpoint
        if state.best_global_step:
            best = final.with_name(f"checkpoint-{state.best_global_step}")
            if self.agreement.first_says(best == final or best.is_dir()):
                state.best_model_checkpoint = str(best)

    def _facts(self) -> dict[str, Any]:
        args = self.trainer.args
        batch, accumulation = self.trainer._train_batch_size, args.gradient_accumulation_steps
        return {
            "world_size": args.world_size,
            "per_device_train_batch_size": args.per_device_train_batch_size,
            "gradient_accumulation_steps": accumulation,
            "global_batch_size": batch * accumulation * args.world_size,
            "versions": _versions(),
        }

    def _logs(self) -> list[Path]:
        """What is written line by line beside the checkpoints: brought to the disk before one that stands for them."""
        callbacks = self.trainer.callback_handler.callbacks
        return [each.path for each in callbacks if isinstance(each, (MetricsFile, CsvLog, WriteSamples))]

    def _contents(
        self, final: Path, left: Unfinished, goes_on: bool, generators: Mapping[str, Any]
    ) -> Callable[[Path], None]:
        """All that the checkpoint holds, as it is now: the function returned writes it, whenever it is called.

        Every process comes here, since each knows a part; of those with whole weights only the first writes.

        Args:
            goes_on: Whether training shall be able to go on from it.
        """
        trainer = self.trainer
        random = self.agreement.everyone(generators)
        due = dataclasses.asdict(left) if left else {}
        texts = {INTERVAL: state_dict_io.split(interval_facts(trainer) | {"due": due})[0]}
        part = self._part() if goes_on else {}
        gathered = None if trainer.is_unsharded else trainer.weights()
        if not trainer.args.should_save:
            return lambda folder: self._write_part(folder, part)
        if goes_on:
            texts |= {rng_state.file_name(process): each for process, each in enumerate(random)}
        texts |= trainer.guard.facts()
        states = self._states() if goes_on else {}
        split = {name: state_dict_io.split(state) for name, state in states.items()}
        split = {name: (plain, self._copied(name, tensors)) for name, (plain, tensors) in split.items()}
        weights = gathered
        if weights is None:
            weights = self._copied("model", trainer.weights(), trainer.constant_weights())
        averages = None
        if trainer.ema is not None:
            tensors, facts = trainer.ema.state()
            averages = self._copied("ema", tensors), facts
        state = _state_now(trainer)

        def write(folder: Path) -> None:
            if self.copies is not None:
                self.copies.arrived()
            trainer.write_model(folder, weights, final)
            self._write_part(folder, part)
            for name, (plain, tensors) in split.items():
                state_dict_io.write(folder, name, plain, tensors)
            if averages is not None:
                write_averages(folder, *averages)
            write_text(folder / "trainer_state.json", _as_json(state))
            write_files(folder, texts)

        return write

    def _states(self) -> dict[str, Any]:
        """What training goes on with, by the name of its files."""
        trainer = self.trainer
        states = {"scheduler": trainer.lr_scheduler.state_dict()}
        if trainer.is_unsharded:
            states["optimizer"] = trainer.optimizer.state_dict()
        scaler = getattr(trainer.accelerator, "scaler", None)
        return states if scaler is None else states | {"scaler": scaler.state_dict()}

    def _part(self) -> dict[str, Any]:
        """Of an optimizer whose state is divided, this process's part: file name -> (facts, tensors)."""
        trainer = self.trainer
        if not trainer.is_fsdp_enabled:
            return {}
        tensors, facts = sharded_optimizer.local_state(trainer.model, trainer.optimizer)
        name = sharded_optimizer.part_name(facts["process"], facts["processes"])
        return {name: (facts, self._copied(name, tensors))}

    def _write_part(self, folder: Path, part: Mapping[str, Any]) -> None:
        if self.copies is not None:
            self.copies.arrived()
        for name, (facts, tensors) in part.items():
            state_dict_io.write(folder, name, facts, tensors)

    def _copied(self, kind: str, tensors: Mapping[str, Any], constant: frozenset[int] = frozenset()) -> dict[str, Any]:
        if self.copies is None:
            return dict(tensors)
        return self.copies.take(kind, tensors, constant)

    # ---- the final model ----

    def save_final(self, folder: Path, weights: Mapping[str, torch.Tensor]) -> None:
        """The model and what it needs, into the run's folder: file by file whole, its manifest last."""
        if self.is_lost:
            raise SavesFailed(LOST)
        self.deletions.wait()
        staged = staging_folder(folder, "model")
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
        try:
            self.trainer.write_model(staged, weights, folder)
            manifest.publish_into(staged, folder, step=self.trainer.state.global_step, **self._facts())
        finally:
            shutil.rmtree(staged, ignore_errors=True)

    # ---- going on ----

    def restore(self, folder: Path) -> None:
        """Optimizer and schedule as a checkpoint holds them.

        Raises:
            ValueError: they are missing, damaged, or of another model.
        """
        trainer = self.trainer
        try:
            if trainer.is_fsdp_enabled or sharded_optimizer.is_sharded(folder):
                sharded_optimizer.load_local_state(trainer.model, trainer.optimizer, folder)
            elif not trainer.is_deepspeed_enabled:  # its engine has loaded its own files
                trainer.optimizer.load_state_dict(state_dict_io.read(folder, "optimizer"))
        except (KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"{folder}: its optimizer's state does not fit ({error})") from error
        trainer.lr_scheduler.load_state_dict(state_dict_io.read(folder, "scheduler"))
        self.last_good = folder.name

    def restore_scaler(self, folder: Path) -> None:
        """The scale of float16 losses, where there is one."""
        scaler = getattr(self.trainer.accelerator, "scaler", None)
        if scaler is not None:
            scaler.load_state_dict(state_dict_io.read(folder, "scaler"))

    def restore_random(self, folder: Path) -> None:
        """The generators of this process; one that the checkpoint's run had not draws from a seed of its own."""
        args = self.trainer.args
        states = rng_state.read(folder, args.process_index)
        if states is not None:
            rng_state.restore(states)
            return
        rng_state.start(args.seed, self.trainer.state.global_step, args.process_index)
        known = len(list(folder.glob("rng-*.json")))
        if args.process_index == known:  # the first of those that are new speaks for all
            line = f"{args.world_size - known} of {args.world_size} processes are new: they draw dropout from new seeds"
            tqdm.write(line, file=sys.stderr)


@functools.cache
def _versions() -> dict[str, str]:
    """What this checkpoint is written with; reading a package's metadata takes milliseconds."""
    found = {"python": platform.python_version()}
    for name in WRITTEN_WITH:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _state_now(trainer: Any) -> Any:
    """The trainer's state, no longer changed by what comes."""
    state = copy.copy(trainer.state)
    exported: dict[str, list[Any]] = {}  # several callbacks may be of one class
    for each in [*trainer.callback_handler.callbacks, trainer.control]:
        if isinstance(each, ExportableState):
            exported.setdefault(type(each).__name__, []).append(each.state())
    for name, states in exported.items():
        trainer.state.stateful_callbacks[name] = states if len(states) > 1 else states[0]
    state.stateful_callbacks = copy.deepcopy(trainer.state.stateful_callbacks)
    state.log_history = list(trainer.state.log_history)  # its entries are never changed again
    return state


def _as_json(state: Any) -> str:
    return json.dumps(dataclasses.asdict(state), indent=2, sort_keys=True) + "\n"


def write_weights(model: Any, folder: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """A model's own files, with other weights than it may hold now."""
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(str(folder), state_dict=dict(weights))
    else:
        state_dict_io.write_tensors(folder / "model.safetensors", weights)


@contextmanager
def quietly_deferred(handler: Any) -> Iterator[None]:
    """Inside, transformers' own `on_save` right after a save is begun tells nobody: `Checkpointing` does, later."""

    def later(args: Any, state: Any, control: Any) -> Any:
        control.should_save = False
        return control

    handler.on_save = later
    try:
        yield
    finally:
        del handler.on_save
