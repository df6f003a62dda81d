"""Adapting a model without quantization: parts, freezing, LoRA against plain PEFT, weights from elsewhere, files."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import peft
import pytest
import torch
from adapting import HEADS, MODULES, batch_of, build_adapted, config_of, disturb, outputs, plain, process_of, trained
from safetensors.torch import load_file, save_file

import models.act
import models.mlp
from models import adapt
from models.adapt.saved_model import plain_model
from models.adapt.submodules import base_name, parts_of

ROOT = Path(__file__).resolve().parents[2]
every_model = pytest.mark.parametrize("name", list(MODULES))


# ---- nothing asked, nothing done ----


@every_model
def test_without_adaptation_the_model_is_the_built_one(name):
    adapted = build_adapted(name)
    torch.testing.assert_close(outputs(adapted.model, name), outputs(plain(name), name), rtol=0, atol=0)
    assert adapted.lines == [] and adapted.groups == [] and adapted.effective == {"attention": "sdpa"}
    assert trained(adapted.model) == {each for each, _ in adapted.model.named_parameters()}


@pytest.mark.slow
def test_importing_is_light():
    heavy = "torch", "transformers", "peft", "bitsandbytes"
    code = "import sys, models.adapt, models.export\n"
    code += f"print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- parts and freezing ----


def matching(model, regex):
    return {name for name, _ in model.named_parameters() if re.search(regex, name)}


def test_derived_parts_of_foreign_models():
    assert set(parts_of(plain("llama"), {})) == {"llm", "backbone", "embeddings", "head"}
    model = plain("vit")
    parts = parts_of(model, None)
    assert set(parts) == {"vision_tower", "backbone", "embeddings", "head"}
    heads = matching(model, parts["head"])
    assert heads == {"classifier.weight", "classifier.bias"}
    assert matching(model, parts["vision_tower"]) == {name for name, _ in model.named_parameters()} - heads


@pytest.mark.keys("freeze")
@pytest.mark.parametrize(
    ("word", "frozen"),
    [
        ("encoder", r"^(encoder|token_positions)\."),  # a part
        ("query", r"\.query\."),  # every module of that name
        ("decoder.layers.0.norm_missing|^head", "^head"),  # a regular expression
        ("head.bias", "^head.bias$"),  # a parameter
    ],
)
def test_freeze_by_part_module_regex_and_parameter(word, frozen):
    model = build_adapted("act", freeze=[word]).model
    assert trained(model) == {name for name, _ in model.named_parameters()} - matching(model, frozen)


@pytest.mark.keys("freeze_backbone")
def test_frozen_weights_stay_and_the_others_move():
    adapted = build_adapted("llama", freeze_backbone=True)
    before = {each: value.clone() for each, value in adapted.model.named_parameters()}
    adapted.model.train()(**batch_of("llama"))["loss"].backward()
    torch.optim.SGD([p for p in adapted.model.parameters() if p.requires_grad], lr=0.1).step()
    moved = {each for each, value in adapted.model.named_parameters() if not torch.equal(value, before[each])}
    assert moved == {"lm_head.weight"}


IMAGES = {"num_images": 1, "image_height": 32, "image_width": 32, "backbone": "resnet10"}


@pytest.mark.slow
@pytest.mark.keys("freeze_vision_tower", "tune_mm_mlp_adapter")
def test_freeze_vision_tower_and_tune_the_projector():
    model = build_adapted("act", IMAGES, freeze_vision_tower=True).model
    assert not matching(model, "^backbone") & trained(model)
    model = build_adapted("act", freeze=["projector", "cvae_encoder"], tune_mm_mlp_adapter=True).model
    parts = {name.split(".")[0] for name in trained(model)}
    assert {"state_projection", "latent_projection"} <= parts and "cvae_encoder" not in parts


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("act", {"freeze": ["encodr"]}, "`freeze: encodr`.*: backbone.*`encoder`"),  # its parts, the nearest
        ("act", {"freeze": ["encode"]}, "`freeze: encode`"),  # a mistyped part is not read as a regular expression
        ("act", {"freeze": ["("]}, "`freeze: .`"),
        ("act", {"freeze_backbone": True}, "`freeze_backbone: backbone`"),  # built without images
        ("llama", {"freeze_vision_tower": True}, "`freeze_vision_tower: vision_tower`"),
        ("vit", {"tune_mm_mlp_adapter": True}, "`tune_mm_mlp_adapter: projector`"),
        ("act", {"freeze": ["."]}, "`freeze: .`"),
        ("act", {"freeze": [".*"]}, "every weight is frozen"),
        ("llama", {"lora_enable": True, "lora_module": "q_projj"}, "`lora_module: q_projj`.*`q_proj`"),
        ("llama", {"lora_enable": True, "freeze_backbone": True}, "`lora_module: all-linear`"),
        ("act", {"lora_enable": True, "lora_task_type": "CAUSAL"}, "`lora_task_type: CAUSAL`.*`CAUSAL_LM`"),
        ("act", {"lora_enable": True, "lora_options": {"use_rslore": True}}, "`lora_options.use_rslore`.*`use_rslora`"),
        ("act", {"lora_enable": True, "lora_options": {"r": 3}}, "`lora_options.r`.*`lora_r`"),
        ("act", {"lora_enable": True, "lora_options": {"use_dora": True}, "lora_module": "cvae_encoder.posterior"},
         "use_dora.*cvae_encoder.posterior"),
    ],
)  # fmt: skip
def test_errors_name_the_key_and_the_remedy(name, settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        build_adapted(name, **settings)
    assert "\n" not in str(caught.value)


# ---- LoRA ----


def linears(model):
    return {each for each, module in model.named_modules() if type(module) is torch.nn.Linear}


@pytest.mark.slow
@pytest.mark.keys("lora_enable")
@every_model
def test_all_linear_by_hand(name):
    adapted, net, head = build_adapted(name, lora_enable=True), plain(name), HEADS[name]
    sizes = [net.get_submodule(linear) for linear in linears(net) - {head}]
    by_hand = sum(4 * (size.in_features + size.out_features) for size in sizes)
    total = adapted.report({})["total"]
    assert total["adapter"] == by_hand and total["adapted"] == len(sizes)
    assert total["parameters"] == sum(parameter.numel() for parameter in net.parameters())
    assert total["trained"] == sum(each.numel() for each in net.get_submodule(head).parameters())  # a new head
    assert trained(adapted.model) == {
        each for each, _ in adapted.model.named_parameters() if ".lora_" in each or "modules_to_save" in each
    }


@pytest.mark.slow
@pytest.mark.keys("lora_options")
@every_model
@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"use_dora": True}])
def test_equals_plain_peft(name, options):
    adapted = build_adapted(name, lora_enable=True, lora_options=options)
    net, head = plain(name), HEADS[name]
    without = {head, "cvae_encoder.posterior"} if "use_dora" in options else {head}  # zeros have no direction
    pattern = "|".join(map(re.escape, sorted(linears(net) - without)))
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=f"({pattern})", modules_to_save=[head], **options)
    reference = peft.PeftModel(net, config)
    ours, theirs = dict(adapted.model.named_parameters()), dict(reference.named_parameters())
    assert ours.keys() == theirs.keys() and trained(adapted.model) == trained(reference)
    for our in ours:
        assert torch.equal(ours[our], theirs[our]), our
    disturb(adapted.model)
    disturb(reference)
    torch.testing.assert_close(outputs(adapted.model, name), outputs(reference, name), rtol=0, atol=1e-6)
    for model in (adapted.model, reference):
        torch.manual_seed(1)
        model.train()(**batch_of(name))["loss"].backward()
    for each in trained(reference):
        torch.testing.assert_close(ours[each].grad, theirs[each].grad)


@pytest.mark.slow
@every_model
def test_the_adapter_loads_in_plain_peft(name, tmp_path):
    adapted = build_adapted(
        name, lora_enable=True, lora_task_type="CAUSAL_LM" if name == "llama" else "FEATURE_EXTRACTION"
    )
    disturb(adapted.model)
    adapted.save(tmp_path)
    expected = outputs(adapted.model, name)
    base = MODULES[name].load(tmp_path / "base")
    reloaded = peft.PeftModel.from_pretrained(base, str(tmp_path))
    torch.testing.assert_close(outputs(reloaded, name), expected, rtol=0, atol=1e-6)
    if name == "act":  # by the adapter's folder alone
        auto = peft.AutoPeftModel.from_pretrained(str(tmp_path), import_allowlist=["models.act.network"])
        torch.testing.assert_close(outputs(auto, name), expected, rtol=0, atol=1e-6)
    again = adapt.load_adapted(tmp_path, MODULES[name])
    assert not again.training and not any(parameter.requires_grad for parameter in again.parameters())
    torch.testing.assert_close(outputs(again, name), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(outputs(plain_model(tmp_path, MODULES[name]), name), expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_policies_act_and_language_models_write_under_lora():
    policy = build_adapted("act", lora_enable=True).model.eval()
    policy.reset()
    assert policy.select_action({"state": torch.zeros(1, 6)}).shape == (3,)
    language = build_adapted("llama", lora_enable=True).model.eval()
    assert language.generate(input_ids=torch.tensor([[1, 2]]), max_new_tokens=3, do_sample=False).shape == (1, 5)


def adapted_layers(model):
    return {base_name(name).removesuffix(".lora_A.default.weight") for name in trained(model) if "lora_A" in name}


@pytest.mark.slow
@pytest.mark.keys("lora_module")
@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("cvae_encoder", r"^cvae_encoder\."),
        ("query", r"\.query$"),
        (["query", "encoder.layers.0.attention.value"], r"(\.query|encoder\.layers\.0\.attention\.value)$"),
        (r"^decoder\..*(key|value)$", r"^decoder\..*(key|value)$"),
        ("encoder", r"^encoder\."),  # cvae_encoder.encoder is another part
    ],
)
def test_lora_module_takes_parts_names_regexes_and_lists(word, expected):
    model = build_adapted("act", lora_enable=True, lora_module=word).model
    assert adapted_layers(model) == {name for name in linears(plain("act")) if re.search(expected, name)}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "changes", "linear"), [("act", IMAGES, False), ("vit", {}, True)])
def test_a_vision_tower_without_linear_layers_has_its_convolutions_adapted(name, changes, linear):
    by_alias, by_name = (
        adapted_layers(build_adapted(name, changes, lora_enable=True, lora_module=word).model)
        for word in ("vit", "vision_tower")
    )
    net = build_adapted(name, changes).model
    kinds = {type(net.get_submodule(layer)) for layer in by_name}
    assert by_alias == by_name and kinds == {torch.nn.Linear if linear else torch.nn.Conv2d}


@pytest.mark.slow
def test_frozen_parts_get_no_adapter_and_the_projector_trains_whole():
    adapted = build_adapted("act", lora_enable=True, freeze=["decoder", "head"], tune_mm_mlp_adapter=True)
    names = {base_name(each).split(".")[0] for each in trained(adapted.model)}
    assert names == {"encoder", "cvae_encoder", "state_projection", "latent_projection"}
    whole = {each for each in trained(adapted.model) if "modules_to_save" in each}
    assert sum("latent_projection" in name for name in whole) == 2  # its weight and bias
    assert any("cvae_encoder.state_projection` is trained too" in line for line in adapted.lines)


@pytest.mark.slow
@pytest.mark.keys("lora_bias")
def test_lora_bias_trains_biases_except_frozen_ones():
    adapted = build_adapted("act", lora_enable=True, lora_bias="all", freeze=["decoder"])
    biases = {base_name(each) for each in trained(adapted.model) if each.endswith(".bias")}
    assert "encoder.layers.0.feedforward.0.bias" in biases and "decoder" not in {name.split(".")[0] for name in biases}


@pytest.mark.slow
@pytest.mark.keys("lora_lr")
def test_lora_lr_is_a_group_over_the_adapter_only():
    adapted = build_adapted("llama", lora_enable=True, lora_lr=0.5)
    (group,) = adapted.groups
    hits = {each for each in trained(adapted.model) if re.search(group.pattern, each)}
    assert group.lr == 0.5 and hits == {each for each in trained(adapted.model) if "lora_" in each}
    assert trained(adapted.model) - hits == {"base_model.model.lm_head.modules_to_save.default.weight"}


@pytest.mark.slow
@every_model
def test_parts_cover_the_names_of_a_peft_model(name):
    before, after = build_adapted(name), build_adapted(name, lora_enable=True)
    assert before.parts.keys() == after.parts.keys()
    for part, regex in after.parts.items():
        names = {base_name(name) for name in matching(after.model, regex) if "lora_" not in name}
        assert matching(before.model, before.parts[part]) == names, part


@pytest.mark.slow
@pytest.mark.keys("lora_weight_path")
def test_lora_weight_path_starts_from_an_adapter(tmp_path):
    first = build_adapted("llama", lora_enable=True, lora_r=2, lora_alpha=6.0)
    disturb(first.model)
    first.save(tmp_path)
    second = build_adapted("llama", lora_enable=True, lora_weight_path=str(tmp_path))
    torch.testing.assert_close(outputs(second.model, "llama"), outputs(first.model, "llama"), rtol=0, atol=1e-6)
    assert trained(second.model) == trained(first.model)
    assert any("r 2, alpha 6" in line for line in second.lines)
    for key, value in (("lora_r", 3), ("lora_module", "q_proj")):
        with pytest.raises(ValueError, match=f"`{key}: {value}`.*lora_weight_path"):
            build_adapted("llama", lora_enable=True, lora_weight_path=str(tmp_path), **{key: value})


@pytest.mark.slow
def test_a_tied_head_is_no_new_head(tmp_path):
    adapted = build_adapted("llama", {"tie_word_embeddings": True}, lora_enable=True)
    assert any("tied to the embeddings" in line for line in adapted.lines)
    assert all("lora_" in each for each in trained(adapted.model))
    words = ["embed_tokens", "q_proj"]
    both = build_adapted("llama", {"tie_word_embeddings": True}, lora_enable=True, lora_module=words)
    disturb(both.model)
    both.save(tmp_path / "run")
    merged = plain_model(tmp_path / "run", MODULES["llama"])
    merged.save_pretrained(tmp_path / "merged")  # and loads as two weights again
    for model in (merged, MODULES["llama"].load(tmp_path / "merged")):
        torch.testing.assert_close(outputs(model, "llama"), outputs(both.model, "llama"), rtol=0, atol=1e-5)


# ---- saving and resuming ----


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"lora_enable": True}, {"freeze": ["head"]}])
@every_model
def test_resume_restores_the_trained_weights(name, settings, tmp_path):
    first = build_adapted(name, **settings)
    disturb(first.model)
    first.save(tmp_path)
    again = build_adapted(name, **settings)
    again.load(tmp_path)
    for each, value in first.model.named_parameters():
        assert torch.equal(value, dict(again.model.named_parameters())[each]), each
    with pytest.raises(ValueError, match="first"):
        # A network of another size: its weights do not fit.
        other = {
            "act": {"hidden_dim": 8},
            "gpt": {"n_embd": 32},
            "llama": {"hidden_size": 32},
            "vit": {"hidden_size": 16},
        }[name]
        build_adapted(name, other, **settings).load(tmp_path)


@pytest.mark.slow
def test_resume_refuses_missing_and_unexpected_weights_and_another_base(tmp_path):
    adapted = build_adapted("llama", lora_enable=True)
    adapted.save(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    state = load_file(file)
    gone = min(state)
    save_file({each: value for each, value in state.items() if each != gone}, file)
    with pytest.raises(ValueError, match=f"1 weights, first {re.escape(gone)}"):
        adapted.load(tmp_path)
    save_file({**state, "more": state[gone].clone()}, file)
    with pytest.raises(ValueError, match="first more"):
        adapted.load(tmp_path)
    torch.manual_seed(1)
    other = adapt.build_adapted(MODULES["llama"], config_of("llama"), process_of(lora_enable=True))
    with pytest.raises(ValueError, match="base.*`seed`"):
        other.load(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("links", [True, False])
def test_the_base_is_written_once_and_linked_or_else_copied(links, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    adapted = build_adapted("act", lora_enable=True)
    for step in (1, 2, 3):
        adapted.save(tmp_path / f"checkpoint-{step}")
    inodes = [os.stat(path).st_ino for path in tmp_path.glob("*/base/model.safetensors")]
    assert len(inodes) == 3 and len(set(inodes)) == (1 if links else 3)
    settings = json.loads((tmp_path / "checkpoint-1/adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(tmp_path / "checkpoint-1/base")
    expected = outputs(adapted.model, "act")
    (tmp_path / "checkpoint-2").rename(tmp_path / "moved")
    torch.testing.assert_close(outputs(adapt.load_adapted(tmp_path / "moved", models.act), "act"), expected)


@pytest.mark.slow
def test_weights_given_are_the_ones_saved(tmp_path):
    adapted = build_adapted("act", lora_enable=True)
    zeros = {each: torch.zeros_like(value) for each, value in adapted.model.state_dict().items()}
    adapted.save(tmp_path, zeros)
    assert all(not value.any() for value in load_file(tmp_path / "adapter_model.safetensors").values())


# ---- first weights from elsewhere ----


@pytest.mark.slow
@pytest.mark.keys("is_pretrained")
@pytest.mark.parametrize("settings", [{}, {"lora_enable": True}])
def test_is_pretrained_takes_all_weights_adapters_merged(settings, tmp_path):
    first = build_adapted("act", **settings)
    disturb(first.model)
    first.save(tmp_path)
    earlier = process_of(model_name_or_path=str(tmp_path), is_pretrained=True)
    torch.manual_seed(5)
    second = adapt.build_adapted(models.act, config_of("act"), earlier)
    torch.testing.assert_close(outputs(second.model, "act"), outputs(first.model, "act"), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="`is_pretrained`: .*queries.weight: 5×16 .*4×16"):
        adapt.build_adapted(models.act, config_of("act", chunk_size=4), earlier)


@pytest.mark.slow
@pytest.mark.keys("load_pretrain")
def test_load_pretrain_takes_what_fits_and_new_heads_train_whole_under_lora(tmp_path):
    first = build_adapted("act")
    first.save(tmp_path)
    earlier = {"model_name_or_path": str(tmp_path), "load_pretrain": True}
    adapted = build_adapted("act", {"action_dim": 4}, **earlier)
    ours, theirs = adapted.model.state_dict(), first.model.state_dict()
    differing = {name for name in ours if ours[name].shape != theirs[name].shape}
    assert differing == {"head.weight", "head.bias", "cvae_encoder.action_projection.weight"}
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if name not in differing)
    assert "3 stay new: cvae_encoder.action_projection.weight" in adapted.lines[0]
    with_lora = build_adapted("act", {"action_dim": 4}, **earlier, lora_enable=True).model
    assert {"head.weight", "head.bias"} <= {base_name(name) for name in trained(with_lora) if "modules_to_save" in name}
    with pytest.raises(ValueError, match=f"`load_pretrain`.*{tmp_path}"):
        small = {"hidden_dim": 8, "feedforward_dim": 12, "latent_dim": 2, "action_dim": 2, "state_dim": 5}
        build_adapted("act", small, **earlier)


@pytest.mark.slow
@pytest.mark.keys("weights_dtype")
@pytest.mark.parametrize("name", ["act", "llama"])
@pytest.mark.parametrize("lora", [False, True])
def test_weights_dtype(name, lora, tmp_path):
    adapted = build_adapted(name, weights_dtype="bfloat16", lora_enable=lora)
    kinds = {value.dtype for each, value in adapted.model.named_parameters() if "lora_" not in each}
    assert kinds == {torch.bfloat16}
    adapted.model.train()(**batch_of(name))["loss"].backward()
    adapted.save(tmp_path)
    again = adapt.load_adapted(tmp_path, MODULES[name])
    assert torch.equal(outputs(again, name), outputs(adapted.model, name))


# ---- attention ----


@pytest.mark.keys("flash_attn")
def test_flash_attention_in_our_own_attention(flash):
    adapted = build_adapted("act", weights_dtype="bfloat16", flash_attn=True)
    assert adapted.effective == {"attention": "flash_attention_2"} and adapted.lines == []
    found = outputs(adapted.model, "act")
    assert flash
    torch.testing.assert_close(
        found, outputs(build_adapted("act", weights_dtype="bfloat16").model, "act"), rtol=0, atol=0.05
    )
    count = len(flash)
    outputs(adapted.model.float(), "act")
    assert len(flash) == count  # full precision uses another implementation
    attention = adapted.model.bfloat16().cvae_encoder.encoder.layers[0].attention
    tokens = torch.randn(2, 7, 16, dtype=torch.bfloat16)
    attention(tokens, tokens, tokens, torch.zeros(2, 7, dtype=torch.bool))
    assert len(flash) == count  # and so does a mask


@pytest.mark.parametrize(
    ("capability", "dtype", "reason"),
    [((7, 5), "bfloat16", "below 8.0"), ((8, 0), None, "bfloat16 or float16"), (None, "bfloat16", "not installed")],
)
def test_flash_attention_falls_back_with_one_line(flash, monkeypatch, capability, dtype, reason):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    if capability is None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    adapted = build_adapted("act", weights_dtype=dtype, flash_attn=True)
    (line,) = adapted.lines
    assert line.startswith("flash_attn: ") and reason in line and line.endswith("; SDPA is used")
    outputs(adapted.model, "act")
    assert not flash and adapted.effective == {"attention": "sdpa"}


# ---- reports and checks ----


@pytest.mark.slow
def test_report_by_hand(tmp_path):
    adapted = build_adapted("vit", lora_enable=True, lora_module="q_proj", lora_lr=0.01)
    rates = {each: 0.01 if "lora_" in each else 0.001 for each in trained(adapted.model)}
    found = adapted.report(rates)
    tower = found["parts"]["vision_tower, backbone"]
    assert tower["adapter"] == 4 * (32 + 32) and tower["adapted"] == 1 and tower["learning_rate"] == [0.01]
    head = found["parts"]["head"]
    assert head["parameters"] == head["trained"] == 32 * 3 + 3 and head["learning_rate"] == [0.001]
    assert head["bytes"] == 2 * 4 * 99  # with the untouched copy that PEFT keeps
    numbers = sum(parameter.numel() for parameter in adapted.model.parameters())
    assert found["total"]["bytes"] == 4 * numbers
    assert found["lora"]["modules"] == ["vit.layers.0.attention.q_proj"]
    table = adapted.table(rates)
    assert len(table) == len(found["parts"]) + 2 and len({len(line) for line in table}) == 1
    adapted.save(tmp_path)
    assert json.loads((tmp_path / "adaptation.json").read_text()) == json.loads(json.dumps(found))


@pytest.mark.parametrize(
    ("settings", "keys"),
    [
        ({}, []),
        ({"is_pretrained": True, "load_pretrain": True, "model_name_or_path": str(ROOT)}, ["is_pretrained"]),
        ({"load_pretrain": True}, ["load_pretrain"]),
        ({"is_pretrained": True, "model_name_or_path": "./missing"}, ["model_name_or_path: ./missing"]),
        ({"model_name_or_path": "a/b"}, ["model_name_or_path: a/b"]),
        ({"use_quantization": True}, ["use_quantization"]),
        ({"freeze": ["llm", "head"]}, ["freeze"]),
        ({"lora_enable": True, "lora_weight_path": "./missing"}, ["lora_weight_path: ./missing"]),
        ({"lora_enable": True, "lora_module": ["llm"]}, ["lora_module"]),
        ({"lora_enable": True, "lora_module": []}, ["lora_module"]),
    ],
)
def test_check_names_the_key_of_each_contradiction(settings, keys):
    lines = adapt.check(models.act.PARTS, process_of(**settings), models.mlp.PROCESS_KEYS)
    assert [line.split("`")[1] for line in lines] == keys


def test_check_names_missing_parts_and_packages(monkeypatch):
    asked = process_of(freeze_backbone=True, freeze_vision_tower=True, tune_mm_mlp_adapter=True)
    lines = adapt.check({"head": "^head"}, asked)
    assert [line.split("`")[1] for line in lines] == ["freeze_vision_tower", "freeze_backbone", "tune_mm_mlp_adapter"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    lines = adapt.check(models.act.PARTS, process_of(use_quantization=True, bits=4, lora_enable=True))
    assert "pip install bitsandbytes" in lines[0] and "pip install peft" in lines[1]


@pytest.mark.slow
def test_dora_leaves_out_weights_without_a_direction():
    """The norm of a row of zeros would be divided by: a loss of NaN at every step."""
    adapted = build_adapted("act", lora_enable=True, lora_options={"use_dora": True})
    assert any("cvae_encoder.posterior without an adapter" in line for line in adapted.lines)
    loss = adapted.model.train()(**batch_of("act"))["loss"]
    assert torch.isfinite(loss)


@pytest.mark.slow
def test_bases_of_killed_processes_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    gone = subprocess.Popen(["true"])
    gone.wait()
    (tmp_path / f"keel-base-{gone.pid}-abc").mkdir()
    (tmp_path / f"keel-base-{os.getppid()}-abc").mkdir()
    build_adapted("act", lora_enable=True)
    left = {path.name for path in tmp_path.iterdir() if not path.name.startswith(f"keel-base-{os.getpid()}-")}
    assert left == {f"keel-base-{os.getppid()}-abc"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stored", "lora", "name", "component"),
    [("llama", False, "act", "auto"), ("llama", True, "act", "auto"), ("act", False, "llama", "act")],
)
def test_a_checkpoint_of_another_component_names_it(stored, lora, name, component, tmp_path):
    build_adapted(stored, lora_enable=lora).save(tmp_path)
    for file in ("adaptation.json", "config.json"):  # without the first, the second says it
        if not (lora or component == "act") or file == "adaptation.json":
            with pytest.raises(ValueError, match=f"--set model.name={component}"):
                build_adapted(name, is_pretrained=True, model_name_or_path=str(tmp_path))
            (tmp_path / file).unlink()
