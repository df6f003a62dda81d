"""Other systems' words: what each becomes, and what is refused."""

import pytest
import yaml

from loader.checks.static_checks import check_run
from loader.command_line.parser import HyperArguments
from loader.errors import ConfigError
from loader.output import render
from loader.output.json_schema import json_schema
from loader.output.training_arguments import argument_values
from loader.resolve.resolver import resolve
from loader.resolve.run_config import eval_strategy

LIGHTNING = """
dataloader:
  batch_size: 4
  num_workers: 2
  prefetch_factor: 4
  pin_memory: true
  persistent_workers: true
  drop_last: true
lightning:
  lr: 2.0e-4
  weight_decay: 0.1
  compile: false
  lr_warmup: {steps: 1000, interval: step}
  lr_scheduler: {class_name: CosineAnnealingLR, eta_min: 1.0e-5, T_max: 100}
trainer:
  max_epochs: 100
  accelerator: cuda
  precision: bf16-mixed
  gradient_clip_val: 1.0
  log_every_n_steps: 100
  early_stopping: {monitor: val/loss, patience: 5}
"""


@pytest.fixture
def read(tmp_path, in_root):
    def resolved(text, *settings, **flags):
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return resolve(HyperArguments(**{"output_dir": str(tmp_path / "out"), **flags}), list(settings), path)

    return resolved


def test_lightning_sections_are_read_as_ours(read):
    run = read(LIGHTNING)
    hyper, trainer = run.hyper, run.trainer
    assert (hyper.per_device_train_batch_size, hyper.per_device_eval_batch_size) == (4, 4)
    assert (hyper.dataloader_num_workers, trainer["dataloader_prefetch_factor"]) == (2, 4)
    assert hyper.dataloader_pin_memory and trainer["dataloader_persistent_workers"] and trainer["dataloader_drop_last"]
    assert (hyper.learning_rate, hyper.weight_decay, hyper.warmup_steps) == (2e-4, 0.1, 1000)
    assert (hyper.lr_scheduler_type, run.scheduler) == ("CosineAnnealingLR", {"eta_min": 1e-5, "T_max": 100})
    assert (hyper.num_train_epochs, hyper.logging_steps) == (100, 100)
    assert trainer["bf16"] is True and trainer["max_grad_norm"] == 1.0 and trainer["torch_compile"] is False
    assert (run.early_stopping.monitor, run.early_stopping.patience) == ("val/loss", 5)
    assert run.process.accelerator == "cuda"
    # The value keeps the line it stands on, and the run says once what each word became.
    assert run.origins()["learning_rate"].endswith("run.yaml:10")
    assert any("lightning.lr" in note and "`learning_rate`: 0.0002" in note for note in run.notes)
    assert "read as" in render.summary(run)


@pytest.mark.slow
def test_what_is_printed_means_the_same_run(read, tmp_path):
    run = read(LIGHTNING)
    saved = tmp_path / "again.yaml"
    saved.write_text(render.as_yaml(run))
    again = resolve(HyperArguments(), [], saved)
    assert again.hyper == run.hyper and again.trainer == run.trainer and again.scheduler == run.scheduler
    assert again.early_stopping == run.early_stopping and again.process == run.process


@pytest.mark.parametrize(
    ("word", "became"),
    [
        ("32", {"bf16": False, "fp16": False}),
        ("bf16-mixed", {"bf16": True}),
        ("16-mixed", {"fp16": True}),
        ("bf16-true", {"weights_dtype": "bfloat16"}),
        ("64-true", {"weights_dtype": "float64"}),
    ],
)
def test_precision(read, word, became):
    run = read(f"precision: {word}\n")
    values = {**run.trainer, "weights_dtype": run.process.weights_dtype}
    assert {key: values[key] for key in became} == became


