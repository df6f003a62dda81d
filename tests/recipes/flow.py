"""Chunks of actions by the flow policy."""

from models.denoising_policy import DenoisingPolicy

from . import act

MODEL, DATA = "flow", "demonstrations"
# Another model has keys of its own: those of the training file are dropped.
SEVERAL = ({"model__name": "kinds.quiet_flow", "model__network": "mlp", "model__hidden_dim": 16},)


def words(folder):
    return act.words(folder, model="{name: flow, network: mlp, hidden_dim: 16, num_layers: 1, time_dim: 8}")


inputs = act.inputs


def without_noise(monkeypatch):
    """Each sample has no noise, at the same level."""
    monkeypatch.setattr(DenoisingPolicy, "draw", lambda self, actions: (actions * 0, actions[:, 0, 0] * 0 + 0.4))
