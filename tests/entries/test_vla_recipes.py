"""The recipes of vision-language-action policies, from the check to a run of the same path with tiny models."""

import pytest
from demonstration_files import write_act_folder
from run_results import metrics
from transformers import AutoConfig, AutoModelForImageTextToText
from vla_policies import FAMILIES

import eval as evaluation
import train
from data.text.tokenizers import train_bpe
from loader.command_line.entry import command_line

INSTRUCTION = "push the red cube"
TINY = {
    "smolvla": ("smolvlm", ["model.num_layers=2"]),
    "qwen_vl_dp": ("qwen2_vl", ["model.unet_channels=[16,32]", "lora_r=2", "model.image_size=32"]),
    "paligemma_flow": ("paligemma", []),
}
OVERRIDES = """dataset.layout=act dataset.chunk_size=8 dataset.eval_fraction=0.5 max_steps=2 bf16=false warmup_steps=0
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
            *OVERRIDES.split(),
            *settings,
        ]
    )
    losses = metrics(tmp_path / "out", "loss")
    assert losses.keys() == {1, 2} and all(0 < loss < 100 for loss in losses.values())
    log = evaluation.main(["--checkpoint", str(tmp_path / "out")])
    assert log["loss"] == pytest.approx(metrics(tmp_path / "out", "eval_loss")[2], rel=1e-4)