@pytest.mark.slow
def test_short_forms(read):
    assert read("trainer: {early_stopping: 7}\n").early_stopping.patience == 7
    assert read("trainer: {early_stopping: true}\n").early_stopping.patience == 10
    assert read("early_stopping: {patience: 3}\n", "early_stopping=false").early_stopping is None
    assert read("trainer: {early_stopping: null}\n").early_stopping is None
    assert read("lr_warmup: 12\n").hyper.warmup_steps == 12
    assert read("lightning: {lr_warmup: {steps: 2, interval: epoch}}\n").process.warmup_epochs == 2
    assert read("gradient_clip_val: null\n").trainer["max_grad_norm"] == 0.0
    assert read("trainer: {enable_checkpointing: false}\n").hyper.save_strategy == "no"
    assert read("checkpoint_every: 5\n").checkpointing.every_n_epochs == 5
    assert read("trainer: {checkpoint_cadence_epochs: 2}\n").checkpointing.every_n_epochs == 2
    assert read("epochs: 9\n").hyper.num_train_epochs == 9
    assert read("max_epochs: -1\nlr_scheduler_type: constant\n").is_endless


def test_a_foreign_word_loses_to_a_later_flag(read):
    run = read("lightning: {lr: 0.5}\n", learning_rate=0.25)
    assert run.hyper.learning_rate == 0.25 and run.origins()["learning_rate"] == "cli"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lightning: {lr: 0.5}\nlearning_rate: 0.1\n", "`lightning.lr`.*`learning_rate`.*are the same setting"),
        ("trainer: {max_epoch: 3}\n", "unknown key `trainer.max_epoch`.*did you mean"),
        ("trainer: {precision: bf61}\n", r"`trainer.precision: bf61`.*must be one of"),
        ("trainer: {num_nodes: 2}\n", "not available; it may be 1"),
        ("lightning: {resume_context: {rope_theta: 1}}\n", "`resume_context.rope_theta: 1`.*greater than 1"),
        ("lightning: {resume_context: {input_shape: [3]}}\n", "`resume_context`.*input_shape"),
        ("dataloader_class: NoSuchLoader\n", "it may be `DataLoader`, `MixupDataLoader`, `TextDataLoader`"),
        ("lightning: {lr_warmup: {stepz: 2}}\n", "has no key `stepz`; did you mean `steps`"),
    ],
)
def test_refusals(read, text, message):
    with pytest.raises(ConfigError, match=message):
        read(text)


@pytest.mark.slow
def test_words_of_signals(read):
    """Those of spec 002; tests/entries/test_signal_runs.py sees their effect."""
    run = read(
        "model_name: FlatGPT\nloss_name: MSE\ndataloader_class: TextDataLoader\n"
        "dataloader: {tokenizer_path: tok, max_length: 99, use_separator: false}\n"
        "datasplitter: {dataset_root: {a: x, b: y}, example_seconds: 10.24, overlap_seconds: 0.5, val_ratio: 0.2,"
        " test_ratio: 0.1, split_strategy: dataset, heldout_dataset: b,"
        " dataset_kwargs: {fill_value: 1, group_size: 20}}\n"
        "resume: {context: {rope_theta: 500}, token_corruption: false}\n"
    )
    data, split = run.dataset.config, run.dataset.config.datasplitter
    assert (run.model.name, run.model.config.layout, run.loss.name) == ("signal_gpt", "flattened", "mse")
    assert (data.target, data.tokenizer_path, data.max_length, data.use_separator) == ("text", "tok", 99, False)
    assert (data.path, data.window, data.overlap, data.unit) == (["x", "y"], 10.24, 0.5, "seconds")
    assert (split.by, split.eval, split.eval_fraction, split.test_fraction) == ("dataset", ["b"], 0.2, 0.1)
    assert (data.fill_value, data.group) == (1, 20)
    assert run.process.resume_context.rope_theta == 500 and run.process.resume_token_corruption is False
    mixed = read(
        "dataset: {name: signals, target: class}\nmodel: {name: signal_classifier}\ndataloader_class: MixupDataLoader\n"
        "dataloader: {mixup_alpha: 0.3, mixup_prob: 0.5, num_classes: 4, quantize: true, mu: 15, max_val: 2}\n"
    ).dataset.config.mixup
    assert vars(mixed) == {
        "mixup_alpha": 0.3, "mixup_prob": 0.5, "num_classes": 4, "quantize": True, "mu": 15, "max_val": 2.0,
    }  # fmt: skip
    assert read("model_name: STGPT2MEG\n").model.config.layout == "streams"
    assert read("eval_runner: true\nmodel_name: Wavenet\n").eval_runner.max_batches == 2


