"""What decoder-only transformers share: initial weights, a token embedding, a head that may be tied to it."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init

INIT_STD = 0.02  # GPT-2's


class Decoder(PreTrainedModel):
    """Has `token_embedding` and `head`; `config.n_layer` blocks of `models.gpt.layers`."""

    supports_gradient_checkpointing = True
    _tied_weights_keys = {"head.weight": "token_embedding.weight"}
    _no_split_modules = ["Block"]  # what FSDP divides one by one

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            # Each block adds two branches to the tokens: the sum keeps its size however many there are.
            branches = 2 * self.config.n_layer if getattr(module, "ends_a_branch", False) else 1
            init.normal_(module.weight, mean=0.0, std=INIT_STD / branches**0.5)
        elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
            init.ones_(module.weight)
        if getattr(module, "bias", None) is not None:
            init.zeros_(module.bias)

    def get_input_embeddings(self) -> nn.Module:
        return self.token_embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.token_embedding = value

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.head = value
