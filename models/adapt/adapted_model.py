"""An adapted model: what the trainer trains, and how it is saved, resumed and described."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from models.adapt import adapter_io, report
from models.adapt.adapted_state import AdaptedState


class AdaptedModel(AdaptedState):
    """A model ready to train, see `AdaptedState` for its attributes."""

    @property
    def lines(self) -> list[str]:
        """One line for each thing that was chosen or is not honoured."""
        return self.record.lines

    @property
    def effective(self) -> dict[str, str]:
        """What was really used, by name."""
        return {"attention": self.record.attention}

    @property
    def has_constant_weights(self) -> bool:
        """Whether what is frozen stays as it is: a base under an adapter, or one that is quantized."""
        return self.has_adapter or bool(self.record.quantization)

    def report(self, rates: Mapping[str, float]) -> dict[str, Any]:
        """What was done to the model, as a JSON value; `rates`: parameter name -> learning rate."""
        self.rates = dict(rates)
        described = report.describe(self.model, self.parts, self.rates)
        return {**adapter_io.settings_of(self), "effective": self.effective, "lines": self.lines, **described}

    def table(self, rates: Mapping[str, float]) -> list[str]:
        """`report` as lines of a short table."""
        return report.table(self.report(rates))

    def save(
        self,
        folder: str | Path,
        state_dict: Mapping[str, torch.Tensor] | None = None,
        final: str | Path | None = None,
    ) -> None:
        """Writes the model's files into `folder`: plain weights, or the adapter and its base.

        Args:
            state_dict: the model's weights, where they are not those that it holds now.
            final: What `folder` will be called once it is ready; an adapter's files name the base in it.
        """
        adapter_io.save(self, Path(folder), state_dict, Path(folder if final is None else final))

    def load(self, folder: str | Path) -> None:
        """Puts the trained weights saved in `folder` back into the model.

        Raises:
            ValueError: a weight is missing, unexpected, or of another shape.
        """
        adapter_io.resume(self, Path(folder))
