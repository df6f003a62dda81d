"""What every policy must do: train, predict, save, reload, and say what is wrong with its sizes."""

import importlib
import json
import pickle
import re
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import models.act
import models.diffusion
import models.flow
import models.mlp
import models.regression
from models.policy import DIMS

ROOT = Path(__file__).parents[2]
GPT_SIZES = ("block_size", "vocab_size", "vocab_sizes", "dataset_names", "context_names")
MODULES = {
    "act": models.act,
    "diffusion": models.diffusion,
    "flow": models.flow,
    "mlp": models.mlp,
    "regression": models.regression,
}
every_policy = pytest.mark.parametrize("name", list(MODULES))
with_and_without_images = pytest.mark.parametrize("num_images", [0, 1, 2])


@pytest.mark.slow
@every_policy
@with_and_without_images
def test_predicts_a_chunk_and_learns_from_one(build, batch, name, num_images):
    net, data = build(name, num_images), batch(num_images)
    output = net.train()(**data)
    assert output["loss"].ndim == 0 and output["loss"].requires_grad
    weighted = sum(net.loss_weights.get(term, 1) * value for term, value in output["losses"].items())
    torch.testing.assert_close(weighted, output["loss"])
    items = net.loss_items(data)
    assert set(items) == set(output["losses"]) and items["action"] == (~data["is_pad"]).sum() * 3
    output["loss"].backward()
    untouched = [key for key, p in net.named_parameters() if p.requires_grad and p.grad is None]
    assert not untouched  # distributed training would wait for their gradients
    del data["actions"], data["is_pad"]
    assert net.eval()(**data)["actions"].shape == (2, 5, 3)


@pytest.mark.slow
@every_policy
def test_evaluation_is_deterministic_and_never_sees_the_actions(build, batch, name):
    net, data = build(name, 1).eval(), batch(1)
    output = net(**data)
    assert torch.equal(output["actions"], net(**{**data, "actions": -data["actions"]})["actions"])
    assert torch.equal(output["actions"], net(state=data["state"], images=data["images"])["actions"])
    assert torch.equal(output["loss"], net(**data)["loss"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["act", "mlp", "regression"])
def test_overfits_a_tiny_batch(build, batch, name):
    torch.manual_seed(0)
    net, data = build(name).train(), batch(size=3)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    for _ in range(300):
        optimizer.zero_grad()
        net(**data)["loss"].backward()
        optimizer.step()
    error = (net.eval()(data["state"])["actions"] - data["actions"]).abs()[~data["is_pad"]].mean()
    assert error < 0.2  # always predicting 0 would have 0.8: the actions are standard normal


@pytest.mark.slow
@every_policy
@with_and_without_images
def test_save_and_load_keep_every_bit(build, batch, name, num_images, tmp_path):
    net = build(name, num_images, n_action_steps=2)
    net.train()(**batch(num_images))  # moves the batch norms' statistics
    net.save_pretrained(tmp_path)
    loaded = MODULES[name].load(tmp_path)
    saved, read = net.state_dict(), loaded.state_dict()
    assert saved.keys() == read.keys() == load_file(tmp_path / "model.safetensors").keys()
    assert all(torch.equal(saved[key], read[key]) for key in saved)
    assert not loaded.training
    data = batch(num_images)
    assert torch.equal(net.eval()(**data)["actions"], loaded(**data)["actions"])
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["model_type"] == name and written["n_action_steps"] == 2
    assert {item.name for item in fields(MODULES[name].Config)} <= written.keys()


@every_policy
def test_pickles_with_its_config(build, name):
    net = build(name)
    config = pickle.loads(pickle.dumps(net)).config
    assert type(config) is type(net.config) and config.to_dict() == net.config.to_dict()


@pytest.mark.slow
@every_policy
def test_load_says_what_is_wrong_with_a_folder(build, name, tmp_path):
    with pytest.raises(ValueError, match="no config.json"):
        MODULES[name].load(tmp_path / "missing")
    other = "mlp" if name == "act" else "act"
    build(other).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"'{other}'"):
        MODULES[name].load(tmp_path)
    build(name).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "hidden_dim": 32}))
    with pytest.raises(ValueError, match="weights missing or of another shape"):
        MODULES[name].load(tmp_path)


