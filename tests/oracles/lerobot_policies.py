"""Compare policies that lerobot 0.4.4 saved with what Keel makes of their folders, on the same observations.

    python tests/oracles/lerobot_policies.py compare [VENV]   prints one JSON line: the largest differences

VENV is what `lerobot_oracle.py setup` made. `make` is what `compare` runs inside VENV: it saves a policy with random
weights, and what it answers.
Shapes: B samples, T observations of a sample, K cameras, H and W of images.
"""

import json
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
from lerobot_oracle import define_operators, environment, inside

B, SIZE, STATE, ENV, ACTION = 3, (64, 96), 6, 4, 5
ACT = {"dim_model": 32, "n_heads": 4, "dim_feedforward": 48, "chunk_size": 8, "n_action_steps": 8, "latent_dim": 4}
ACT |= {"n_encoder_layers": 2, "n_vae_encoder_layers": 2, "pretrained_backbone_weights": None}
UNET = {"down_dims": [16, 32], "diffusion_step_embed_dim": 16, "spatial_softmax_num_keypoints": 6, "horizon": 8}
UNET |= {"n_action_steps": 4}
DDIM = {"noise_scheduler_type": "DDIM", "num_inference_steps": 7}
SMOLVLA = {"chunk_size": 6, "n_action_steps": 6, "max_state_dim": 8, "max_action_dim": 7, "num_vlm_layers": 3}
SMOLVLA |= {"resize_imgs_with_padding": [32, 32], "num_steps": 4}
TASKS = ["push the red cube", "lift it", "open the drawer and take out what is in it"]
# Name -> kind, cameras, whether there is an environment state, settings.
VARIANTS = {
    "act_images": ("act", 2, False, {**ACT, "n_decoder_layers": 2}),
    "act_environment": ("act", 0, True, {**ACT, "pre_norm": True}),
    "act_all": ("act", 1, True, {**ACT, "vision_backbone": "resnet50", "use_vae": False}),
    "diffusion_images": ("diffusion", 2, False, {**UNET, "crop_shape": [49, 80], **DDIM}),
    "diffusion_per_camera": (
        "diffusion",
        2,
        True,
        {
            **UNET,
            "use_separate_rgb_encoder_per_camera": True,
            "use_group_norm": False,
            **DDIM,
            "use_film_scale_modulation": False,
            "n_obs_steps": 3,
            "n_action_steps": 3,
        },
    ),
    "diffusion_states": ("diffusion", 0, True, {**UNET, "num_inference_steps": 1, "prediction_type": "sample"}),
    "smolvla": ("smolvla", 2, False, SMOLVLA),
    "smolvla_joint": ("smolvla", 2, False, {**SMOLVLA, "attention_mode": "self_attn", "expert_width_multiplier": 0.5}),
    "smolvla_cross": ("smolvla", 1, False, {**SMOLVLA, "self_attn_every_n_layers": 0, "num_vlm_layers": 2}),
}


# Inside the environment


def make(work: str) -> None:
    """Save each variant as WORK/NAME, with what it answers to random observations as WORK/NAME.npz."""
    define_operators()
    # `lerobot.policies` itself imports policies that need another transformers, `lerobot.envs` the drivers of robots.
    package, environments = ModuleType("lerobot.policies"), ModuleType("lerobot.envs")
    package.__path__ = [str(Path(find_spec("lerobot").origin).parent / "policies")]
    environments.EnvConfig = object
    sys.modules |= {"lerobot.policies": package, "lerobot.envs": environments}
    write_backbone(f"{work}/vlm")
    for name in VARIANTS:
        save(name, f"{work}/{name}", f"{work}/{name}.npz")


