"""Chunks of actions by the regression policy."""

from . import act

MODEL, DATA = "regression", "demonstrations"


def words(folder):
    return act.words(folder, model="{name: regression, network: mlp, hidden_dim: 16, num_layers: 1, time_dim: 8}")


inputs = act.inputs
