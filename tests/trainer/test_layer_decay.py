"""Layer-wise learning-rate decay: depths and rates, against a hand calculation and BEiT's numbering."""

import re

import pytest
from adapting import batch_of, build_adapted
from image_networks import NETWORKS, new_network
from torch import nn

from trainer.optimization.parameter_groups import depths_from_head, group_rates, parameter_groups
from trainer.settings import ParameterGroup

BLOCKS = {"mobilevitv2": 6, "efficientnet": 7, "mobilenet_v1": 26, "mobilenet_v2": 16}  # of the others: as configured


def blocks_of(kind):
    fields = NETWORKS[kind]
    return BLOCKS.get(kind) or fields.get("num_hidden_layers") or sum(fields["depths"])


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_block_is_a_layer(kind):
    """Embeddings, each block, and the head have rates of their own, in the order in which images pass them."""
    model = new_network(kind)
    depths = depths_from_head(model)
    assert sorted(depths) == sorted(name for name, _ in model.named_parameters())
    in_order = [depths[name] for name, _ in model.named_parameters() if not name.startswith("classifier.")]
    assert in_order == sorted(in_order, reverse=True) and set(depths.values()) == set(range(blocks_of(kind) + 2))
    assert in_order[0] == blocks_of(kind) + 1
    assert {depth for name, depth in depths.items() if name.startswith("classifier.")} == {0}


@pytest.mark.parametrize("kind", ["vit", "beit", "deit", "dinov2"])
def test_layers_of_a_transformer_are_numbered_as_beit_does(kind):
    """Its numbers: 0 for the embeddings, i + 1 for block i, blocks + 1 for all else; the depth counts from there."""
    model, blocks = new_network(kind), 2

    def number(name):
        block = re.search(r"\blayers?\.(\d+)\.", name)
        return 0 if ".embeddings." in name else int(block[1]) + 1 if block else blocks + 1

    expected = {name: blocks + 1 - number(name) for name, _ in model.named_parameters()}
    assert depths_from_head(model) == expected


def test_downsampling_belongs_to_the_nearest_block_of_its_stage():
    swin, convnext = depths_from_head(new_network("swin")), depths_from_head(new_network("convnextv2"))
    assert swin["swin.encoder.layers.0.downsample.reduction.weight"] == 3  # behind the only block of its stage
    assert convnext["convnextv2.encoder.stages.1.downsampling_layer.1.weight"] == 2  # before the first of two


@pytest.mark.keys("layer_decay")
def test_rates_and_weight_decay_of_groups_by_hand():
    """With another rate of a part: the decay multiplies it."""
    model = new_network("vit")
    specs = [ParameterGroup("^classifier", lr=0.5), ParameterGroup("embeddings", lr_factor=0.1)]
    groups = parameter_groups(model, 0.1, 0.03, specs, layer_decay=0.5)
    rates = group_rates(model, groups)
    assert len(rates) == len(list(model.parameters()))
    for name, rate in {
        "classifier.weight": 0.5,
        "vit.layernorm.weight": 0.1,
        "vit.layers.1.mlp.fc1.weight": 0.1 * 0.5,
        "vit.layers.0.mlp.fc1.bias": 0.1 * 0.25,
        "vit.embeddings.cls_token": 0.1 * 0.1 * 0.125,
    }.items():
        assert rates[name] == pytest.approx(rate), name
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    assert {group["weight_decay"] for group in groups} == {0.0, 0.03}
    layer = model.vit.layers[0]
    assert id(layer.mlp.fc1.weight) in decayed
    assert not {id(layer.mlp.fc1.bias), id(layer.layernorm_before.weight)} & decayed
    assert len(parameter_groups(model, 0.1, 0.03)) == 2  # and none but these where layer_decay is 1


@pytest.mark.parametrize(("kind", "blocks"), [("act", 3), ("llama", 2), ("gpt", 1)], ids=["act", "llama", "gpt"])
def test_networks_that_are_no_classifiers(kind, blocks):
    depths = depths_from_head(build_adapted(kind).model)
    assert set(depths.values()) >= set(range(1, blocks + 2)) and max(depths.values()) == blocks + 1


def test_an_adapter_lies_where_its_layer_does():
    plain, adapted = build_adapted("vit").model, build_adapted("vit", lora_enable=True).model
    depths, before = depths_from_head(adapted), depths_from_head(plain)
    inside = {name: depth for name, depth in depths.items() if "lora_" in name}
    assert inside and set(inside.values()) == {1}
    for name, depth in depths.items():
        base = re.sub(r"^base_model\.model\.|\.base_layer|\.original_module|\.modules_to_save\.default", "", name)
        assert base not in before or before[base] == depth, name
    assert adapted(**batch_of("vit"))["loss"].isfinite()


def test_a_model_without_blocks_is_refused():
    with pytest.raises(ValueError, match="`layer_decay`.*param_groups"):
        depths_from_head(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)))


def test_tied_weights_stay_where_they_are_first():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(3, 2)
            self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(2, 1, 2) for _ in range(2))
            self.head = nn.Linear(2, 3)
            self.head.weight = self.embedding.weight

    depths = depths_from_head(Tied())
    assert (depths["embedding.weight"], depths["head.bias"]) == (3, 0) and "head.weight" not in depths
