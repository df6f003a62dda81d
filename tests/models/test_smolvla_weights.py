"""SmolVLA with LeRobot's weights computes what the paper says; `tests/oracles/lerobot_policies.py` asks LeRobot."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from smolvla_files import ACTION, CHUNK, LAYERS, PADDED, STATE, TEXT, VISION, velocity_by_hand, write_smolvla

import models.vla
from data.demonstrations.lerobot.policy import backbone_of_policy

TEXTS = ["push the red cube\n", "lift it\n"]
PROCESS = {"is_pretrained": False, "load_pretrain": False, "cache_dir": None, "trust_remote_code": False}


def build(folder, num_images=2, state=STATE, chunk=CHUNK, vocabulary=270, place=None, **keys):
    dims = {"state_dim": state, "action_dim": ACTION, "chunk_size": chunk, "num_images": num_images}
    dims |= {"image_height": 24, "image_width": 40} if num_images else {"image_height": 0, "image_width": 0}
    words = {"vocab_size": vocabulary, "eos_token_id": 0, "target_tokens": 0}
    process = SimpleNamespace(**PROCESS, model_name_or_path=place or str(folder / "policy"), llm_loss_weight=1.0)
    process.cache_dir = str(folder / "hub")
    return models.vla.build(models.vla.Config(**{**dims, **words, **keys}), process).eval()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smolvla")
    return folder, *write_smolvla(folder, TEXTS, cameras="ab")


def observed(images=2):
    random = torch.Generator().manual_seed(3)
    made = {"state": torch.randn(3, STATE, generator=random)}
    made["prompt_ids"] = torch.randint(3, 250, (3, 5), generator=random)
    made["prompt_mask"] = torch.arange(5) < torch.tensor([[5], [2], [4]])
    if images:
        made["images"] = torch.randint(0, 256, (3, images, 3, 24, 40), dtype=torch.uint8, generator=random)
        made["image_mask"] = torch.tensor([[True, True], [True, False], [True, True]])
    return made


def seen(images):
    """As the paper has it: the whole width, black above (19 of 32 rows), from -1 to 1."""
    resized = torch.nn.functional.interpolate(images.flatten(0, 1) / 255, size=(19, 32), mode="bilinear")
    return (torch.nn.functional.pad(resized, (0, 0, 13, 0)) * 2 - 1).unflatten(0, images.shape[:2])


@pytest.mark.slow
def test_the_velocity_of_lerobot_s_weights(written, tmp_path):
    folder, weights, vlm = written
    net, inputs = build(folder), observed()
    config = net.config
    assert (config.num_layers, config.attention, config.sampling_steps, config.n_action_steps) == (
        3,
        "alternating",
        3,
        4,
    )
    chunk, time = torch.randn(3, CHUNK, PADDED["max_action_dim"]), torch.tensor([0.1, 0.5, 1.0])
    names = ("state", "images", "image_mask", "prompt_ids", "prompt_mask")
    with torch.no_grad():
        state = torch.nn.functional.pad(inputs["state"], (0, 3))
        expected = velocity_by_hand(
            weights, vlm, seen(inputs["images"]), inputs["image_mask"], inputs["prompt_ids"], inputs["prompt_mask"],
            state, chunk, time,
        )  # fmt: skip
        condition = net.condition(*net.read(*(inputs[name] for name in names)))
        found = net.action_head.velocity(chunk, time, condition)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        net.save_pretrained(tmp_path)
        torch.manual_seed(5)
        actions = net(**inputs)["actions"]
        torch.manual_seed(5)
        assert torch.equal(models.vla.load(tmp_path)(**inputs)["actions"], actions)
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.slow
def test_a_policy_on_the_hub(tmp_path, monkeypatch):
    """From the hub's cache, which has links to files named by their content; also one of lerobot's first versions."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    weights, _ = write_smolvla(tmp_path, TEXTS, cameras="ab")
    kept = tmp_path / "hub/models--lerobot--tiny"
    (kept / "blobs").mkdir(parents=True)
    (kept / "snapshots/1234").mkdir(parents=True)
    (kept / "refs").mkdir()
    (kept / "refs/main").write_text("1234")
    old = {
        f"{name}.so100-red_buffer_action.mean": torch.zeros(ACTION)
        for name in ("normalize_targets", "normalize_inputs")
    }
    save_file({name: value.contiguous() for name, value in weights.items()} | old, kept / "blobs/b")
    (tmp_path / "policy/config.json").rename(kept / "blobs/a")
    for name, blob in (("config.json", "a"), ("model.safetensors", "b")):
        (kept / "snapshots/1234" / name).symlink_to(f"../../blobs/{blob}")
    net = build(tmp_path, place="lerobot/tiny")
    assert net.action_head.action_out_proj.bias.equal(weights["model.action_out_proj.bias"])
    process = SimpleNamespace(**PROCESS, model_name_or_path="lerobot/tiny")
    process.cache_dir = str(tmp_path / "hub")
    assert backbone_of_policy(process) == str(tmp_path / "vlm")
    with pytest.raises(ValueError, match="lerobot/other.* not in the cache"):
        build(tmp_path, place="lerobot/other")


