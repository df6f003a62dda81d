"""Skip steps whose loss or gradient is not finite, and report their samples; too many in a row end the run.

Several processes decide by the gradient norm alone. A loss that is not finite makes its gradients non-finite
(`protect`), and under DDP the all-reduced gradients and their norm, so that all decide alike without communication. One
process also sees a loss that is not finite but has no gradient, such as the mean over a batch without any label.
"""

from __future__ import annotations

import functools
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed
from torch import nn

from storage.checkpoints import checkpoints
from trainer.distributed import rank_and_world_size
from trainer.hf_patches import replace_next_step

FACTS = "skipped_steps.json"
SHOWN_SAMPLES, SHOWN_BATCHES = 64, 4
FUSED_WITH_FLAG = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad)


class TrainingDiverged(RuntimeError):
    """Too many steps in a row had a loss or gradient that is not finite."""

    exit_code = 1  # of the command line


class Batch(NamedTuple):
    """References to the values of a micro-batch, which are copied to the host only if its step was bad."""

    samples: Sequence[Any] | None
    loss: torch.Tensor
    terms: Mapping[str, torch.Tensor]


class Update(NamedTuple):
    """An optimizer step whose norm the host has not read yet."""

    step: int
    norm: torch.Tensor  # in host memory, perhaps still being copied
    arrived: Any  # CUDA event after which the copy is complete; None: it is complete
    batches: list[Batch]


