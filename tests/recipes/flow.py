"""Chunks of actions by the flow policy."""

import torch

from . import act

MODEL, DATA = "flow", "demonstrations"


def words(folder):
    return act.words(folder, model="{name: flow, network: mlp, hidden_dim: 16, num_layers: 1, time_dim: 8}")


inputs = act.inputs


def without_noise(monkeypatch):
    """Each sample has the same noise, at the same level."""
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    monkeypatch.setattr(torch, "rand", lambda *size, **options: torch.full(size, 0.4, **options))
