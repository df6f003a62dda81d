"""MixUp of training batches (Zhang et al. 2017, arXiv:1710.09412), and their quantization after it."""

from __future__ import annotations

from typing import Any

import torch

from data.mixup import beta
from data.signals.config import MixUp
from data.signals.tokenizers import MuLaw


class MixTransform:
    """The `train_transform`: one share λ ~ Beta(α, α) for a batch, folded to at least ½, with a probability.

    Classes become shares of `num_classes`, mixed or not, so that a batch's entries have the same types every time.
    """

    def __init__(self, config: MixUp):
        self.config = config
        self.quantizer = quantizer_of(config)

    def __call__(self, batch: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        config, signal, labels = self.config, batch["signal"], batch["labels"]
        if config.mixup_alpha:
            if not labels.is_floating_point():
                labels = torch.nn.functional.one_hot(labels, config.num_classes).to(signal.dtype)
            draw = torch.rand(1, generator=generator, device=generator.device).item()
            share = beta(config.mixup_alpha, generator)
            order = torch.randperm(len(signal), generator=generator, device=generator.device).to(signal.device)
            if draw < config.mixup_prob:
                share = max(share, 1 - share)
                signal = share * signal + (1 - share) * signal[order]
                labels = share * labels + (1 - share) * labels[order]
                if "lengths" in batch:
                    batch = {**batch, "lengths": torch.maximum(batch["lengths"], batch["lengths"][order])}
        if self.quantizer is not None:
            signal = self.quantizer.encode(signal)
        return {**batch, "signal": signal, "labels": labels}


def quantizer_of(config: MixUp) -> MuLaw | None:
    """mu-law of the inputs, or None."""
    return MuLaw(config.mu + 1, config.max_val) if config.quantize else None
