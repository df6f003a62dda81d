"""`model: {name: auto}`: models of transformers from a configuration or a folder."""

import typing

import pytest
import torch
import transformers
from adapting import LLAMA, batch_of, build_adapted, config_of, disturb, outputs, process_of, trained

import models.auto
from models import adapt
from models.adapt.submodules import base_name


def build(config, **settings):
    torch.manual_seed(0)
    return models.auto.build(config, process_of(**settings))


def test_every_task_is_a_class_of_transformers():
    tasks = typing.get_args(models.auto.config.Task)
    assert models.auto.config.class_name("causal_lm") == "AutoModelForCausalLM"
    assert models.auto.config.class_name("seq2seq_lm") == "AutoModelForSeq2SeqLM"
    for task in tasks:
        assert hasattr(transformers, models.auto.config.class_name(task)), task


def test_a_new_model_is_transformers_own():
    model = build(config_of("llama"))
    torch.manual_seed(0)
    own = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**{k: v for k, v in LLAMA.items() if k != "model_type"}, vocab_size=96)
    )
    torch.testing.assert_close(outputs(model, "llama"), outputs(own, "llama"), rtol=0, atol=0)
    assert model(**batch_of("llama"))["loss"].isfinite()


def test_sizes_come_from_the_data():
    assert build(config_of("vit")).classifier.out_features == 3
    assert build(config_of("llama")).lm_head.out_features == 96
    with pytest.raises(ValueError, match="`model.config.vocab_size: 50` contradicts 96"):
        build(config_of("llama", vocab_size=50))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "lama"}, "`model.config.model_type: lama`.*`llama`"),
        ({"model_type": "llama", "hiden_size": 4}, "`model.config.hiden_size`.*`hidden_size`"),
        ({"model_type": "vit"}, "`model.config`.*AutoModelForCausalLM"),
        ({"model_type": "llama", "hidden_size": 10, "num_attention_heads": 4}, "`model.config`"),
        ({"hidden_size": 4}, "model.config.*model_type"),
        (None, "`model_name_or_path`.*`model.config`"),
    ],
)
def test_configurations_that_cannot_be_built(config, message):
    with pytest.raises(ValueError, match=message) as caught:
        build(models.auto.Config(config=config))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.keys("model_name_or_path")
def test_a_pretrained_model_keeps_its_vocabulary(tmp_path):
    """Padded beyond the data's tokens it is kept; data with more tokens never gets a new, random embedding."""
    first, place = build(config_of("llama")), {"model_name_or_path": str(tmp_path)}  # 96 tokens
    first.save_pretrained(tmp_path)
    assert torch.equal(outputs(models.auto.load(tmp_path), "llama"), outputs(first, "llama"))
    for size in (96, 90, None):
        again = build(models.auto.Config(vocab_size=size), **place)
        assert again.config.vocab_size == 96 and again.new_weights == set()
        torch.testing.assert_close(outputs(again, "llama"), outputs(first, "llama"), rtol=0, atol=0)
    for settings in ({}, {"is_pretrained": True}):
        with pytest.raises(ValueError, match=f"97 tokens.*`model_name_or_path: {tmp_path}` knows 96") as caught:
            build(models.auto.Config(vocab_size=97), **place, **settings)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="`model.config`.*`model_name_or_path`"):
        build(config_of("llama"), **place)


@pytest.mark.slow
def test_a_checkpoint_of_ours_keeps_its_padded_vocabulary(tmp_path):
    first = build_adapted("llama")
    first.save(tmp_path)
    process = {"model_name_or_path": str(tmp_path)}
    config = models.auto.Config(vocab_size=90)
    second = adapt.build_adapted(models.auto, config, process_of(is_pretrained=True, **process))
    torch.testing.assert_close(outputs(second.model, "llama"), outputs(first.model, "llama"), rtol=0, atol=0)
    # `load_pretrain` takes what fits, and says what does not.
    larger = adapt.build_adapted(
        models.auto, models.auto.Config(vocab_size=97), process_of(load_pretrain=True, **process)
    )
    assert larger.model.config.vocab_size == 97 and "stay new: model.embed_tokens.weight" in larger.lines[0]