SIGNALS = "model_name: FlatGPT\ndatasplitter: {dataset_root: a.edf}\n"


def test_a_training_file_that_implies_its_task_is_read_over_the_defaults_of_that_task(read):
    run = read(f"{SIGNALS}lightning: {{lr: 0.1, weight_decay: 0.1}}\ntrainer: {{max_epochs: 2}}\n")
    hyper = run.hyper
    assert (run.task, hyper.per_device_train_batch_size, hyper.lr_scheduler_type) == ("signals", 1, "constant")
    assert (run.process.check_val_every_n_epoch, run.checkpointing.every_n_epochs) == (1, 1)
    assert (hyper.num_train_epochs, hyper.warmup_steps, run.process.using_ema) == (2, 0, False)
    changed = read(f"{SIGNALS}dataloader: {{batch_size: 4}}\ncheckpoint_cadence_epochs: 5\neval_steps: 3\n")
    assert (changed.hyper.per_device_train_batch_size, changed.checkpointing.every_n_epochs) == (4, 5)
    assert (changed.hyper.eval_steps, changed.process.check_val_every_n_epoch) == (3, None)


@pytest.mark.parametrize(
    ("text", "batch"),
    [
        (f"task_name: signals\n{SIGNALS}", 8),  # a file that names its task is the whole recipe
        ("dataset: {train_dataset: {crop_size: 16}}\n", 1),
        ("task_name: tracking\ndataset: {train_dataset: {crop_size: 16}}\n", 8),
    ],
)
def test_a_task_that_is_named_brings_no_defaults(read, text, batch):
    assert read(text).hyper.per_device_train_batch_size == batch


@pytest.mark.parametrize(
    "text", ["scheduler: null", "scheduler: {name: null}", "lr_scheduler: null", "scheduler: none"]
)
def test_no_schedule_is_a_constant_rate(read, text):
    run = read(f"dataset: {{train_dataset: {{crop_size: 16}}}}\n{text}\n")  # over a recipe with ReduceLROnPlateau
    assert (run.hyper.lr_scheduler_type, run.scheduler, run.schedule.monitor) == ("constant", {}, None)
    assert read("scheduler: none\n").hyper.lr_scheduler_type == "constant"
    named = read("lr_scheduler_type: StepLR\nscheduler: null\n", "scheduler.step_size=3")
    assert (named.hyper.lr_scheduler_type, named.scheduler) == ("StepLR", {"step_size": 3})


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("model_name: [1]", "model_name"),
        ("model_name: {a: 1}", "model_name"),
        ("loss_name: [1]", "loss_name"),
        ("dataloader_class: [1]\ndataloader: {mixup_alpha: 1}", "dataloader_class"),
        ("datasplitter: {dataset_class: [1]}", "datasplitter"),
        ("datasplitter: {dataset_kwargs: [1]}", "datasplitter"),
        ("init_from: [1]", "init_from"),
        ("init_from: gpt2\ngpt2_type: {a: 1}", "gpt2_type"),
        ("decay_lr: [1]", "decay_lr"),
        ("is_main_process: [1]", "is_main_process"),
        ("lightning: 5", "lightning"),
        ("lightning: {lr_warmup: {steps: 1, interval: [1]}}", "lightning.lr_warmup"),
    ],
)
def test_a_value_of_another_kind_is_one_line_with_its_place(read, text, key):
    with pytest.raises(ConfigError) as raised:
        read(f"{text}\n")
    problem = next(line for line in raised.value.problems if line.startswith(f"`{key}"))
    assert ".yaml:" in problem and "Node(" not in problem


