"""Samples of a language model in mid-training: when, which, and without touching the training."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from trainer.callbacks.text_samples import GenerationConfig, WriteSamples, prompt_ids, sample_texts


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({letter: index for index, letter in enumerate("abcdefgh")}, unk_token="a"))
    words.pre_tokenizer, words.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=words)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    made = LlamaForCausalLM(LlamaConfig(vocab_size=8, max_position_embeddings=32, **sizes))
    made.generation_config.pad_token_id = 0
    return made


def test_the_likeliest_tokens_by_hand(model, tokenizer):
    (text,) = sample_texts(model, tokenizer, GenerationConfig(4, "ab", temperature=0), seed=0)
    ids = [0, 1]
    model.eval()
    for _ in range(4):
        ids.append(model(torch.tensor([ids])).logits[0, -1].argmax().item())
    assert text == "".join("abcdefgh"[each] for each in ids)


def test_samples_are_a_function_of_the_seed_and_leave_training_alone(model, tokenizer):
    model.train()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    sampling = GenerationConfig(12, "a", count=2, temperature=1.0, top_k=None)
    first = sample_texts(model, tokenizer, sampling, seed=1)
    assert torch.equal(torch.rand(3), expected) and model.training
    assert len(first) == 2 and all(len(text) == 13 and text[0] == "a" for text in first)
    assert first == sample_texts(model, tokenizer, sampling, seed=1)
    assert first != sample_texts(model, tokenizer, sampling, seed=2)


def test_top_k_and_temperature_reach_the_model(tokenizer):
    asked = {}

    class Model(torch.nn.Linear):
        def generate(self, **options):
            asked.update(options)
            return options["input_ids"]

    sample_texts(Model(1, 1), tokenizer, GenerationConfig(3, "abc", temperature=0.5, top_k=4), seed=0)
    assert (asked["max_new_tokens"], asked["temperature"], asked["top_k"]) == (3, 0.5, 4)
    assert asked["input_ids"].tolist() == [[0, 1, 2]]


def test_an_empty_prompt_needs_a_first_token(tokenizer):
    with pytest.raises(ValueError, match="`sample_prompt: ''`"):
        prompt_ids(tokenizer, "")
    tokenizer.bos_token = "h"
    try:
        assert prompt_ids(tokenizer, "") == [7]
    finally:
        tokenizer.bos_token = None


def written(folder):
    path = folder / "samples.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_sample_when_the_validation_loss_is_the_best_so_far(model, tokenizer, tmp_path, capsys):
    callback = WriteSamples(model, tokenizer, GenerationConfig(2, "a"), tmp_path, seed=0)
    state = SimpleNamespace(is_world_process_zero=True, log_history=[], global_step=0)
    for loss in (3.0, 2.0, 2.5, math.nan, 1.5):
        state.global_step += 10
        state.log_history.append({"eval_loss": loss, "step": state.global_step})
        callback.on_evaluate(None, state, None, {"eval_loss": loss})
    assert [(line["step"], line["eval_loss"]) for line in written(tmp_path)] == [(10, 3.0), (20, 2.0), (50, 1.5)]
    assert "sample at step 50: a" in capsys.readouterr().err
    state.global_step = 20  # resumed there: what comes later will be written again
    callback.on_train_begin(None, state, None)
    assert [line["step"] for line in written(tmp_path)] == [10, 20]


def test_other_processes_write_nothing(model, tokenizer, tmp_path):
    state = SimpleNamespace(is_world_process_zero=False, log_history=[{"eval_loss": 1.0}], global_step=5)
    WriteSamples(model, tokenizer, GenerationConfig(2, "a"), tmp_path, seed=0).on_evaluate(
        None, state, None, {"eval_loss": 1.0}
    )
    assert written(tmp_path) == []


@pytest.fixture(scope="module")
def with_table():
    """GPT-2 with positions for 8 tokens."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=8, n_positions=8, vocab_size=8))


def test_a_table_of_positions_ends_a_sample(with_table, model, tokenizer):
    (text,) = sample_texts(with_table, tokenizer, GenerationConfig(256, "abc", temperature=0), seed=0)
    assert len(text) == 8
    (text,) = sample_texts(with_table, tokenizer, GenerationConfig(2, "abc", temperature=0), seed=0)
    assert len(text) == 5
    (text,) = sample_texts(model, tokenizer, GenerationConfig(40, "abc", temperature=0), seed=0)
    assert len(text) == 43  # rotated positions go on past the model's 32


def test_a_prompt_longer_than_the_table(with_table, tokenizer):
    with pytest.raises(ValueError, match="`sample_prompt: .* has 9 tokens but the model has positions for 8 only"):
        sample_texts(with_table, tokenizer, GenerationConfig(1, "abcabcabc"), seed=0)


def test_a_sample_that_fails_ends_no_training(tokenizer, tmp_path, capsys):
    class Model(torch.nn.Linear):
        def generate(self, **options):
            raise IndexError("index out of\nrange in self")

    failing = Model(1, 1).train()
    state = SimpleNamespace(is_world_process_zero=True, log_history=[{"eval_loss": 1.0}], global_step=5)
    WriteSamples(failing, tokenizer, GenerationConfig(2, "a"), tmp_path, seed=0).on_evaluate(
        None, state, None, {"eval_loss": 1.0}
    )
    assert capsys.readouterr().err.splitlines() == ["no sample at step 5: index out of range in self"]
    assert failing.training and written(tmp_path) == []
