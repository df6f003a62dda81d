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
        normalizers = frame_logsumexp(logits, times, mask).sum(-1)  # (L, B, N): over frames
        errors = (normalizers * rows).sum(-1) - (logits * same).sum((-2, -1))  # (L, B)
        # A clip without any pair has no division by epsilon, which would let it outweigh all others.
        return errors.sum(0) / (same.sum((-2, -1)).clamp(min=1) + self.epsilon)

    def loss_items(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Clips."""
        return {"association": len(batch["mask"])}


def frame_logsumexp(logits: Tensor, times: Tensor, mask: Tensor) -> Tensor:
    """Logarithm of 1 + sum of exp(logits) over the instances of each frame: (L, B, N, N) -> (L, B, N, T)."""
    # Padding counts as logit -inf of the first frame.
    index = (times - times.masked_fill(~mask, torch.iinfo(times.dtype).max).amin(1, keepdim=True)).masked_fill(~mask, 0)
    frames = int(index.max()) + 1
    index = index[None, :, None].expand_as(logits)
    logits = logits.masked_fill(~mask[None, :, None], -torch.inf)
    largest = logits.detach().new_zeros(*logits.shape[:-1], frames)  # the logit of "none" is 0
    largest.scatter_reduce_(-1, index, logits.detach(), "amax")
    sums = torch.zeros_like(largest).scatter_add(-1, index, (logits - largest.gather(-1, index)).exp())
    return largest + (sums + (-largest).exp()).log()