def write_backbone(folder: str) -> None:
    """Write the configuration and the tokenizer of a small vision-language model."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<unk>", "<pad>", "<image>", *(chr(code) for code in range(128))]
    letters = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, "<unk>"))
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    names = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "<pad>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=letters, **names).save_pretrained(folder)
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    text |= {"model_type": "llama", "num_key_value_heads": 2, "head_dim": 8, "vocab_size": len(words)}
    transformers.SmolVLMConfig(
        vision_config={**vision, "image_size": 32, "patch_size": 8},
        text_config={**text, "rope_parameters": {"rope_type": "default", "rope_theta": 1e5}},
        scale_factor=2,
        image_token_id=2,
    ).save_pretrained(folder)


def save(name: str, folder: str, target: str) -> None:
    """Save a policy with random weights and statistics, and what it answers to random observations."""
    import torch
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.act.modeling_act import ACTPolicy
    from lerobot.policies.act.processor_act import make_act_pre_post_processors
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
    from lerobot.policies.diffusion.processor_diffusion import make_diffusion_pre_post_processors
    from lerobot.policies.smolvla import smolvlm_with_expert
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
    from lerobot.policies.smolvla.processor_smolvla import make_smolvla_pre_post_processors

    # Of the processor it needs numbers of tokens that are not used.
    tokenizer = SimpleNamespace(fake_image_token_id=0, global_image_token_id=0)
    smolvlm_with_expert.AutoProcessor = SimpleNamespace(from_pretrained=lambda _: SimpleNamespace(tokenizer=tokenizer))
    parts = {
        "act": (ACTConfig, ACTPolicy, make_act_pre_post_processors),
        "diffusion": (DiffusionConfig, DiffusionPolicy, make_diffusion_pre_post_processors),
        "smolvla": (SmolVLAConfig, SmolVLAPolicy, make_smolvla_pre_post_processors),
    }
    kind, cameras, environment_state, settings = VARIANTS[name]
    torch.manual_seed(0)
    shapes = {"observation.state": (FeatureType.STATE, (STATE,))}
    shapes |= {f"observation.images.camera{k}": (FeatureType.VISUAL, (3, *SIZE)) for k in range(cameras)}
    shapes |= {"observation.environment_state": (FeatureType.ENV, (ENV,))} if environment_state else {}
    inputs = {key: PolicyFeature(type=of, shape=shape) for key, (of, shape) in shapes.items()}
    outputs = {"action": PolicyFeature(type=FeatureType.ACTION, shape=(ACTION,))}
    settings |= {"vlm_model_name": str(Path(folder).parent / "vlm")} if kind == "smolvla" else {}
    configuration, network, processors = parts[kind]
    config = configuration(input_features=inputs, output_features=outputs, device="cpu", **settings)
    policy = network(config).eval()
    with torch.no_grad():
        for key, value in policy.state_dict().items():  # nothing may be left at a value that hides a mistake
            if value.is_floating_point() and not key.endswith(("pos_grid", "pos_enc")):
                value.add_(0.05 * torch.randn_like(value))
                if key.endswith("running_var"):
                    value.clamp_(min=0.1)
    width = {key: shape[0] for key, (_, shape) in shapes.items() if len(shape) == 1} | {"action": ACTION}
    statistics = {key: statistics_of(dim) for key, dim in width.items()}
    pixels = {"mean": [[[0.4]], [[0.5]], [[0.3]]], "std": [[[0.2]], [[0.3]], [[0.25]]]}
    statistics |= {key: {n: np.array(v) for n, v in pixels.items()} for key in shapes if "images" in key}
    before, after = processors(config, dataset_stats=statistics)
    for part in (policy, before, after):
        part.save_pretrained(folder)
    np.savez(target, **answers(policy, before, after, config))


def statistics_of(dim: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(dim)
    low, span = generator.normal(size=dim), generator.uniform(0.5, 3, size=dim)
    return {"mean": low + span / 2, "std": span / 3, "min": low, "max": low + span}


def answers(policy, before, after, config) -> dict[str, np.ndarray]:
    """Raw observations (B, T, …), and the policy's chunks from fixed noise, normalised and in units."""
    import torch

    observations, generator = config.n_obs_steps, np.random.default_rng(1)
    raw = {}
    for key, feature in config.input_features.items():
        shape = B, observations, *feature.shape
        is_image = len(feature.shape) == 3
        raw[key] = generator.integers(0, 256, shape, np.uint8) if is_image else generator.normal(size=shape)
    batch = {k: torch.from_numpy(v).float() / (255 if v.dtype == np.uint8 else 1) for k, v in raw.items()}
    batch = {key: value if config.type == "diffusion" else value.squeeze(1) for key, value in batch.items()}
    batch = before({**batch, "task": TASKS})
    shapes = {"diffusion": lambda: (config.horizon, ACTION), "act": lambda: (1, ACTION)}
    noise = torch.randn(B, *shapes.get(config.type, lambda: (config.chunk_size, config.max_action_dim))())
    extra = {}
    with torch.no_grad():
        if config.type == "act":
            chunk = policy.predict_action_chunk(batch)
            if config.use_vae:
                extra = latent(policy, batch, config)
        elif config.type == "smolvla":
            mask = torch.ones(B, len(config.image_features), dtype=torch.bool)
            mask[1, 1:] = False  # an image that does not exist
            batch |= {f"{key}_padding_mask": mask[:, k] for k, key in enumerate(config.image_features)}
            chunk = policy.predict_action_chunk(batch, noise=noise)
            actions, time = torch.randn(B, config.chunk_size, ACTION), torch.tensor([0.02, 0.4, 0.99])
            observed = (
                *policy.prepare_images(batch),
                *(batch[f"observation.language.{n}"] for n in ("tokens", "attention_mask")),
            )
            padded = policy.prepare_action({"action": actions})
            losses = policy.model.forward(*observed, policy.prepare_state(batch), padded, noise, time)
            extra = {"demonstrated": actions.numpy(), "time": time.numpy(), "mask": mask.numpy()}
            extra["losses"] = losses[..., :ACTION].numpy()
        else:
            cameras = [batch[key] for key in config.image_features]
            batch |= {"observation.images": torch.stack(cameras, dim=2)} if cameras else {}
            condition = policy.diffusion._prepare_global_conditioning(batch)
            extra["network"] = policy.diffusion.unet(noise, torch.full((B,), 7), global_cond=condition).numpy()
            chunk = policy.diffusion.generate_actions(batch, noise=noise)
    return {**raw, "noise": noise.numpy(), "chunk": chunk.numpy(), "actions": after(chunk).numpy(), **extra}


