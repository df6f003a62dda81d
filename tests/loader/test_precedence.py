"""Settings that contradict each other: the later layer wins and the other follows with one note; in one layer it is an
error that names both places."""

import pytest

from loader.checks import static_checks
from loader.errors import ConfigError
from loader.output.training_arguments import training_arguments
from loader.resolve.resolver import resolve

PLATEAU = "lr_scheduler_type: ReduceLROnPlateau"

# (what a recipe says, what the command line says, the key that follows, its value)
FOLLOWS = [
    ("warmup_steps: 100\nmax_steps: 1000", "max_steps=20", "warmup_steps", 2),
    ("warmup_steps: 100", "max_steps=20", "warmup_steps", 2),
    ("warmup_steps: 100\nmax_steps: 1000", "lr_decay_iters=50", "warmup_steps", 5),
    ("lr_decay_iters: 50\nmax_steps: 1000", "warmup_steps=60", "lr_decay_iters", None),
    ("min_lr: 1.0e-5", "learning_rate=1e-6", "min_lr", None),
    ("min_lr: 1.0e-5", "resume_lr=1e-6", "min_lr", None),
    ("max_steps: 7", "num_train_epochs=2", "max_steps", -1),
    ("warmup_steps: 7", "warmup_ratio=0.5", "warmup_steps", 0),
    ("min_epochs: 3\nnum_train_epochs: 4", "num_train_epochs=2", "min_epochs", 2),
    ("num_train_epochs: 2", "min_epochs=3", "num_train_epochs", 3),
    ("lr_scheduler_type: cosine\nnum_train_epochs: 2", "num_train_epochs=-1", "lr_scheduler_type", "constant"),
    ("save_steps: 0.1\nlr_scheduler_type: constant", "num_train_epochs=-1", "save_steps", 500),
    ("warmup_ratio: 0.1\nlr_scheduler_type: constant", "num_train_epochs=-1", "warmup_ratio", 0.0),
    ("lr_decay_iters: 9", "lr_scheduler_type=constant", "lr_decay_iters", None),
    ("lr_scheduler_type: constant", "lr_decay_iters=9", "lr_scheduler_type", "cosine"),
    ("lr_scheduler_type: constant", "min_lr=1e-9", "lr_scheduler_type", "cosine"),
    ("fp16: true", "bf16=true", "fp16", False),
    ("bf16: true", "fp16=true", "bf16", False),
    ("bf16: true", "weights_dtype=float64", "bf16", False),
    ("weights_dtype: float64", "bf16=true", "weights_dtype", None),
    ("fp16: true", "use_cpu=true", "fp16", False),
    ("fp16: true", "accelerator=cpu", "fp16", False),
    ("early_stopping: true", "do_eval=false", "early_stopping", None),
    ("early_stopping: {monitor: loss}", "eval_strategy=no", "early_stopping", None),
    ("early_stopping: true", "dataset.eval_fraction=0", "early_stopping", None),
    ("checkpointing: {monitor: [val_loss], save_top_k: 2}", "do_eval=false", "checkpointing.monitor", None),
    ("load_best_model_at_end: true", "do_eval=false", "load_best_model_at_end", False),
    ("save_strategy: best\nmetric_for_best_model: loss", "do_eval=false", "save_strategy", "steps"),
    ("save_strategy: steps", "load_best_model_at_end=true eval_strategy=epoch", "save_strategy", "epoch"),
    ("eval_strategy: epoch", "load_best_model_at_end=true", "save_strategy", "epoch"),
    ("load_best_model_at_end: true\ncheckpointing: true", "eval_strategy=epoch", "save_strategy", "epoch"),
    ("load_best_model_at_end: true\nmetric_for_best_model: loss", "check_val_every_n_epoch=2", "save_strategy", "best"),
    ("load_best_model_at_end: true\neval_strategy: epoch", "save_strategy=no", "load_best_model_at_end", False),
    ("load_best_model_at_end: true\nsave_steps: 30", "eval_steps=20", "save_steps", 20),
    ("load_best_model_at_end: true\neval_steps: 20", "save_steps=30", "eval_steps", 30),
    ("save_steps: 0.2", "load_best_model_at_end=true eval_steps=20", "save_steps", 20),
    (PLATEAU, "do_eval=false", "lr_scheduler_type", "constant"),
    (f"{PLATEAU}\nscheduler: {{factor: 0.5}}", "do_eval=false", "lr_scheduler_type", "constant"),
    ("checkpointing: true", "save_strategy=best metric_for_best_model=loss", "checkpointing", None),
    ("checkpointing: true", "save_strategy=no", "checkpointing", None),
    ("save_strategy: best\nmetric_for_best_model: loss", "checkpointing=true", "save_strategy", "no"),
    ("dataloader_persistent_workers: true\ndataloader_num_workers: 2", "dataloader_num_workers=0",
     "dataloader_persistent_workers", False),
    ("using_ema: true\nema: {decay: 0.5}", "using_ema=false", "ema", None),
    ("resume_lr: 0.1", "learning_rate=0.2", "resume_lr", None),
    ("tune_batch_size: true", "global_batch_size=16", "tune_batch_size", False),
    ("global_batch_size: 16", "tune_batch_size=true", "global_batch_size", None),
    ("lora_enable: true\nlora_r: 4", "lora_enable=false", "lora_r", 64),
    ("use_quantization: true\nbits: 4\nquant_type: fp4", "bits=8", "quant_type", "nf4"),
    ("logging_strategy: epoch", "logging_steps=3", "logging_strategy", "steps"),
    ("save_strategy: epoch\neval_steps: 5", "save_steps=3", "save_strategy", "steps"),
    ("save_strategy: no", "save_total_limit=3", "save_strategy", "steps"),
    ("report_to: none", "logging_dir=logs", "report_to", ["tensorboard"]),
    ("eval_strategy: epoch", "eval_steps=3", "eval_strategy", "steps"),
    ("do_eval: false", "eval_steps=3", "do_eval", True),
    ("model: {chunk_size: 7}", "dataset.chunk_size=5", "model.chunk_size", 5),
    ("dataset: {chunk_size: 7}", "model.chunk_size=5", "dataset.chunk_size", 5),
    ("model: {chunk_size: 7}", "seed=1", "dataset.chunk_size", 7),  # the task's file has another
]  # fmt: skip
# What one layer may not say, with the two keys that the error names.
CONTRADICTIONS = [
    ("warmup_steps=30 max_steps=20", "warmup_steps", "max_steps"),
    ("warmup_steps=30 lr_decay_iters=20", "warmup_steps", "lr_decay_iters"),
    ("min_lr=1 learning_rate=0.5", "min_lr", "learning_rate"),
    ("min_lr=1 learning_rate=2 resume_lr=0.5", "min_lr", "resume_lr"),
    ("min_epochs=3 num_train_epochs=2", "min_epochs", "num_train_epochs"),
    ("lr_scheduler_type=cosine num_train_epochs=-1", "lr_scheduler_type", "num_train_epochs"),
    ("lr_scheduler_type=constant num_train_epochs=-1 save_steps=0.5", "save_steps", "num_train_epochs"),
    ("lr_scheduler_type=constant min_lr=1e-9", "min_lr", "lr_scheduler_type"),
    ("fp16=true bf16=true", "fp16", "bf16"),
    ("bf16=true weights_dtype=float16", "weights_dtype", "bf16"),
    ("early_stopping=true do_eval=false", "early_stopping", "do_eval"),
    ("checkpointing.monitor=[val_loss] do_eval=false", "checkpointing.monitor", "do_eval"),
    ("lr_scheduler_type=greedy do_eval=false", "lr_scheduler_type", "do_eval"),
    ("checkpointing=true save_strategy=best metric_for_best_model=loss", "checkpointing", "save_strategy"),
    ("load_best_model_at_end=true save_strategy=epoch eval_strategy=steps", "save_strategy", "eval_strategy"),
    ("load_best_model_at_end=true save_steps=30 eval_steps=20", "save_steps", "eval_steps"),
    ("tune_batch_size=true global_batch_size=16", "tune_batch_size", "global_batch_size"),
    ("logging_strategy=epoch logging_steps=3", "logging_strategy", "logging_steps"),
    ("report_to=none logging_dir=x", "report_to", "logging_dir"),
    ("eval_strategy=epoch eval_steps=3", "eval_strategy", "eval_steps"),
    ("model.chunk_size=7 dataset.chunk_size=5", "model.chunk_size", "dataset.chunk_size"),
]


