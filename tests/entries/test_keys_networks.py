"""Keys of the networks and of their adaptation that are seen nowhere else, flipped one by one."""

import dataclasses
import json
from types import SimpleNamespace

import peft
import pytest
import torch
import transformers
from adapting import ACT, DIMS, batch_of, build_adapted, config_of, outputs, process_of, trained

import models.act
import models.auto
import models.diffusion
import models.flow
import models.mlp
import models.regression

pytestmark = pytest.mark.slow  # whole small runs, many of them

NETWORKS = {
    "act": models.act,
    "diffusion": models.diffusion,
    "flow": models.flow,
    "mlp": models.mlp,
    "regression": models.regression,
}
DENOISING = {"network": "mlp", "hidden_dim": 16, "num_layers": 1, "time_dim": 8}
SMALL = {
    "act": ACT,
    "mlp": {"hidden_dim": 16, "hidden_layers": 1},
    **dict.fromkeys(("diffusion", "flow", "regression"), DENOISING),
}


def network(name, **changes):
    torch.manual_seed(0)
    config = NETWORKS[name].Config(**{**SMALL[name], **DIMS, "backbone": "resnet10", **changes})
    return NETWORKS[name].build(config, SimpleNamespace(cache_dir=None))


@torch.no_grad()
def chunk(net, **more):
    return net.eval()(state=torch.ones(1, net.config.state_dim), **more)["actions"]


@pytest.mark.keys(
    "model(act).state_dim",
    "model(act).action_dim",
    "model(act).chunk_size",
    "model(act).num_images",
    "model(act).image_height",
    "model(act).image_width",
    "model(act).num_words",
    "model(mlp).state_dim",
    "model(mlp).action_dim",
    "model(mlp).chunk_size",
    "model(mlp).num_images",
    "model(mlp).image_height",
    "model(mlp).image_width",
    "model(mlp).num_words",
    "model(diffusion).state_dim",
    "model(diffusion).action_dim",
    "model(diffusion).chunk_size",
    "model(diffusion).num_images",
    "model(diffusion).image_height",
    "model(diffusion).image_width",
    "model(diffusion).num_words",
    "model(flow).state_dim",
    "model(flow).action_dim",
    "model(flow).chunk_size",
    "model(flow).num_images",
    "model(flow).image_height",
    "model(flow).image_width",
    "model(flow).num_words",
    "model(regression).state_dim",
    "model(regression).action_dim",
    "model(regression).chunk_size",
    "model(regression).num_images",
    "model(regression).image_height",
    "model(regression).image_width",
    "model(regression).num_words",
)
@pytest.mark.parametrize("name", list(NETWORKS))
def test_dims_are_those_that_the_model_reads_and_writes(name):
    assert chunk(network(name, state_dim=9)).shape == chunk(network(name)).shape == (1, 5, 3)
    assert chunk(network(name, action_dim=4)).shape == (1, 5, 4)
    assert chunk(network(name, chunk_size=7)).shape == (1, 7, 3)
    for num_images, image_height, image_width in ((1, 32, 64), (2, 64, 32)):
        size = {"num_images": num_images, "image_height": image_height, "image_width": image_width}
        net, images = network(name, **size), torch.zeros(1, num_images, 3, image_height, image_width, dtype=torch.uint8)
        assert chunk(net, images=images).shape == (1, 5, 3)
        with pytest.raises(ValueError, match="built for"):
            chunk(net, images=images[..., :32, :32])
    reader, words = network(name, num_words=4), torch.eye(4)
    assert not torch.equal(chunk(reader, words=words[:1]), chunk(reader, words=words[1:2]))
    with pytest.raises(ValueError, match="built for 4"):
        chunk(reader)


@pytest.mark.keys(
    "model(act).hidden_dim",
    "model(act).feedforward_dim",
    "model(act).encoder_layers",
    "model(act).cvae_layers",
    "model(act).latent_dim",
)
def test_sizes_of_act():
    assert network("act", hidden_dim=24).head.in_features == 24
    assert network("act", feedforward_dim=40).encoder.layers[0].feedforward[0].out_features == 40
    assert len(network("act", encoder_layers=3).encoder.layers) == 3
    assert len(network("act", cvae_layers=3).cvae_encoder.encoder.layers) == 3
    assert network("act", latent_dim=6).latent_projection.in_features == 6