class NonfiniteGuard:
    """Skips optimizer steps that are not finite, and counts those whose gradients are clipped.

    Call `begin` and then `protect` for each micro-batch, and `before_update` before each optimizer step.

    On CUDA with a fused torch optimizer nothing waits: the flag stays on the device, the optimizer's kernels read it,
    and the host reads its copy one step later. For every other optimizer the host waits for the norm. A gradient
    scaler (float16) skips overflows itself; then only a step whose loss was not finite counts here.

    The learning-rate schedule and the step number advance over a skipped step; optimizer state does not.

    Args:
        stop_after: Skipped steps in a row that end the run with `TrainingDiverged`.
        run_folder: Folder of the checkpoints, for the message.
        show: Called with one line for each skipped step, on the main process.
        where: Sample index -> its place in the data, for the message. None: the index alone.
        finish_saving: Called before the message names the newest checkpoint.
        clip_threshold: Steps with a larger gradient norm are counted, on the device; NaN is not larger.
    """

    def __init__(
        self,
        stop_after: int,
        run_folder: Path | str | None = None,
        show: Callable[[str], None] | None = None,
        where: Callable[[int], str] | None = None,
        finish_saving: Callable[[], None] | None = None,
        clip_threshold: float = math.inf,
    ):
        self.stop_after, self.where = stop_after, where or str
        self.show = show or functools.partial(print, file=sys.stderr, flush=True)
        self.run_folder = None if run_folder is None else Path(run_folder)
        self.finish_saving = finish_saving or (lambda: None)
        self.in_a_row, self.skipped, self.skipped_since_log = 0, 0, 0
        self.clip_threshold, self.steps = clip_threshold, 0  # optimizer steps since the last log line
        self.clipped: torch.Tensor | int = 0  # of these, steps with a norm above the threshold
        self.samples: Sequence[Any] | None = None
        self.batches: list[Batch] = []
        self.sums: tuple[torch.Tensor, ...] = ()
        self.before: list[torch.Tensor] = []
        self.waiting: Update | None = None

    @functools.cached_property
    def is_alone(self) -> bool:
        """Whether no other process has to decide alike."""
        return rank_and_world_size()[1] == 1

    # ---- in each micro-batch ----

    def begin(self, samples: Sequence[Any] | None, *sums: torch.Tensor) -> bool:
        """Begin a micro-batch; returns whether it is the first of its step.

        Args:
            samples: Indices in the data set, for the message; None: unknown.
            sums: Running sums and averages that the step changes in place; they are restored if it is skipped.
        """
        self.samples, is_first = samples, not self.batches
        if is_first:
            self.sums, self.before = sums, [value.clone() for value in sums]
        return is_first

    def protect(self, loss: torch.Tensor, terms: Mapping[str, torch.Tensor] | None = None) -> torch.Tensor:
        """Return the same loss, bit for bit, if it is finite; otherwise NaN, whose gradients are NaN too.

        Args:
            loss: Scalar.
            terms: Named parts of the loss, scalars, for the message.
        """
        self.note(loss, terms)
        return loss * loss.detach().mul(0).add_(1)  # 0 * inf is NaN, so the factor is 1 or NaN

    def note(self, loss: torch.Tensor, terms: Mapping[str, torch.Tensor] | None = None) -> None:
        """Keep the values of a micro-batch for the message."""
        detached = {name: term.detach() for name, term in (terms or {}).items()}
        self.batches.append(Batch(self.samples, loss.detach(), detached))

    # ---- in each optimizer step ----

    def before_update(self, step: int, optimizer: Any, norm: torch.Tensor | float) -> bool | torch.Tensor:
        """Skip the coming update if it is not finite.

        Args:
            step: Number of the current step, from 1.
            optimizer: Its `step()` is called next; bare or in accelerate's wrapper.
            norm: Norm of the gradients before clipping, a scalar; the same on all processes.

        Returns:
            Whether the update is skipped; a bool tensor on the device if the host does not know yet.

        Raises:
            TrainingDiverged: this is the last of `stop_after` skipped steps in a row.
        """
        self.settle()
        self.steps += 1
        is_clipped = norm > self.clip_threshold
        self.clipped = self.clipped + (is_clipped.long() if isinstance(is_clipped, torch.Tensor) else is_clipped)
        batches, self.batches = self.batches, []
        # A loss times 0 is 0, or NaN if the loss is not finite: the sum is finite only if the norm and all losses are.
        decisive = sum((batch.loss.sum() * 0 for batch in batches if self.is_alone), start=norm)
        inner = getattr(optimizer, "optimizer", optimizer)
        scaled = getattr(optimizer, "scaler", None) is not None
        if not scaled and self.should_not_wait(norm) and skips_by_flag(inner):
            return self._skip_by_flag(step, inner, decisive.detach(), batches)
        self.release(optimizer)  # the host decides, not the flag of an earlier step
        if math.isfinite(float(decisive)):
            self.in_a_row = 0
            return False
        norm = float(norm)
        gathered = self._gathered(batches)
        if scaled and all(math.isfinite(batch["loss"]) for batch in gathered):
            return False  # an overflow of float16, which the scaler skips and adapts to
        if not scaled or math.isfinite(norm):  # else the scaler finds it out by itself
            drop_update(optimizer)
        for total, before in zip(self.sums, self.before, strict=True):
            total.copy_(before)
        self._count(step, norm, gathered)
        return True

    def pass_over(self) -> None:
        """Forget the micro-batches of an update that could not be skipped."""
        self.batches = []

    @staticmethod
    def should_not_wait(norm: torch.Tensor | float) -> bool:
        """Whether the host would have to wait for the device to read the norm."""
        return isinstance(norm, torch.Tensor) and norm.device.type == "cuda"

    def _skip_by_flag(self, step: int, inner: Any, norm: torch.Tensor, batches: list[Batch]) -> torch.Tensor:
        """Let the optimizer's kernels read `found_inf`, as under a gradient scaler; the host reads the norm later."""
        bad = torch.isfinite(norm).logical_not()
        inner.found_inf = bad.float()
        for total, before in zip(self.sums, self.before, strict=True):
            total.copy_(torch.where(bad, before, total))
        if norm.device.type == "cuda":
            host = torch.empty((), dtype=norm.dtype, pin_memory=True)
            host.copy_(norm, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        else:
            host, arrived = norm.clone(), None
        self.waiting = Update(step, host, arrived, batches)
        return bad

    def settle(self) -> None:
        """Read the norm of the last step, if the host has not yet; call it before logs, checkpoints and the end.

        All processes must call it, since they exchange sample ids if the step was bad. The norm was computed a step
        ago, so the device keeps working meanwhile.

        Raises:
            TrainingDiverged: see `before_update`.
        """
        update, self.waiting = self.waiting, None
        if update is None:
            return
        if update.arrived is not None:
            update.arrived.synchronize()
        norm = float(update.norm)
        if math.isfinite(norm):
            self.in_a_row = 0
        else:
            self._count(update.step, norm, self._gathered(update.batches))

    def release(self, optimizer: Any) -> None:
        """Remove the flag from the optimizer."""
        vars(getattr(optimizer, "optimizer", optimizer)).pop("found_inf", None)

    # ---- what is reported ----

    def take(self) -> tuple[float, dict[str, float]]:
        """Return a factor for the loss, and `grad_clip_pct` and `skipped_steps`, of the steps since the last call.

        A skipped step's loss is not in the sum, which the Trainer divides by all steps: loss * steps / applied is the
        mean over the applied ones. NaN if there was none.
        """
        self.settle()
        counts: dict[str, float] = {}
        steps, skipped = self.steps, self.skipped_since_log
        if steps:
            counts["grad_clip_pct"] = round(100 * float(self.clipped) / steps, 2)
        self.steps, self.clipped, self.skipped_since_log = 0, 0, 0
        if not skipped:
            return 1.0, counts
        counts["skipped_steps"] = skipped
        return (steps / (steps - skipped) if steps > skipped else math.nan), counts

    def _count(self, step: int, norm: float, batches: list[dict[str, Any]]) -> None:
        self.in_a_row += 1
        self.skipped += 1
        self.skipped_since_log += 1
        what = f"step {step} skipped: gradient norm {norm:.4g}, {describe(batches)}"
        if rank_and_world_size()[0] == 0:
            self.show(f"{what}; {self.in_a_row} in a row, {self.skipped} in all")
        if self.in_a_row >= self.stop_after:
            raise TrainingDiverged(
                f"{self.in_a_row} steps in a row were not finite, the last: {what}. None was applied, the weights are "
                f"those of step {step - self.in_a_row}{self._newest_checkpoint()}; look at these samples, or lower the "
                "learning rate"
            )

    def _newest_checkpoint(self) -> str:
        self.finish_saving()
        saved = checkpoints(self.run_folder) if self.run_folder is not None else []
        return f"; the last checkpoint is {saved[-1]}" if saved else ""

    def _gathered(self, batches: Sequence[Batch]) -> list[dict[str, Any]]:
        """The batches of all processes as plain values; called for a bad step only, which is bad on all of them."""
        own = [
            {
                "loss": float(batch.loss.float().mean()),
                "terms": {name: float(value.float().mean()) for name, value in batch.terms.items()},
                "samples": list(map(self.where, batch.samples or ())),
            }
            for batch in batches
        ]
        processes = rank_and_world_size()[1]
        if processes == 1:
            return own
        gathered: list[Any] = [None] * processes
        torch.distributed.all_gather_object(gathered, own)
        return [batch for part in gathered for batch in part]

    # ---- across a resume ----

    def facts(self) -> dict[str, Any]:
        """Return skipped_steps.json for a checkpoint: file name -> JSON value, or nothing if no step was skipped.

        All processes must have called `settle`.
        """
        assert self.waiting is None, "the newest step is not counted yet"
        return {FACTS: {"in_a_row": self.in_a_row, "skipped": self.skipped}} if self.skipped else {}

    def load(self, folder: Path | str) -> None:
        """Load the counts from a checkpoint."""
        path = Path(folder) / FACTS
        facts = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        self.in_a_row, self.skipped = facts.get("in_a_row", 0), facts.get("skipped", 0)


def running_statistics(model: nn.Module) -> list[torch.Tensor]:
    """Return the buffers of batch normalization that a forward changes: one NaN would stay in them for ever."""
    norms = (module for module in model.modules() if isinstance(module, nn.modules.batchnorm._NormBase))
    return [buffer for norm in norms for buffer in norm.buffers(recurse=False)]


def describe(batches: Sequence[Mapping[str, Any]]) -> str:
    """Return `loss nan (error nan, size 0.31) on samples 12, 7`: batches with a bad loss, or all if each is finite."""
    bad = [batch for batch in batches if not math.isfinite(batch["loss"])]
    words = []
    for batch in (bad or batches)[:SHOWN_BATCHES]:
        terms = ", ".join(f"{name} {value:.4g}" for name, value in batch["terms"].items())
        ids = batch["samples"]
        samples = ", ".join(ids[:SHOWN_SAMPLES]) + (", …" if len(ids) > SHOWN_SAMPLES else "")
        words.append(
            f"loss {batch['loss']:.4g}" + (f" ({terms})" if terms else "") + (f" on samples {samples}" if ids else "")
        )
    more = len(bad or batches) - SHOWN_BATCHES
    return "; ".join(words) + (f"; and {more} more batches" if more > 0 else "")


def skips_by_flag(optimizer: Any) -> bool:
    """Whether the optimizer's kernels skip the update of weights and state if its `found_inf` is set.

    SGD without its first momentum does not count: it would keep uninitialized memory as momentum.
    """
    groups = optimizer.param_groups
    if type(optimizer) not in FUSED_WITH_FLAG or not all(group.get("fused") for group in groups):
        return False
    if isinstance(optimizer, torch.optim.SGD) and any(group["momentum"] for group in groups):
        trained = (parameter for group in groups for parameter in group["params"] if parameter.grad is not None)
        return all(optimizer.state[parameter].get("momentum_buffer") is not None for parameter in trained)
    return True


def drop_update(optimizer: Any) -> None:
    """Remove the gradients, and let the next `step()` do nothing: some optimizers count steps without gradients."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None

    def skip(step: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        optimizer._opt_called = True  # a scheduler warns when it steps before its optimizer did

    replace_next_step(optimizer, skip)
