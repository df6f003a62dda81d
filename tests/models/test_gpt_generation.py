"""Generated text: the same with and without kept keys and values, and what its settings do."""

import pytest
import torch
from adapting import disturb, process_of

from models import gpt

SMALL = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 8, "vocab_size": 65}
SEVERAL = {"vocab_size": None, "vocab_sizes": [65, 10]}
MODERN = {"position": "rope", "norm": "rmsnorm", "mlp": "swiglu", "n_kv_head": 2, "qk_norm": True}


def lively(**keys):
    """Weights so large that scores differ."""
    torch.manual_seed(0)
    return disturb(gpt.build(gpt.Config(**{**SMALL, **keys}), process_of()), 0.3)


def prompt(length=3, high=65):
    return torch.randint(0, high, (2, length), generator=torch.Generator().manual_seed(2))


def by_hand(model, ids, count):
    """The likeliest token each time, the last block_size tokens read anew."""
    model.eval()
    for _ in range(count):
        ids = torch.cat((ids, model(ids[:, -8:])["logits"][:, -1].argmax(-1, keepdim=True)), 1)
    return ids


@pytest.mark.slow
@pytest.mark.parametrize("keys", [{}, {"position": "none"}, MODERN])
@pytest.mark.parametrize("length", [1, 3, 8, 11])  # the text outgrows block_size later, at once, or from the start
def test_with_and_without_cache_as_by_hand(keys, length):
    model = lively(**keys)
    expected = by_hand(model, prompt(length), 12)
    assert len(expected.unique()) > 4  # not the same token all the time
    for use_cache in (True, False):
        found = model.generate(prompt(length), 12, do_sample=False, use_cache=use_cache)
        assert torch.equal(found, expected)


def test_the_cache_reads_each_token_once():
    model, read = lively(), []
    model.blocks[0].register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].shape[1]))
    model.generate(prompt(3), 8)
    assert read == [3, 1, 1, 1, 1, 1, 8, 8]  # 3, then up to 8 tokens one by one; from the ninth the window slides


@pytest.mark.slow
def test_draws_follow_the_softmax_of_the_k_likeliest():
    model = lively().eval()
    ids = prompt(3)[:1]
    scores = model(ids)["logits"][0, -1]
    many = model.generate(ids.expand(4000, -1), 1, temperature=2.0, top_k=5, generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(many[:, -1], minlength=65) / 4000
    kept = scores.topk(5).indices
    expected = torch.zeros(65)
    expected[kept] = (scores[kept] / 2).softmax(-1)
    assert (counts - expected).abs().max() < 0.03 and not counts[expected == 0].any()
    assert torch.equal(model.generate(ids, 6, top_k=1), model.generate(ids, 6, do_sample=False))
    assert torch.equal(model.generate(ids, 6, temperature=1e-4), model.generate(ids, 6, do_sample=False))
    assert model.generate(ids, 2, top_k=1000).shape == (1, 5)


def test_a_generator_decides_the_draws_and_nothing_else_changes():
    model = lively(dropout=0.5).train()
    before = torch.get_rng_state()
    first, second = (model.generate(prompt(), 5, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second) and torch.equal(before, torch.get_rng_state())
    assert model.training and model.blocks[0].training
    assert torch.equal(first[:, :3], prompt()) and first.shape == (2, 8) and first.max() < 65
    assert not torch.equal(first, model.generate(prompt(), 5, generator=torch.Generator().manual_seed(4)))


def test_of_several_data_sets_one_goes_on():
    model = lively(**SEVERAL, dataset_names=["a", "b"])
    found = model.generate(prompt(high=10), 20, temperature=5.0, dataset_index=1)
    assert found.shape == (2, 23) and found.max() < 10
    with pytest.raises(ValueError, match="dataset_index: None"):
        model.generate(prompt(), 1)


def test_several_contexts_all_go_on():
    model = lively(**SEVERAL, context_names=["a", "b"])
    ids = torch.stack((prompt(4), prompt(4, high=10)), dim=1)
    cached, plain = (model.generate(ids, 9, do_sample=False, use_cache=each) for each in (True, False))
    assert torch.equal(cached, plain) and cached.shape == (2, 2, 13)
    scores = model.eval()(ids)["logits"]
    assert torch.equal(cached[:, 0, 4], scores["a"][:, -1].argmax(-1))
    assert torch.equal(cached[:, 1, 4], scores["b"][:, -1].argmax(-1)) and cached[:, 1].max() < 10


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"input_ids": torch.zeros(1, 0, dtype=torch.long)}, "prompt is empty"),
        ({"input_ids": torch.tensor([[3, 65]])}, "token 65 of the prompt is outside the vocabulary of 65"),
        ({"input_ids": torch.tensor([[-1, 6]])}, "token -1 of the prompt is outside"),
    ],
)
def test_bad_settings_are_told(settings, message):
    with pytest.raises(ValueError, match=message):
        lively().generate(**{"input_ids": prompt(), "max_new_tokens": 1, **settings})


@pytest.mark.slow
@pytest.mark.parametrize("keys", [{}, {"position": "none"}, MODERN])
@pytest.mark.parametrize("use_cache", [True, False])
def test_padding_before_a_prompt_changes_nothing(keys, use_cache):
    """Prompts of 2, 5 and 11 tokens in one batch: the texts outgrow the block of 8 at different steps, or at once."""
    model = lively(**keys)
    alone = [prompt(length)[:1] for length in (2, 5, 11)]
    ids = torch.cat([torch.nn.functional.pad(each, (11 - each.shape[1], 0), value=64) for each in alone])
    mask = torch.tensor([[column >= 11 - each.shape[1] for column in range(11)] for each in alone]).long()
    found = model.generate(ids, 12, do_sample=False, attention_mask=mask, use_cache=use_cache)
    for row, each in zip(found, alone, strict=True):
        assert torch.equal(row[11 - each.shape[1] :], by_hand(model, each, 12)[0])
    with pytest.raises(ValueError, match="padding must be before"):
        model.generate(ids, 1, attention_mask=mask.flip(1))


def test_a_token_ends_a_text_and_the_others_go_on():
    model = lively()
    free = by_hand(model, prompt(), 10)
    end = free[0, 5].item()
    first = [row.tolist().index(end, 3) if end in row[3:] else 99 for row in free]  # where each text has it
    found = model.generate(prompt(), 10, do_sample=False, eos_token_id=[end], pad_token_id=7)
    assert first[0] <= 5 and first[0] != first[1]
    for row, expected, last in zip(found.tolist(), free.tolist(), first, strict=True):
        assert row == [*expected[: last + 1], *[7] * 99][: found.shape[1]]
    assert model.generate(prompt()[:1], 10, do_sample=False, eos_token_id=[end]).shape[1] == first[0] + 1


def test_a_processor_sees_the_tokens_and_changes_the_scores():
    seen = []

    def only_nine(ids, scores):
        seen.append(ids.shape[1])
        return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([9]), 0.0)

    found = lively().generate(prompt(), 3, logits_processor=[only_nine])
    assert (found[:, 3:] == 9).all() and seen == [3, 4, 5]
