"""The recipes of vision-language-action policies, from the check to a run of the same path with tiny models."""

import contextlib
import shutil
import subprocess
import sys

import av
import h5py
import numpy as np
import pytest
import torch
from conftest import ROOT
from demonstration_files import write_act_folder
from documents import blocks
from lerobot_files import LENGTHS, TASKS, values, write_v3
from run_results import metrics
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForImageTextToText
from vla_policies import FAMILIES
from websockets.sync.client import connect

import eval as evaluation
import predict
import train
from data.text.tokenizers import train_bpe
from loader.command_line.entry import command_line
from serving.codec import pack, unpack

INSTRUCTION = "push the red cube"
TINY = {
    "smolvla": ("smolvlm", ["model.num_layers=2"]),
    "qwen_vl_dp": ("qwen2_vl", ["model.unet_channels=[16,32]", "lora_r=2", "model.image_size=32"]),
    "paligemma_flow": ("paligemma", []),
}
OVERRIDES = """dataset.chunk_size=8 max_steps=2 bf16=false warmup_steps=0
    per_device_train_batch_size=3 dataloader_num_workers=0 dataloader_persistent_workers=false report_to=none
    save_strategy=no logging_steps=1 eval_strategy=steps eval_steps=2"""
every_recipe = pytest.mark.parametrize("recipe", TINY)


def pretrained(folder, family):
    """A tiny vision-language model with its tokenizer, as they lie on a hub."""
    tokenizer = train_bpe([INSTRUCTION, "<bos>"], 300)
    tokenizer.save_pretrained(folder)
    fields = {**FAMILIES[family], "text_config": {**FAMILIES[family]["text_config"], "vocab_size": len(tokenizer)}}
    AutoModelForImageTextToText.from_config(AutoConfig.for_model(family, **fields)).save_pretrained(folder)
    return folder


@every_recipe
def test_a_recipe_passes_the_check(recipe, tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        command_line(
            train.main,
            ["--training_config", f"configs/training/{recipe}.yaml", "--check", "--output_dir", str(tmp_path / "out")],
        )
    assert left.value.code in (0, None), capsys.readouterr().err


@pytest.mark.slow
@every_recipe
def test_a_recipe_trains_a_tiny_model(recipe, tmp_path):
    family, settings = TINY[recipe]
    options = {"dims": (6, 3), "cameras": {"top": (24, 32)}, "attributes": {"instruction": INSTRUCTION}}
    write_act_folder(tmp_path / "episodes", (12, 14), **options)
    train.main(
        [
            *("--training_config", f"configs/training/{recipe}.yaml", "--output_dir", str(tmp_path / "out"), "--set"),
            f"model_name_or_path={pretrained(tmp_path / 'vlm', family)}",
            f"dataset.path={tmp_path / 'episodes'}",
            f"cache_dir={tmp_path / 'cache'}",
            "dataset.layout=act",
            *OVERRIDES.split(),
            *settings,
        ]
    )
    losses = metrics(tmp_path / "out", "loss")
    assert losses.keys() == {1, 2} and all(0 < loss < 100 for loss in losses.values())
    log = evaluation.main(["--checkpoint", str(tmp_path / "out")])
    assert log["loss"] == pytest.approx(metrics(tmp_path / "out", "eval_loss")[2], rel=1e-4)


@pytest.mark.slow
def test_from_a_data_set_to_a_served_policy(tmp_path):
    """The commands of docs/vla.md on a small LeRobot data set with a tiny backbone, without settings of the data."""
    write_v3(tmp_path / "robot", cameras=("top",))
    names = {"OUT": "out", "DATA": "robot", "EPISODE": "robot", "FILE": "chunks.h5"}
    tiny = [f"model_name_or_path={pretrained(tmp_path / 'vlm', 'smolvlm')}", f"cache_dir={tmp_path / 'cache'}"]
    tiny += [*OVERRIDES.split(), *TINY["smolvla"][1]]
    install, *commands = next(text for _, text in blocks(ROOT / "docs/vla.md")).splitlines()
    assert {"lerobot", "serve"} <= {*install.partition("[")[2].rstrip("]").split(",")}
    for command in commands[:4]:
        words = [str(tmp_path / names[word]) if word in names else word for word in command.split()[2:]]
        words = [word.replace("=DATA", f"={tmp_path / 'robot'}") for word in words]
        is_check = "--check" in words
        if command.startswith("python train.py"):
            words = [*[word for word in words if word != "--check"], *tiny, *["--check"] * is_check]
        entry = {"train.py": train, "eval.py": evaluation, "predict.py": predict}[command.split()[1]]
        with pytest.raises(SystemExit, match="0|None") if is_check else contextlib.nullcontext():
            command_line(entry.main, words) if is_check else entry.main(words)
    with h5py.File(tmp_path / "chunks.h5") as root:
        chunks = root["episode_0/actions"][()]
        assert chunks.shape == (LENGTHS[0], 8, 4)
    serve = [*commands[4].split()[1:3], str(tmp_path / "out"), "--serve", "0", "--device", "cpu"]
    with subprocess.Popen([sys.executable, *serve], cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        address = server.stdout.readline().split()[-1]
        observation = {"observation.state": values(LENGTHS)[0]["observation.state"][0], "instruction": TASKS[0]}
        images = decoded(tmp_path / "robot/videos/observation.images.top/chunk-000/file-000.mp4")
        with connect(address) as connection:
            assert unpack(connection.recv())["texts"] == ["instruction"]
            connection.send(pack(observation | {"observation.images.top": images[0]}))
            np.testing.assert_allclose(unpack(connection.recv())["actions"], chunks[0], atol=1e-4)
        server.terminate()


def decoded(video):
    with av.open(str(video)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.slow
@pytest.mark.keys("is_pretrained", "load_pretrain")
@pytest.mark.parametrize("key", ["is_pretrained", "load_pretrain"])
def test_a_second_stage_needs_no_description_of_the_backbone(key, tmp_path):
    """The first stage has it from a model that need not exist any more; its weights and its tokenizer go on."""
    options = {"dims": (6, 3), "cameras": {"top": (24, 32)}, "attributes": {"instruction": INSTRUCTION}}
    write_act_folder(tmp_path / "episodes", (12, 14), **options)
    recipe = ["--training_config", "configs/training/smolvla.yaml", "--output_dir"]
    settings = [f"dataset.path={tmp_path / 'episodes'}", f"cache_dir={tmp_path / 'cache'}", "dataset.layout=act"]
    settings += [*OVERRIDES.split(), *TINY["smolvla"][1]]
    place = f"model_name_or_path={pretrained(tmp_path / 'vlm', 'smolvlm')}"
    train.main([*recipe, str(tmp_path / "one"), "--set", place, *settings])
    shutil.rmtree(tmp_path / "vlm")
    place = f"model_name_or_path={tmp_path / 'one'}"
    train.main([*recipe, str(tmp_path / "two"), "--set", place, *settings, f"{key}=true", "learning_rate=1e-12"])
    one, two = (load_file(tmp_path / stage / "model.safetensors") for stage in ("one", "two"))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-9)
