"""What may change when a run goes on: every key has a class; refusals name key, values, origins and remedy."""

import itertools
import json
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
from checkpoint_folders import write_checkpoint

from loader.checks import static_checks
from loader.command_line.parser import HyperArguments
from loader.output import render
from loader.resolve.derived import ignores_learning_rate
from loader.resolve.resolver import read_saved, resolve
from loader.resume import change_policy, find_checkpoint
from loader.resume.compatibility import resume_changes
from loader.resume.config_diff import settings_of
from loader.resume.schedule_length import depends_on_length, ends_at_nothing
from loader.schema.components import component_module
from loader.schema.keys import on_resume
from storage import manifest
from storage.config_keys import EVALUATION, EVALUATION_TIME, HARMLESS, IMPOSSIBLE, OWN_RULE, TRAJECTORY
from trainer.optimization import lr_curves, lr_scheduler, lr_scheduler_config

ROOT = Path(__file__).resolve().parent.parent.parent
LOCKED = f"transformers=={version('transformers')}\n" in (ROOT / "constraints.txt").read_text(encoding="utf-8")
pinned = pytest.mark.skipif(not LOCKED, reason="fields of TrainingArguments come and go with its versions")
BASE = "max_steps: 100\nmodel: {hidden_dim: 16}\nweight_decay: 0.1\noptimizer: {amsgrad: false}\n"


@pytest.fixture
def resumed(in_root, tmp_path):
    """Saves a run of one YAML text, and compares that of another text with it; `actual`: its steps with its data."""

    def compare(before, after, settings=(), actual=None, **options):
        earlier = resolve(training_config=file(tmp_path, "before", before))
        for number in itertools.count():
            if not (tmp_path / str(number)).exists():
                break
        checkpoint = write_checkpoint(tmp_path / str(number), earlier, **options)
        return resume_changes(resolve(None, list(settings), file(tmp_path, "after", after)), checkpoint, actual)

    return compare


def file(folder, name, text):
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return path


# ---- classes ----


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("dataloader_num_workers", HARMLESS), ("report_to", HARMLESS), ("gradient_checkpointing", HARMLESS),
        ("accelerator_config.non_blocking", HARMLESS), ("accelerator_config.split_batches", TRAJECTORY),
        ("accelerator_config.even_batches", TRAJECTORY), ("eval_steps", EVALUATION_TIME), ("seed", TRAJECTORY),
        ("limit_val_batches", EVALUATION),
        ("early_stopping.patience", TRAJECTORY), ("early_stopping.verbose", HARMLESS), ("ema.decay", TRAJECTORY),
        ("using_ema", IMPOSSIBLE), ("lora_r", IMPOSSIBLE), ("model(act).hidden_dim", IMPOSSIBLE),
        ("model(act).dropout", TRAJECTORY), ("model(act).name", IMPOSSIBLE), ("dataset(text).name", IMPOSSIBLE),
        ("param_groups[0].lr", TRAJECTORY), ("param_groups[0].pattern", IMPOSSIBLE), ("max_steps", OWN_RULE),
        ("dataset(text).path", HARMLESS), ("dataset(text).mode", IMPOSSIBLE), ("a_new_field", TRAJECTORY),
    ],
)  # fmt: skip
def test_what_a_changed_key_means_for_a_resumed_run(key, kind):
    section, _, component = key.partition("(")
    name, _, rest = component.partition(")")
    config = component_module(section, name).Config if name else None
    assert on_resume(f"{section}{rest}" if name else key, config) == kind


@pytest.mark.parametrize(
    ("option", "before", "after", "kind"),
    [
        ("betas", [0.9, 0.99, 0.9], [0.9, 0.95, 0.9], TRAJECTORY),
        ("momentum", 0.9, 0.5, TRAJECTORY),
        ("momentum", 0, 0.5, IMPOSSIBLE),  # nothing was remembered for it
        ("momentum", None, 0.5, IMPOSSIBLE),
        ("beta1", None, 0.9, IMPOSSIBLE),
        ("amsgrad", False, True, IMPOSSIBLE),
        ("nesterov", False, True, TRAJECTORY),
        ("rank", 64, 128, IMPOSSIBLE),
    ],
)
def test_classes_of_an_optimizers_options(option, before, after, kind):
    assert change_policy.class_of_option(before, after, option) == kind


# ---- differences ----