def value(run, path):
    section, _, name = path.partition(".")
    if name:
        part = getattr(run, section)
        return getattr(getattr(part, "config", part), name)
    for view in (run.hyper, run.process):
        if hasattr(view, section):
            return getattr(view, section)
    return run.trainer[section] if section in run.trainer else getattr(run, section)


@pytest.fixture
def recipe(in_root, tmp_path):
    def write(text):
        (tmp_path / "recipe.yaml").write_text(f"output_dir: {tmp_path / 'out'}\n{text}\n")
        return tmp_path / "recipe.yaml"

    return write


@pytest.mark.parametrize(("text", "settings", "key", "expected"), FOLLOWS)
def test_what_contradicts_a_later_layer_follows_it(recipe, text, settings, key, expected):
    run = resolve(None, settings.split(), recipe(text))
    assert value(run, key) == expected and static_checks.check_run(run) == []
    (note,) = [note for note in run.notes if note.startswith(f"`{key}")]
    assert "has precedence" in note
    again = resolve(None, [], recipe(text + "\n"))  # the recipe alone is in order
    assert static_checks.check_run(again) == []


@pytest.mark.parametrize(("settings", "first", "second"), CONTRADICTIONS)
def test_a_contradiction_within_one_layer_names_both(recipe, settings, first, second):
    with pytest.raises(ConfigError) as error:
        resolve(None, settings.split(), recipe("seed: 1"))
    (line,) = error.value.problems
    assert f"`{first}" in line and f"`{second}" in line and line.count("in --set") == 2