def test_a_classifier_is_for_classes(read):
    assert read("model_name: ClassifierContinuous\n").dataset.config.target == "class"
    assert read("model_name: FlatGPT\n").dataset.config.target == "tokens"


@pytest.mark.slow
def test_arguments_of_lightning_s_trainer_at_their_defaults(read):
    """What has no counterpart here is accepted where it changes nothing, and refused otherwise."""
    defaults = "overfit_batches: 0.0, fast_dev_run: false, profiler: null, limit_test_batches: 1.0, benchmark: false"
    read(f"trainer: {{{defaults}, enable_model_summary: false, inference_mode: true, max_time: null}}\n")
    for other in ("overfit_batches: 3", "fast_dev_run: true", "max_time: '00:01:00:00'", "benchmark: true"):
        with pytest.raises(ConfigError, match=f"`trainer.{other.partition(':')[0]}.* is not available"):
            read(f"trainer: {{{other}}}\n")


def test_null_says_nothing_about_what_is_not_there_yet(read):
    run = read("lightning: {resume_context: null, resume_token_corruption: null}\nmodel: {ckpt_path: null}\n")
    assert check_run(run) == []


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["lerobot", "auto"])
def test_lerobot_is_a_layout_of_demonstrations(read, tmp_path, layout):
    given = "" if layout == "lerobot" else ", layout: auto"
    run = read(f"model: act\ndataset: {{name: lerobot, path: {tmp_path}{given}}}\n")
    assert (run.dataset.name, run.dataset.config.layout) == ("demonstrations", layout)
    assert run.dataset.config.path == str(tmp_path)


def test_builder_groups_and_named_sets(read):
    run = read("optimizer_builder: {optimizer_name: adafactor, lr: null, weight_decay: 0.01}\n")
    assert run.hyper.optim == "adafactor" and run.optimizer["relative_step"] is True
    assert run.hyper.weight_decay == 0.01
    run = read("scheduler_builder: {scheduler_name: exponential, gamma: 0.5}\n")
    assert (run.hyper.lr_scheduler_type, run.scheduler) == ("ExponentialLR", {"gamma": 0.5})
    run = read("scheduler_builder: reducelronplateau\n")
    assert run.hyper.lr_scheduler_type == "ReduceLROnPlateau" and run.scheduler["patience"] == 5
    assert read("scheduler: none\n").hyper.lr_scheduler_type == "constant"


@pytest.mark.slow
def test_an_optimizers_own_rate_against_ours(read):
    assert read("optimizer: adamw\n").hyper.learning_rate == 1e-3
    assert read("optimizer: adamw\n", learning_rate=0.5).hyper.learning_rate == 0.5
    assert read("optimizer: adafactor\n").optimizer["relative_step"] is True
    assert "relative_step" not in read("optimizer: adafactor\n", learning_rate=0.5).optimizer
    assert "relative_step" not in read("optimizer: adafactor\nlearning_rate: 0.5\n").optimizer
    said = check_run(read("optimizer: adafactor\nwarmup_steps: 5\n"))
    assert any("`warmup_steps`" in line and "relative" in line for line in said)


def test_a_name_without_a_file_of_its_own(read):
    run = read("optimizer: SGD\nscheduler: StepLR\n")
    assert (run.hyper.optim, run.hyper.lr_scheduler_type) == ("SGD", "StepLR")


