"""Vision-language-action policies with pretrained backbones, adapters, 4-bit weights and gradient checkpointing."""

import shutil

import pytest
import torch
import transformers
from adapting import disturb, process_of, trained
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from vla_policies import FAMILIES, SIGLIP, TEXT, batch_of, config_of, policy_of

import models.vla
from models import adapt
from models.adapt.saved_model import plain_model


def process(**settings):
    made = process_of(**settings)
    made.llm_loss_weight = 1.0
    return made


def pretrained(folder, family="smolvlm", vocabulary=70):
    """A vision-language model in `folder`, with the numbers of its preprocessor."""
    torch.manual_seed(5)
    fields = {**FAMILIES[family], "text_config": {**FAMILIES[family]["text_config"], "vocab_size": vocabulary}}
    AutoModelForImageTextToText.from_config(AutoConfig.for_model(family, **fields)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}')
    return folder


def language_model(folder):
    torch.manual_seed(6)
    fields = {**TEXT, "vocab_size": 70, "num_hidden_layers": 4, "tie_word_embeddings": True}
    AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **fields)).save_pretrained(folder)
    return folder


AROUND = {"model_type": "smolvlm", "vision_config": SIGLIP, "scale_factor": 2}


def adapted_policy(place, keys=None, **settings):
    given = {"config": None, "target_tokens": 3, **(keys or {})}
    torch.manual_seed(0)
    return adapt.build_adapted(models.vla, config_of(**given), process(model_name_or_path=str(place), **settings))


@torch.no_grad()
def actions(model, batch):
    return model.eval()(**batch)["actions"]


# ---- where weights come from ----


@pytest.mark.slow
@pytest.mark.keys("model_name_or_path")
@pytest.mark.parametrize("family", ["smolvlm", "qwen2_5_vl"])
def test_a_pretrained_backbone_keeps_its_weights(tmp_path, family):
    net = adapted_policy(pretrained(tmp_path, family), {"num_layers": 2}).model
    whole = AutoModelForImageTextToText.from_pretrained(tmp_path)
    theirs, ours = whole.model.state_dict(), net.backbone.vlm.state_dict()
    kept = {name for name in theirs if ".layers.2." not in name or "vis" in name}
    assert ours.keys() == kept and all(torch.equal(ours[name], theirs[name]) for name in kept)
    assert torch.equal(net.backbone.lm_head.weight, whole.lm_head.weight) == (not net.backbone.is_tied)
    assert net.config.image_mean == [0.4, 0.5, 0.6] and net.config.image_std == [0.2, 0.3, 0.4]
    assert net.get_input_embeddings().num_embeddings == 70 and net.loaded_from == str(tmp_path)
    assert net.new_weights == {name for name, _ in net.named_parameters() if not name.startswith("backbone.")}


@pytest.mark.slow
def test_images_are_normalised_as_the_processor_of_the_backbone_says(tmp_path, monkeypatch):
    """transformers 5 saves the numbers in processor_config.json, and they come first; the path may begin with ~."""
    monkeypatch.setenv("HOME", str(tmp_path))
    config = adapted_policy(f"~/{pretrained(tmp_path / 'vlm').name}").model.config
    assert (config.image_mean, config.image_std) == ([0.4, 0.5, 0.6], [0.2, 0.3, 0.4])
    file = tmp_path / "vlm/processor_config.json"
    file.write_text('{"image_processor": {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.7, 0.8, 0.9]}}')
    config = adapted_policy(tmp_path / "vlm").model.config
    assert (config.image_mean, config.image_std) == ([0.1, 0.2, 0.3], [0.7, 0.8, 0.9])
    file.write_text("{")
    with pytest.raises(ValueError, match="processor_config.json of .* cannot be read"):
        adapted_policy(tmp_path / "vlm")


@pytest.mark.slow
def test_a_language_model_becomes_the_text_model_of_a_new_backbone(tmp_path):
    net = adapted_policy(language_model(tmp_path), {"config": AROUND, "num_layers": 3}).model
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).model.state_dict()
    ours = net.backbone.language_model.state_dict()
    assert set(theirs) - set(ours) == {name for name in theirs if name.startswith("layers.3.")}
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert net.backbone.is_tied and not hasattr(net.backbone, "lm_head")
    new = {name for name, _ in net.named_parameters() if "vision_model" in name or "connector" in name}
    assert net.new_weights == new | {name for name, _ in net.named_parameters() if not name.startswith("backbone.")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"config": {**AROUND, "text_config": TEXT}}, "set one of them to null"),
        ({"num_layers": 9}, "num_layers: 9 but the language model has 3"),
    ],
)
def test_settings_that_contradict_a_pretrained_backbone(tmp_path, keys, message):
    with pytest.raises(ValueError, match=message):
        adapted_policy(pretrained(tmp_path), keys)


