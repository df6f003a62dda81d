"""Several vocabularies in one table: one data set to a batch, or several contexts in each sample."""

import pytest
import torch
import torch.nn.functional as F
from adapting import disturb, process_of

from models import gpt
from models.gpt import network

SIZES = [65, 10, 128]
SMALL = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 8, "vocab_size": 128, "vocab_sizes": SIZES}
NAMES = ["text", "tags", "bytes"]
STARTS = [0, 128, 192]  # of rows filled up to 128, 64 and 128


def several(kind, **keys):
    torch.manual_seed(0)
    return disturb(gpt.build(gpt.Config(**{**SMALL, kind: NAMES, **keys}), process_of()), 0.2).eval()


def stream(size, length=9, seed=0):
    return torch.randint(0, size, (2, length), generator=torch.Generator().manual_seed(seed))


def single(model, index):
    """The network of one vocabulary alone, with the same weights."""
    alone = gpt.build(gpt.Config(**{**SMALL, "vocab_sizes": None, "vocab_size": SIZES[index]}), process_of())
    state = model.state_dict()
    rows = alone.token_embedding.num_embeddings
    for name in ("token_embedding.weight", "head.weight"):
        state[name] = state[name][STARTS[index] : STARTS[index] + rows].clone()
    alone.load_state_dict(state)
    return alone.eval()


widths = pytest.mark.parametrize("exact_width", [(), ("cpu",)])


@pytest.mark.keys("model(gpt).vocab_sizes", "model(gpt).dataset_names")
@widths
@pytest.mark.parametrize("index", range(3))
def test_a_data_set_has_the_rows_of_its_own_vocabulary(index, exact_width, monkeypatch):
    monkeypatch.setattr(network, "EXACT_WIDTH_ON", exact_width)
    model = several("dataset_names")
    assert model.starts == [*STARTS, 320]
    rows, alone = stream(SIZES[index]), single(model, index)
    batch = {"input_ids": rows[:, :-1], "shift_labels": rows[:, 1:]}
    torch.testing.assert_close(model(**batch, dataset_index=index)["loss"], alone(**batch)["loss"], rtol=0, atol=1e-6)
    found = model(batch["input_ids"], dataset_index=index)["logits"]
    torch.testing.assert_close(found, alone(batch["input_ids"])["logits"], rtol=1e-5, atol=1e-6)
    assert found.shape == (2, 8, SIZES[index])


@widths
@pytest.mark.parametrize("tied", [True, False])
def test_every_weight_has_a_gradient_whichever_data_set_it_is(tied, exact_width, monkeypatch):
    monkeypatch.setattr(network, "EXACT_WIDTH_ON", exact_width)
    model = several("dataset_names", tie_head=tied)
    rows = stream(10)
    model(rows[:, :-1], shift_labels=rows[:, 1:], dataset_index=1)["loss"].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    for name in ("token_embedding", "head"):
        moved = model.get_submodule(name).weight.grad.abs().sum(1) > 0
        assert moved[128:138].any() and not moved[:128].any() and not moved[138:].any()


@pytest.mark.keys("model(gpt).context_names")
@widths
def test_contexts_are_added_and_each_has_its_own_loss(exact_width, monkeypatch):
    monkeypatch.setattr(network, "EXACT_WIDTH_ON", exact_width)
    model = several("context_names")
    rows = torch.stack([stream(size, seed=size) for size in SIZES], dim=1)  # (B, C, T + 1)
    ids, targets = rows[..., :-1], rows[..., 1:].clone()
    targets[0, 1, :3] = -100
    output = model(ids, shift_labels=targets)

    table = model.token_embedding.weight
    x = sum(table[ids[:, each] + STARTS[each]] for each in range(3)) + model.position_embedding.weight
    for block in model.blocks:
        x = block(x)
    by_hand = {}
    for index, name in enumerate(NAMES):
        scores = model.norm(x) @ table[STARTS[index] : STARTS[index] + SIZES[index]].T
        by_hand[name] = F.cross_entropy(scores.transpose(1, 2), targets[:, index])
        torch.testing.assert_close(model(ids)["logits"][name], scores)
    assert list(output["losses"]) == NAMES
    items = model.loss_items({"shift_labels": targets})
    assert {name: int(count) for name, count in items.items()} == {
        name: int((targets[:, index] != -100).sum()) for index, name in enumerate(NAMES)
    }
    for name in NAMES:
        assert output["losses"][name].item() == pytest.approx(by_hand[name].item(), abs=1e-6)
    assert output["loss"].item() == pytest.approx(sum(by_hand.values()).item() / 3, abs=1e-6)
    output["loss"].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_labels_of_contexts_are_shifted_too():
    model = several("context_names")
    rows = torch.stack([stream(size) for size in SIZES], dim=1)
    shifted = torch.cat((rows[..., 1:8], torch.full((2, 3, 1), -100)), dim=-1)
    found = model(rows[..., :8], labels=rows[..., :8])["loss"]
    assert torch.equal(found, model(rows[..., :8], shift_labels=shifted)["loss"])


def test_cost_counts_the_heads_that_a_sample_uses():
    contexts, datasets = several("context_names"), several("dataset_names")
    trunk = sum(each.numel() for each in [*contexts.blocks.parameters(), *contexts.norm.parameters()])
    attention = 12 * 2 * 16 * 8
    assert contexts.flops_per_sample() == 8 * (6 * (trunk + 320 * 16) + attention)
    assert datasets.flops_per_sample() == 8 * (6 * (trunk + round(320 / 3 * 16)) + attention)


@pytest.mark.parametrize("kind", ["dataset_names", "context_names"])
def test_saved_and_loaded(kind, tmp_path):
    model = several(kind)
    model.save_pretrained(tmp_path)
    again = gpt.load(tmp_path)
    assert getattr(again.config, kind) == NAMES and again.config.vocab_sizes == SIZES
    assert all(torch.equal(each, again.state_dict()[name]) for name, each in model.state_dict().items())


@pytest.mark.parametrize("index", [None, 3, -1])
def test_an_index_of_no_data_set_is_refused(index):
    with pytest.raises(ValueError, match=rf"dataset_index: {index} .*0 to 2 \(text, tags, bytes\)"):
        several("dataset_names")(stream(10, 8), dataset_index=index)


@pytest.mark.parametrize("shape", [(2, 8), (1, 2, 8)])
def test_other_contexts_are_refused(shape):
    with pytest.raises(ValueError, match="input_ids of shape .*3 contexts"):
        several("context_names")(torch.zeros(shape, dtype=torch.long))