def test_the_same_settings_however_they_are_written(resumed):
    """A default that is written, an alias, another spelling of the same: no difference."""
    before = BASE + "adam_beta2: 0.95\nlr_scheduler_type: StepLR\nlr_scheduler_kwargs: {step_size: 3}\n"
    after = BASE + "optimizer: {amsgrad: false, betas: [0.9, 0.95]}\nscheduler: {name: StepLR, step_size: 3}\n"
    after = after.replace("optimizer: {amsgrad: false}\n", "", 1)
    for text in (
        before,
        after,
        before + "max_grad_norm: 1.0\ndropout_rate: null\n".replace("dropout_rate: null\n", ""),
    ):
        found = resumed(before, text)
        assert (found.problems, found.lines, found.record) == ([], [], {})


def test_what_is_recorded_is_what_was_resolved(in_root, tmp_path):
    """run.yaml holds every setting: read again it differs in nothing."""
    text = BASE + "using_ema: true\nparam_groups: [{pattern: head, lr_factor: 0.5}]\nearly_stopping: 3\nbf16: true\n"
    text += "accelerator_config: {even_batches: false}\nlora_enable: true\nglobal_batch_size: 16\n"
    run = resolve(training_config=file(tmp_path, "run", text))
    saved = read_saved(file(tmp_path, "saved", render.as_yaml(run) + render.END))
    before, after = settings_of(saved), settings_of(run)
    other = {key for key in {**before, **after} if before.get(key) != after.get(key)}
    assert other <= {"num_train_epochs", "gradient_accumulation_steps", "per_device_train_batch_size"}


@pytest.mark.parametrize(
    "change",
    [
        "logging_steps: 3", "save_steps: 7", "eval_steps: 9", "dataloader_num_workers: 2", "report_to: none",
        "save_total_limit: 2", "dataloader_pin_memory: false", "early_stopping: null", "logging_first_step: true",
        "per_device_eval_batch_size: 3", "sample_temperature: 0.1", "cache_dir: elsewhere", "use_cpu: true",
        "load_best_model_at_end: true", "max_failed_saves: 9",
    ],
)  # fmt: skip
def test_harmless_changes_are_taken(resumed, change):
    found = resumed(BASE, f"{BASE}{change}\n")
    assert (found.problems, found.lines, found.record) == ([], [], {})


TRAJECTORIES = {
    "seed: 7": "seed", "max_grad_norm: 0.5": "max_grad_norm", "bf16: true": "bf16", "min_lr: 1.0e-6": "min_lr",
    "warmup_steps: 5": "warmup_steps", "lr_scheduler_type: cosine": "lr_scheduler_type",
    "adam_beta1: 0.8": "adam_beta1",
    "dataloader_drop_last: true": "dataloader_drop_last", "model: {hidden_dim: 16, dropout: 0.5}": "model.dropout",
    "dataset: {samples_per_epoch: 9}": "dataset.samples_per_epoch", "early_stopping: true": "early_stopping",
    "accelerator_config: {even_batches: false}": "accelerator_config.even_batches", "data_seed: 3": "data_seed",
    "limit_train_batches: 0.5": "limit_train_batches", "ignore_data_skip: true": "ignore_data_skip",
    "optim: adamw_torch": "optim", "torch_compile: true": "torch_compile",
}  # fmt: skip


@pytest.mark.parametrize(("change", "key"), TRAJECTORIES.items())
def test_what_changes_the_trajectory_is_refused_unless_allowed(resumed, change, key):
    text = (
        f"{BASE}{change}\n" if "model:" not in change else f"{BASE}{change}\n".replace("model: {hidden_dim: 16}\n", "")
    )
    found = resumed(BASE, text)
    assert len(found.problems) == 1 and not found.record
    assert f"`{key}: " in found.problems[0] and "--resume_changed allow" in found.problems[0]
    assert "after.yaml:" in found.problems[0] and "checkpoint-40 was trained with" in found.problems[0]
    allowed = resumed(BASE, text + "resume_changed: allow\n")
    assert allowed.problems == [] and list(allowed.record) == [key] and len(allowed.lines) == 1
    assert set(allowed.record[key]) == {"before", "after", "origin"} and "after.yaml:" in allowed.record[key]["origin"]


@pytest.mark.parametrize(
    ("change", "key"),
    {
        "model: {hidden_dim: 32}": "model.hidden_dim", "optim: sgd": "optim", "using_ema: true": "using_ema",
        "freeze: [head]": "freeze", "lora_enable: true": "lora_enable", "fp16: true": "fp16",
        "weights_dtype: bfloat16": "weights_dtype", "dataset: {chunk_size: 7}": "dataset.chunk_size",
        "param_groups: [{pattern: head, lr: 0.1}]": "param_groups[0].pattern", "fsdp: full_shard": "fsdp",
        "optimizer: {amsgrad: true}": "optimizer.amsgrad", "history_images_length: 2": "history_images_length",
    }.items(),
)  # fmt: skip
def test_what_does_not_fit_is_refused_always(resumed, change, key):
    head = change.partition(":")[0]
    kept = "".join(f"{line}\n" for line in BASE.splitlines() if not line.startswith(f"{head}:"))
    found = resumed(BASE, f"{kept}{change}\nresume_changed: allow\n")
    lines = [line for line in found.problems if f"`{key}: " in line]
    assert lines and "does not fit" in lines[0] and "begin a new run" in lines[0]