@pytest.mark.slow
def test_when_to_evaluate_and_save(read):
    run = read("check_val_every_n_epoch: 3\n")
    assert eval_strategy(run) == "epoch" and argument_values(run)["eval_strategy"] == "no"
    assert argument_values(read("check_val_every_n_epoch: 1\n"))["eval_strategy"] == "epoch"
    assert eval_strategy(read("check_val_every_n_epoch: 3\n", eval_steps=5)) == "steps"
    with pytest.raises(ConfigError, match="both say when to evaluate"):
        read("check_val_every_n_epoch: 3\neval_steps: 5\n")
    assert read("checkpointing: {monitor: [val_loss]}\n").hyper.save_strategy == "no"
    assert read("checkpointing: {monitor: [val_loss]}\n", save_steps=5).hyper.save_strategy == "steps"


@pytest.mark.slow
def test_loggers(read):
    assert read("logging: {logger_type: CSVLogger}\n").hyper.report_to == ["none"]
    assert read("logging: {logger_type: null}\n").hyper.report_to == ["none"]
    run = read("logging: {logger_type: TensorBoardLogger, name: first}\n")
    assert run.hyper.report_to == ["tensorboard"] and run.trainer["run_name"] == "first"
    assert read("logging: {logger_type: CSVLogger}\n", report_to=["tensorboard"]).hyper.report_to == ["tensorboard"]


def test_every_target_of_the_table_exists():
    from loader.sources.key_aliases import ALIASES, NotAvailable, yaml_keys

    for path, target in ALIASES.items():
        if isinstance(target, str) and not isinstance(target, NotAvailable):
            assert target.split(".")[0] in yaml_keys(), path


@pytest.mark.slow
def test_the_schema_knows_them(read):
    properties = json_schema()["properties"]
    assert {"lightning", "trainer", "dataloader", "epochs", "early_stopping", "checkpointing", "ema"} <= set(properties)
    assert yaml.safe_load(LIGHTNING).keys() <= properties.keys()


