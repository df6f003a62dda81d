"""Small networks and batches that the tests of this folder share."""

import importlib.machinery
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

import models.act
import models.diffusion
import models.flow
import models.mlp
import models.regression

STATE, ACTION, CHUNK, HEIGHT, WIDTH = 6, 3, 5, 32, 64
SMALL = {
    "act": {
        "hidden_dim": 16,
        "num_heads": 2,
        "feedforward_dim": 24,
        "encoder_layers": 2,
        "cvae_layers": 2,
        "latent_dim": 4,
        "dropout": 0.0,
    },
    "mlp": {"hidden_dim": 16},
    **dict.fromkeys(
        ("diffusion", "flow", "regression"),
        {"network": "transformer", "hidden_dim": 16, "num_heads": 2, "num_layers": 2, "time_dim": 8, "keypoints": 4},
    ),
}
MODULES = {
    "act": models.act,
    "diffusion": models.diffusion,
    "flow": models.flow,
    "mlp": models.mlp,
    "regression": models.regression,
}


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """These networks are so small that handing work to a second thread takes longer than doing it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def build():
    """build(name, num_images, **keys) -> a small network with the data's sizes above."""

    def make(name: str = "act", num_images: int = 0, **keys):
        torch.manual_seed(0)
        module = MODULES[name]
        size = {"image_height": HEIGHT, "image_width": WIDTH} if num_images else {"image_height": 0, "image_width": 0}
        dims = dict(state_dim=STATE, action_dim=ACTION, chunk_size=CHUNK, num_images=num_images, **size)
        config = module.Config(**{**dims, **SMALL[name], "backbone": "resnet10", **keys})
        return module.build(config, SimpleNamespace(cache_dir=None))

    return make


@pytest.fixture
def batch():
    """batch(num_images, size) -> a batch as data would collate it; the second sample ends in padding."""

    def make(num_images: int = 0, size: int = 2) -> dict[str, torch.Tensor]:
        random = torch.Generator().manual_seed(1)
        made = {
            "state": torch.randn(size, STATE, generator=random),
            "actions": torch.randn(size, CHUNK, ACTION, generator=random),
            "is_pad": torch.zeros(size, CHUNK, dtype=torch.bool),
            "episode": torch.arange(size),
            "timestep": torch.arange(size),
        }
        made["is_pad"][1, 3:] = True
        if num_images:
            shape = (size, num_images, 3, HEIGHT, WIDTH)
            made["images"] = torch.randint(0, 256, shape, dtype=torch.uint8, generator=random)
        return made

    return make


@pytest.fixture
def flash(monkeypatch):
    """Act as if flash-attention were installed, on a GPU that supports it; collects `causal` of each call."""
    calls = []

    def flash_attn_func(query, key, value, dropout_p=0.0, causal=False):
        """(B, T, H, E), keys and values (B, S, K, E) -> (B, T, H, E)"""
        calls.append(causal)
        shared = query.shape[2] // key.shape[2]
        key, value = (tokens.repeat_interleave(shared, dim=2) for tokens in (key, value))
        scores = torch.einsum("bthd,bshd->bhts", query, key) / query.shape[-1] ** 0.5
        if causal:
            scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)
        return torch.einsum("bhts,bshd->bthd", scores.softmax(-1), value)

    module = ModuleType("flash_attn")
    module.flash_attn_func = flash_attn_func
    module.__spec__ = importlib.machinery.ModuleSpec("flash_attn", None)
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    return calls
