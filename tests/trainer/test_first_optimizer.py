"""`load_optimizer`: a fresh run's optimizer starts with an earlier one's moments, at the new run's rates."""

import pytest
import torch
from tiny_training import Regression, make_trainer

from trainer.optimization.optimizers import load_earlier_state
from trainer.serialization.state_dict_io import read, split, write

pytestmark = pytest.mark.slow


def test_the_moments_are_taken_and_the_rates_are_not(tmp_path):
    make_trainer(tmp_path, max_steps=3, save_strategy="steps", save_steps=3).train()
    folder = tmp_path / "checkpoint-3"
    trainer = make_trainer(tmp_path / "b", max_steps=1, learning_rate=0.2, weight_decay=0.3, first_optimizer=folder)
    trainer.train()
    before, now = read(folder, "optimizer"), trainer.optimizer.state_dict()
    assert before["state"].keys() == now["state"].keys()
    assert all(each["step"] == 4 for each in now["state"].values())  # three steps then, one here
    assert {group["initial_lr"] for group in now["param_groups"]} == {0.2}
    assert {group["weight_decay"] for group in now["param_groups"]} == {0.3, 0.0}


def test_equals_loading_by_hand(tmp_path):
    make_trainer(tmp_path, max_steps=3, save_strategy="steps", save_steps=3).train()
    folder = tmp_path / "checkpoint-3"
    optimizer = torch.optim.AdamW(Regression().parameters(), lr=0.5)
    saved = read(folder, "optimizer")
    flat = [each for group in saved["param_groups"] for each in group["params"]]
    groups = [
        {"params": [torch.nn.Parameter(saved["state"][i]["exp_avg"] * 0) for i in g["params"]]}
        for g in saved["param_groups"]
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.5)
    load_earlier_state(optimizer, folder)
    ours = [optimizer.state[each]["exp_avg"] for group in optimizer.param_groups for each in group["params"]]
    assert all(torch.equal(mine, saved["state"][i]["exp_avg"]) for mine, i in zip(ours, flat, strict=True))


@pytest.mark.parametrize("damage", ["missing", "torn", "other model", "other groups"])
def test_what_does_not_fit_is_told_before_anything_is_made(tmp_path, damage):
    make_trainer(tmp_path, max_steps=1, save_strategy="steps", save_steps=1).train()
    folder = tmp_path / "checkpoint-1"
    file = folder / "optimizer.safetensors"
    if damage == "missing":
        (folder / "optimizer.json").unlink()
    elif damage == "torn":
        file.write_bytes(file.read_bytes()[:100])
    else:
        state = read(folder, "optimizer")
        if damage == "other groups":
            state["param_groups"].pop()
        else:
            state["state"][0]["exp_avg"] = torch.zeros(3, 5)
        write(folder, "optimizer", *split(state))
    with pytest.raises(ValueError, match="`load_optimizer`: .*checkpoint-1"):
        make_trainer(tmp_path / "new", max_steps=1, first_optimizer=folder)
    assert not (tmp_path / "new").exists()