@pytest.mark.keys("model(act).num_heads", "model(act).pre_norm")
@pytest.mark.parametrize("change", [{"num_heads": 4}, {"pre_norm": True}])
def test_the_same_weights_under_another_architecture(change):
    plain, changed = network("act"), network("act", **change)
    found = changed.load_state_dict(plain.state_dict(), strict=False)
    assert all("norm" in name for name in found.missing_keys + found.unexpected_keys)
    assert not torch.allclose(chunk(plain), chunk(changed))


@pytest.mark.keys("model(mlp).hidden_dim")
def test_width_of_the_perceptron():
    assert network("mlp", hidden_dim=24).head.in_features == 24


@pytest.mark.keys("model(act).dropout", "model(mlp).dropout")
@pytest.mark.parametrize("name", ["act", "mlp"])
def test_dropout_makes_two_passes_of_training_differ(name):
    for dropout, alike in ((0.0, True), (0.5, False)):
        net = network(name, dropout=dropout, **({"use_cvae": False} if name == "act" else {})).train()
        one, other = (net(**batch_of("act"))["loss"] for _ in range(2))
        assert torch.equal(one, other) == alike


# ---- adapters ----


@pytest.mark.keys("lora_r", "lora_alpha", "lora_dropout")
def test_lora_r_alpha_and_dropout():
    plain, wide = (
        build_adapted("llama", lora_enable=True, **more).model for more in ({}, {"lora_r": 2, "lora_alpha": 6})
    )
    for model, rank, scale in ((plain, 4, 2.0), (wide, 2, 3.0)):
        layer = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
        assert layer.lora_A["default"].out_features == rank and layer.scaling["default"] == scale
    for dropout, alike in ((0.0, True), (0.5, False)):
        model = build_adapted("llama", lora_enable=True, lora_dropout=dropout).model.train()
        for name in trained(model):
            if "lora_B" in name:
                torch.nn.init.ones_(model.get_parameter(name))
        one, other = (model(**batch_of("llama"))["loss"] for _ in range(2))
        assert torch.equal(one, other) == alike


@pytest.mark.keys("lora_task_type")
def test_lora_task_type_chooses_pefts_class(tmp_path):
    kinds = {"CAUSAL_LM": peft.PeftModelForCausalLM, "FEATURE_EXTRACTION": peft.PeftModelForFeatureExtraction}
    for task, kind in kinds.items():
        build_adapted("llama", lora_enable=True, lora_task_type=task).save(tmp_path / task)
        base = models.auto.load(tmp_path / task / "base")
        assert type(peft.PeftModel.from_pretrained(base, str(tmp_path / task))) is kind


OWN_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own-llama"

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
    came_from_the_folder = True
"""


@pytest.mark.keys("trust_remote_code")
def test_trust_remote_code(tmp_path, monkeypatch):
    """Code that comes with a folder runs when it is allowed to, and only then."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "base"
    models.auto.build(config_of("llama"), process_of()).save_pretrained(folder)
    (folder / "own.py").write_text(OWN_CODE)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "own-llama",
        "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    process = process_of(model_name_or_path=str(folder), trust_remote_code=True)
    model = models.auto.build(models.auto.Config(), process)
    assert model.came_from_the_folder and outputs(model, "llama").shape == (2, 7, 96)
    with pytest.raises(ValueError, match="cannot be loaded"):
        models.auto.build(models.auto.Config(), dataclasses.replace(process, trust_remote_code=False))


@pytest.mark.keys("model(auto).task", "model(auto).config", "model(auto).vocab_size", "model(auto).num_labels")
def test_a_foreign_model_for_another_task_and_size():
    tasks = {"causal_lm": "LlamaForCausalLM", "sequence_classification": "LlamaForSequenceClassification"}
    config = config_of("llama").config
    for task, kind in tasks.items():
        more = {"vocab_size": 50} | ({"num_labels": 4} if "class" in task else {})
        model = models.auto.build(models.auto.Config(task=task, config=config, **more), process_of())
        assert type(model).__name__ == kind and model.get_input_embeddings().num_embeddings == 50
        assert (model.score if "class" in task else model.lm_head).out_features == (4 if "class" in task else 50)
