"""Windows of signals and their next values."""

from . import signals_tokens

MODEL, DATA = "wavenet", "signals"
LORA = r"layers\.0\.condition"


def words(folder):
    model = "{name: wavenet, blocks: 1, layers: 3, residual_channels: 8, skip_channels: 8}"
    return signals_tokens.words(folder, model, target="values", overlap=4)
