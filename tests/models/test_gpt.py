"""The GPT against transformers' own networks and by hand: options, loss, packed documents, initial weights, files."""

import json

import pytest
import torch
import torch.nn.functional as F
from adapting import disturb, process_of
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from models import gpt
from models.gpt import network
from models.gpt.layers import inner_width

SMALL = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 16, "vocab_size": 65}
MODERN = {"position": "rope", "norm": "rmsnorm", "mlp": "swiglu"}
FULLY_MODERN = {**MODERN, "n_kv_head": 2, "qk_norm": True}


def small(**keys):
    torch.manual_seed(0)
    return gpt.build(gpt.Config(**{**SMALL, **keys}), process_of())


def tokens(batch=3, length=16, vocab=65, seed=1):
    return torch.randint(0, vocab, (batch, length), generator=torch.Generator().manual_seed(seed))


def batch_of(**sizes):
    """What the data set of text gives: windows of one token more than the input."""
    rows = tokens(**{"length": 17, **sizes})
    return {"input_ids": rows[:, :-1], "shift_labels": rows[:, 1:].clone(), "labels": rows[:, :-1]}


def excited(model):
    """Weights so large that attention and norms are far from where they start."""
    return disturb(model, 0.3).eval()


def gradients(model, batch):
    model.zero_grad()
    model(**batch)["loss"].backward()
    return {name: each.grad.clone() for name, each in model.named_parameters()}


# ---- the same numbers as transformers' networks ----


def take_llama(model, theirs):
    """Our weights into a Llama or Qwen3 of transformers."""
    vocab = model.config.vocab_size
    for block, layer in zip(model.blocks, theirs.model.layers, strict=True):
        attention, mlp = layer.self_attn, layer.mlp
        query, key, value = block.attention.qkv.weight.split(block.attention.widths)
        gate, up = block.mlp.up.weight.chunk(2)
        pairs = [
            (attention.q_proj, query),
            (attention.k_proj, key),
            (attention.v_proj, value),
            (attention.o_proj, block.attention.output.weight),
            (mlp.gate_proj, gate),
            (mlp.up_proj, up),
            (mlp.down_proj, block.mlp.down.weight),
            (layer.input_layernorm, block.attention_norm.weight),
            (layer.post_attention_layernorm, block.mlp_norm.weight),
        ]
        if model.config.qk_norm:
            pairs += [(attention.q_norm, block.attention.query_norm.weight)]
            pairs += [(attention.k_norm, block.attention.key_norm.weight)]
        for module, weight in pairs:
            module.weight.data.copy_(weight)
    theirs.model.norm.weight.data.copy_(model.norm.weight)
    theirs.model.embed_tokens.weight.data.copy_(model.token_embedding.weight[:vocab])
    theirs.lm_head.weight.data.copy_(model.head.weight[:vocab])
    return theirs.eval()


