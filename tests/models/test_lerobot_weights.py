"""Policies that start from LeRobot's weights, against what these weights compute by hand."""

import json
from types import SimpleNamespace

import pytest
import torch
from lerobot_policy_files import IMAGE, D, act_by_hand, keypoints_by_hand, unet_by_hand, write_policy
from safetensors.torch import load_file, save_file

import models.act
import models.diffusion

STATE, ENV, ACTION = 3, 2, 2
MEAN, STD = (0.4, 0.5, 0.3), (0.2, 0.3, 0.25)
PIXELS = {"mean": [[[value]] for value in MEAN], "std": [[[value]] for value in STD]}
MODULES = {"act": models.act, "diffusion": models.diffusion}


def build(kind, folder, cameras=0, observations=1, **changes):
    dims = {"state_dim": observations * (STATE + ENV), "action_dim": ACTION, "num_images": cameras * observations}
    dims |= {"chunk_size": 8, "past_actions": 1} if kind == "diffusion" else {"chunk_size": 4}
    height, width = IMAGE if cameras else (0, 0)
    own = {"num_cameras": cameras} if kind == "diffusion" else {}
    config = MODULES[kind].Config(**{**dims, "image_height": height, "image_width": width, **own, **changes})
    process = SimpleNamespace(model_name_or_path=str(folder), is_pretrained=False, load_pretrain=False, cache_dir=None)
    return MODULES[kind].build(config, process).eval()


def scaled(images):
    """(…, 3, H, W) uint8 -> as the policy was trained."""
    return (images / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


@pytest.mark.slow
def test_act_computes_what_lerobot_s_weights_do(tmp_path):
    statistics = {f"observation.images.{camera}": PIXELS for camera in "ab"}
    weights = write_policy(tmp_path, "act", STATE, ACTION, ENV, cameras="ab", statistics=statistics)
    net = build("act", tmp_path, cameras=2)
    assert net.config.hidden_dim == D and net.config.env_state_dim == ENV and net.config.backbone_norm == "frozen"
    state, images = torch.randn(2, STATE + ENV), torch.randint(0, 256, (2, 2, 3, *IMAGE), dtype=torch.uint8)
    pixels = scaled(images)
    with torch.no_grad():
        expected = act_by_hand(weights, state[:, :STATE], state[:, STATE:], [pixels[:, 0], pixels[:, 1]])
        found = net(state=state, images=images)["actions"]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(found, net(state=state, images=images.flip(-1))["actions"])
    encoder = net.cvae_encoder
    assert torch.equal(encoder.posterior.weight, weights["model.vae_encoder_latent_output_proj.weight"])
    projection = weights["model.vae_encoder.layers.0.self_attn.in_proj_weight"]
    assert torch.equal(encoder.encoder.layers[0].attention.value.weight, projection[2 * D :])
    net.save_pretrained(tmp_path / "ours")
    loaded = models.act.load(tmp_path / "ours")
    assert torch.equal(loaded(state=state, images=images)["actions"], found)


@pytest.mark.slow
def test_diffusion_computes_what_lerobot_s_weights_do(tmp_path):
    """The condition has another order there: observation by observation state, images, environment."""
    statistics = {f"observation.images.{camera}": PIXELS for camera in "ab"}
    weights = write_policy(tmp_path, "diffusion", STATE, ACTION, ENV, cameras="ab", statistics=statistics)
    net = build("diffusion", tmp_path, cameras=2, observations=2)
    config = net.config
    assert config.unet_channels == [8, 16] and config.sampler == "ddim" and config.sampling_steps == 5
    assert config.crop_size == [32, 32] and config.n_action_steps == 4 and config.train_timesteps == 50
    state = torch.randn(2, 2, STATE + ENV)
    images = torch.randint(0, 256, (2, 4, 3, *IMAGE), dtype=torch.uint8)  # camera by camera, two frames each
    chunk, timestep = torch.randn(2, 8, ACTION), torch.tensor([3, 41])
    with torch.no_grad():
        points = keypoints_by_hand(weights, scaled(images)[..., 16:48].flatten(0, 1)).unflatten(0, (2, 2, 2))
        parts = []
        for observation in range(2):
            parts += [state[:, observation, :STATE], points[:, 0, observation], points[:, 1, observation]]
            parts.append(state[:, observation, STATE:])
        expected = unet_by_hand(weights, chunk, timestep, torch.cat(parts, dim=1))
        found = net.network(chunk, timestep, net.condition(state.flatten(1), images, None, None))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        assert net(state=state.flatten(1), images=images)["actions"].shape == (2, 8, ACTION)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policies")
    write_policy(folder / "act", "act", STATE, ACTION, ENV)
    write_policy(folder / "diffusion", "diffusion", STATE, ACTION, ENV)
    return folder


@pytest.mark.slow
def test_keys_left_at_their_defaults_are_the_policy_s(folder):
    assert build("act", folder / "act", n_action_steps=2, dropout=0.3).config.n_action_steps == 2
    assert build("act", folder / "act", hidden_dim=D).config.feedforward_dim == 12
    with pytest.raises(ValueError, match="model.hidden_dim: 16.*contradicts 8"):
        build("act", folder / "act", hidden_dim=16)
    with pytest.raises(ValueError, match="model.network: mlp.*contradicts unet"):
        build("diffusion", folder / "diffusion", observations=2, network="mlp")


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("act", {"chunk_size": 5}, "chunk_size 4, but the data 5; set dataset.chunk_size"),
        ("act", {"state_dim": 4}, "state_dim 5.*observation.environment_state"),
        ("act", {"past_actions": 1}, "dataset.past_actions"),
        ("act", {"num_words": 3}, "instruction_words: false"),
        ("diffusion", {"state_dim": 5}, "state_dim 10.*dataset.n_obs_steps to 2"),
        ("diffusion", {"past_actions": 0, "observations": 2}, "past_actions 1, but the data 0"),
    ],
)
def test_data_of_other_sizes_is_refused(folder, kind, changes, message):
    with pytest.raises(ValueError, match=message):
        build(kind, folder / kind, **changes)


def test_what_cannot_be_loaded_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="of type act, not diffusion"):
        build("diffusion", folder / "act")
    with pytest.raises(ValueError, match="neither the folder nor .* a LeRobot policy.*is_pretrained"):
        build("act", tmp_path)
    weights = write_policy(tmp_path, "act", STATE, ACTION, ENV, feedforward_activation="gelu")
    with pytest.raises(ValueError, match="feedforward_activation: gelu"):
        build("act", tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text()) | {"feedforward_activation": "relu"}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    save_file({**weights, "model.extra.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="1 weights have no place.*model.extra.weight"):
        build("act", tmp_path)
    del weights["model.action_head.bias"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="1 missing, first head.bias"):
        build("act", tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == weights.keys()


@pytest.mark.slow
def test_cameras_with_pixels_of_their_own_are_refused(tmp_path):
    other = {"mean": PIXELS["std"], "std": PIXELS["std"]}
    statistics = {"observation.images.a": PIXELS, "observation.images.b": other}
    write_policy(tmp_path, "act", STATE, ACTION, ENV, cameras="ab", statistics=statistics)
    with pytest.raises(ValueError, match="pixels of its cameras differently"):
        build("act", tmp_path, cameras=2)