@every_policy
@pytest.mark.parametrize("dim", DIMS)
def test_a_missing_dim_is_named(build, name, dim):
    with pytest.raises(ValueError, match=f"model: {dim} missing"):
        build(name, **{dim: None})


@pytest.mark.slow
@every_policy
def test_images_must_be_those_of_the_data(build, batch, name):
    with pytest.raises(ValueError, match=re.escape("built for (2, 3, 32, 64), the batch has none")):
        build(name, 2)(**batch(0))
    with pytest.raises(ValueError, match=re.escape("built for none, the batch has (1, 3, 32, 64)")):
        build(name, 0)(**batch(1))
    with pytest.raises(ValueError, match="too small"):
        build(name, 1, image_height=16)


@pytest.mark.slow
@every_policy
def test_every_parameter_is_in_one_part(build, name):
    net = build(name, 2)
    parts = {part: regex for part, regex in MODULES[name].PARTS.items() if part != "vision_tower"}
    assert MODULES[name].PARTS["vision_tower"] == parts["backbone"]
    for key, _ in net.named_parameters():
        assert len([part for part, regex in parts.items() if re.search(regex, key)]) == 1, key
    modules = [module for module, _ in net.named_modules()]
    for regex in parts.values():
        assert any(re.search(regex, module) for module in modules)
    assert not any("backbone" in key or "image" in key for key in build(name).state_dict())


@pytest.mark.slow
@every_policy
@with_and_without_images
def test_autocast_stays_close_to_float32(build, batch, name, num_images):
    net, data = build(name, num_images).eval(), batch(num_images)
    exact = net(**data)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = net(**data)
    assert rough["loss"].dtype == torch.float32
    torch.testing.assert_close(rough["loss"], exact["loss"], atol=0, rtol=0.05)
    if name not in ("diffusion", "flow"):  # errors add up over their sampling steps
        torch.testing.assert_close(rough["actions"].float(), exact["actions"], atol=0.1, rtol=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = net.train()(**data)["loss"]
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()


@pytest.mark.slow
@every_policy
def test_runs_in_bfloat16_weights(build, batch, name):
    net, data = build(name, 1).bfloat16().train(), batch(1)
    net(**data)["loss"].backward()
    assert net.eval()(**data)["actions"].dtype == torch.bfloat16
    assert net.select_action({"state": data["state"][:1], "images": data["images"][:1]}).dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize(("name", "num_images"), [("act", 0), ("act", 2), ("mlp", 1)])
def test_compiles_to_one_graph(build, batch, name, num_images):
    net, data = build(name, num_images).train(), batch(num_images)
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.manual_seed(0)
    expected = net(**data)["loss"]
    torch.manual_seed(0)
    torch.testing.assert_close(compiled(**data)["loss"], expected)


def default_of(item):
    return item.default if item.default_factory is MISSING else item.default_factory()


@pytest.mark.parametrize("name", ["act", "auto", "diffusion", "flow", "gpt", "mlp", "regression"])
def test_shipped_yaml_shows_every_key_at_its_default(name):
    text = (ROOT / "configs" / "model" / f"{name}.yaml").read_text(encoding="utf-8")
    assert text.startswith("# yaml-language-server: $schema=../schema.json\n")
    config = importlib.import_module(f"models.{name}").Config
    from_data = GPT_SIZES if name == "gpt" else (*DIMS, "num_words", "past_actions", "num_cameras")
    defaults = {item.name: default_of(item) for item in fields(config) if item.name not in from_data}
    assert yaml.safe_load(text) == {"model": {"name": name, **defaults}}
    keys = [line for line in text.splitlines() if line.startswith("  ") and "name:" not in line]
    assert all("#" in line for line in keys) and all(item.metadata["help"] for item in fields(config))