def test_both_values_and_both_origins(resumed):
    found = resumed(BASE + "adam_beta2: 0.95\n", BASE, ["adam_beta2=0.9", "seed=3", "model.hidden_dim=8"])
    assert len(found.problems) == 3  # all together
    (beta,) = (line for line in found.problems if "adam_beta2" in line)
    assert beta.startswith("`adam_beta2: 0.9` in --set, and checkpoint-40 was trained with 0.95 (")
    assert "before.yaml:5)" in beta
    (seed,) = (line for line in found.problems if "seed" in line)
    assert "42 (default)" in seed


def test_evaluation_matters_only_where_something_follows_it(resumed):
    assert resumed(BASE, BASE + "eval_steps: 7\nlimit_val_batches: 2\n").problems == []
    stopping = BASE + "early_stopping: {monitor: eval_loss}\n"
    assert len(resumed(stopping, stopping + "eval_steps: 7\n").problems) == 1
    plateau = BASE + "lr_scheduler_type: ReduceLROnPlateau\n"
    assert len(resumed(plateau, plateau + "eval_steps: 7\n").problems) == 1
    follows_training = plateau + "scheduler: {monitor: loss}\n"
    assert resumed(follows_training, follows_training + "eval_steps: 7\n").problems == []


def keys_of_problems(found):
    return [line.partition("`")[2].partition(":")[0] for line in found.problems]


def test_what_save_steps_says_of_evaluations(resumed):
    """Where eval_steps is not given, save_steps is how often a run evaluates; what is compared is what they come to."""
    stopping = BASE + "early_stopping: {monitor: eval_loss}\nsave_steps: 20\n"
    (problem,) = resumed(stopping, stopping.replace("save_steps: 20", "save_steps: 10")).problems
    assert problem.startswith("`eval_steps: 10.0` at ") and "after.yaml:6:1" in problem
    assert "20.0 (" in problem and "before.yaml:6)" in problem
    for same in ("eval_steps: 20\n", "eval_strategy: steps\n", "do_eval: true\n", "eval_steps: 20\nsave_steps: 5\n"):
        text = stopping.replace("save_steps: 20\n", "") if "save_steps" in same else stopping
        assert resumed(stopping, text + same).problems == []
    assert keys_of_problems(resumed(stopping, stopping, ["eval_strategy=epoch"])) == ["eval_strategy"]
    epochs = stopping + "eval_strategy: epoch\n"
    assert resumed(epochs, epochs.replace("20", "7")).problems == []  # it evaluates at the ends of epochs
    assert resumed(epochs, stopping + "check_val_every_n_epoch: 1\n").problems == []
    assert keys_of_problems(resumed(epochs, stopping + "check_val_every_n_epoch: 2\n")) == ["check_val_every_n_epoch"]
    assert resumed(BASE, BASE + "do_eval: false\nsave_steps: 3\n").problems == []


def test_a_warm_up_is_the_same_in_both_words(resumed):
    before = BASE + "warmup_ratio: 0.1\n"
    assert resumed(before, BASE + "warmup_steps: 0.1\n").problems == []
    (problem,) = resumed(before, BASE + "warmup_ratio: 0.2\n").problems
    assert problem.startswith("`warmup_steps: 0.2` at ") and "before.yaml:5)" in problem


def test_early_stopping_on_the_training_loss_looks_when_there_is_an_evaluation(resumed):
    for monitor in ("loss", "train/loss", "grad_norm"):
        text = f"{BASE}early_stopping: {{monitor: {monitor}}}\neval_steps: 5\n"
        for key in ("eval_delay: 3", "eval_steps: 7", "eval_strategy: epoch", "logging_steps: 7"):
            head = key.split(":")[0]
            kept = text.replace("eval_steps: 5\n", "") if head == "eval_steps" else text
            assert keys_of_problems(resumed(text, f"{kept}{key}\n")) == [head]
        for key in ("limit_val_batches: 1", "eval_shuffle: true", "per_device_eval_batch_size: 2"):
            assert resumed(text, f"{text}{key}\n").problems == []  # what it finds does not matter
    each_epoch = text.replace("grad_norm", "loss, check_on_train_epoch_end: true")
    assert resumed(each_epoch, each_epoch.replace("eval_steps: 5", "eval_steps: 7")).problems == []
    assert keys_of_problems(resumed(each_epoch, each_epoch + "logging_steps: 7\n")) == ["logging_steps"]


