"""Generated text against transformers' `generate` and the network called by hand, alone and in batches."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from data.text.generation import Draw, GenerationConfig, TextSampler, generate, prompt_ids, room_after

GREEDY = GenerationConfig(12, temperature=0)
GPT2_SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 8, "vocab_size": 8}
PROMPTS = [[1, 2, 3], [5], [7, 6, 5, 4, 3, 2], [2, 2]]


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({letter: index for index, letter in enumerate("abcdefgh")}, unk_token="a"))
    words.pre_tokenizer, words.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=words)


def lively(build):
    """Weights so large that the most probable token depends on all that comes before it."""
    torch.manual_seed(5)
    model = build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.5 * torch.randn(parameter.shape))
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = None
    return model.eval()


@pytest.fixture(scope="module")
def llama():
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return lively(lambda: LlamaForCausalLM(LlamaConfig(vocab_size=8, max_position_embeddings=32, **sizes)))


@pytest.fixture(scope="module")
def gpt2():
    """With a table of 8 positions."""
    return lively(lambda: GPT2LMHeadModel(GPT2Config(**GPT2_SIZES)))


def alone(model, prompt, count):
    """transformers' own result for one prompt."""
    ids = torch.tensor([prompt])
    found = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, pad_token_id=0
    )
    return found[0, len(prompt) :].tolist()


@pytest.mark.slow
def test_the_most_probable_tokens_by_hand(llama):
    for prompt, text in zip(PROMPTS, generate(llama, PROMPTS, GREEDY), strict=True):
        ids = list(prompt)
        for _ in range(12):
            ids.append(llama(torch.tensor([ids])).logits[0, -1].argmax().item())
        assert [*text.prompt, *text.tokens] == ids and not text.ended
        assert len(set(text.tokens)) > 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_batch_is_what_transformers_writes_for_each_prompt(name, request):
    """GPT-2's table of 8 positions ends the texts after 5, 7, 2 and 6 new tokens."""
    model = request.getfixturevalue(name)
    found = [text.tokens for text in generate(model, PROMPTS, GREEDY)]
    counts = [12] * 4 if name == "llama" else [8 - len(prompt) for prompt in PROMPTS]
    assert found == [alone(model, prompt, count) for prompt, count in zip(PROMPTS, counts, strict=True)]


def test_a_model_without_position_arguments_gets_equally_long_prompts():
    calls = []

    class Recurrent(torch.nn.Linear):
        def generate(self, input_ids, attention_mask, max_new_tokens, **options):
            calls.append(input_ids.tolist())
            assert attention_mask.all()
            return torch.cat((input_ids, input_ids.sum(-1, keepdim=True)), -1)

    found = generate(Recurrent(1, 1), [[1, 2], [5], [3, 4]], GREEDY)
    assert calls == [[[1, 2], [3, 4]], [[5]]] and [text.tokens for text in found] == [[3], [5], [7]]


@pytest.mark.slow
def test_end_tokens_end_a_text_and_are_left_out(llama):
    free = [text.tokens for text in generate(llama, PROMPTS, GREEDY)]
    end = free[0][3]
    expected = [(row[: row.index(end)], True) if end in row else (row, False) for row in free]
    assert [(text.tokens, text.ended) for text in generate(llama, PROMPTS, GREEDY, ends=[end])] == expected
    llama.generation_config.eos_token_id = [end]  # of a model's own, as chat models have
    try:
        assert [(text.tokens, text.ended) for text in generate(llama, PROMPTS, GREEDY)] == expected
    finally:
        llama.generation_config.eos_token_id = None


@pytest.mark.slow
def test_a_draw_depends_on_prompt_seed_and_number_alone(llama):
    config = GenerationConfig(12, temperature=1.5, top_k=None, seed=3)
    rows, numbers = [*PROMPTS, PROMPTS[0]], [0, 0, 0, 0, 1]
    together = [text.tokens for text in generate(llama, rows, config, numbers=numbers)]
    one_by_one = [generate(llama, [row], config, numbers=[n])[0].tokens for row, n in zip(rows, numbers, strict=True)]
    assert together == one_by_one and together[0] != together[4]
    assert together != [text.tokens for text in generate(llama, rows, GenerationConfig(12, 1.5, None, 4))]


@pytest.mark.slow
def test_draws_follow_the_softmax_of_the_k_most_probable():
    scores = torch.tensor([1.0, 3.0, 0.0, 2.5, -1.0])
    draw = Draw(GenerationConfig(1, temperature=2.0, top_k=3), list(range(8000)), "cpu")
    left = draw(torch.zeros(8000, 1), scores.expand(8000, -1))
    assert ((left == 0).sum(-1) == 1).all() and torch.isinf(left[left != 0]).all()
    shares = torch.bincount(left.argmax(-1), minlength=5) / 8000
    expected = torch.zeros(5)
    expected[[0, 1, 3]] = (scores[[0, 1, 3]] / 2).softmax(-1)
    assert (shares - expected).abs().max() < 0.02 and not shares[expected == 0].any()


@pytest.mark.slow
def test_samples_are_a_function_of_the_seed_and_leave_training_alone(llama, tokenizer):
    llama.train()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    sampler = TextSampler(tokenizer, "a", 2, GenerationConfig(12, temperature=1.0, top_k=None))
    first = sampler(llama, seed=1)
    assert torch.equal(torch.rand(3), expected) and llama.training
    llama.eval()
    assert len(set(first)) == 2 and all(len(text) == 13 and text[0] == "a" for text in first)
    assert first == sampler(llama, seed=1) and first != sampler(llama, seed=2)


def test_an_empty_prompt_needs_a_first_token(tokenizer):
    with pytest.raises(ValueError, match="prompt '' has no tokens"):
        prompt_ids(tokenizer, "")
    tokenizer.bos_token = "h"
    try:
        assert prompt_ids(tokenizer, "") == [7]
    finally:
        tokenizer.bos_token = None


@pytest.mark.slow
def test_a_table_of_positions_ends_a_sample(gpt2, llama, tokenizer):
    def length(model, tokens):
        (text,) = TextSampler(tokenizer, "abc", 1, GenerationConfig(tokens, temperature=0))(model, seed=0)
        return len(text)

    assert (length(gpt2, 256), length(gpt2, 2), length(llama, 40)) == (8, 5, 43)  # rotated positions go on past 32
    assert room_after(gpt2, [0] * 7, 5) == 1
    with pytest.raises(ValueError, match="has 9 tokens but the model has positions for 8 only"):
        TextSampler(tokenizer, "abcabcabc", 1, GREEDY).check(gpt2)


def test_damaged_weights_are_no_text(llama):
    weight = llama.lm_head.weight.data[3].clone()
    llama.lm_head.weight.data[3] = torch.nan
    try:
        with pytest.raises(ValueError, match="not numbers"):
            generate(llama, PROMPTS, GREEDY)
    finally:
        llama.lm_head.weight.data[3] = weight


def test_a_model_without_generate_is_named():
    with pytest.raises(ValueError, match="Linear cannot write text"):
        generate(torch.nn.Linear(1, 1), [[1]], GREEDY)
