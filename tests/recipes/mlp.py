"""Chunks of actions by a perceptron."""

from . import act

MODEL, DATA = "mlp", "demonstrations"


def words(folder):
    return act.words(folder, model="{name: mlp, hidden_dim: 16, hidden_layers: 1}")


inputs = act.inputs
