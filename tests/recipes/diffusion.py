"""Chunks of actions by the diffusion policy."""

from models.denoising_policy import DenoisingPolicy

from . import act

MODEL, DATA = "diffusion", "demonstrations"
# Another model has keys of its own: those of the training file are dropped.
SEVERAL = (
    {
        "model__name": "kinds.quiet_diffusion",
        "model__network": "mlp",
        "model__hidden_dim": 16,
        "model__clip_sample": "false",
    },
)


def words(folder):
    return act.words(
        folder,
        model="{name: diffusion, network: mlp, hidden_dim: 16, num_layers: 1, time_dim: 8, prediction_type: sample, "
        "clip_sample: false}",
    )


inputs = act.inputs


def without_noise(monkeypatch):
    """Each sample has no noise, at the same level."""
    monkeypatch.setattr(DenoisingPolicy, "draw", lambda self, actions: (actions * 0, actions[:, 0, 0] * 0 + 0.4))