def test_one_batch_is_not_all_of_them(resumed):
    for key in ("limit_train_batches", "limit_val_batches"):
        text = BASE + "early_stopping: true\n"
        assert keys_of_problems(resumed(text + f"{key}: 1.0\n", text + f"{key}: 1\n")) == [key]
        assert resumed(text, text + f"{key}: 1.0\n").problems == []
    assert resumed(BASE + "save_steps: 1\nmax_grad_norm: 1\n", BASE + "save_steps: 1.0\n").problems == []


def test_a_folder_is_the_same_however_it_is_written(resumed, tmp_path, monkeypatch):
    (tmp_path / "w0").mkdir()
    (tmp_path / "w1").mkdir()
    (tmp_path / "link").symlink_to("w0")
    monkeypatch.setenv("HOME", str(tmp_path))
    text = BASE + f"is_pretrained: true\nfreeze: [{tmp_path}/w0]\nmodel_name_or_path: "
    before = f"{text}{tmp_path}/w0\n"
    for same in (f"{tmp_path}/w0/", f"{tmp_path}/./w0/.", "~/w0", f"{tmp_path}/link"):
        assert resumed(before, f"{text}{same}\n").problems == []
    for other in (f"{tmp_path}/w1", f"{tmp_path}/none", "w0"):
        assert keys_of_problems(resumed(before, f"{text}{other}\n")) == ["model_name_or_path"]


def test_mappings_as_text_are_mappings(resumed, in_root, tmp_path):
    cosine = BASE + "lr_scheduler_type: cosine_with_restarts\nlr_scheduler_kwargs: "
    assert resumed(cosine + "'{\"num_cycles\": 2}'\n", cosine + "{num_cycles: 2}\n").problems == []
    assert keys_of_problems(resumed(cosine + "'{\"num_cycles\": 2}'\n", cosine + "{num_cycles: 3}\n")) == [
        "scheduler.num_cycles"
    ]


def test_another_metric_for_the_best_model(resumed):
    text = BASE + "metric_for_best_model: eval_loss\n"
    assert not resumed(text, text).best_changed
    assert resumed(text, BASE + "metric_for_best_model: eval_l1\n").best_changed


def test_an_adapter_on_random_weights_depends_on_the_seed(resumed):
    text = BASE + "lora_enable: true\n"
    (problem,) = resumed(text, text + "seed: 3\nresume_changed: allow\n").problems
    assert "`seed: 3`" in problem and "does not fit" in problem


# ---- rates ----


def test_a_learning_rate_does_what_resume_lr_does(resumed):
    found = resumed(BASE, BASE, ["learning_rate=0.5", "weight_decay=0.2"])
    assert found.problems == [] and found.optimizer_changed and not found.schedule_changed
    assert [line.split()[0] for line in found.lines] == ["resume_lr", "resume_weight_decay"]
    assert found.record["learning_rate"] == {"before": 5e-5, "after": 0.5, "origin": "--set"}
    both = resumed(BASE, BASE, ["learning_rate=0.5", "resume_lr=0.25"])
    assert len(both.problems) == 1 and "keep one" in both.problems[0]
    again = resumed(BASE + "learning_rate: 0.5\n", BASE, ["learning_rate=0.5"])
    assert (again.problems, again.lines, again.record) == ([], [], {})  # the next resume of the same command


OWN_RATES = [
    ({"name": "OneCycleLR", "max_lr": 0.1}, {}), ({"name": "OneCycleLR"}, {}),
    ({"name": "OneCycleLR", "max_lr": 0.1}, {"warmup_steps": 3}),
    ({"name": "CyclicLR", "base_lr": 0.01, "max_lr": 0.1, "step_size_up": 3}, {}),
    ({"name": "CyclicLR", "base_lr": 0.01, "step_size_up": 3}, {}), ({"name": "StepLR", "step_size": 3}, {}),
]  # fmt: skip


@pytest.mark.parametrize(("scheduler", "more"), OWN_RATES, ids=str)
@pytest.mark.parametrize("groups", [[1.0], [1.0, 0.5]])
def test_a_schedule_without_the_learning_rate_is_known(scheduler, more, groups):
    name, options = scheduler["name"], {key: value for key, value in scheduler.items() if key != "name"}
    hyper = {"lr_scheduler_type": name, "warmup_ratio": 0, "warmup_steps": 0, "min_lr": None, **more}
    process = SimpleNamespace(warmup_epochs=0, lora_lr=None)
    run = SimpleNamespace(
        hyper=SimpleNamespace(**hyper), process=process, scheduler=options, trainer={}, param_groups=[]
    )

    def rates(rate):
        plan = lr_scheduler_config.LRSchedulerConfig(name, options, learning_rate=rate, **more)
        return lr_scheduler.planned_rates(plan, 12, 4, [rate * group for group in groups])

    before, after = (list(itertools.chain(*rates(rate))) for rate in (1e-3, 3e-3))
    assert ignores_learning_rate(run) == (before == pytest.approx(after))


