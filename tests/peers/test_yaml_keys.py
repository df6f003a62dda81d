"""Keys of TrainingArguments that only some models can use, from YAML."""

import json

import pytest
import torch
from recipes import auto_records, gpt_windows, mlp
from torch.nn import functional as F
from transformers.utils import is_liger_kernel_available

import train
from loader.command_line.entry import command_line

pytestmark = pytest.mark.slow

SETTINGS = (
    "max_steps=2 logging_steps=1 eval_strategy=steps eval_steps=2 learning_rate=0 save_strategy=no report_to=none"
)


def run(recipe, folder, *settings):
    folder.mkdir(exist_ok=True)
    words = [*recipe.words(folder), "--output_dir", str(folder / "out"), "--set", *SETTINGS.split(), *settings]
    return train.main(words)


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def refusal(recipe, folder, capfd, *settings):
    with pytest.raises(SystemExit) as raised:
        command_line(run, recipe, folder, *settings)
    assert raised.value.code == 2 and not (folder / "out").exists()
    return capfd.readouterr().err


def test_label_smoothing(tmp_path):
    trainer = run(auto_records, tmp_path, "label_smoothing_factor=0.25")
    samples = trainer.eval_dataset
    sums, count = 0.0, 0
    with torch.no_grad():
        for index in range(len(samples)):
            sample = {name: value[None] for name, value in samples[index].items()}
            labels = sample["labels"][:, 1:]
            logits = trainer.model.eval()(sample["input_ids"], position_ids=sample["position_ids"]).logits[:, :-1]
            sums += F.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=0.25, reduction="sum")
            count += int((labels != -100).sum())
    assert logged(trainer, "eval_loss")[-1] == pytest.approx(float(sums) / count, rel=1e-4)


def test_noise_on_embeddings_is_of_training_alone(tmp_path):
    plain = run(gpt_windows, tmp_path / "plain")
    noisy = run(gpt_windows, tmp_path / "noisy", "neftune_noise_alpha=20")
    pairs = zip(logged(plain, "loss"), logged(noisy, "loss"), strict=True)
    assert all(abs(left - right) > 1e-4 for left, right in pairs)
    assert logged(plain, "eval_loss") == logged(noisy, "eval_loss")
    assert not hasattr(noisy.model.get_input_embeddings(), "neftune_noise_alpha")


@pytest.mark.parametrize(
    ("recipe", "setting"),
    [
        (gpt_windows, "label_smoothing_factor=0.1"),
        (mlp, "label_smoothing_factor=0.1"),
        (mlp, "neftune_noise_alpha=5"),
        (mlp, "use_liger_kernel=true"),
        (mlp, "train_sampling_strategy=group_by_length"),
        (gpt_windows, "train_sampling_strategy=group_by_length"),
        (gpt_windows, "train_sampling_strategy=sequential"),
    ],
)
def test_what_a_model_cannot_use_is_refused_by_name(tmp_path, capfd, recipe, setting):
    assert f"`{setting.partition('=')[0]}" in refusal(recipe, tmp_path, capfd, setting)


@pytest.mark.skipif(is_liger_kernel_available(), reason="without the package")
def test_a_missing_package_is_named(tmp_path, capfd):
    assert "liger-kernel" in refusal(auto_records, tmp_path, capfd, "use_liger_kernel=true")


def test_operations_are_counted(tmp_path):
    trainer = run(gpt_windows, tmp_path)
    tokens = 2 * next(iter(trainer.get_train_dataloader()))["input_ids"].numel()
    assert trainer.state.total_flos == 6 * tokens * trainer.model.num_parameters(exclude_embeddings=True)
    lines = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    assert [line["total_flos"] for line in lines if "total_flos" in line] == [trainer.state.total_flos]