@pytest.mark.parametrize(
    ("text", "setting", "look", "value"),
    [
        ("max_steps: 6000\n", "num_train_epochs=-1", lambda run: run.is_endless, True),
        ("max_steps: 6000\n", "num_train_epochs='5'", lambda run: run.hyper.max_steps, -1),
        ("warmup_ratio: 0.5\n", "warmup_steps=0", lambda run: run.hyper.warmup_ratio, 0.0),
        ("check_val_every_n_epoch: 2\n", "eval_strategy=no", eval_strategy, "no"),
        ("check_val_every_n_epoch: 2\n", "eval_strategy=epoch", lambda run: run.process.check_val_every_n_epoch, None),
        ("fp16: true\n", "precision=bf16-mixed", lambda run: (run.trainer["fp16"], run.trainer["bf16"]), (0, 1)),
        ("weights_dtype: bfloat16\n", "precision=32", lambda run: run.process.weights_dtype, None),
        ("lr_warmup: 50\n", "lightning.lr_warmup=null", lambda run: run.hyper.warmup_steps, 0),
        ("resume_lr: 0.1\n", "lightning.resume_lr=null", lambda run: run.process.resume_lr, None),
        ("callbacks: [os.Foo]\n", "trainer.callbacks=null", lambda run: run.callbacks, []),
        ("eval_on_start: true\n", "trainer.num_sanity_val_steps=0", lambda run: run.trainer["eval_on_start"], False),
        ("logging: {name: bar}\n", "run_name=foo", lambda run: run.trainer["run_name"], "foo"),
        ("min_lr: 0.1\n", "lr_scheduler_type=constant", lambda run: run.hyper.min_lr, None),
        ("logging: null\n", "seed=1", lambda run: run.hyper.report_to, ["none"]),
        ("early_stopping: {patience: }\nlearning_rate:\n", "seed=1", lambda run: run.early_stopping.patience, 10),
        ("scheduler_name: exponential\n", "seed=1", lambda run: run.scheduler, {"gamma": 0.9}),
        ("optimizer: {name: Adan, betas: [0.98, 0.92, 0.99]}\n", "seed=1", lambda run: run.optimizer["betas"][2], 0.99),
    ],
)  # fmt: skip
def test_the_later_word_wins_in_every_vocabulary(read, text, setting, look, value):
    assert look(read(text, setting)) == value


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("logging: {logger_type: CSVLogger}\n", {"report_to": ["tensorboard"]}),
        ("logging: {logger_type: TensorBoardLogger}\n", {"report_to": ["none"]}),
        ("optimizer: adafactor\n", {}),
        ("optimizer: adafactor\n", {"learning_rate": 0.5}),
        ("min_lr: 0.1\nlr_decay_iters: 5\n", {"lr_scheduler_type": "constant"}),
        ("run_name: foo\nreport_to: tensorboard\n", {"report_to": ["none"]}),
        ("checkpointing: {monitor: [val_loss]}\n", {"save_steps": 5}),
        ("trainer: {max_epochs: -1}\nlr_scheduler_type: constant\n", {}),
        (LIGHTNING, {"learning_rate": 1.0}),
    ],
)
def test_a_printed_configuration_read_again_is_the_same_run(read, tmp_path, text, flags):
    run = read(text, **flags)
    assert check_run(run) == [] or "not installed" in check_run(run)[0]
    (tmp_path / "again.yaml").write_text(render.as_yaml(run))
    again = resolve(HyperArguments(), [], tmp_path / "again.yaml")
    for part in ("process", "trainer", "optimizer", "scheduler", "schedule", "early_stopping", "checkpointing"):
        assert getattr(again, part) == getattr(run, part), part
    assert {**vars(again.hyper), "given": 0} == {**vars(run.hyper), "given": 0} and check_run(again) == check_run(run)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("early_stopping: {patience: 7}\ntrainer: {early_stopping: {patience: 3}}\n", "are the same setting"),
        ("lr_scheduler: {class_name: StepLR, name: ExponentialLR}\n", "has `class_name` and `name`"),
        (
            "dataloader: {batch_size: 2}\ndataloader_builder: {batch_size: 3}\n",
            "`dataloader_builder.batch_size`",
        ),
        ("max_steps: '100'\nnum_train_epochs: '2'\n", "both set the same length"),
        ("report_to: tensorboard\nlogging: {logger_type: CSVLogger}\n", "name two loggers"),
        ("scheduler: [{name: LinearLR}, {name: StepLR}]\n", "must be a mapping"),
        ("learning_rate: 'inf'\n", "must be a finite number"),
        ("eval_steps: '1e999'\n", "must be a finite number"),
        ("optim: [a]\n", "`optim"),
        ("trainer: {precision: [16]}\n", "must be one of"),
        ("param_groups: [{pattern: encoder}]\n", "changes nothing"),
        ("devices: '²'\n", None),
        ("scheduler: {name: ExponentialLR, gamma: .nan}\n", None),
        ("devices: [-1]\n", None),
        ("logging: {logger_type: CSVLogger, project: p}\n", None),
        ("lora_enable: true\nlora_module: ''\n", None),
    ],
)
def test_more_refusals(read, text, message):
    if message is None:  # a setting of the right type that cannot be used
        assert len(check_run(read(text))) == 1
    else:
        with pytest.raises(ConfigError, match=message):
            check_run(read(text))


def test_one_callback_needs_no_list(read):
    assert read("callbacks: os.Foo\n").callbacks == read("callbacks: [os.Foo]\n").callbacks == ["os.Foo"]


@pytest.mark.slow
def test_looking_at_callbacks_imports_nothing(read):
    import subprocess
    import sys

    code = (
        "from loader.resolve.resolver import resolve; from loader.checks.static_checks import check_run; import sys\n"
    )
    code += "check_run(resolve(None, ['callbacks=[torch.optim.Foo]'])); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_interval_is_inherited(read):
    text = "lightning: {lr_warmup: {steps: 5}, lr_scheduler: {class_name: StepLR, interval: epoch, step_size: 1}}\n"
    assert read(text).process.warmup_epochs == 5