def test_a_hub_id_that_cannot_be_reached(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="`model_name_or_path: nobody/nothing` cannot be loaded") as caught:
        build(models.auto.Config(), model_name_or_path="nobody/nothing", cache_dir=str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("quantized", [False, True])
def test_a_new_head_on_a_pretrained_trunk_is_saved_with_the_adapter(quantized, tmp_path):
    """As from a hub: the base stays where it is, and the head that it lacks comes with the adapter."""
    build(config_of("llama")).save_pretrained(tmp_path / "hub")
    extra = {"use_quantization": True, "bits": 4} if quantized else {}
    torch.manual_seed(0)
    adapted = adapt.build_adapted(
        models.auto,
        models.auto.Config(task="sequence_classification", num_labels=5),
        process_of(model_name_or_path=str(tmp_path / "hub"), lora_enable=True, lora_task_type="SEQ_CLS", **extra),
    )
    adapted.model.config.pad_token_id = adapted.model.get_base_model().config.pad_token_id = 0
    assert "score.weight" in {base_name(each) for each in trained(adapted.model)}
    disturb(adapted.model)

    @torch.no_grad()
    def scores(model):
        return model.eval()(input_ids=batch_of("llama")["input_ids"])["logits"]

    expected = scores(adapted.model)
    adapted.save(tmp_path / "run")
    assert not (tmp_path / "run/base").exists()
    again = adapt.load_adapted(tmp_path / "run", models.auto)
    torch.testing.assert_close(scores(again), expected, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_our_own_checkpoints_give_their_architecture(tmp_path):
    first = build_adapted("llama", lora_enable=True)
    disturb(first.model)
    first.save(tmp_path)
    torch.manual_seed(4)
    second = adapt.build_adapted(
        models.auto, models.auto.Config(), process_of(model_name_or_path=str(tmp_path), is_pretrained=True)
    )
    torch.testing.assert_close(outputs(second.model, "llama"), outputs(first.model, "llama"), rtol=0, atol=1e-5)


OTHERS = {
    "llama": {**LLAMA, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1},
    "bloom": {"hidden_size": 32, "n_layer": 1, "n_head": 2},
    "opt": {"hidden_size": 32, "ffn_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
    "mamba": {"hidden_size": 16, "num_hidden_layers": 1},
    "phi3": {**LLAMA, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1},
    "gemma": {**LLAMA, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 8},
}


@pytest.mark.keys("model(auto).packed")
@pytest.mark.parametrize(
    ("name", "separates"), [("llama", True), ("phi3", True), ("bloom", False), ("opt", False), ("mamba", False)]
)
def test_models_that_read_a_packed_row_as_one_text(name, separates):
    """Compared with each text alone; what reads a row as one text is refused, unless each has a row of its own."""
    config = models.auto.Config(config={**OTHERS[name], "model_type": name}, vocab_size=96, packed=False)
    model = build(config).eval()
    model.config.use_cache = False
    first, second = torch.arange(16).view(2, 1, 8)
    positions = torch.arange(8)[None]
    with torch.no_grad():
        alone = model(input_ids=second, position_ids=positions).logits
        row = torch.cat((first, second), dim=1)
        packed = model(input_ids=row, position_ids=positions.repeat(1, 2)).logits[:, 8:]
    assert torch.allclose(alone, packed, atol=1e-5) == separates
    config.packed = True
    if separates:
        build(config)
    else:
        with pytest.raises(ValueError, match=f"`dataset.packing: true`: a {name} "):
            build(config)


@pytest.mark.parametrize("name", ["llama", "phi3", "gemma"])
def test_special_tokens_of_an_architecture_are_letters_to_the_data(name):
    """They end no text, their embeddings are trained, and a vocabulary that lacks them is no error."""
    config = {**OTHERS[name], "model_type": name}
    model = build(models.auto.Config(config=config, vocab_size=65))
    assert model.generation_config.eos_token_id is None
    tokens = torch.tensor([[0, 1, 2, 3]])
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())  # untied: gradients as an input alone
    model(input_ids=tokens, labels=tokens)["loss"].backward()
    assert (model.get_input_embeddings().weight.grad[:3].abs().sum(1) > 0).all()
    own = build(models.auto.Config(config={**config, "eos_token_id": 7, "pad_token_id": 5}, vocab_size=65))
    assert (own.generation_config.eos_token_id, own.config.pad_token_id) == (7, 5)


GPT2 = {"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 8, "n_positions": 16, "vocab_size": 20}


@pytest.mark.slow
@pytest.mark.keys("model(auto).block_size")
def test_block_size_beyond_a_table_of_positions(tmp_path):
    """Refused for a new model as for a pretrained one."""
    with pytest.raises(ValueError, match="`block_size: 17`.* 16 "):
        build(models.auto.Config(config=GPT2, block_size=17))
    build(models.auto.Config(config=GPT2, block_size=16)).save_pretrained(tmp_path)
    for settings in ({}, {"is_pretrained": True}, {"load_pretrain": True}):
        place = {"model_name_or_path": str(tmp_path), **settings}
        assert build(models.auto.Config(block_size=16), **place).notes == []
        with pytest.raises(ValueError, match=f"`block_size: 17`: {tmp_path} .* 16 "):
            build(models.auto.Config(block_size=17), **place)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"is_pretrained": True}])
def test_block_size_beyond_what_rotary_positions_were_trained_for(settings, tmp_path):
    build(config_of("llama", max_position_embeddings=32)).save_pretrained(tmp_path)
    process = process_of(model_name_or_path=str(tmp_path), **settings)
    for size, count in ((32, 0), (33, 1)):
        adapted = adapt.build_adapted(models.auto, models.auto.Config(block_size=size), process)
        assert sum("beyond the 32 tokens" in line for line in adapted.lines) == count