@pytest.mark.slow
@pytest.mark.keys("model(vla).vocab_size")
@pytest.mark.parametrize("kind", ["smolvlm", "gemma3", "causal language model"])
def test_a_tokenizer_with_more_tokens_than_the_weights(tmp_path, kind):
    """New tokens are the mean of the others in the layers of both ends; an adapter gets them again."""
    is_vlm = kind != "causal language model"
    place = pretrained(tmp_path / "base", kind) if is_vlm else language_model(tmp_path / "base")
    keys = {"vocab_size": 73, "config": None if is_vlm else AROUND}
    adapted = adapted_policy(place, keys, lora_enable=True, lora_module="llm", lora_r=2)
    net = disturb(adapted.model).eval().get_base_model()
    auto = AutoModelForImageTextToText if is_vlm else AutoModelForCausalLM
    theirs = auto.from_pretrained(place).get_input_embeddings().weight
    found = net.get_input_embeddings().weight
    torch.testing.assert_close(found, torch.cat((theirs, theirs.mean(dim=0).expand(3, -1))))
    assert net.backbone.is_tied or net.backbone.lm_head.weight.shape == found.shape
    assert net.notes == [f"3 tokens are new to the language model of {place}"]
    batch = {**batch_of(target=3), "prompt_ids": torch.full_like(batch_of()["prompt_ids"], 72)}
    before = actions(adapted.model, batch)
    adapted.save(tmp_path / "saved")
    torch.testing.assert_close(actions(adapt.load_adapted(tmp_path / "saved", models.vla), batch), before)


def test_backbones_that_are_no_vision_language_models(tmp_path):
    with pytest.raises(ValueError, match="llama without a vision tower.*model.config"):
        adapted_policy(language_model(tmp_path))
    with pytest.raises(ValueError, match="model_name_or_path"):
        policy_of(config=None)
    with pytest.raises(ValueError, match="did you mean `smolvlm`"):
        policy_of(config={"model_type": "smolvml"})
    with pytest.raises(ValueError, match="ViTModel is not built like.*SmolVLM, Idefics3"):
        policy_of(config={"model_type": "vit", **SIGLIP}, num_images=0)


CLIP = {"model_type": "clip_vision_model", **SIGLIP, "projection_dim": 32}
LLAMA = {"model_type": "llama", **TEXT, "vocab_size": 64}
OTHERS = {
    "llava_next": {"vision_config": CLIP, "text_config": LLAMA, "image_token_id": 60},
    "aya_vision": {
        "vision_config": {**SIGLIP, "model_type": "siglip_vision_model"},
        "text_config": {**LLAMA, "model_type": "cohere2"},
    },
    "fuyu": {"text_config": {**LLAMA, "model_type": "persimmon"}},
    "gemma3n": {},
}


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llava", *OTHERS])
def test_other_families_work_or_are_refused_with_the_list(family):
    """Before the first step: images need other arguments, or a part is missing."""
    if family == "llava":
        net = policy_of(config={"model_type": family, **OTHERS["llava_next"]}, target_tokens=2)
        assert net(**batch_of(target=3))["loss"].isfinite()
        return
    with pytest.raises(ValueError, match=f"of type {family} is not built like .*SmolVLM, Idefics3"):
        policy_of(config={"model_type": family, **OTHERS[family]}, target_tokens=2)


# ---- adapters ----


