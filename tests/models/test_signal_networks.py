"""WaveNet, the classifier of signals and the learned tokenizer, against torch's own modules and by hand."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

import models.rvq
import models.signal_classifier
import models.wavenet


def built(module, **keys):
    torch.manual_seed(0)
    return module.build(module.Config(**keys), SimpleNamespace())


def noise(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def same_after_loading(module, net, folder, **inputs):
    net.eval().save_pretrained(folder)
    again, expected = module.load(folder)(**inputs), net(**inputs)
    return all(torch.equal(again[name], value) for name, value in expected.items() if name != "losses")


# ---- WaveNet ----

WAVE = {"channels": 2, "blocks": 2, "layers": 3, "residual_channels": 6, "skip_channels": 10}


def wave_inputs(quantised, steps=40):
    return torch.randint(0, 9, (3, 2, steps)) if quantised else noise(3, 2, steps)


@pytest.mark.keys(
    "model(wavenet).blocks",
    "model(wavenet).layers",
    "model(wavenet).kernel_size",
    "model(wavenet).vocab_size",
    "model(wavenet).channels",
)
@pytest.mark.parametrize("vocab_size", [None, 9])
@pytest.mark.parametrize(("blocks", "layers", "kernel_size"), [(2, 3, 2), (1, 2, 4)])
def test_wavenet_sees_its_receptive_field_and_nothing_later(vocab_size, blocks, layers, kernel_size):
    net = built(models.wavenet, **{**WAVE, "blocks": blocks, "layers": layers}, kernel_size=kernel_size,
                vocab_size=vocab_size, ).double().eval()  # fmt: skip
    inputs, name = wave_inputs(vocab_size), "input_ids" if vocab_size else "signal"
    inputs = inputs if vocab_size else inputs.double()
    changed = inputs.clone()
    changed[:, 0, 7] = (inputs[:, 0, 7] + 4) % 9 if vocab_size else inputs[:, 0, 7] + 1
    before, after = (list(net(**{name: each}).values())[-1] for each in (inputs, changed))
    differs = (before != after).flatten(3).any(-1) if vocab_size else before != after
    seen = torch.arange(40)
    field = 1 + blocks * (kernel_size - 1) * (2**layers - 1)
    assert net.receptive_field == field
    assert torch.equal(differs[0, 0], (seen >= 7) & (seen < 7 + field)) and not differs[:, 1].any()


@pytest.mark.keys("model(wavenet).residual_channels", "model(wavenet).skip_channels")
def test_a_layer_of_wavenet_is_its_equations():
    net = built(models.wavenet, **{**WAVE, "residual_channels": 6, "skip_channels": 10})
    layer, inputs, channel = net.layers[1], noise(4, 6, 12), noise(4, 6)
    inner = F.conv1d(F.pad(inputs, (2, 0)), layer.dilated.weight, layer.dilated.bias, dilation=2)
    inner = inner + (channel @ layer.condition.weight.T)[:, :, None]
    unit = torch.tanh(inner[:, :6]) * torch.sigmoid(inner[:, 6:])
    out = F.conv1d(unit, layer.output.weight, layer.output.bias)
    assert out.shape == (4, 16, 12)
    for got, expected in zip(layer(inputs, channel), (inputs + out[:, :6], out[:, 6:]), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.slow
@pytest.mark.keys("model(wavenet).dropout")
@pytest.mark.parametrize("vocab_size", [None, 9])
def test_losses_of_wavenet_are_those_of_torch(tmp_path, vocab_size):
    net, inputs = built(models.wavenet, **WAVE, vocab_size=vocab_size, dropout=0.3).eval(), wave_inputs(vocab_size)
    name, labels = "input_ids" if vocab_size else "signal", inputs.roll(-1, -1)
    labels[..., -1] = -100 if vocab_size else torch.nan
    output = net(**{name: inputs}, labels=labels)
    if vocab_size:
        expected = F.cross_entropy(output["logits"][:, :, :-1].flatten(0, 2), labels[:, :, :-1].flatten())
    else:
        variance = output["log_variance"][..., :-1].exp()
        expected = F.gaussian_nll_loss(output["prediction"][..., :-1], labels[..., :-1], variance, full=True)
    torch.testing.assert_close(output["loss"], expected)
    assert net.loss_items({"labels": labels})["loss"] == 3 * 2 * 39
    output["loss"].backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert same_after_loading(models.wavenet, net, tmp_path, **{name: inputs})
    assert net.train()(**{name: inputs}, labels=labels)["loss"] != output["loss"]


@pytest.mark.parametrize("vocab_size", [None, 9])
def test_wavenet_continues_a_signal(vocab_size):
    """From its receptive field alone, which is shorter than the prompt."""
    net, prompt = built(models.wavenet, **WAVE, vocab_size=vocab_size).eval(), wave_inputs(vocab_size)
    longer = net.generate(prompt, 3, temperature=0)
    name, by_hand = "input_ids" if vocab_size else "signal", prompt
    for _ in range(3):
        output = net(**{name: by_hand})
        step = output["logits"].argmax(-1) if vocab_size else output["prediction"]
        by_hand = torch.cat((by_hand, step[..., -1:]), dim=-1)
    torch.testing.assert_close(longer, by_hand)
    drawn = [net.generate(prompt, 3, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    with pytest.raises(ValueError, match=name):
        net(**{"signal" if vocab_size else "input_ids": prompt})


# ---- the classifier ----

CLASSIFIER = {"channels": 3, "classes": 4, "hidden_dim": 8, "num_heads": 2, "feedforward_dim": 12, "layers": 1}


@pytest.mark.keys(
    "model(signal_classifier).strides",
    "model(signal_classifier).kernel_size",
    "model(signal_classifier).layers",
    "model(signal_classifier).channels",
    "model(signal_classifier).classes",
)
@pytest.mark.parametrize("strides", [[1, 2], [2, 3]])
@pytest.mark.parametrize(("layers", "kernel_size"), [(0, 3), (2, 5)])
def test_padding_changes_nothing(strides, layers, kernel_size):
    """Whatever stands in it, and however long it is; each sample alone gives the same scores."""
    net = built(models.signal_classifier, **{**CLASSIFIER, "layers": layers}, strides=strides, kernel_size=kernel_size)
    signal, lengths = noise(3, 3, 20), torch.tensor([20, 13, 7])
    scores = net.eval()(signal, lengths)["logits"]
    assert scores.shape == (3, 4)
    longer = torch.cat((signal, noise(3, 3, 9, seed=2)), dim=-1)
    longer[1, :, 13:], longer[2, :, 7:] = 99.0, torch.nan
    torch.testing.assert_close(net(longer, lengths)["logits"], scores)
    for row, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(net(signal[row : row + 1, :, :length])["logits"][0], scores[row])


@pytest.mark.keys(
    "model(signal_classifier).hidden_dim",
    "model(signal_classifier).num_heads",
    "model(signal_classifier).feedforward_dim",
    "model(signal_classifier).dropout",
)
def test_the_encoder_is_that_of_torch():
    net = built(models.signal_classifier, **{**CLASSIFIER, "hidden_dim": 8, "num_heads": 2, "feedforward_dim": 12},
                strides=[1], dropout=0.2).eval()  # fmt: skip
    theirs = torch.nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True, norm_first=True).eval()
    layer = net.encoder.layers[0]
    parts = [layer.attention.query, layer.attention.key, layer.attention.value]
    theirs.self_attn.in_proj_weight.data = torch.cat([part.weight for part in parts])
    theirs.self_attn.in_proj_bias.data = torch.cat([part.bias for part in parts])
    theirs.self_attn.out_proj.load_state_dict(layer.attention.output.state_dict())
    theirs.linear1.load_state_dict(layer.feedforward[0].state_dict())
    theirs.linear2.load_state_dict(layer.feedforward[3].state_dict())
    theirs.norm1.load_state_dict(layer.attention_residual.norm.state_dict())
    theirs.norm2.load_state_dict(layer.feedforward_residual.norm.state_dict())
    tokens = noise(2, 9, 8)
    torch.testing.assert_close(net.encoder(tokens, torch.zeros(9, 8)), net.encoder.norm(theirs(tokens)))
    signal = noise(2, 3, 9)
    assert not torch.allclose(net.train()(signal)["logits"], net.eval()(signal)["logits"])


@pytest.mark.slow
@pytest.mark.keys("model(signal_classifier).vocab_size")
def test_losses_of_the_classifier_are_those_of_torch(tmp_path):
    """Of hard and soft targets; of values, and of ids that stand for the same values."""
    net, signal, lengths = built(models.signal_classifier, **CLASSIFIER).eval(), noise(5, 3, 11), torch.full((5,), 11)
    logits, hard = net(signal, lengths)["logits"], torch.tensor([0, 3, 1, 1, 2])
    soft = F.one_hot(hard, 4) * 0.7 + F.one_hot(hard.flip(0), 4) * 0.3
    for labels in (hard, soft):
        torch.testing.assert_close(net(signal, lengths, labels)["loss"], F.cross_entropy(logits, labels))
        assert net.loss_items({"labels": labels})["loss"] == 5
    assert same_after_loading(models.signal_classifier, net, tmp_path, signal=signal, lengths=lengths)
    ids = torch.randint(0, 10, (5, 3, 11))
    quantised = built(models.signal_classifier, **CLASSIFIER, vocab_size=10).eval()
    torch.testing.assert_close(quantised(ids)["logits"], net((ids + 0.5) / 5 - 1)["logits"])


# ---- the learned tokenizer ----

CODES = {"strides": [2, 3], "width": 8, "code_dim": 4, "quantizers": 3, "levels": 16}


@pytest.mark.keys(
    "model(rvq).strides", "model(rvq).width", "model(rvq).code_dim", "model(rvq).quantizers", "model(rvq).levels"
)
def test_ids_of_the_tokenizer_are_the_nearest_codes_of_what_is_left():
    net = built(models.rvq, **{**CODES, "strides": [2, 3], "width": 8, "code_dim": 4, "quantizers": 3, "levels": 16})
    signal = noise(2, 24)
    ids = net.eval().encode(signal)
    assert ids.shape == (2, 4, 3) and net.config.hop == 6
    left = net.encoder(signal[:, None]).transpose(1, 2)
    for stage, codebook in enumerate(net.quantiser.codebooks):
        distances = ((left[:, :, None] - codebook) ** 2).sum(-1)
        assert distances.shape[-1] == 16 and torch.equal(ids[..., stage], distances.argmin(-1))
        left = left - codebook[ids[..., stage]]
    decoded = net.decode(ids)
    assert decoded.shape == (2, 24)
    torch.testing.assert_close(net(signal[:, None])["prediction"][:, 0], decoded)


def test_the_tokenizer_is_causal():
    """Ids do not depend on later frames, nor values on later ids."""
    net, signal = built(models.rvq, **CODES).eval(), noise(1, 60)
    changed = signal.clone()
    changed[:, 30:] += 1
    ids, others = net.encode(signal), net.encode(changed)
    assert torch.equal(ids[:, :5], others[:, :5]) and not torch.equal(ids[:, 5:], others[:, 5:])
    torch.testing.assert_close(net.decode(ids)[:, :30], net.decode(others)[:, :30])


@pytest.mark.slow
@pytest.mark.keys("model(rvq).commitment", "model(rvq).context")
def test_losses_of_the_tokenizer(tmp_path):
    """Their gradients reach what they should: the commitment the encoder alone, the codebook the codes alone."""
    net, signal = built(models.rvq, **CODES, commitment=0.5, context=24), noise(2, 3, 24)
    output = net(signal)
    losses = output["losses"]
    total = losses["reconstruction"] + losses["codebook"] + 0.5 * losses["commitment"]
    torch.testing.assert_close(output["loss"], total)
    torch.testing.assert_close(losses["reconstruction"], F.mse_loss(output["prediction"], signal))
    assert set(net.loss_items({"signal": signal})) == set(losses) and net.loss_weights == {"commitment": 0.5}
    groups = {"encoder": list(net.encoder.parameters()), "codes": [net.quantiser.codebooks]}
    reached = {
        (term, name): any(
            gradient is not None and gradient.abs().sum() > 0
            for gradient in torch.autograd.grad(losses[term], parameters, retain_graph=True, allow_unused=True)
        )
        for term in losses
        for name, parameters in groups.items()
    }
    assert [place for place, value in reached.items() if value] == [
        ("reconstruction", "encoder"), ("codebook", "codes"), ("commitment", "encoder"),
    ]  # fmt: skip
    assert same_after_loading(models.rvq, net, tmp_path, signal=signal)
    with pytest.raises(ValueError, match="25"):
        built(models.rvq, **CODES, context=25)


@pytest.mark.slow
def test_the_tokenizer_learns_sines():
    """A tenth of their variance is left after some steps, and more than a few codes are used."""
    net, random = built(models.rvq, strides=[2, 2], width=16, levels=32), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)

    def sines():
        frequency, phase = torch.rand(2, 32, 1, 1, generator=random)
        return 2**0.5 * torch.sin((0.1 + 0.2 * frequency) * torch.arange(64) + 6.3 * phase)

    for _ in range(150):
        optimizer.zero_grad()
        net(sines())["loss"].backward()
        optimizer.step()
    signal = sines()
    assert net(signal)["losses"]["reconstruction"] < 0.1
    assert len(net.encode(signal[:, 0])[..., 0].unique()) > 8


@pytest.mark.keys("model(wavenet).target", "model(rvq).target")
@pytest.mark.parametrize(
    ("module", "keys", "words"),
    [
        (models.wavenet, {**WAVE, "target": "class"}, ["target"]),
        (models.rvq, {"target": "tokens"}, ["tokens", "values"]),
        (models.wavenet, {}, ["channels"]),
        (models.signal_classifier, {"channels": 2}, ["classes"]),
        (models.signal_classifier, {**CLASSIFIER, "kernel_size": 4}, ["4"]),
        (models.signal_classifier, {**CLASSIFIER, "hidden_dim": 9}, ["9"]),
        (models.signal_classifier, {**CLASSIFIER, "strides": []}, ["strides"]),
        (models.rvq, {"strides": [0]}, ["strides"]),
    ],
)
def test_sizes_that_do_not_fit_are_refused(module, keys, words):
    with pytest.raises(ValueError) as error:
        built(module, **keys)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)