def test_a_learning_rate_that_would_do_nothing_is_refused(resumed, in_root, tmp_path):
    text = BASE + "scheduler: {name: OneCycleLR, max_lr: 0.1, interval: step}\n"
    (problem,) = resumed(text, text, ["learning_rate=0.5"]).problems
    assert "`learning_rate: 0.5` in --set" in problem and "has no effect" in problem and "scheduler.max_lr" in problem
    warm = text + "warmup_steps: 5\n"
    assert resumed(warm, warm, ["learning_rate=0.5"]).problems == []
    own = text + "param_groups: [{pattern: head, lr: 0.1}]\n"
    assert resumed(own, own, ["learning_rate=0.5"]).problems == []

    def problems(*settings):
        run = resolve(None, [f"output_dir={tmp_path / 'new'}", *settings], file(tmp_path, "fresh", text))
        return [line for line in static_checks.check_run(run) if "has no effect" in line]

    assert problems() == []
    assert [line.split(":")[0] for line in problems("learning_rate=0.5", "resume_lr=0.1")] == [
        "`learning_rate", "`resume_lr"
    ]  # fmt: skip
    assert problems("learning_rate=0.5", "scheduler.max_lr=null") == []


# ---- length ----


EPOCHS = BASE.replace("max_steps: 100", "num_train_epochs: 4") + "limit_train_batches: 25\n"  # 25 steps an epoch


def test_epochs_of_another_number_of_steps_are_another_length(resumed):
    """A run measured in epochs becomes longer by its data too: what that is, only the start knows."""
    longer = ["limit_train_batches=50", "resume_changed=allow"]
    for total in (None, 200):
        (problem,) = resumed(EPOCHS, EPOCHS, longer, actual=total).problems
        assert "`limit_train_batches: 50` in --set with `num_train_epochs: 4`" in problem
        assert "--resume_schedule: keep" in problem
    assert "200 steps of 100 steps" in problem
    found = resumed(EPOCHS, EPOCHS, [*longer, "resume_schedule=rebase"], actual=200)
    assert found.problems == [] and found.length_changed and found.lines[-1].startswith("length: `limit_train_batches")
    constant = EPOCHS + "lr_scheduler_type: constant_with_warmup\n"
    found = resumed(constant, constant, longer, actual=200)
    assert found.problems == [] and found.lines[-1].startswith("length: `limit_train_batches: 50` in --set")
    assert not resumed(EPOCHS, EPOCHS, longer, actual=100).length_changed  # there was no more data
    # Data that has grown, with the same settings.
    (problem,) = resumed(EPOCHS, EPOCHS, actual=120).problems
    assert problem.startswith("`num_train_epochs: 4` at ") and "with the data as it is now makes 120 steps" in problem
    assert resumed(EPOCHS, EPOCHS, ["dataset.samples_per_epoch=9", "resume_changed=allow"]).problems == []  # who knows
    (problem,) = resumed(EPOCHS, EPOCHS, ["dataset.samples_per_epoch=9", "resume_changed=allow"], actual=120).problems
    assert problem.startswith("`dataset.samples_per_epoch: 9` in --set with `num_train_epochs: 4`")
    # In steps the length is what it was.
    assert resumed(BASE, BASE, ["limit_train_batches=50", "resume_changed=allow"], actual=100).problems == []


def test_evaluations_at_shares_of_the_length_move_with_it(resumed):
    text = BASE + "lr_scheduler_type: constant\nearly_stopping: true\neval_steps: 0.1\n"
    (problem,) = resumed(text, text, ["max_steps=200"]).problems
    assert "`max_steps: 200` in --set moves the evaluations (eval_steps 0.1 is a share" in problem
    found = resumed(text, text, ["max_steps=200", "resume_changed=allow"])
    assert found.problems == [] and len(found.lines) == 2
    steps = text.replace("0.1", "10")
    assert resumed(steps, steps, ["max_steps=200"]).problems == []