def latent(policy, batch, config) -> dict[str, np.ndarray]:
    """Actions, and the posterior that the encoder of demonstrated chunks finds for them; dropout is switched off."""
    import torch

    for module in policy.modules():
        if isinstance(module, torch.nn.Dropout | torch.nn.MultiheadAttention):
            module.p = module.dropout = 0.0
    actions = torch.randn(B, config.chunk_size, ACTION)
    images = [batch[key] for key in config.image_features]
    batch = {**batch, "action": actions, "action_is_pad": torch.arange(config.chunk_size).expand(B, -1) > 5}
    batch |= {"observation.images": images} if images else {}
    _, posterior = policy.model.train()(batch)
    policy.eval()
    return {"demonstrated": actions.numpy(), "posterior": torch.cat(posterior, dim=-1).numpy()}


# In Keel's environment


def by_keel(name: str, folder: Path, theirs: dict) -> dict[str, float]:
    """The largest differences of what Keel's network, built from the folder, answers to the same observations."""
    import torch

    import models.act
    import models.diffusion
    import models.vla
    from data.demonstrations.lerobot.policy import normalizers_of

    kind, cameras, environment_state, settings = VARIANTS[name]
    module = {"act": models.act, "diffusion": models.diffusion, "smolvla": models.vla}[kind]
    observations = theirs["observation.state"].shape[1]
    keys = ["observation.state", *["observation.environment_state"] * environment_state]
    raw = np.concatenate([theirs[key] for key in keys], axis=-1)  # (B, T, S)
    config = module.Config(
        state_dim=raw[0].size,
        action_dim=ACTION,
        chunk_size=settings["horizon" if kind == "diffusion" else "chunk_size"],
        past_actions=observations - 1,
        num_images=cameras * observations,
        image_height=SIZE[0] if cameras else 0,
        image_width=SIZE[1] if cameras else 0,
        **({"num_cameras": cameras} if kind == "diffusion" else {}),
        **({"vocab_size": 131, "eos_token_id": 1, "target_tokens": 0} if kind == "smolvla" else {}),
    )
    process = SimpleNamespace(model_name_or_path=str(folder), is_pretrained=False, load_pretrain=False, cache_dir=None)
    vars(process).update(trust_remote_code=False, llm_loss_weight=1.0)
    net = module.build(config, process).eval()
    normalizers = normalizers_of(folder, keys, raw.reshape(-1, raw.shape[-1]), theirs["actions"].reshape(-1, ACTION))
    inputs = {"state": torch.from_numpy(normalizers["state"].encode(raw)).flatten(1)}
    if cameras:
        images = [theirs[f"observation.images.camera{k}"] for k in range(cameras)]
        inputs["images"] = torch.from_numpy(np.concatenate(images, axis=1))  # camera by camera
    noise, found = torch.from_numpy(theirs["noise"]), {}
    with torch.no_grad():
        if kind == "act":
            chunk = net(**inputs)["actions"]
            if "posterior" in theirs:
                is_pad = torch.arange(config.chunk_size).expand(B, -1) > 5
                demonstrated = torch.from_numpy(theirs["demonstrated"])
                encoded = net.cvae_encoder(inputs["state"][:, :STATE], demonstrated, is_pad)
                found["posterior"] = torch.cat(encoded, dim=-1).numpy()
        elif kind == "smolvla":
            chunk, found["losses"] = of_smolvla(net, inputs, theirs)
        else:
            condition = net.condition(inputs["state"], inputs.get("images"), None, None)
            found["network"] = net.network(noise, torch.full((B,), 7), condition).numpy()
            chunk = net.sample(noise, condition)[:, observations - 1 :][:, : settings["n_action_steps"]]
    found |= {"chunk": chunk.numpy(), "actions": normalizers["action"].decode(chunk.numpy())}
    assert found.keys() == theirs.keys() & {"chunk", "actions", "network", "posterior", "losses"}
    return {key: float(np.abs(value - theirs[key]).max()) for key, value in found.items()}


