"""The tracking transformer: every option, clips in batches, and the association loss against loops."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from transformers import ResNetConfig, ResNetModel

from models.losses.association import Config as LossConfig
from models.losses.association import build as build_loss
from models.losses.tracks import AssociationLoss
from models.tracker import build, load
from models.tracker.config import Config, EmbeddingConfig, EncoderConfig, MLPConfig, PositionConfig, TimeConfig
from models.tracker.embeddings import PairGeometry, SpatioTemporalEmbedding, nearest_displacement
from models.tracker.encoders import Descriptors

PROCESS = SimpleNamespace(cache_dir=None)
SMALL = {
    "d_model": 16,
    "crop_size": 8,
    "channels": 1,
    "anchors": 1,
    "clip_length": 4,
    "dropout": 0.0,
    "dropout_attn_head": 0.0,
}


def network(seed=0, encoder=None, **keys):
    torch.manual_seed(seed)
    encoder = encoder or EncoderConfig("conv", widths=[8])
    return build(Config(**{**SMALL, "encoder_cfg": encoder, **keys}), PROCESS).eval()


def clips(sizes=((2, 2, 2), (1, 2, 1)), anchors=1, channels=1, side=8, seed=0):
    """A batch of clips with so many instances in each frame; identities are places in the frame."""
    generator = torch.Generator().manual_seed(seed)
    most = max(map(sum, sizes))
    shape = (len(sizes), most)
    corners = 0.8 * torch.rand(*shape, anchors, 2, generator=generator)
    batch = {
        "crops": torch.randint(0, 256, (*shape, channels, side, side), generator=generator, dtype=torch.uint8),
        "boxes": torch.cat([corners, corners + 0.1], dim=-1),
        "times": torch.zeros(shape, dtype=torch.long),
        "identities": torch.full(shape, -1),
        "mask": torch.zeros(shape, dtype=torch.bool),
    }
    for row, counts in enumerate(sizes):
        frames = [(time, place) for time, count in enumerate(counts) for place in range(count)]
        batch["times"][row, : len(frames)] = torch.tensor([time for time, _ in frames])
        batch["identities"][row, : len(frames)] = torch.tensor([place for _, place in frames])
        batch["mask"][row, : len(frames)] = True
    return batch


def alone(batch, row):
    count = int(batch["mask"][row].sum())
    return {name: value[row : row + 1, :count] for name, value in batch.items()}


# ---- the loss ----


def loss_by_loops(logits, identities, times, mask, neg_unmatched, epsilon):
    """One clip: cross-entropy for each row and frame, written out."""
    total, pairs = 0.0, 0
    valid = [index for index in range(len(mask)) if mask[index]]
    for layer in logits.tolist():
        for row, time in itertools.product(valid, sorted({int(times[index]) for index in valid})):
            if identities[row] < 0 and not neg_unmatched:
                continue
            columns = [index for index in valid if times[index] == time]
            scores = [layer[row][index] for index in columns] + [0.0]
            same = [place for place, index in enumerate(columns) if identities[index] == identities[row] >= 0]
            target = same[0] if same else len(columns)
            total += math.log(sum(map(math.exp, scores))) - scores[target]
            pairs += target < len(columns)
    return total / (pairs / len(logits) + epsilon)


@pytest.mark.keys("loss(association).neg_unmatched", "loss(association).epsilon", "loss(association).asso_weight")
@pytest.mark.parametrize("neg_unmatched", [False, True])
@pytest.mark.parametrize("epsilon", [1e-4, 0.5])
def test_the_loss_is_that_of_loops_over_rows_and_frames(neg_unmatched, epsilon):
    batch = clips(((2, 3, 1), (1, 0, 2), (2, 2, 2)))
    batch["identities"][0, 1] = batch["identities"][2, 3] = -1
    batch["times"] += 5
    logits = 4 * torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64).float()
    loss = build_loss(LossConfig(neg_unmatched=neg_unmatched, epsilon=epsilon, asso_weight=3.0))
    by_loops = [
        loss_by_loops(
            logits[:, row], *(batch[name][row] for name in ("identities", "times", "mask")), neg_unmatched, epsilon
        )
        for row in range(3)
    ]
    result = loss({"association": logits}, batch)
    assert result["losses"]["association"].item() == pytest.approx(sum(by_loops) / 3, rel=1e-6)
    assert result["loss"].item() == pytest.approx(sum(by_loops), rel=1e-6)
    assert loss.loss_items(batch) == {"association": 3} and loss.loss_weights == {"association": 3.0}


def test_the_loss_is_exact_for_extreme_logits():
    batch = clips(((1, 1),))
    logits = torch.tensor([[[[300.0, -300.0], [200.0, -100.0]]]], requires_grad=True)
    loss = AssociationLoss()({"association": logits}, batch)["loss"]
    assert loss.item() == pytest.approx((0 + 300 + 0 + 100 + 200 - 200) / 4, rel=1e-4)
    loss.backward()
    assert torch.isfinite(logits.grad).all()


def test_a_clip_without_identities_does_not_outweigh_the_others():
    batch = clips(((2, 2),))
    batch["identities"][:] = -1
    logits = {"association": torch.zeros(1, 1, 4, 4)}
    assert AssociationLoss()(logits, batch)["loss"].item() == 0
    assert AssociationLoss(neg_unmatched=True)(logits, batch)["loss"].item() == pytest.approx(8 * math.log(3), rel=1e-3)


# ---- clips in batches ----


@pytest.mark.parametrize("keys", [{}, {"relative_geometry": True, "motion": True, "nhead": 2}])
def test_a_batch_is_the_mean_of_its_clips(keys):
    model, batch = network(**keys), clips()
    whole = model(**batch)
    parts = [model(**alone(batch, row)) for row in range(2)]
    assert whole["loss"].item() == pytest.approx(sum(part["loss"].item() for part in parts) / 2, rel=1e-5)
    for row, part in enumerate(parts):
        count = part["association"].shape[-1]
        assert torch.allclose(whole["association"][:, row : row + 1, :count, :count], part["association"], atol=1e-5)
    assert model.loss_items(batch) == {"association": 2}


def test_a_clip_without_instances_has_no_loss():
    batch = clips(((2, 2), (0, 0)))
    model = network().train()
    loss = model(**batch)["loss"]
    assert loss.item() == pytest.approx(model(**alone(batch, 0))["loss"].item() / 2, rel=1e-5)
    loss.backward()
    assert all(torch.isfinite(value.grad).all() for value in model.parameters() if value.grad is not None)


def test_the_order_of_instances_does_not_matter():
    model, batch = network(relative_geometry=True), clips(((2, 3),))
    order = torch.tensor([4, 0, 3, 2, 1])
    shuffled = {name: value[:, order] for name, value in batch.items()}
    expected = model(**batch)["association"][..., order, :][..., order]
    assert torch.allclose(model(**shuffled)["association"], expected, atol=1e-5)


def test_features_may_be_computed_before():
    model, batch = network(), clips()
    features = model.encode(batch["boxes"], batch["mask"], batch["crops"])
    assert torch.allclose(features[batch["mask"]].norm(dim=-1), torch.ones(10), atol=1e-5)
    assert not features[~batch["mask"]].any()
    crops = batch.pop("crops")
    assert torch.equal(model(**batch, features=features)["association"], model(**batch, crops=crops)["association"])
    as_shares = model(**batch, crops=crops.float() / 255)["association"]
    assert torch.allclose(as_shares, model(**batch, crops=crops)["association"], atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near_full_precision(dtype):
    """Padding is masked by a number that half precision can hold."""
    model, batch = network(relative_geometry=True), clips(((2, 2), (1, 0), (0, 0)))
    with torch.autocast("cpu", dtype):
        outputs = model(**batch)
    expected = model(**batch)
    assert torch.isfinite(outputs["loss"]) and outputs["association"].dtype == torch.float32
    assert torch.allclose(outputs["association"][:, :2, :1, :1], expected["association"][:, :2, :1, :1], atol=0.1)


def test_crops_are_encoded_in_parts_outside_of_training(monkeypatch):
    model, batch = network(), clips()
    expected = model(**batch)["association"]
    monkeypatch.setattr("models.tracker.network.AT_ONCE", 3)
    assert torch.allclose(model(**batch)["association"], expected, atol=1e-5)


# ---- options ----


def test_parameters_beside_the_encoder():
    """By hand: attention 4 (d² + d), feed-forward 2 (d² + d), head 2 (d² + d), tables 16 · 128 each."""
    model = build(
        Config(crop_size=8, channels=3, anchors=1, clip_length=32, encoder_cfg=EncoderConfig("none")), PROCESS
    )
    square = 128 * 128 + 128
    expected = (4 + 2) * square + (4 + 4 + 2) * square + 2 * square + 2 * 16 * 128
    to_tokens = 2 * 128
    assert sum(value.numel() for value in model.parameters()) == expected + to_tokens == 301_312 + to_tokens


OPTIONS = {
    "d_model": 32,
    "nhead": 4,
    "num_encoder_layers": 2,
    "num_decoder_layers": 3,
    "activation": "glu",
    "norm": True,
    "num_layers_attn_head": 3,
    "decoder_self_attn": False,
    "relative_geometry": True,
}


@pytest.mark.keys(
    "model(tracker).d_model",
    "model(tracker).nhead",
    "model(tracker).num_encoder_layers",
    "model(tracker).num_decoder_layers",
    "model(tracker).norm",
    "model(tracker).num_layers_attn_head",
    "model(tracker).decoder_self_attn",
    "model(tracker).relative_geometry",
)
@pytest.mark.parametrize("name", OPTIONS)
def test_each_option_changes_the_network(name):
    """And it still trains: every parameter has a gradient."""
    model, batch = network(**{name: OPTIONS[name]}), clips()
    assert not torch.equal(model(**batch)["association"][-1], network()(**batch)["association"][-1])
    model(**batch)["loss"].backward()
    assert [key for key, value in model.named_parameters() if value.grad is None] == []


@pytest.mark.keys("model(tracker).activation")
def test_activations_differ():
    batch = clips()
    outputs = [network(activation=name)(**batch)["association"] for name in ("relu", "gelu", "glu")]
    assert all(not torch.equal(one, other) for one, other in itertools.combinations(outputs, 2))


@pytest.mark.keys("model(tracker).return_intermediate_dec", "model(tracker).return_embedding")
def test_what_is_returned():
    batch = clips()
    both = network(num_decoder_layers=2, return_intermediate_dec=True, return_embedding=True)(**batch)
    last = network(num_decoder_layers=2, return_intermediate_dec=False)(**batch)
    assert both["association"].shape == (2, 2, 6, 6) and both["embedding"].shape == (2, 6, 16)
    assert torch.equal(both["association"][1:], last["association"]) and "embedding" not in last
    assert both["loss"].item() > last["loss"].item()


@pytest.mark.keys("model(tracker).dropout", "model(tracker).dropout_attn_head")
@pytest.mark.parametrize("keys", [{"dropout": 0.5}, {"dropout_attn_head": 0.5, "num_layers_attn_head": 2}])
def test_dropout_acts_in_training_only(keys):
    model, batch = network(**keys), clips()
    assert torch.equal(model(**batch)["association"], model(**batch)["association"])
    model.train()
    assert not torch.equal(model(**batch)["association"], model(**batch)["association"])


POSITIONS = [
    PositionConfig(mode="fixed"),
    PositionConfig(mode="fixed", n_points=3),
    PositionConfig(mode="fixed", normalize=False),
    PositionConfig(mode="fixed", scale=3.0),
    PositionConfig(mode="fixed", temperature=20),
    PositionConfig(mode="fixed", n_points=3, mlp_cfg=MLPConfig(hidden_dims=8, num_layers=2, dropout=0.1)),
    PositionConfig(mode="learned"),
    PositionConfig(mode="learned", emb_num=7),
    PositionConfig(mode="learned", over_boxes=False),
    PositionConfig(mode="learned", n_points=3),
    PositionConfig(mode="learned", n_points=3, over_boxes=False, mlp_cfg=MLPConfig(hidden_dim=8)),
    PositionConfig(mode=None),
]
TIMES = [TimeConfig(), TimeConfig("fixed"), TimeConfig("fixed", temperature=5), TimeConfig(emb_num=5), TimeConfig(None)]


def embedding(position, time, anchors=1):
    torch.manual_seed(0)
    return SpatioTemporalEmbedding(EmbeddingConfig(position, time), 24, anchors, clip_length=32).eval()


@pytest.mark.keys("model(tracker).embedding_meta")
@pytest.mark.parametrize("anchors", [1, 3])
def test_embeddings_differ_between_inputs_and_between_options(anchors):
    """embedding_meta: places 2 % of the image apart and neighbouring frames differ, in every mode."""
    boxes = torch.tensor([[0.30, 0.40, 0.42, 0.50], [0.32, 0.42, 0.44, 0.52]])[None, :, None].repeat(1, 1, anchors, 1)
    frames = torch.tensor([[3, 4]])
    outputs = []
    for position in POSITIONS:
        values = embedding(position, TimeConfig(None), anchors)(boxes, frames)
        assert ((values[0, 0] - values[0, 1]).norm() > 2e-3) == (position.mode is not None)
        outputs.append(values)
    for time in TIMES:
        values = embedding(PositionConfig(mode=None), time, anchors)(boxes, frames)
        assert ((values[0, 0] - values[0, 1]).norm() > 2e-3) == (time.mode is not None)
        outputs.append(values)
    shown = [values for values in outputs if values.any()]
    assert len(shown) == len(outputs) - 2
    assert all(not torch.equal(one, other) for one, other in itertools.combinations(shown, 2))


def test_interpolated_tables_by_hand():
    table = embedding(PositionConfig(mode=None), TimeConfig(emb_num=3)).time.table
    low, middle, high = table.weight[:, 0]
    values = table(torch.tensor([[0.0], [0.25], [0.5], [1.0], [2.0]]))[:, 0]
    assert torch.allclose(values, torch.stack([low, (low + middle) / 2, middle, high, high]))


def test_both_spellings_of_hidden_dims_are_one():
    one, other = (
        embedding(PositionConfig(mlp_cfg=MLPConfig(**{name: 8})), TimeConfig())
        for name in ("hidden_dims", "hidden_dim")
    )
    assert one.state_dict().keys() == other.state_dict().keys()
    assert one.position.mix[0].out_features == other.position.mix[0].out_features == 8
    with pytest.raises(ValueError, match="hidden_dim"):
        MLPConfig(hidden_dims=8, hidden_dim=9)


@pytest.mark.parametrize("keys", [{"nhead": 3}, {"d_model": 15}, {"encoder_cfg": EncoderConfig("xcit")}])
def test_settings_that_cannot_be_built_are_refused(keys):
    with pytest.raises(ValueError, match=next(iter(keys)) if "encoder_cfg" not in keys else "xcit"):
        network(**{"encoder": keys.pop("encoder_cfg", None), **keys})


# ---- geometry ----


@pytest.mark.keys("model(tracker).motion")
def test_motion_explains_a_displacement():
    """An animal that moves on: with motion its geometry is that of one that stays."""
    frames, mask = torch.tensor([[0, 1, 2]]), torch.ones(1, 3, dtype=torch.bool)
    y = torch.tensor([0.1, 0.2, 0.3])
    boxes = torch.stack([y, y, y + 0.1, y + 0.1], dim=-1)[None, :, None]
    centres = (boxes[:, :, 0, :2] + boxes[:, :, 0, 2:]) / 2
    displacement = nearest_displacement(centres, frames, mask)
    assert torch.allclose(displacement[0, :, 0], torch.tensor([0.0, 0.1, 0.1]))
    torch.manual_seed(0)
    geometry = PairGeometry(heads=2, motion=True)
    per_head, bias = geometry(boxes, frames, mask)
    assert per_head.shape == (1, 2, 3, 3) and bias.shape == (1, 3, 3)
    moved = network(relative_geometry=True, motion=True)(**clips())["association"]
    assert not torch.equal(moved, network(relative_geometry=True)(**clips())["association"])


def test_a_missing_anchor_changes_no_geometry():
    torch.manual_seed(0)
    geometry, batch = PairGeometry(1, motion=True), clips(((2, 2),))
    with_missing = torch.cat([batch["boxes"], torch.zeros_like(batch["boxes"])], dim=2)
    first = geometry(batch["boxes"], batch["times"], batch["mask"])
    again = geometry(with_missing, batch["times"], batch["mask"])
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_geometry_does_not_depend_on_the_place_in_the_image():
    torch.manual_seed(0)
    geometry, batch = PairGeometry(1, motion=True), clips(((2, 2),))
    first = geometry(batch["boxes"], batch["times"], batch["mask"])
    again = geometry(batch["boxes"] + 0.05, batch["times"], batch["mask"])
    assert all(torch.allclose(one, other, atol=1e-4) for one, other in zip(first, again, strict=True))


# ---- encoders ----


@pytest.mark.slow
@pytest.mark.keys("model(tracker).encoder_cfg")
@pytest.mark.parametrize(
    ("encoder", "channels"),
    [
        (EncoderConfig("conv", widths=[4, 8]), 3),
        (EncoderConfig("conv", in_chans=6, widths=[4]), 3),
        (EncoderConfig("descriptors"), 2),
        (EncoderConfig("none"), 0),
        pytest.param(EncoderConfig("resnet18", backend="torchvision", in_chans=3), 1, marks=pytest.mark.slow),
        pytest.param(EncoderConfig("convnext_tiny"), 1, marks=pytest.mark.slow),
    ],
)
def test_encoders(encoder, channels, tmp_path):
    """Each is built, saved and loaded; encoder_cfg of none needs no crops."""
    side = 32 if encoder.model_name.startswith("convnext") else 8
    model = network(encoder=encoder, channels=channels, crop_size=side)
    batch = clips(channels=max(1, channels), side=side)
    if not channels:
        del batch["crops"]
    outputs = model(**batch)
    model.save_pretrained(tmp_path)
    assert torch.equal(load(tmp_path)(**batch)["association"], outputs["association"])


def test_encoders_without_images_or_with_other_channels_are_refused():
    with pytest.raises(ValueError, match="none"):
        network(channels=0)
    with pytest.raises(ValueError, match="in_chans"):
        network(channels=3, encoder=EncoderConfig("conv", in_chans=4))
    with pytest.raises(ValueError, match="not 8"):
        network(encoder=EncoderConfig("conv"))
    with pytest.raises(ValueError, match="resnet18"):
        network(encoder=EncoderConfig("resnet19"))


@pytest.mark.slow
def test_a_named_network_is_transformers_own_with_its_weights(tmp_path):
    settings = ResNetConfig(layer_type="basic", hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2])
    torch.manual_seed(5)
    reference = ResNetModel(settings).eval()
    reference.save_pretrained(tmp_path)
    encoder = EncoderConfig("resnet18", pretrained=True, weights=str(tmp_path))
    model = network(encoder=encoder, channels=3)
    pixels = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected = reference((pixels - mean) / std).pooler_output.flatten(1)
    assert torch.allclose(model.visual(pixels, torch.ones(2, 2)), expected, atol=1e-5)
    with pytest.raises(ValueError, match="weights"):
        network(encoder=EncoderConfig("resnet34", pretrained=True, weights=str(tmp_path)), channels=3)


def test_descriptors_do_not_change_with_a_quarter_turn():
    crops, sizes = torch.rand(3, 1, 9, 9, generator=torch.Generator().manual_seed(0)), torch.tensor([[0.2, 0.1]] * 3)
    values = Descriptors()(crops, sizes)
    assert torch.allclose(values, Descriptors()(crops.rot90(1, (-2, -1)), sizes.flip(-1)), atol=1e-5)
    assert values.shape == (3, 6) and not torch.allclose(values[0], values[1])


@pytest.mark.keys(
    "model(tracker).crop_size", "model(tracker).channels", "model(tracker).anchors", "model(tracker).clip_length"
)
def test_dims_come_from_the_data():
    for name in ("crop_size", "channels", "anchors", "clip_length"):
        with pytest.raises(ValueError, match=name):
            network(**{name: None})
    assert network(anchors=2)(**clips(anchors=2))["association"].shape == (1, 2, 6, 6)
    short, long = network(clip_length=3), network(clip_length=30)
    assert not torch.equal(short(**clips())["association"], long(**clips())["association"])