def test_another_length_needs_a_choice_where_the_schedule_ends_with_the_run(resumed):
    (problem,) = resumed(BASE, BASE, ["max_steps=200"]).problems
    assert "200 steps of 100 steps" in problem and "--resume_schedule" in problem
    assert (
        "keep (its course ends at step 100" in problem and "rebase (what is left of the course after step 40" in problem
    )
    found = resumed(BASE, BASE, ["max_steps=200", "resume_schedule=rebase"])
    assert found.problems == [] and found.length_changed and len(found.lines) == 1
    (problem,) = resumed(BASE, BASE, ["max_steps=200", "resume_schedule=keep"]).problems
    assert "rate of 0 at step 100" in problem and "100 steps after it" in problem
    floored = BASE + "min_lr: 1.0e-5\n"
    assert resumed(floored, floored, ["max_steps=200", "resume_schedule=keep"]).problems == []
    assert resumed(BASE, BASE, ["max_steps=60", "resume_schedule=keep"]).problems == []  # cut short before its end
    assert resumed(BASE, BASE, ["lr_scheduler_type=constant", "resume_changed=allow", "max_steps=200"]).problems == []


def test_another_length_without_a_choice(resumed):
    constant = BASE + "lr_scheduler_type: constant\n"
    found = resumed(constant, constant, ["max_steps=200"])
    assert found.problems == [] and found.record["max_steps"]["after"] == 200
    (problem,) = resumed(constant, constant, ["max_steps=39"]).problems
    assert "has gone further than 39 steps" in problem
    assert resumed(constant, constant, ["max_steps=40"]).problems == []
    same = resumed(constant, constant.replace("max_steps: 100", "num_train_epochs: 4"))
    assert (same.problems, same.lines) == ([], [])  # 4 epochs of 25 steps
    found = resumed(constant, constant.replace("max_steps: 100", "num_train_epochs: 5"))
    assert found.problems == [] and "125 steps of 100 steps" in found.lines[0]


def test_a_course_that_is_over_cannot_be_rebased(resumed):
    over = {"length": 30, "total": 30, "start": 0, "position": 0, "held": True}
    (problem,) = resumed(BASE, BASE, ["max_steps=200", "resume_schedule=rebase"], course=over).problems
    assert "ended at step 30" in problem and "earlier checkpoint" in problem
    endless = BASE.replace("max_steps: 100", "num_train_epochs: -1\nlr_decay_iters: 80")
    (problem,) = resumed(BASE + "lr_decay_iters: 80\n", endless, ["resume_schedule=rebase"]).problems
    assert "without an end" in problem


SCHEDULES = [
    *({"name": name} for name in ("linear", "cosine", "constant", "constant_with_warmup", "polynomial")),
    {"name": "inverse_sqrt"}, {"name": "cosine_with_restarts"}, {"name": "cosine_with_min_lr", "min_lr": 1e-5},
    {"name": "warmup_stable_decay", "num_decay_steps": 10}, {"name": "reduce_lr_on_plateau"},
    {"name": "warmup_stable_decay", "num_decay_steps": 10, "min_lr_ratio": 0.1},
    {"name": "cosine_warmup_with_min_lr", "min_lr": 1e-5}, {"name": "StepLR", "step_size": 30},
    {"name": "MultiStepLR", "milestones": [3, 9]}, {"name": "ExponentialLR", "gamma": 0.9}, {"name": "ConstantLR"},
    {"name": "LinearLR"}, {"name": "CosineAnnealingLR"}, {"name": "CosineAnnealingLR", "T_max": 20},
    {"name": "CosineAnnealingLR", "eta_min": 1e-6}, {"name": "CosineAnnealingWarmRestarts", "T_0": 7},
    {"name": "PolynomialLR"}, {"name": "PolynomialLR", "total_iters": 10}, {"name": "OneCycleLR"},
    {"name": "OneCycleLR", "total_steps": 300}, {"name": "CyclicLR", "base_lr": 1e-5, "step_size_up": 5},
    {"name": "SequentialLR", "schedulers": [{"name": "LinearLR"}, {"name": "CosineAnnealingLR"}], "milestones": [8]},
    {"name": "SequentialLR", "schedulers": [{"name": "CosineAnnealingLR"}, {"name": "ConstantLR"}], "milestones": [8]},
    {"name": "ChainedScheduler", "schedulers": [{"name": "PolynomialLR"}, {"name": "ConstantLR"}]},
]  # fmt: skip


MORE = [{}, {"warmup_ratio": 0.1}, {"lr_decay_iters": 90}, {"min_lr": 1e-6}]


