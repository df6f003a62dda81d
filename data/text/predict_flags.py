"""Flags of `predict.py` for language models; importing this needs only the standard library."""

from __future__ import annotations

from dataclasses import dataclass

from storage.config_keys import key


@dataclass
class PredictFlags:
    """How to generate text."""

    max_new_tokens: int = key(256, "Text: new tokens of each prediction, at most.", ge=1, aliases=["--tokens"])
    temperature: float = key(0.0, "Text: temperature of sampling; 0: always the most probable token.", ge=0)
    top_k: int | None = key(None, "Text: sample from the k most probable tokens. Default: from all.", ge=1)
    samples: int = key(1, "Text: predictions for each input.", ge=1)
    seed: int = key(0, "Text: seed of sampling.", ge=0)

    def without_effect(self, output: str | None) -> dict[str, str]:
        """See `data.processor`."""
        if self.temperature > 0:
            return {}
        return dict.fromkeys(("top_k", "samples", "seed"), "temperature 0 does not sample; set --temperature")