def test_a_part_of_the_policy_without_images(written):
    """States, chunks and cameras may be others: a policy is trained further on another robot."""
    net = build(written[0], num_images=0, state=7, chunk=CHUNK + 2)
    inputs = observed(images=0) | {"state": torch.randn(3, 7)}
    assert net(**inputs)["actions"].shape == (3, CHUNK + 2, ACTION) and net.config.n_action_steps is None
    assert not hasattr(net.backbone.vlm, "vision_model")


@pytest.mark.slow
def test_the_text_before_the_actions_needs_the_whole_language_model(written):
    net = build(written[0], target_tokens=4)
    assert torch.equal(net.backbone.lm_head.weight, written[1]["model.vlm_with_expert.vlm.lm_head.weight"])


@pytest.mark.slow
def test_joint_attention_and_a_described_backbone(tmp_path):
    """Of a backbone that is nowhere else `model.config` says what it is."""
    write_smolvla(
        tmp_path, TEXTS, cameras="a", every=1, attention_mode="cross_attn", vlm_model_name=str(tmp_path / "no")
    )
    with pytest.raises(ValueError, match=r"vlm_model_name .*model\.config"):
        build(tmp_path)
    vocabulary = json.loads((tmp_path / "vlm/config.json").read_text())["text_config"]["vocab_size"]
    vision = {**VISION, "image_size": 32, "patch_size": 8}
    described = {"model_type": "smolvlm", "vision_config": vision, "scale_factor": 2, "image_token_id": 1}
    net = build(tmp_path, config={**described, "text_config": {**TEXT, "vocab_size": vocabulary}})
    assert net.config.attention == "joint" and len(net.backbone.language_model.layers) == LAYERS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "keys", "named"),
    [
        ({"add_image_special_tokens": True}, {}, "add_image_special_tokens"),
        ({"num_expert_layers": 1}, {}, "num_expert_layers 1"),
        ({"self_attn_every_n_layers": 3}, {}, "self_attn_every_n_layers 3"),
        ({"resize_imgs_with_padding": [32, 64]}, {}, "only squares"),
        ({"normalization_mapping": {"VISUAL": "MEAN_STD"}}, {}, "MEAN_STD"),
        ({"num_steps": 2}, {"head": "regression"}, "model.head: regression"),
        ({}, {"vocabulary": 100_000}, "100000 tokens"),
        ({}, {"state": 9}, "max_state_dim"),
    ],
)
def test_what_cannot_be_loaded_is_refused(tmp_path, changes, keys, named):
    write_smolvla(tmp_path, TEXTS, cameras="a", **changes)
    with pytest.raises(ValueError, match=named):
        build(tmp_path, **keys)


@pytest.mark.slow
def test_damaged_weights_are_named(tmp_path):
    write_smolvla(tmp_path, TEXTS, cameras="a")
    file = tmp_path / "policy/model.safetensors"
    weights = load_file(file)
    weights["model.more.weight"] = torch.zeros(2)
    save_file(weights, file)
    with pytest.raises(ValueError, match="1 weights have no place.*model.more.weight"):
        build(tmp_path)
    del weights["model.more.weight"], weights["model.action_out_proj.bias"]
    save_file(weights, file)
    with pytest.raises(ValueError, match="1 missing, first action_head.action_out_proj.bias"):
        build(tmp_path)
