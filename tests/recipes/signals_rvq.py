"""A tokenizer learned from windows of signals: three terms of the loss."""

from . import signals_tokens

MODEL, DATA = "rvq", "signals"
LORA = r"encoder\.0\.convolution"


def words(folder):
    model = "{name: rvq, strides: [2, 5], width: 8, code_dim: 4, levels: 16}"
    return signals_tokens.words(folder, model, levels=None, target="values")