@pytest.mark.parametrize(("scheduler", "more"), list(itertools.product(SCHEDULES, MORE)), ids=str)
def test_what_is_said_of_a_schedule_is_what_its_rates_do(scheduler, more):
    """What `--check` knows without torch, against the rates themselves."""
    name, options = scheduler["name"], {key: value for key, value in scheduler.items() if key != "name"}
    ends_itself = name in lr_scheduler_config.FOLLOWS_METRIC or "min_lr" in scheduler
    if (ends_itself and "min_lr" in more) or (name.startswith("constant") and {"min_lr", "lr_decay_iters"} & {*more}):
        pytest.skip("refused: it has no effect, or say the same twice")
    hyper = {"lr_scheduler_type": name, "warmup_ratio": 0, "warmup_steps": 0, "lr_decay_iters": None, "min_lr": None}
    run = SimpleNamespace(hyper=SimpleNamespace(**{**hyper, **more}), scheduler=options, trainer={}, optimizer={})
    plan = lr_scheduler_config.LRSchedulerConfig(
        name,
        options,
        warmup_steps=run.hyper.warmup_ratio,
        min_lr=run.hyper.min_lr,
        decay_steps=run.hyper.lr_decay_iters,
    )
    assert depends_on_length(run) == lr_scheduler.depends_on_length(plan, 100, 200, 25)
    end = lr_scheduler.Schedule(lr_curves.stand_in_for([1e-3], 1e-3), plan, 100, 25)
    if depends_on_length(run):
        assert ends_at_nothing(run) == (end.rate_at(100) < 1e-15)


# ---- batch ----