def of_smolvla(net, inputs: dict, theirs: dict) -> tuple:
    """The chunk from their noise, and the errors of their chunk at their times."""
    import torch

    from data.demonstrations.language import PromptTokenizer
    from data.load_tokenizer import load_tokenizer

    place = json.loads(Path(net.notes[0].rpartition(" ")[2], "config.json").read_text())["vlm_model_name"]
    prompts = PromptTokenizer(load_tokenizer(place), "{instruction}\n", 48, 0, False, False, False)
    prompt = prompts(TASKS, inputs["state"].numpy())
    observed = (inputs["images"], torch.from_numpy(theirs["mask"]), prompt["prompt_ids"], prompt["prompt_mask"])
    condition = net.condition(*net.read(inputs["state"], *observed))
    noise, head = torch.from_numpy(theirs["noise"]), net.action_head
    level = ((torch.from_numpy(theirs["time"]) - 0.001) / 0.999) ** 1.5
    errors = head.errors(head.padded(torch.from_numpy(theirs["demonstrated"])), noise, level, condition)
    return head.sample(noise, condition)[..., :ACTION], errors[..., :ACTION].numpy()


def compare(folder: Path) -> dict[str, dict[str, float]]:
    """Largest absolute differences of each variant; those of `chunk`, `network` and `posterior` are without a unit."""
    results = {}
    with tempfile.TemporaryDirectory() as work:
        inside(folder, "make", work, script=__file__)
        for name in VARIANTS:
            results[name] = by_keel(name, Path(work, name), dict(np.load(Path(work, f"{name}.npz"))))
    return results


if __name__ == "__main__":
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    if command == "make":
        make(*sys.argv[2:])
    elif command == "compare":
        sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]
        print(json.dumps(compare(environment())))
    else:
        raise SystemExit(__doc__)
