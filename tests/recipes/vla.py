"""Chunks of actions and texts by a vision-language-action policy; the language loss is a mean over tokens."""

import numpy as np
import yaml
from demonstration_files import write_act_episode
from vla_policies import FAMILIES

from data.text.tokenizers import train_bpe
from models.vla.heads import FlowHead

from . import act

MODEL, DATA = "vla", "demonstrations"
# In which nothing is drawn.
SEVERAL = (
    {"model__head": "regression"},
    {"model__head": "tokens", "dataset__normalization": "{state: zscore, action: min_max}"},
)
INSTRUCTIONS = ["push the red cube", "lift it"]
SUBTASKS = ["reach"] * 7 + ["grasp and hold"] * 9


def words(folder):
    for number in range(4):
        write_act_episode(
            folder / "episodes" / f"episode_{number}.hdf5",
            steps=16,
            dims=(4, 3),
            cameras={"top": (24, 32)},
            seed=number,
            attributes={"instruction": INSTRUCTIONS[number % 2]},
            replace={"substep_reasonings": np.array(SUBTASKS, object)},
        )
    train_bpe([*INSTRUCTIONS, *SUBTASKS], 300).save_pretrained(folder / "tokenizer")
    dataset = {
        "name": "demonstrations",
        "path": str(folder / "episodes"),
        "tokenizer": str(folder / "tokenizer"),
        "cameras": ["top"],
        "chunk_size": 6,
        "eval_fraction": 0.25,
    }
    backbone = {"model_type": "smolvlm", **FAMILIES["smolvlm"]}
    training = {
        "task_name": str(folder / "task.yaml"),
        "use_reasoning": True,
        "llm_loss_weight": 0.5,
        "model": {"name": "vla", "config": backbone, "num_layers": 2, "sampling_steps": 2},
    }
    (folder / "task.yaml").write_text(yaml.safe_dump({"dataset": dataset}))
    (folder / "training.yaml").write_text(yaml.safe_dump(training))
    return ["--training_config", str(folder / "training.yaml")]


inputs = act.inputs


def without_noise(monkeypatch):
    """Each sample has no noise, at the same level."""
    monkeypatch.setattr(FlowHead, "draw", lambda self, actions: (actions * 0, actions[:, 0, 0] * 0 + 0.4))