def test_what_recipes_say_against_one_another_is_not_noted(in_root):
    """gpt.yaml extends gpt_base.yaml with a constant rate, which drops its min_lr; that is no choice of the user's."""
    assert not [note for note in resolve(None, ["dataset.path=a"], "gpt").notes if "min_lr" in note]


def test_defaults_of_the_data_count(recipe):
    """Demonstrations have no validation episodes unless eval_fraction is set."""
    own = "dataset: {name: demonstrations, path: a}\nmodel: mlp\n"
    with pytest.raises(ConfigError) as error:
        resolve(None, [], recipe(f"{own}early_stopping: true"))
    (line,) = error.value.problems
    assert line.startswith("`early_stopping` at ") and "`dataset.eval_fraction: 0.0` (default)" in line


def test_flags_and_set_are_one_layer(recipe):
    from loader.schema.hyper_arguments import HyperArguments

    with pytest.raises(ConfigError) as error:
        resolve(HyperArguments(warmup_steps=30), ["max_steps=20"], recipe("seed: 1"))
    (line,) = error.value.problems
    assert "`warmup_steps: 30` on the command line" in line and "`max_steps: 20` in --set" in line


def test_a_key_of_a_recipe_for_another_model_is_dropped(recipe):
    text = recipe("task_name: text\nmodel_config: gpt\ndataset: {path: a}\nsample_tokens: 5\n")
    run = resolve(
        None, ["task_name=sim_transfer_cube_state", "model_config=mlp", "dataset={name: demonstrations}"], text
    )
    static_checks.check_run(run)
    assert run.process.sample_tokens == 0 and len([note for note in run.notes if "`sample_tokens" in note]) == 1


@pytest.mark.parametrize(
    "text",
    [
        "eval_strategy: epoch",
        "eval_strategy: steps\neval_steps: 20",
        "eval_steps: 0.1\nsave_steps: 0.2",
        "eval_strategy: epoch\ncheckpointing: {every_n_epochs: 2}",
        "check_val_every_n_epoch: 1",
        "check_val_every_n_epoch: 2\nmetric_for_best_model: loss",
        "save_strategy: best\nmetric_for_best_model: loss\neval_strategy: epoch",
        "eval_steps: 20\nsave_steps: 60",
    ],
)
def test_what_passes_the_check_transformers_takes(recipe, text):
    """The best of what is saved can be loaded only where saves and evaluations meet: transformers' own rule."""
    run = resolve(None, [], recipe(f"load_best_model_at_end: true\n{text}"))
    assert static_checks.check_run(run) == []
    assert training_arguments(run).load_best_model_at_end is True


@pytest.mark.parametrize(("text", "settings", "value"), [
    ("num_train_epochs: 6", "max_steps=300", "3"), ("lora_enable: true\nlora_r: 8", "lora_enable=false", "64"),
])  # fmt: skip
def test_a_key_that_falls_back_to_its_default_is_dropped(recipe, text, settings, value):
    (note,) = [note for note in resolve(None, settings.split(), recipe(text)).notes if "precedence" in note]
    assert "is dropped" in note and value not in note.partition(" is dropped")[0].split()
