"""The association loss of trackers.

Shapes: L decoder layers, B clips, N instances of a clip, T frames from a clip's first to its last.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class AssociationLoss:
    """Cross-entropy of "which instance of frame t is the animal of row i, or none", over all rows and frames.

    In a frame the logits of its instances compete with a logit of 0 for "none of them". A clip's loss is the sum over
    rows, frames and decoder layers, divided by its number of pairs of one identity plus `epsilon`; a batch's is the
    mean over clips. Reads `association` (L, B, N, N) and the batch's `identities`, `times` and `mask`, each (B, N).

    Source: Zhou et al. 2022, arXiv:2203.13250, equation 4.

    Args:
        neg_unmatched: Rows without an identity (-1) are trained to "none" in every frame; otherwise they are left out.
        asso_weight: Weight of the loss.
    """

    targets = frozenset({"identities"})
    problem_type = "association"

    def __init__(self, neg_unmatched: bool = False, epsilon: float = 1e-4, asso_weight: float = 1.0):
        self.neg_unmatched, self.epsilon = neg_unmatched, epsilon
        self.loss_weights = {"association": asso_weight}

    def __call__(self, outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Any]:
        """Raises ValueError if the network associates nothing."""
        logits = outputs.get("association")
        if not isinstance(logits, Tensor):
            raise ValueError("`loss: association`: this model returns no `association`; leave `loss` out")
        mean = self.clip_losses(logits.float(), batch["identities"], batch["times"], batch["mask"]).mean()
        return {"loss": self.loss_weights["association"] * mean, "losses": {"association": mean}}

    def clip_losses(self, logits: Tensor, identities: Tensor, times: Tensor, mask: Tensor) -> Tensor:
        """The loss of each clip, (B,)."""
        is_known = (identities >= 0) & mask
        rows = mask if self.neg_unmatched else is_known
        same = (identities[:, :, None] == identities[:, None]) & is_known[:, :, None] & is_known[:, None]
        normalizers, targets = by_frame(logits, same, times, mask)
        errors = ((normalizers - targets).sum(-1) * rows).sum(-1)  # (L, B)
        # A clip without any pair has no division by epsilon, which would let it outweigh all others.
        return errors.sum(0) / (same.sum((-2, -1)).clamp(min=1) + self.epsilon)

    def loss_items(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Clips."""
        return {"association": len(batch["mask"])}


def clip_frames(times: Tensor, mask: Tensor) -> Tensor:
    """Frames counted from the first of the clip's instances, 0 for padding: (B, N)."""
    first = times.masked_fill(~mask, torch.iinfo(times.dtype).max).amin(1, keepdim=True)
    return (times - first).masked_fill(~mask, 0)


def by_frame(logits: Tensor, same: Tensor, times: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row and frame: the logarithm of 1 + the sum of exp(logits), and the target's logit, 0 for "none".

    Args:
        logits: (L, B, N, N)
        same: (B, N, N), one at most in each row and frame.
        times, mask: (B, N)

    Returns:
        Both (L, B, N, T).
    """
    frames = clip_frames(times, mask)  # padding counts as logit -inf of the first frame
    index = frames[None, :, None].expand_as(logits)
    shape = (*logits.shape[:-1], int(frames.max()) + 1)
    targets = logits.new_zeros(shape).scatter_add(-1, index, logits * same)
    logits = logits.masked_fill(~mask[:, None], -torch.inf)
    largest = logits.new_zeros(shape).scatter_reduce(-1, index, logits.detach(), "amax")  # "none" has logit 0
    sums = logits.new_zeros(shape).scatter_add(-1, index, (logits - largest.gather(-1, index)).exp())
    return largest + (sums + (-largest).exp()).log(), targets
