"""GPT-2's weights from transformers, and sizes from our own checkpoints."""

import os

import pytest
import torch
from adapting import disturb, process_of, trained
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from models import adapt, gpt
from models.adapt.saved_model import plain_model

TINY = {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 12, "vocab_size": 70}


def saved_gpt2(folder, **keys):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**{**TINY, "bos_token_id": 0, "eos_token_id": 0, **keys}))
    disturb(model, 0.3).save_pretrained(folder)
    return model.eval()


def start(path, **keys):
    return gpt.build(gpt.Config(**keys), process_of(model_name_or_path=str(path)))


def tokens(length=12, high=70):
    return torch.randint(0, high, (2, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def assert_equal_scores(ours, theirs, ids):
    found, expected = ours.eval()(ids), theirs(input_ids=ids, labels=ids)
    torch.testing.assert_close(found["logits"], expected.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours(ids, labels=ids)["loss"], expected.loss, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tie_head", [True, False])
@pytest.mark.parametrize("keys", [{}, {"n_inner": 24}, {"activation_function": "gelu"}, {"tie_word_embeddings": False}])
def test_scores_are_those_of_transformers(keys, tie_head, tmp_path):
    theirs = saved_gpt2(tmp_path, **keys)
    model = start(tmp_path, block_size=12, vocab_size=70, tie_head=tie_head)
    if not tie_head or keys.get("tie_word_embeddings", True):
        assert_equal_scores(model, theirs, tokens())
    config = model.config
    assert (config.n_layer, config.n_head, config.n_embd, config.vocab_size, config.bias) == (2, 2, 16, 70, True)
    assert model.loaded_from == str(tmp_path) and model.new_weights == set()
    assert not model.token_embedding.weight[70:].any()
    assert (model.head.weight is model.token_embedding.weight) == tie_head


@pytest.mark.slow
def test_positions_are_cropped_and_smaller_vocabularies_fit(tmp_path):
    theirs = saved_gpt2(tmp_path)
    model = start(tmp_path, block_size=5, vocab_size=66)
    assert model.position_embedding.weight.shape == (5, 16) and model.config.block_size == 5
    assert model.config.vocab_size == 70
    assert_equal_scores(model, theirs, tokens(5))
    assert start(tmp_path).config.block_size == 12


@pytest.mark.parametrize(
    ("keys", "theirs"),
    [
        ({"n_layer": 6}, "2"),
        ({"n_embd": 32}, "16"),
        ({"bias": False}, "True"),
        ({"mlp": "swiglu"}, "gelu_tanh"),
        ({"mlp_ratio": 3.0}, "4.0"),
        ({"n_kv_head": 1}, "2"),
        ({"position": "rope"}, "learned"),
        ({"norm": "rmsnorm"}, "layernorm"),
        ({"qk_norm": True}, "False.*set it to false"),
        ({"block_size": 13}, "12"),
    ],
)
def test_contradictions_name_key_and_both_values(keys, theirs, tmp_path):
    saved_gpt2(tmp_path)
    ((key, value),) = keys.items()
    with pytest.raises(ValueError, match=f"`model.{key}: {value}`.*{theirs}") as caught:
        start(tmp_path, **keys)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "message"),
    [({"vocab_size": 71}, "71.*70"), ({"vocab_sizes": [3, 4], "dataset_names": ["a", "b"]}, "one vocabulary.* 2")],
)
def test_vocabularies_that_do_not_fit_are_refused(keys, message, tmp_path):
    saved_gpt2(tmp_path)
    with pytest.raises(ValueError, match=message):
        start(tmp_path, **keys)


@pytest.mark.slow
def test_equal_settings_are_no_contradiction(tmp_path):
    theirs = saved_gpt2(tmp_path)
    keys = {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_kv_head": 2, "mlp": "gelu_tanh", "mlp_ratio": 4.0, "bias": True}
    assert_equal_scores(start(tmp_path, **keys), theirs, tokens())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "value"),
    [("activation_function", "relu"), ("layer_norm_epsilon", 1e-3), ("scale_attn_by_inverse_layer_idx", True)],
)
def test_relatives_of_gpt2_are_refused(key, value, tmp_path):
    saved_gpt2(tmp_path, **{key: value})
    with pytest.raises(ValueError, match=f"{tmp_path}.*{key}: {value}"):
        start(tmp_path)


