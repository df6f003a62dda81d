"""Chunks of actions, many of them padded at an episode's end; the KL divergence is a mean over samples."""

import torch
from demonstration_files import write_act_episode

MODEL, DATA = "act", "demonstrations"
NETWORK = "hidden_dim: 16, num_heads: 2, feedforward_dim: 16, cvae_layers: 1, encoder_layers: 1, decoder_layers: 1"
SEVERAL = ({"model__use_cvae": "false"},)


def words(folder, model=f"{{name: act, {NETWORK}, latent_dim: 4, dropout: 0.0, kl_weight: 2.0}}"):
    for index in range(4):
        write_act_episode(folder / "episodes" / f"episode_{index}.hdf5", steps=16, seed=index)
    (folder / "task.yaml").write_text(
        f"dataset: {{name: demonstrations, path: {folder / 'episodes'}, chunk_size: 12, cameras: [], "
        "eval_fraction: 0.25}\n"
    )
    (folder / "training.yaml").write_text(f"task_name: {folder / 'task.yaml'}\nmodel: {model}\n")
    return ["--training_config", str(folder / "training.yaml")]


def inputs(folder):
    return folder / "episodes"


def without_noise(monkeypatch):
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)  # the latent variable is its mean
