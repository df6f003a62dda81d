"""Quantization of any model: bytes and values by hand, gradients, files and merging."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from adapting import HEADS, MODULES, batch_of, build_adapted, disturb, outputs, plain, trained

from models import adapt
from models.adapt import quantize
from models.adapt.saved_model import plain_model

pytestmark = [
    pytest.mark.slow,  # importing bitsandbytes and its kernels takes seconds
    pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"),
]
every_model = pytest.mark.parametrize("name", list(MODULES))
# How far an 8-bit layer's rounding of its inputs, which plain weights do not have, moves an output.
TOLERANCE = {4: 1e-5, 8: 5e-2}


def quantized(name, bits=4, **settings):
    return build_adapted(name, use_quantization=True, bits=bits, **{"lora_enable": True, **settings})


def layers(model):
    return {each.replace("base_model.model.", "").replace(".base_layer", ""): layer
            for each, layer in quantize.quantized_layers(model).items()}  # fmt: skip


def numbers(model, layer):
    return quantize.plain_state(torch.nn.Sequential(layers(model)[layer]), {})["0.weight"]


@pytest.mark.keys("bits")
@every_model
@pytest.mark.parametrize("bits", [4, 8])
def test_every_frozen_linear_but_the_head(name, bits):
    linear = {key for key, module in plain(name).named_modules() if type(module) is torch.nn.Linear}
    assert layers(quantized(name, bits).model).keys() == linear - {HEADS[name]}


# The 16 values of NF4: Dettmers et al. 2023, appendix E; of FP4, as bitsandbytes documents them, by sign and size.
NF4 = [-1, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0]
NF4 += [0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1]
FP4 = [sign * size for sign in (1, -1) for size in (0.0, 0.0052, 2 / 3, 1.0, 1 / 3, 0.5, 1 / 6, 0.25)]


@pytest.mark.keys("quant_type")
@pytest.mark.parametrize(("quant_type", "values"), [("nf4", NF4), ("fp4", FP4)])
def test_four_bit_values_by_hand(quant_type, values):
    weight = plain("llama").model.layers[0].self_attn.q_proj.weight.detach()
    blocks = weight.reshape(-1, 64)
    scale = blocks.abs().amax(1, keepdim=True)
    levels = torch.tensor(values)
    nearest = (blocks[..., None] / scale[..., None] - levels).abs().argmin(-1)
    by_hand = (levels[nearest] * scale).reshape(weight.shape)
    model = quantized("llama", quant_type=quant_type, double_quant=False).model
    found = numbers(model, "model.layers.0.self_attn.q_proj")
    # A value half-way between two levels may go either way.
    assert (found - by_hand).abs().gt(2e-4 * scale.max()).float().mean() < 0.01


def test_eight_bit_values_by_hand():
    weight = plain("llama").model.layers[0].mlp.up_proj.weight.detach()
    scale = weight.abs().amax(1, keepdim=True)
    by_hand = (weight / scale * 127).round() * scale / 127
    found = numbers(quantized("llama", 8).model, "model.layers.0.mlp.up_proj")
    # bitsandbytes reads weights as float16 first: a value near a half may go the other way, by one step of 1 / 127.
    error = (found - by_hand).abs() / scale
    assert error.max() < 1 / 127 + 1e-3 and error.gt(1e-3).float().mean() < 0.05


@pytest.mark.keys("double_quant")
@pytest.mark.parametrize(("bits", "double_quant"), [(4, True), (4, False), (8, False)])
def test_bytes_by_hand(bits, double_quant):
    adapted, net = quantized("llama", bits, freeze=["head"], double_quant=double_quant), plain("llama")
    total = 4 * (96 * 64 * 2 + 5 * 64)  # embeddings, head and norms stay as they are
    total += sum(buffer.numel() * buffer.element_size() for buffer in net.buffers())
    for module in (net.get_submodule(name) for name in layers(adapted.model)):
        blocks = module.weight.numel() // 64
        scales = {8: 4 * module.out_features, 4: 4 * blocks + 4 * 16}[bits]
        if double_quant:
            scales = blocks + 4 * (-(-blocks // 256)) + 4 * 256 + 4 + 4 * 16
        total += module.weight.numel() * bits // 8 + scales + 4 * 4 * (module.in_features + module.out_features)
    assert adapted.report({})["total"]["bytes"] == total
    outputs(adapted.model, "llama")  # the first forward moves the scales of 8-bit layers elsewhere
    assert adapted.report({})["total"]["bytes"] == total


def gradients(model, name):
    model.train().zero_grad()
    torch.manual_seed(1)
    model(**batch_of(name))["loss"].backward()
    return {each: value.grad.clone() for each, value in model.named_parameters() if value.grad is not None}


@every_model
@pytest.mark.parametrize("bits", [4, 8])
def test_gradients_are_those_of_the_plain_weights_also_after_an_evaluation(name, bits):
    model = disturb(quantized(name, bits).model)
    before = gradients(model, name)
    assert before.keys() == trained(model)
    outputs(model, name)
    after = gradients(model, name)
    quantize.dequantize(model)
    for key, expected in gradients(model, name).items():
        torch.testing.assert_close(after[key], before[key], rtol=1e-5, atol=1e-7)
        near = torch.nn.functional.cosine_similarity(before[key].flatten(), expected.flatten(), dim=0)
        assert near > 0.999 or expected.norm() < 1e-6, key


def test_no_layer_repacks_its_weight_in_evaluation(monkeypatch, tmp_path):
    """The trap itself needs a CPU with AVX512-BF16: here bitsandbytes is told that this is one."""
    import bitsandbytes.nn.modules as bnb_modules

    repacked = []
    monkeypatch.setattr(bnb_modules, "has_avx512bf16", lambda: True)
    monkeypatch.setattr(bnb_modules, "_convert_weight_packed_for_cpu", lambda *each: repacked.append(1) or each)
    adapted = quantized("llama")
    adapted.save(tmp_path)
    for model in (adapted.model, adapt.load_adapted(tmp_path, MODULES["llama"])):
        assert {layer.support_avx512bf16_for_cpu for layer in layers(model).values()} == {False}
        outputs(model, "llama")
    assert not repacked
    for layer in layers(adapted.model).values():
        layer.support_avx512bf16_for_cpu = True
    outputs(adapted.model, "llama")
    assert repacked  # and would have, without the guard


@every_model
@pytest.mark.parametrize("bits", [4, 8])
def test_lora_over_quantized_weights_reloads_and_merges(name, bits, tmp_path):
    adapted = quantized(name, bits)
    disturb(adapted.model)
    expected = outputs(adapted.model, name)
    adapted.save(tmp_path)
    again = adapt.load_adapted(tmp_path, MODULES[name])
    assert layers(again).keys() == layers(adapted.model).keys()
    torch.testing.assert_close(outputs(again, name), expected, rtol=0, atol=1e-6)
    merged = plain_model(tmp_path, MODULES[name])
    assert not quantize.quantized_layers(merged) and "lora_" not in "".join(merged.state_dict())
    torch.testing.assert_close(outputs(merged, name), expected, rtol=0, atol=TOLERANCE[bits])
    base = MODULES[name].load(tmp_path / "base")  # as it was before it was quantized
    torch.testing.assert_close(outputs(base, name), outputs(plain(name), name), rtol=0, atol=0)
    resumed = quantized(name, bits)
    resumed.load(tmp_path)
    torch.testing.assert_close(outputs(resumed.model, name), expected, rtol=0, atol=1e-6)


@every_model
@pytest.mark.parametrize("bits", [4, 8])
def test_freezing_without_lora(name, bits, tmp_path):
    part = {"act": "encoder", "gpt": "blocks"}.get(name, "layers")
    adapted = quantized(name, bits, lora_enable=False, freeze=[part])
    assert layers(adapted.model) and all(f"{part}." in layer for layer in layers(adapted.model))
    disturb(adapted.model)
    expected = outputs(adapted.model, name)
    adapted.save(tmp_path)
    again = adapt.load_adapted(tmp_path, MODULES[name])
    assert layers(again).keys() == layers(adapted.model).keys()
    assert torch.equal(outputs(again, name), expected)
    maps = Path("/proc/self/maps")  # the file is no longer needed: a checkpoint may be deleted
    assert not maps.exists() or str(tmp_path / "quantized.safetensors") not in maps.read_text()
    torch.testing.assert_close(outputs(MODULES[name].load(tmp_path), name), expected, rtol=0, atol=TOLERANCE[bits])
    resumed = quantized(name, bits, lora_enable=False, freeze=[part])
    resumed.load(tmp_path)
    assert torch.equal(outputs(resumed.model, name), expected)


def test_tied_and_trained_weights_stay_plain():
    tied = quantized("llama", changes={"tie_word_embeddings": True})
    assert type(tied.model.get_base_model().lm_head) is torch.nn.Linear
    whole = quantized("act", tune_mm_mlp_adapter=True)
    assert not [layer for layer in layers(whole.model) if layer.endswith(("state_projection", "latent_projection"))]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora_enable": False}, "no frozen linear weight to quantize; enable LoRA"),
        ({"lora_enable": False, "freeze": ["embeddings"]}, "no frozen linear weight to quantize"),
        ({"weights_dtype": "float64"}, "float64"),
    ],
)
def test_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        quantized("llama", **settings)


@every_model
def test_in_bfloat16(name):
    model = quantized(name, weights_dtype="bfloat16").model
    assert gradients(model, name).keys() == trained(model)
    assert outputs(model, name).dtype == torch.bfloat16


def test_report_counts_weights_not_bytes():
    adapted = quantized("llama")
    found = adapted.report({})
    net = plain("llama")
    assert found["total"]["parameters"] == sum(parameter.numel() for parameter in net.parameters())
    linears = [each for name, each in net.named_modules() if type(each) is torch.nn.Linear and name != "lm_head"]
    assert found["total"]["quantized"] == sum(linear.weight.numel() for linear in linears)
    assert found["quantization"] == {
        "bits": 4,
        "quant_type": "nf4",
        "double_quant": True,
        "modules": list(layers(adapted.model)),
    }
    json.dumps(found)


def test_not_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None)
    with pytest.raises(ValueError, match="pip install bitsandbytes") as caught:
        quantize.quantize(plain("llama"), [], {})
    assert "\n" not in str(caught.value)