@pytest.mark.slow
@pytest.mark.keys("lora_module", "use_quantization")
@pytest.mark.parametrize("bits", [16, 4])
def test_adapters_with_the_words_of_il_studio(tmp_path, bits):
    """On vision tower, language model and projector, the head trained wholly; the same when saved and merged."""
    place = pretrained(tmp_path / "vlm")
    words = "vit,llm,merger" if bits == 4 else ["vit", "llm", "merger"]
    adapted = adapted_policy(place, lora_enable=True, lora_module=words, use_quantization=bits == 4, bits=bits)
    disturb(adapted.model).train()
    batch = batch_of(target=3)
    adapted.model(**batch)["loss"].backward()
    assert [n for n, weight in adapted.model.named_parameters() if weight.requires_grad and weight.grad is None] == []
    parts = adapted.report({})["parts"]
    assert all(parts[name]["adapted"] for name in ("vision_tower", "projector", "llm"))
    assert bool(parts["llm"]["quantized"]) == (bits == 4)
    assert parts["action_expert, head"]["trained"] == parts["action_expert, head"]["parameters"]
    assert adapted.base_folder is None  # the backbone's place, and the adapter's own weights, are enough
    before = actions(adapted.model, batch)
    adapted.save(tmp_path / "saved")
    loaded = adapt.load_adapted(tmp_path / "saved", models.vla)
    torch.testing.assert_close(actions(loaded, batch), before, atol=1e-5, rtol=1e-5)
    merged = plain_model(tmp_path / "saved", models.vla)
    torch.testing.assert_close(actions(merged, batch), before, atol=1e-4, rtol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    shutil.rmtree(place)  # the merged policy is complete
    complete = models.vla.load(tmp_path / "merged")
    torch.testing.assert_close(actions(complete, batch), actions(merged, batch), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [16, 4])
@pytest.mark.parametrize(("family", "words"), [("smolvlm", "llm,lm_head"), ("paligemma", "llm")])
def test_actions_as_tokens_with_an_adapter(tmp_path, family, words, bits):
    """With an output layer of its own and a tied one; it learns, and is the same when saved and merged."""
    place, keys = pretrained(tmp_path / "vlm", family, 320), {"head": "tokens", "target_tokens": 0}
    adapted = adapted_policy(
        place, keys, lora_enable=True, lora_module=words, lora_r=8, use_quantization=bits == 4, bits=bits
    )
    model, batch = adapted.model.train(), batch_of()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer, losses = torch.optim.AdamW(weights, lr=0.02), []
    for _ in range(25):
        loss = model(**batch)["loss"]
        loss.backward()
        assert all(weight.grad is not None for weight in weights)
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] - 0.1, losses
    assert bool(adapted.report({})["parts"]["llm"]["quantized"]) == (bits == 4)
    with torch.no_grad():
        before = model.eval()(**batch)
        adapted.save(tmp_path / "saved")
        loaded = adapt.load_adapted(tmp_path / "saved", models.vla)(**batch)
        merged = plain_model(tmp_path / "saved", models.vla).eval()(**batch)
    assert torch.equal(loaded["actions"], before["actions"])
    torch.testing.assert_close(loaded["loss"], before["loss"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(merged["loss"], before["loss"], atol=1e-3, rtol=1e-3)


@pytest.mark.slow
def test_what_nothing_depends_on_gets_no_adapter(tmp_path):
    """Without texts the last layer serves its keys and values alone."""
    model = adapted_policy(
        pretrained(tmp_path), {"target_tokens": 0}, lora_enable=True, lora_module="llm"
    ).model.train()
    model(**batch_of())["loss"].backward()
    assert [n for n, weight in model.named_parameters() if weight.requires_grad and weight.grad is None] == []
    last = {name.split("layers.2.")[1].split(".lora")[0] for name in trained(model) if "text_model.layers.2." in name}
    assert last == {"self_attn.k_proj", "self_attn.v_proj"}


@pytest.mark.slow
@pytest.mark.keys("freeze_backbone", "freeze_vision_tower", "tune_mm_mlp_adapter", "freeze")
@pytest.mark.parametrize("family", ["smolvlm", "qwen3_vl"])
def test_freezing_by_part(tmp_path, family):
    place = pretrained(tmp_path, family)
    names = trained(adapted_policy(place).model)
    outside = {name for name in names if not name.startswith("backbone.")}
    assert trained(adapted_policy(place, freeze_backbone=True).model) == outside
    projector = {name for name in names if "merger" in name or "connector" in name}
    assert trained(adapted_policy(place, freeze_backbone=True, tune_mm_mlp_adapter=True).model) == outside | projector
    without_tower = trained(adapted_policy(place, freeze_vision_tower=True).model)
    tower = {name for name in names if "visual" in name or "vision_model" in name} - projector
    assert without_tower == names - tower and projector <= without_tower
    assert trained(adapted_policy(place, freeze=["llm", "lm_head"]).model) == outside | tower | projector


# ---- memory ----


@pytest.mark.slow
@pytest.mark.parametrize("family", ["smolvlm", "gemma3", "qwen3_vl"])
def test_checkpointed_layers_give_the_same_gradients(family):
    net, batch = policy_of(family, target_tokens=3).train(), batch_of(target=3)
    gradients, runs = [], []
    for enable in (False, True):
        net.zero_grad()
        if enable:
            net.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            for layer in net.backbone.language_model.layers:
                layer.self_attn.register_forward_pre_hook(lambda *_: runs.append(1))
        torch.manual_seed(0)
        net(**batch)["loss"].backward()
        gradients.append({name: weight.grad.clone() for name, weight in net.named_parameters()})
    assert len(runs) == 2 * 3 * 3  # prefix, state and text, in three layers, twice
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)
    net.gradient_checkpointing_disable()
    runs.clear()
    net(**batch)["loss"].backward()
    assert len(runs) == 3 * 3


@pytest.mark.slow
@pytest.mark.keys("flash_attn", "weights_dtype")
def test_attention_and_type(tmp_path, flash, monkeypatch):
    """Flash attention serves the vision tower: the masks of the language model are SDPA's."""
    asked = []
    tower = transformers.SmolVLMVisionTransformer if hasattr(transformers, "SmolVLMVisionTransformer") else None
    tower = tower or type(policy_of().backbone.vlm.vision_model)
    monkeypatch.setattr(tower, "set_attn_implementation", lambda self, name: asked.append(name))
    adapted = adapted_policy(pretrained(tmp_path), flash_attn=True, weights_dtype="bfloat16")
    assert asked == ["flash_attention_2"] and adapted.effective == {"attention": "flash_attention_2"}
    assert any("vision tower" in line for line in adapted.lines)
    assert adapted.model.backbone.language_model.config._attn_implementation == "sdpa"
    assert {weight.dtype for weight in adapted.model.parameters()} == {torch.bfloat16}
    assert actions(adapted.model, batch_of(target=3)).dtype == torch.bfloat16
    state = adapted_policy(
        tmp_path, {"num_images": 0, "image_height": 0, "image_width": 0}, flash_attn=True, weights_dtype="bfloat16"
    )
    assert state.effective == {"attention": "sdpa"} and "vision tower" in state.lines[0]