def test_the_same_samples_a_step_go_on(resumed, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    text = BASE + "global_batch_size: 16\n"
    found = resumed(text, text, batch=(16, 1, 1))
    assert found.problems == [] and found.lines == [
        "batch 8 per device × 2 processes = 16, checkpoint-40's was 16 per device: the same 16 samples a step, in the "
        "same order"
    ]
    found = resumed(text, text, batch=(8, 1, 2))
    assert (found.problems, found.lines) == ([], [])


def test_other_samples_a_step_are_refused_with_what_to_set(resumed, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    (problem,) = resumed(BASE, BASE, batch=(8, 1, 1)).problems
    assert "a step was of 8 samples and would be of 16" in problem and "--resume_changed allow" in problem
    assert "set global_batch_size 8 (per_device_train_batch_size 4, gradient_accumulation_steps 1)" in problem
    assert resumed(BASE, BASE, ["resume_changed=allow"], batch=(8, 1, 1)).problems == []
    monkeypatch.setenv("WORLD_SIZE", "3")
    (problem,) = resumed(BASE, BASE, batch=(8, 1, 1)).problems
    assert "it needs a number of processes that divides it, not 3" in problem


def test_several_data_sets_are_drawn_by_the_batch(resumed):
    """There the size of a micro-batch decides which samples there are; its product with others alone does not count."""
    text = "task_name: text\nmodel_config: gpt\nmax_steps: 100\nglobal_batch_size: 8\nlr_scheduler_type: constant\n"
    single = text + "dataset: {path: a}\n"
    assert resumed(single, single, ["per_device_train_batch_size=4"]).problems == []
    several = text + "dataset: {mode: multidataset, path: [a, b]}\n"
    (problem,) = resumed(several, several, ["per_device_train_batch_size=4"]).problems
    assert "each batch is of one of them" in problem and "set per_device_train_batch_size 8" in problem
    moving = (
        text
        + "dataset: {mode: multidataset, path: [a, b], sampling_probs: [0.5, 0.5], sampling_probs_final: [0.1, 0.9]}\n"
    )
    assert resumed(moving, moving, ["max_steps=100"]).problems == []
    (problem,) = resumed(moving, moving, ["max_steps=200"]).problems
    assert "moves where dataset.sampling_probs_final is reached" in problem
    assert len(resumed(moving, moving, ["max_steps=200", "resume_changed=allow"]).lines) == 2


def test_a_run_in_epochs_keeps_its_batch(resumed):
    epochs = BASE.replace("max_steps: 100", "num_train_epochs: 4")
    (problem,) = resumed(epochs, epochs, ["per_device_train_batch_size=4", "resume_changed=allow"]).problems
    assert "say the length as max_steps" in problem


def test_the_batch_that_was_tuned_is_kept(resumed):
    text = BASE + "tune_batch_size: true\n"
    assert resumed(text, text, batch=(64, 1, 1)).problems == []
    assert len(resumed(text, text, ["gradient_accumulation_steps=2"], batch=(64, 1, 1)).problems) == 1


# ---- the record ----


def test_the_record_goes_on_from_checkpoint_to_checkpoint(resumed, tmp_path):
    found = resumed(BASE, BASE, ["seed=3", "resume_changed=allow"])
    checkpoint = tmp_path / "0" / "checkpoint-40"
    first = found.history(checkpoint)
    assert first == [{"step": 40, "changed": {"seed": {"before": 42, "after": 3, "origin": "--set"}}}]
    (checkpoint / "resumed.json").write_text(json.dumps([{"step": 10, "changed": {}}]))
    assert [each["step"] for each in found.history(checkpoint)] == [10, 40]
    found.record.clear()
    assert [each["step"] for each in found.history(checkpoint)] == [10]


# ---- whole checkpoints ----


@pytest.fixture
def checkpoint(in_root, tmp_path):
    return write_checkpoint(tmp_path, resolve(training_config=file(tmp_path, "run", BASE)))


def test_a_whole_checkpoint(checkpoint):
    assert find_checkpoint.fault(checkpoint) is None and find_checkpoint.fault(checkpoint, deep=True) is None


@pytest.mark.parametrize("name", ["optimizer.json", "scheduler.json", "rng-0.json", "run.yaml", "manifest.json"])
def test_a_missing_file_is_named(checkpoint, name):
    (checkpoint / name).unlink()
    assert find_checkpoint.fault(checkpoint) == f"has no {name}"


def test_what_the_manifest_does_not_vouch_for_is_missing(checkpoint):
    path = checkpoint / "manifest.json"
    content = json.loads(path.read_text())
    del content["files"]["optimizer.json"]
    path.write_text(json.dumps(content))
    assert find_checkpoint.fault(checkpoint) == "has no optimizer.json"


def test_a_flipped_byte_shows_only_to_the_deep_look(checkpoint):
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(bytes(2 * manifest.ALWAYS_HASHED))
    manifest.write(checkpoint, step=40, world_size=1)
    weights.write_bytes(b"\1" + bytes(2 * manifest.ALWAYS_HASHED - 1))
    assert find_checkpoint.fault(checkpoint) is None
    assert "has a damaged model.safetensors" in find_checkpoint.fault(checkpoint, deep=True)


def test_a_folder_of_another_step(checkpoint):
    other = checkpoint.rename(checkpoint.with_name("checkpoint-80"))
    assert find_checkpoint.fault(other) == "holds the state of step 40"


def test_pickles_are_refused_with_the_reason(checkpoint):
    (checkpoint / "manifest.json").unlink()
    (checkpoint / "optimizer.pt").write_bytes(b"\x80")
    why = find_checkpoint.fault(checkpoint)
    assert "pickles (optimizer.pt)" in why and "never loaded" in why and "begin a new run from its weights" in why


def test_auto_takes_the_newest_whole_one_and_says_what_it_skips(in_root, tmp_path):
    text = BASE + f"output_dir: {tmp_path / 'out'}\nresume_from_checkpoint: auto\n"
    run = resolve(training_config=file(tmp_path, "run", text))
    for step in (9, 40, 100):
        write_checkpoint(tmp_path / "out", run, step=step)
    (tmp_path / "out/checkpoint-100/optimizer.json").unlink()
    assert find_checkpoint.resume_target(run).name == "checkpoint-40"
    assert {path.name: why for path, why in find_checkpoint.chosen(run)[1].items()} == {
        "checkpoint-100": "has no optimizer.json"
    }
    assert static_checks.check_run(run) == []


def test_auto_or_else_a_checkpoint_that_is_named(in_root, tmp_path):
    """What a job that is started again says, which may have been stopped before it had saved anything."""
    text = BASE + f"output_dir: {tmp_path / 'out'}\nresume_from_checkpoint: auto:{tmp_path / 'first/checkpoint-40'}\n"
    run = resolve(training_config=file(tmp_path, "run", text))
    (problem,) = static_checks.check_run(run)
    assert "first/checkpoint-40` at" in problem and "is not a checkpoint folder" in problem
    named = write_checkpoint(tmp_path / "first", run)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/metrics.jsonl").write_text('{"step": 41}\n')
    assert (
        find_checkpoint.chosen(run, deep=True)[0] == named
        and static_checks.check_run(run) == []
        and find_checkpoint.takes_newest(run)
    )
    broken = write_checkpoint(tmp_path / "out", run, step=60)
    (broken / "optimizer.json").unlink()
    assert find_checkpoint.chosen(run, deep=True)[0] == named and static_checks.check_run(run) == []
    newest = write_checkpoint(tmp_path / "out", run, step=50)
    assert find_checkpoint.chosen(run, deep=True)[0] == newest and static_checks.check_run(run) == []


def test_check_says_what_a_start_would(in_root, tmp_path):
    text = BASE + f"output_dir: {tmp_path / 'out'}\n"
    write_checkpoint(tmp_path / "out", resolve(training_config=file(tmp_path, "run", text)))
    hyper = HyperArguments(resume_from_checkpoint="auto", seed=3, learning_rate=0.5)
    (problem,) = static_checks.check_run(resolve(hyper, training_config=file(tmp_path, "run", text)))
    assert problem.startswith("`seed: 3` on the command line, and checkpoint-40 was trained with 42 (default)")
