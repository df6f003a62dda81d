"""Adapting the GPT: freezing, LoRA, 4-bit weights, flash-attention."""

import pytest
import torch
from adapting import disturb, process_of, trained

from models import adapt, gpt
from models.adapt.saved_model import plain_model

SMALL = {"n_layer": 2, "n_head": 2, "n_embd": 64, "block_size": 8, "vocab_size": 70}


def adapted(keys=None, **settings):
    torch.manual_seed(0)
    return adapt.build_adapted(gpt, gpt.Config(**{**SMALL, **(keys or {})}), process_of(**settings))


def batch():
    rows = torch.randint(0, 70, (2, 9), generator=torch.Generator().manual_seed(7))
    return {"input_ids": rows[:, :-1], "shift_labels": rows[:, 1:]}


@torch.no_grad()
def scores(model):
    return model.eval()(batch()["input_ids"])["logits"]


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"freeze_backbone": True, "tie_head": False}, {"head.weight"}),
        ({"freeze": ["llm"], "tie_head": False}, {"head.weight"}),
        ({"freeze": ["embeddings", "blocks", "head"]}, {"norm.weight"}),
        ({"freeze": ["embeddings", "mlp", "norm", "mlp_norm", "attention_norm"]},
         {f"blocks.{index}.attention.{name}.weight" for index in range(2) for name in ("qkv", "output")}),
    ],
)  # fmt: skip
def test_parts_can_be_frozen(settings, kept):
    keys = {"tie_head": settings.pop("tie_head", True)}
    model = adapted(keys, **settings).model
    assert trained(model) == kept
    model.train()(**batch())["loss"].backward()
    assert {name for name, each in model.named_parameters() if each.grad is not None} == kept


@pytest.mark.slow
@pytest.mark.parametrize(("word", "tied"), [("head", True), ("embeddings", True), ("embeddings", False)])
def test_lora_on_head_or_embeddings(word, tied, tmp_path):
    """An adapter around the head scores all rows; those filled up still get no probability."""
    made = adapted({"tie_head": tied}, lora_enable=True, lora_module=word)
    disturb(made.model)
    expected = scores(made.model)
    found = made.model(**batch())["loss"]
    by_hand = torch.nn.functional.cross_entropy(expected.flatten(0, 1), batch()["shift_labels"].flatten())
    torch.testing.assert_close(found, by_hand)
    made.save(tmp_path / "run")
    merged = plain_model(tmp_path / "run", gpt)
    merged.save_pretrained(tmp_path / "merged")
    for model in (merged, gpt.load(tmp_path / "merged")):
        torch.testing.assert_close(scores(model), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["dataset_names", "context_names"])
def test_lora_on_the_head_of_several_vocabularies(kind):
    keys = {"vocab_size": None, "vocab_sizes": [70, 10], kind: ["a", "b"]}
    model = adapted(keys, lora_enable=True, lora_module="head").model
    ids = batch()["input_ids"] % 10
    more = {"dataset_index": 1} if kind == "dataset_names" else {}
    ids = ids if kind == "dataset_names" else torch.stack((ids, ids), 1)
    plain = adapted(keys).model
    with torch.no_grad():
        found, expected = model.eval()(ids, **more)["logits"], plain.eval()(ids, **more)["logits"]
    torch.testing.assert_close(found, expected)
    model.train()(ids, labels=ids, **more)["loss"].backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.slow
def test_text_is_written_under_lora():
    model = adapted(lora_enable=True).model
    found = model.generate(input_ids=batch()["input_ids"][:, :3], max_new_tokens=9, do_sample=False)
    plain = adapted().model.generate(batch()["input_ids"][:, :3], 9, do_sample=False)
    assert torch.equal(found, plain)
    assert model.flops_per_sample() == adapted().model.flops_per_sample()


def test_flash_attention_is_causal_with_grouped_queries_and_without_masks(flash):
    keys = {"n_kv_head": 1}
    made = adapted(keys, weights_dtype="bfloat16", flash_attn=True)
    assert made.effective == {"attention": "flash_attention_2"} and made.lines == []
    plain = adapted(keys, weights_dtype="bfloat16").model
    torch.testing.assert_close(scores(made.model), scores(plain), rtol=0, atol=0.05)
    assert flash == [True, True]
    made.model.generate(batch()["input_ids"][:, :3], 2)
    assert flash[2:] == [True, True, False, False]
    made.model(batch()["input_ids"], position_ids=torch.arange(8).remainder(3).expand(2, 8))
    scores(made.model.float())
    assert len(flash) == 6