@pytest.mark.slow
def test_other_and_missing_models_are_told_in_one_line(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=70)).save_pretrained(tmp_path / "llama")
    start_new(tmp_path / "own")
    saved_gpt2(tmp_path / "gpt2")
    os.remove(tmp_path / "gpt2" / "model.safetensors")
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("llama", "llama.*`model: auto`"),
        ("own", "is one of our own checkpoints: set `is_pretrained`"),
        ("gpt2", "cannot be loaded: "),
        ("empty", "no config.json"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            start(tmp_path / name)
        assert "\n" not in str(caught.value) and str(tmp_path / name) in str(caught.value)


# ---- our own checkpoints ----


def start_new(folder):
    torch.manual_seed(3)
    keys = {"n_layer": 1, "n_head": 2, "n_embd": 8, "mlp_ratio": 2.0, "bias": True, "mlp": "gelu_tanh"}
    model = gpt.build(gpt.Config(**keys, block_size=6, vocab_size=70), process_of())
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("how", ["is_pretrained", "load_pretrain"])
def test_sizes_left_open_are_those_of_our_own_checkpoint(how, tmp_path):
    model = start_new(tmp_path)
    process = process_of(model_name_or_path=str(tmp_path), **{how: True})
    again = adapt.build_adapted(gpt, gpt.Config(block_size=6, vocab_size=70), process).model
    assert all(torch.equal(each, again.state_dict()[name]) for name, each in model.state_dict().items())


def test_longer_texts_keep_what_fits_of_our_own_checkpoint(tmp_path):
    model = start_new(tmp_path)
    process = process_of(model_name_or_path=str(tmp_path), load_pretrain=True)
    adapted = adapt.build_adapted(gpt, gpt.Config(block_size=9, vocab_size=70), process)
    assert any("1 stay new: position_embedding.weight" in line for line in adapted.lines)
    assert torch.equal(adapted.model.blocks[0].mlp.up.weight, model.blocks[0].mlp.up.weight)


# ---- adapters on GPT-2's weights ----


@pytest.mark.slow
def test_an_adapter_on_gpt2_loads_again(tmp_path):
    saved_gpt2(tmp_path / "gpt2")
    process = process_of(model_name_or_path=str(tmp_path / "gpt2"), lora_enable=True, lora_task_type="CAUSAL_LM")
    config = gpt.Config(block_size=8, vocab_size=66)
    adapted = adapt.build_adapted(gpt, config, process)
    assert all("lora_" in name for name in trained(adapted.model))  # no weight of GPT-2's is new
    disturb(adapted.model, 0.1)
    adapted.save(tmp_path / "run")
    assert not (tmp_path / "run" / "base").exists()  # GPT-2's own folder is the base
    expected = adapted.model.eval()(tokens(8))["logits"]
    again = adapt.load_adapted(tmp_path / "run", gpt)
    torch.testing.assert_close(again(tokens(8))["logits"], expected, rtol=0, atol=1e-6)
    merged = plain_model(tmp_path / "run", gpt)
    torch.testing.assert_close(merged(tokens(8))["logits"], expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(gpt.load_base(str(tmp_path / "gpt2"), tmp_path / "run", None, False)(tokens(8))["logits"],
                              expected, atol=1e-3)  # fmt: skip
    resumed = adapt.build_adapted(gpt, config, process)
    resumed.load(tmp_path / "run")
    assert torch.equal(resumed.model.eval()(tokens(8))["logits"], expected)
    os.rename(tmp_path / "gpt2", tmp_path / "moved")
    with pytest.raises(ValueError, match="run was made for .*gpt2.* cannot be loaded"):
        adapt.load_adapted(tmp_path / "run", gpt)
