"""The GPT over signals, against the text GPT with the same weights, and against itself read in other ways."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

import models.gpt
import models.signal_gpt
from models.signal_gpt.config import TokenCorruption
from models.signal_gpt.corruption import corrupted
from models.signal_gpt.generation import next_ids

DIMS = {"vocab_size": 12, "channels": 3, "context": 16}
SMALL = {"n_layer": 2, "n_head": 2, "n_embd": 16}


def made(**keys):
    torch.manual_seed(0)
    net = models.signal_gpt.build(models.signal_gpt.Config(**{**DIMS, **SMALL, **keys}), SimpleNamespace()).eval()
    with torch.no_grad():
        for parameter in net.parameters():  # of a size at which every part shows in the scores
            parameter.mul_(8) if parameter.dim() > 1 else parameter.add_(0.1 * torch.randn_like(parameter))
    return net


def ids(*shape, seed=1):
    return torch.randint(0, 12, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.keys(
    "model(signal_gpt).vocab_size",
    "model(signal_gpt).n_layer",
    "model(signal_gpt).n_head",
    "model(signal_gpt).n_embd",
    "model(signal_gpt).n_kv_head",
    "model(signal_gpt).norm",
    "model(signal_gpt).mlp",
    "model(signal_gpt).mlp_ratio",
    "model(signal_gpt).qk_norm",
    "model(signal_gpt).bias",
    "model(signal_gpt).tie_head",
    "model(signal_gpt).position",
    "model(signal_gpt).rope_theta",
)
@pytest.mark.parametrize(
    "keys",
    [
        {"n_layer": 1, "n_kv_head": 1, "norm": "layernorm", "mlp": "gelu", "bias": True, "tie_head": False},
        {"n_embd": 24, "n_head": 2, "norm": "rmsnorm", "mlp": "swiglu", "mlp_ratio": 1.5, "qk_norm": True},
        {"position": "learned", "vocab_size": 20},
        {"rope_theta": 50.0},
    ],
)
def test_one_stream_is_the_gpt_of_texts(keys):
    """With the embedding of the channel set to zero, and the same weights."""
    net = made(**keys)
    values = {**DIMS, **SMALL, "position": "rope", "norm": "rmsnorm", "mlp": "gelu", "bias": False, **keys}
    context, _ = values.pop("context"), values.pop("channels")
    gpt = models.gpt.build(
        models.gpt.Config(block_size=context, **values), SimpleNamespace(model_name_or_path=None, cache_dir=None)
    ).eval()
    state = {name: value for name, value in net.state_dict().items() if not name.startswith("channel")}
    for name in ("token_embedding.weight", "head.weight"):  # filled up to a multiple of 64 rows
        state[name] = F.pad(state[name], (0, 0, 0, 64 - len(state[name])))
    gpt.load_state_dict(state)
    net.channel_embedding.weight.data.zero_()
    rows = ids(2, 3, 16)
    expected = gpt(rows.flatten(0, 1))["logits"].view(2, 3, 16, -1)
    torch.testing.assert_close(net(rows)["logits"], expected)


@pytest.mark.keys("model(signal_gpt).layout", "model(signal_gpt).channels")
@pytest.mark.parametrize("position", ["rope", "learned"])
@pytest.mark.parametrize("layout", ["streams", "flattened"])
def test_what_a_prediction_sees(layout, position):
    """Its own past; with `flattened` that of the other channels too, up to the same time step."""
    net, rows = made(layout=layout, position=position, channels=3), ids(1, 3, 8)
    before = net(rows)["logits"]
    changed = rows.clone()
    changed[0, 1, 4] = (changed[0, 1, 4] + 5) % 12
    differs = (net(changed)["logits"] - before).abs().amax(-1)[0] > 1e-5
    assert differs[1].tolist() == [False] * 4 + [True] * 4
    for other in (0, 2):
        assert differs[other].tolist() == [False] * 4 + [layout == "flattened"] * 4


def test_a_channel_is_known_by_its_number():
    net, rows = made(), ids(1, 1, 8).expand(1, 3, 8)
    scores = net(rows)["logits"][0]
    assert not torch.allclose(scores[0], scores[1])
    torch.testing.assert_close(net(rows[:, :1], channels=torch.tensor([[1]]))["logits"][0, 0], scores[1])
    with pytest.raises(IndexError):
        net(rows, channels=torch.tensor([[0, 1, 3]]))


def test_texts_and_their_padding():
    """A separator has channel -1; what is behind a text changes nothing."""
    net, text = made(), ids(2, 10)
    channels = torch.tensor([0, -1, 1, -1, 2, 0, -1, 1, -1, 2]).expand(2, 10)
    scores = net(text, channels=channels)["logits"]
    assert scores.shape == (2, 10, 12)
    mask = (torch.arange(10) < 6).long().expand(2, 10)
    padded = torch.where(mask.bool(), text, 0)
    torch.testing.assert_close(net(padded, channels=channels, attention_mask=mask)["logits"][:, :6], scores[:, :6])
    other = torch.where(channels == -1, 0, channels)
    assert not torch.allclose(net(text, channels=other)["logits"], scores)


@pytest.mark.parametrize("layout", ["streams", "flattened"])
def test_its_loss_is_a_mean_over_known_labels(layout):
    net, rows, labels = made(layout=layout), ids(2, 3, 8), ids(2, 3, 8, seed=2)
    labels[0, 1, 3:], labels[1, :, -1] = -100, -100
    output, known = net(rows, labels), labels != -100
    torch.testing.assert_close(output["loss"], F.cross_entropy(net(rows)["logits"][known], labels[known]))
    assert net.loss_items({"labels": labels})["loss"] == known.sum()
    output["loss"].backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in net.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["streams", "flattened"])
def test_cached_generation_draws_what_a_whole_reading_draws(layout):
    net, prompt = made(layout=layout), ids(2, 3, 5)
    drawn = [
        net.generate(prompt, 11, generator=torch.Generator().manual_seed(3), use_cache=cached, top_k=5)
        for cached in (True, False)
    ]
    assert torch.equal(*drawn) and drawn[0].shape == (2, 3, 16)
    by_hand = prompt
    for _ in range(11):
        by_hand = torch.cat((by_hand, net(by_hand)["logits"][..., -1:, :].argmax(-1)), dim=-1)
    assert torch.equal(net.generate(prompt, 11, temperature=0), by_hand)


@pytest.mark.slow
def test_generation_goes_on_behind_the_context():
    net, prompt = made(), ids(1, 3, 20)
    longer = net.generate(prompt, 30, generator=torch.Generator().manual_seed(0))
    assert longer.shape == (1, 3, 50) and torch.equal(longer[..., :20], prompt)
    text = net.generate(ids(1, 4), 2, channels=None, temperature=0)
    assert text.shape == (1, 6)


@pytest.mark.slow
def test_how_ids_are_drawn():
    """Against shares by hand: top-p keeps the most probable ids whose sum first reaches it."""
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(40_000, 4)
    random = torch.Generator().manual_seed(0)

    def shares(**options):
        return torch.bincount(next_ids(logits, generator=random, **options), minlength=4) / 40_000

    for options, expected in (
        ({}, [0.5, 0.3, 0.15, 0.05]),
        ({"top_k": 2}, [0.625, 0.375, 0, 0]),
        ({"top_p": 0.7}, [0.625, 0.375, 0, 0]),
        ({"top_p": 0.81}, [0.5263, 0.3158, 0.1579, 0]),
        ({"temperature": 0.5}, [0.6849, 0.2466, 0.0616, 0.0068]),
        ({"temperature": 0}, [1, 0, 0, 0]),
    ):
        assert shares(**options).tolist() == pytest.approx(expected, abs=0.01)


@pytest.mark.slow
@pytest.mark.keys("model(signal_gpt).context", "model(signal_gpt).max_position_embeddings")
def test_a_longer_context_changes_no_score_of_shorter_inputs(tmp_path):
    net, rows = made(context=16), ids(1, 3, 16)
    before = net(rows)["logits"]
    with pytest.raises(ValueError, match="17"):
        net(ids(1, 3, 17))
    net.resize_context(40)
    assert torch.equal(net(rows)["logits"], before)
    assert net(ids(1, 3, 40))["logits"].shape == (1, 3, 40, 12)
    net.save_pretrained(tmp_path)
    assert models.signal_gpt.load(tmp_path).config.context == 40
    net.resize_context(40, rope_theta=500.0)
    assert not torch.allclose(net(rows)["logits"], before)
    for context, options in ((39, {}), (64, {"max_position_embeddings": 63})):
        with pytest.raises(ValueError, match=str(context)):
            net.resize_context(context, **options)
    with pytest.raises(ValueError, match="learned"):
        made(position="learned").resize_context(64)
    with pytest.raises(ValueError, match="50"):
        made(max_position_embeddings=50).resize_context(51)


@pytest.mark.slow
@pytest.mark.keys("model(signal_gpt).dropout", "model(signal_gpt).token_corruption")
def test_dropout_and_corruption_act_in_training_only():
    rows, labels = ids(2, 3, 16), ids(2, 3, 16, seed=2)
    always = TokenCorruption(p_start=1, p_end=1, tokens_per_step=1)
    for keys in ({"dropout": 0.5}, {"token_corruption": always}):
        net, plain = made(**keys), made()
        torch.testing.assert_close(net(rows, labels)["loss"], plain(rows, labels)["loss"])
        assert abs(net.train()(rows, labels)["loss"] - plain.train()(rows, labels)["loss"]) > 1e-3
        torch.manual_seed(4)
        first = net(rows, labels)["loss"]
        torch.manual_seed(4)
        assert net(rows, labels)["loss"] == first


@pytest.mark.slow
def test_corrupted_inputs():
    """The marginal rate within 3 sigma, whole blocks, always another id, all of them equally often."""
    settings = TokenCorruption(p_start=0.02, p_end=0.5, block_len_steps=3, tokens_per_step=4)
    rows = ids(20_000, 50)
    torch.manual_seed(0)
    changed = corrupted(rows, settings, 12)
    differs = (changed != rows).view(20_000, 50)
    for step in range(13):
        expected = 0.02 * 25 ** (step / 12)
        rate = differs[:, 4 * step : 4 * step + 4].float().mean(0)
        assert (rate - expected).abs().max() < 3 * (expected * (1 - expected) / 20_000) ** 0.5
        assert len(rate.unique()) == 1  # the tokens of a step together
    first, third = differs[:, 0], differs[:, 8]
    assert (third | ~first).all() and not (differs[:, 12] | ~first).all()  # a block has three steps
    moved = (changed - rows)[differs] % 12
    counts = torch.bincount(moved, minlength=12)
    assert counts[0] == 0 and (counts[1:] / differs.sum() - 1 / 11).abs().max() < 0.01


@pytest.mark.parametrize("layout", ["streams", "flattened"])
def test_saved_and_loaded_it_is_the_same(tmp_path, layout):
    net, rows = made(layout=layout, token_corruption=TokenCorruption(p_end=0.2), tie_head=False), ids(2, 3, 9)
    net.save_pretrained(tmp_path)
    again = models.signal_gpt.load(tmp_path)
    assert torch.equal(again(rows)["logits"], net(rows)["logits"]) and again.token_corruption.p_end == 0.2


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"n_embd": 15}, ["15", "2"]),
        ({"n_embd": 6, "n_head": 2}, ["rope"]),
        ({"n_head": 4, "n_kv_head": 3}, ["4", "3"]),
        ({"vocab_size": None}, ["vocab_size"]),
    ],
)
def test_sizes_that_do_not_fit_are_refused(keys, words):
    with pytest.raises(ValueError) as error:
        made(**keys)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)