@pytest.mark.keys(
    "model(gpt).position",
    "model(gpt).rope_theta",
    "model(gpt).norm",
    "model(gpt).mlp",
    "model(gpt).qk_norm",
    "model(gpt).n_kv_head",
)
@pytest.mark.parametrize("n_kv_head", [None, 4, 2, 1])
@pytest.mark.parametrize(("qk_norm", "rope_theta"), [(False, None), (True, 500.0)])
def test_rope_rmsnorm_swiglu_qk_norm_and_grouped_queries_as_in_llama_and_qwen(n_kv_head, qk_norm, rope_theta):
    keys = {**MODERN, "n_kv_head": n_kv_head, "qk_norm": qk_norm, "rope_theta": rope_theta, "tie_head": False}
    model = excited(small(**keys, mlp_ratio=1.5))
    kind, settings = (Qwen3ForCausalLM, Qwen3Config) if qk_norm else (LlamaForCausalLM, LlamaConfig)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = settings(
        **sizes,
        head_dim=8,
        num_key_value_heads=n_kv_head or 4,
        vocab_size=65,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": rope_theta or 10000.0},
        max_position_embeddings=16,
        tie_word_embeddings=False,
    )
    theirs = take_llama(model, kind(config))
    ids = tokens()
    with torch.no_grad():
        found, expected = model(ids)["logits"], theirs(input_ids=ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_without_positions_order_of_the_past_says_nothing():
    model = excited(small(position="none", n_layer=1))  # of further layers the mask alone tells the order
    ids = tokens(1, 6)
    turned = torch.cat((ids[:, :5].flip(1), ids[:, 5:]), 1)
    torch.testing.assert_close(model(ids)["logits"][:, -1], model(turned)["logits"][:, -1], rtol=1e-4, atol=1e-4)
    for position in ("learned", "rope"):
        other = excited(small(position=position, n_layer=1))
        assert not torch.allclose(other(ids)["logits"][:, -1], other(turned)["logits"][:, -1], atol=1e-2)


@pytest.mark.keys("model(gpt).mlp_ratio")
def test_widths_of_feed_forward_blocks():
    def width(**keys):
        return inner_width(gpt.Config(**{"n_embd": 384, **keys}))

    assert width(mlp="gelu") == 1536 and width(mlp="swiglu") == 1024  # 2 × 4 = 3 × 8/3
    assert width(mlp="swiglu", n_embd=100) == 320 and width(mlp="gelu", mlp_ratio=2.5) == 960
    assert small(mlp_ratio=3.0).blocks[0].mlp.down.in_features == 96


# ---- loss ----


def test_loss_by_hand_without_what_has_no_label():
    model, batch = excited(small()), batch_of()
    batch["shift_labels"][0, 3:9] = -100
    scores = model(batch["input_ids"])["logits"].double()
    errors = [
        -scores[row, place].log_softmax(-1)[batch["shift_labels"][row, place]].item()
        for row in range(3)
        for place in range(16)
        if not (row == 0 and 3 <= place < 9)
    ]
    output = model(**batch)
    assert output.keys() == {"loss"} and output["loss"].item() == pytest.approx(sum(errors) / len(errors), rel=1e-5)


def test_labels_alone_are_shifted_here():
    model, batch = excited(small()), batch_of()
    unshifted = torch.cat((batch["input_ids"][:, :1], batch["shift_labels"]), 1)[:, :16]
    batch["shift_labels"][:, -1] = -100
    expected = model(batch["input_ids"], shift_labels=batch["shift_labels"])["loss"]
    assert torch.equal(model(batch["input_ids"], labels=unshifted)["loss"], expected)
    assert model(batch["input_ids"]).keys() == {"logits"}


@pytest.mark.keys("model(gpt).vocab_size")
@pytest.mark.parametrize("exact_width", [(), ("cpu",)])
@pytest.mark.parametrize("keys", [{}, {"tie_head": False}])
def test_filled_up_rows_change_neither_loss_nor_gradient(exact_width, keys, monkeypatch):
    monkeypatch.setattr(network, "EXACT_WIDTH_ON", exact_width)
    model, batch = excited(small(**keys)), batch_of()
    assert model.head.weight.shape == model.token_embedding.weight.shape == (128, 32)
    found = gradients(model, batch)
    loss = model(**batch)["loss"].item()
    hidden = model.hidden(batch["input_ids"], [0])
    model.zero_grad()
    scores = hidden @ model.head.weight[:65].T
    by_hand = F.nll_loss(scores.flatten(0, 1).log_softmax(-1), batch["shift_labels"].flatten())
    by_hand.backward()
    assert loss == pytest.approx(by_hand.item(), abs=1e-6)
    for name, each in model.named_parameters():
        torch.testing.assert_close(found[name], each.grad, rtol=1e-5, atol=1e-7)
    assert not found["token_embedding.weight"][65:].any()
    assert model(batch["input_ids"])["logits"].shape == (3, 16, 65)


def test_every_weight_has_a_gradient_and_both_modes_the_same_loss():
    model, batch = small(qk_norm=True, bias=True), batch_of()
    assert all(gradient.any() for gradient in gradients(model.train(), batch).values())
    assert torch.equal(model(**batch)["loss"], model.eval()(**batch)["loss"])


# ---- packed documents ----


@pytest.mark.parametrize("position", ["learned", "rope", "none"])
def test_packed_documents_are_as_if_each_were_alone(position):
    model = excited(small(position=position))
    ids = tokens(2, 16)
    cuts = [[0, 5, 6, 16], [0, 9, 16]]
    places = torch.stack([torch.cat([torch.arange(b - a) for a, b in zip(c, c[1:], strict=False)]) for c in cuts])
    if position == "rope":
        places[0, :5] += 5  # a row may begin within a document: only distances count
    packed = model(ids, position_ids=places)["logits"]
    for row, ends in enumerate(cuts):
        for begin, end in zip(ends, ends[1:], strict=False):
            alone = model(ids[row : row + 1, begin:end])["logits"][0]
            torch.testing.assert_close(packed[row, begin:end], alone, rtol=1e-4, atol=1e-4)
    whole = model(ids, position_ids=torch.arange(16).expand(2, 16))["logits"]
    torch.testing.assert_close(whole, model(ids)["logits"], rtol=1e-4, atol=1e-4)


# ---- initial weights, cost ----


@pytest.mark.slow
def test_initial_weights_are_gpt2s():
    model = small(n_layer=8, n_embd=128, bias=True, qk_norm=True)
    for name, each in model.named_parameters():
        if name.endswith("bias"):
            assert not each.any(), name
        elif "norm" in name:
            assert (each == 1).all(), name
        else:
            ends = name.endswith(("output.weight", "down.weight"))
            assert each.std().item() == pytest.approx(0.02 / 4 if ends else 0.02, rel=0.05), name
    assert small(bias=False).state_dict().keys() == {
        name for name in small(bias=True).state_dict() if not name.endswith("bias")
    }


@pytest.mark.slow
@pytest.mark.keys("model(gpt).n_layer", "model(gpt).n_head", "model(gpt).n_embd", "model(gpt).bias")
def test_a_new_network_has_the_sizes_it_is_given_or_the_usual_ones():
    config = gpt.build(gpt.Config(block_size=8, vocab_size=65), process_of()).config
    assert (config.n_layer, config.n_head, config.n_embd, config.bias, config.mlp) == (6, 6, 384, False, "gelu")
    config = small(n_layer=1, n_head=2, n_embd=16, block_size=4).config
    assert (config.n_layer, config.n_head, config.n_embd, config.block_size) == (1, 2, 16, 4)


@pytest.mark.parametrize("position", ["learned", "rope"])
def test_flops_by_hand(position):
    for tied in (True, False):
        model = small(tie_head=tied, position=position)
        block = 32 * 96 + 32 * 32 + 2 * 32 * 128 + 2 * 32
        weights = 2 * block + 32 + 128 * 32  # the head once, tied or not
        assert model.flops_per_sample() == 16 * (6 * weights + 12 * 2 * 4 * 8 * 16)
    gpt2 = {"n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": 1024, "vocab_size": 50257, "bias": False}
    with torch.device("meta"):
        model = network.GPT(network.GPTConfig(**gpt2))
    assert model.flops_per_sample() / 1024 == pytest.approx(6 * 123.59e6 + 12 * 12 * 768 * 1024, rel=1e-3)


@pytest.mark.keys("model(gpt).dropout")
def test_dropout_acts_in_training_only():
    model, batch = small(dropout=0.5), batch_of()
    plain = small()(**batch)["loss"]
    assert torch.equal(model.eval()(**batch)["loss"], plain)
    torch.manual_seed(0)
    first, second = model.train()(**batch)["loss"], model(**batch)["loss"]
    assert first != second and not torch.equal(first, plain)


# ---- how it is run ----


@pytest.mark.parametrize("keys", [{}, FULLY_MODERN])
def test_gradient_checkpointing_recomputes_blocks_and_keeps_gradients(keys):
    model, batch = small(**keys).train(), batch_of()
    plain, calls = gradients(model, batch), []
    for block in model.blocks:
        block.attention.register_forward_hook(lambda *_: calls.append(1))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    again = gradients(model, batch)
    assert len(calls) == 4 and all(torch.equal(plain[name], again[name]) for name in plain)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keys", "exact_width"),
    [({}, ("cpu",)), (FULLY_MODERN, ())],
)
def test_compiles_in_one_graph(keys, exact_width, monkeypatch):
    """Forward and backward; nothing is compiled to machine code, which takes a minute."""
    monkeypatch.setattr(network, "EXACT_WIDTH_ON", exact_width)
    torch._dynamo.reset()
    model, batch = excited(small(**keys)).train(), batch_of()
    plain = gradients(model, batch)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    model.zero_grad()
    loss = compiled(**batch)["loss"]
    loss.backward()
    torch.testing.assert_close(loss, model(**batch)["loss"])
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, plain[name], rtol=1e-4, atol=1e-6)
    packed = {**batch, "position_ids": torch.arange(16).remainder(5).expand(3, 16)}
    torch.testing.assert_close(compiled(**packed)["loss"], model(**packed)["loss"])


