"""Policies that predict chunks of actions: their training error, and how a chunk is executed.

Shapes: B batch, C chunk size, A action dim, K images.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel


def masked_mean(errors: Tensor, is_pad: Tensor | None) -> Tensor:
    """Mean of errors (B, C, A) over the steps that is_pad (B, C) does not mark.

    Padded steps leave the denominator too: else the real steps near an episode's end would count for less.
    """
    errors = errors.float()
    if is_pad is None:
        return errors.mean()
    kept = (~is_pad)[..., None].to(errors.dtype)
    # A batch without any real step has error 0; the clamp keeps 0 / 0 away without a branch on data.
    return (errors * kept).sum() / (kept.sum() * errors.shape[-1]).clamp(min=1)


def count_actions(actions: Tensor, is_pad: Tensor | None) -> Tensor:
    """Numbers that `masked_mean` is a mean over: those of actions (B, C, A) whose step is_pad (B, C) does not mark."""
    if is_pad is None:
        return torch.tensor(actions.numel())
    return (~is_pad).sum() * actions.shape[-1]


class ChunkQueue:
    """Executes the first `steps` actions of a chunk, then asks for the next chunk."""

    def __init__(self, steps: int):
        assert steps >= 1, steps
        self.steps = steps
        self.waiting: list[Tensor] = []

    @property
    def needs_chunk(self) -> bool:
        return not self.waiting

    def add(self, chunk: Tensor) -> None:
        """chunk (C, A)"""
        self.waiting = list(chunk[: self.steps])

    def next(self) -> Tensor:
        """(A,)"""
        return self.waiting.pop(0)


class RealTimeChunks:
    """Executes one chunk while the next is computed, and hands over smoothly.

    A chunk is asked for every `steps` steps. Computing it takes `delay` steps, which the previous chunk fills; over the
    rest of the previous chunk the weight of its actions falls linearly to zero.
    Source: the soft mask of Black et al. 2025, arXiv:2506.07339, applied to finished chunks, so that it serves policies
    that do not sample.
    """

    def __init__(self, steps: int, delay: int):
        self.steps, self.delay = steps, delay
        self.plan: Tensor | None = None  # (R, A) actions of the coming steps
        self.executed = 0  # of the newest chunk

    @property
    def needs_chunk(self) -> bool:
        return self.plan is None or self.executed >= self.steps

    def add(self, chunk: Tensor) -> None:
        """chunk (C, A)"""
        if self.plan is not None:
            rest = len(self.plan)
            steps = torch.arange(rest, dtype=chunk.dtype)
            weight = ((rest - steps) / (rest - self.delay + 1)).clamp(max=1)[:, None]  # 1 during the delay
            chunk = torch.cat((weight * self.plan + (1 - weight) * chunk[:rest], chunk[rest:]))
        self.plan, self.executed = chunk, 0

    def next(self) -> Tensor:
        """(A,)"""
        action, self.plan = self.plan[0], self.plan[1:]
        self.executed += 1
        return action


class TemporalEnsemble:
    """Asks for a chunk at every step; the action is the weighted mean of all predictions made for that step.

    Weights are exp(-m·i) with i = 0 for the oldest prediction, so a larger m trusts new observations less.
    Source: Zhao et al. 2023, arXiv:2304.13705, section IV-A.
    """

    needs_chunk = True

    def __init__(self, coefficient: float, chunk_size: int):
        self.weights = torch.exp(-coefficient * torch.arange(chunk_size, dtype=torch.float64))  # (C,)
        self.count = torch.zeros(chunk_size, dtype=torch.long)  # predictions held, per coming step
        self.total: Tensor | None = None  # (C, A) weighted sum of those predictions

    def add(self, chunk: Tensor) -> None:
        """chunk (C, A)"""
        chunk = chunk.double().cpu()
        self.total = torch.zeros_like(chunk) if self.total is None else self.total
        self.total = self.total + self.weights[self.count, None] * chunk
        self.count = self.count + 1

    def next(self) -> Tensor:
        """(A,)"""
        action = self.total[0] / self.weights[: self.count[0]].sum()
        # The far end of the window enters with no prediction yet.
        self.total = torch.cat((self.total[1:], torch.zeros_like(self.total[:1])))
        self.count = torch.cat((self.count[1:], torch.zeros_like(self.count[:1])))
        return action.float()


class ChunkPolicy(PreTrainedModel):
    """What policies share: checks of a batch's images, and acting one step at a time.

    A subclass has a `PolicyConfig`-shaped config and `forward(state, actions, is_pad, images)` that returns
    {"actions": (B, C, A)} when no actions are given.
    """

    main_input_name = "state"
    supports_gradient_checkpointing = True

    def __init__(self, config):
        super().__init__(config)
        self.reset()

    loss_weights: Mapping[str, float] = {}

    def loss_items(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Term of the loss -> number of items that it is a mean over in this batch."""
        return {"action": count_actions(batch["actions"], batch.get("is_pad"))}

    def reset(self) -> None:
        """Forget all predictions; call it at the start of an episode."""
        planned = self.config.chunk_size - (self.config.past_actions or 0)
        steps = self.config.n_action_steps or planned
        if self.config.temporal_ensemble_coeff is not None:
            self._plan = TemporalEnsemble(self.config.temporal_ensemble_coeff, planned)
        elif self.config.inference_delay is not None:
            self._plan = RealTimeChunks(steps, self.config.inference_delay)
        else:
            self._plan = ChunkQueue(steps)

    @torch.no_grad()
    def select_action(self, inputs: dict[str, Tensor]) -> Tensor:
        """The next (A,) normalised action, on the CPU, for `state` (1, state dim) and perhaps `images`."""
        assert not self.training, "call eval() first: dropout would act"
        assert inputs["state"].shape[0] == 1, inputs["state"].shape
        if self._plan.needs_chunk:
            inputs = {key: value.to(self.device) for key, value in inputs.items() if torch.is_tensor(value)}
            self._plan.add(self.predict_chunk(inputs)[0, self.config.past_actions or 0 :].float().cpu())
        return self._plan.next()

    def predict_chunk(self, inputs: dict[str, Tensor]) -> Tensor:
        """The next chunk (1, C, A) of an episode."""
        return self(**inputs)["actions"]

    def check_words(self, words: Tensor | None) -> None:
        """Raise ValueError if a batch has instructions that the network does not read, or lacks those that it does."""
        expected, found = self.config.num_words or 0, 0 if words is None else words.shape[1]
        if found != expected:
            raise ValueError(
                f"words of instructions: the model was built for {expected}, the batch has {found}; use the "
                "dataset.instruction_words that the model was trained with"
            )

    def check_images(self, images: Tensor | None) -> None:
        """Raise ValueError if a batch's images (B, K, 3, H, W) are not those the network was built for."""
        config = self.config
        size = (config.num_images, 3, config.image_height, config.image_width)
        expected = size if config.num_images else "none"
        found = "none" if images is None else tuple(images.shape[1:])
        if found != expected:
            raise ValueError(
                f"images per sample: the model was built for {expected}, the batch has {found}; use the data "
                "settings that the model was trained with"
            )