@pytest.mark.parametrize("keys", [{}, FULLY_MODERN])
def test_half_precision_is_near_and_its_loss_is_not_half(keys):
    model, batch = small(**keys).train(), batch_of()
    expected = model(**batch)["loss"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**batch)["loss"]
    loss.backward()
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected.item(), abs=0.02)
    loss = model.bfloat16()(**batch)["loss"]
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected.item(), abs=0.05)
    assert model.double()(**batch)["loss"].dtype == torch.float64


# ---- files ----


@pytest.mark.keys("model(gpt).tie_head")
@pytest.mark.parametrize("keys", [{}, {"tie_head": False}, {**FULLY_MODERN, "bias": True}])
def test_saved_and_loaded_bit_for_bit(keys, tmp_path):
    model, batch = excited(small(**keys)), batch_of()
    model.save_pretrained(tmp_path)
    again = gpt.load(tmp_path)
    assert not again.training and (again.head.weight is again.token_embedding.weight) == keys.get("tie_head", True)
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(each, again.state_dict()[name]) for name, each in model.state_dict().items())
    assert torch.equal(again(**batch)["loss"], model(**batch)["loss"])
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == "gpt" and saved["vocab_size"] == 65  # the rows filled up are no part of it
    assert saved["tie_head"] == saved["tie_word_embeddings"] == keys.get("tie_head", True)
    assert again.flops_per_sample() == model.flops_per_sample()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"n_embd": 30, "n_head": 4}, "n_embd: 30 is not divisible by model.n_head: 4; try n_embd 32"),
        ({"n_embd": 12, "n_head": 4, "position": "rope"}, "n_embd 12 / n_head 4 = 3 are odd"),
        ({"n_head": 4, "n_kv_head": 3}, "n_head: 4 is not divisible by model.n_kv_head: 3"),
        ({"rope_theta": 500.0}, "rope_theta: 500 has no effect with model.position: learned"),
        ({"dataset_names": ["a"]}, "vocab_sizes: None.*dataset_names: .'a'"),
        ({"vocab_sizes": [3, 4]}, "vocab_sizes: .3, 4.*dataset_names: None or model.context_names: None"),
        ({"vocab_sizes": [3], "dataset_names": ["a"], "context_names": ["b"]}, "dataset_names: .'a'.*names: .'b'"),
        ({"vocab_sizes": [3, 4], "dataset_names": ["a"]}, "vocab_sizes: .3, 4"),
        ({"vocab_sizes": [3, 4], "context_names": ["a", "a", "b"]}, "vocab_sizes: .3, 4"),
        ({"vocab_sizes": [3, 0], "context_names": ["a", "b"]}, "vocab_sizes: .3, 0"),
        ({"vocab_sizes": [3, 4], "context_names": ["a", "b"], "vocab_size": 5}, "vocab_sizes: .3, 4.*vocab_size: 5"),
    ],
)
def test_config_refuses_contradictions(keys, message):
    with pytest.raises(ValueError, match=message) as caught:
        gpt.Config(**keys)
    assert "\n" not in str(caught.value)


@pytest.mark.keys("model(gpt).block_size")
def test_missing_sizes_and_too_long_inputs_are_told():
    with pytest.raises(ValueError, match="block_size, vocab_size missing"):
        gpt.build(gpt.Config(), process_of())
    with pytest.raises(ValueError, match="n_embd: 128 is not divisible by model.n_head: 6"):
        gpt.build(gpt.Config(block_size=8, vocab_size=9, n_embd=128), process_of())
    with pytest.raises(ValueError, match="at most 16 tokens"):
        small()(tokens(1, 17))
    with pytest.raises(ValueError, match=r"shape \(16,\): this model reads \(batch, tokens\)"):
        small()(tokens(1, 16)[0])
