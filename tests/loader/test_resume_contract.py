"""What may change when a run goes on: every key has a class; refusals name key, values, origins and remedy."""

import itertools
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
from checkpoint_folders import write_checkpoint

from loader.checks import static_checks
from loader.command_line.parser import HyperArguments
from loader.output import render
from loader.resolve.resolver import read_saved, resolve
from loader.resolve.run_config import ignores_learning_rate
from loader.resume.compatibility import resume_changes
from loader.resume.config_diff import class_of_option, settings_of
from loader.resume.find_checkpoint import inspect
from loader.schema.components import component_module
from loader.schema.keys import on_resume
from storage.config_keys import EVALUATION, EVALUATION_TIME, HARMLESS, IMPOSSIBLE, OWN_RULE, TRAJECTORY
from trainer.optimization import lr_curves, lr_scheduler

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
        run = resolve(None, list(settings), file(tmp_path, "after", after))
        return resume_changes(run, inspect(run, checkpoint), actual)

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
    assert class_of_option(before, after, option) == kind


# ---- differences ----


@pytest.mark.slow
def test_what_is_recorded_is_what_was_resolved(in_root, tmp_path):
    """run.yaml holds every setting: read again it differs in nothing."""
    text = BASE + "using_ema: true\nparam_groups: [{pattern: head, lr_factor: 0.5}]\nearly_stopping: 3\nbf16: true\n"
    text += "accelerator_config: {even_batches: false}\nlora_enable: true\nglobal_batch_size: 16\n"
    run = resolve(training_config=file(tmp_path, "run", text))
    saved = read_saved(file(tmp_path, "saved", render.as_yaml(run) + render.END))
    before, after = settings_of(saved), settings_of(run)
    other = {key for key in {**before, **after} if before.get(key) != after.get(key)}
    assert other <= {"num_train_epochs", "gradient_accumulation_steps", "per_device_train_batch_size"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        "logging_steps: 3", "save_steps: 7", "eval_steps: 9", "dataloader_num_workers: 2", "report_to: none",
        "save_total_limit: 2", "dataloader_pin_memory: false", "early_stopping: null", "logging_first_step: true",
        "per_device_eval_batch_size: 3", "cache_dir: elsewhere", "use_cpu: true",
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_both_values_and_both_origins(resumed):
    found = resumed(BASE + "adam_beta2: 0.95\n", BASE, ["adam_beta2=0.9", "seed=3", "model.hidden_dim=8"])
    assert len(found.problems) == 3  # all together
    (beta,) = (line for line in found.problems if "adam_beta2" in line)
    assert beta.startswith("`adam_beta2: 0.9` in --set, and checkpoint-40 was trained with 0.95 (")
    assert "before.yaml:5)" in beta
    (seed,) = (line for line in found.problems if "seed" in line)
    assert "42 (default)" in seed


STOPS = "early_stopping: {monitor: eval_loss}\n"
STOPS_BY_LOSS = "early_stopping: {monitor: loss}\neval_steps: 5\n"
STOPS_BY_EPOCH = "early_stopping: {monitor: train/loss, check_on_train_epoch_end: true}\neval_steps: 5\n"
PLATEAU = "lr_scheduler_type: ReduceLROnPlateau\n"
STEP = "lr_scheduler_type: StepLR\n"
RESTARTS = "lr_scheduler_type: cosine_with_restarts\n"
# What both runs have, what only the earlier one and what only the later one has, and the keys that differ.
DIFFERENCES = [
    # Other spellings of the same
    (STEP, "lr_scheduler_kwargs: {step_size: 3}", "scheduler: {step_size: 3}", []),
    ("", "adam_beta2: 0.95", "optimizer: {amsgrad: false, betas: [0.9, 0.95]}", []),
    ("", "", "max_grad_norm: 1.0", []),
    ("", "warmup_ratio: 0.1", "warmup_steps: 0.1", []),
    ("", "warmup_ratio: 0.1", "warmup_ratio: 0.2", ["warmup_steps"]),
    (RESTARTS, "lr_scheduler_kwargs: '{\"num_cycles\": 2}'", "lr_scheduler_kwargs: {num_cycles: 2}", []),
    (RESTARTS, "lr_scheduler_kwargs: '{\"num_cycles\": 2}'", "scheduler: {num_cycles: 3}", ["scheduler.num_cycles"]),
    ("", "save_steps: 1", "save_steps: 1.0", []),
    # One batch is not all of them
    (STOPS, "limit_val_batches: 1.0", "limit_val_batches: 1", ["limit_val_batches"]),
    ("", "limit_train_batches: 1.0", "limit_train_batches: 1", ["limit_train_batches"]),
    # Evaluation matters if something depends on it
    ("", "", "eval_steps: 7", []),
    (STOPS, "", "eval_steps: 7", ["eval_steps"]),
    (PLATEAU, "", "eval_steps: 7", ["eval_steps"]),
    (f"{PLATEAU}scheduler: {{monitor: loss}}\n", "", "eval_steps: 7", []),
    # Without eval_steps, save_steps is how often a run evaluates
    (STOPS, "save_steps: 20", "save_steps: 10", ["eval_steps"]),
    (STOPS, "save_steps: 20", "save_steps: 5\neval_steps: 20", []),
    (f"{STOPS}save_steps: 20\n", "", "eval_strategy: steps", []),
    (f"{STOPS}save_steps: 20\n", "", "eval_strategy: epoch", ["eval_strategy"]),
    (f"{STOPS}eval_strategy: epoch\n", "save_steps: 20", "save_steps: 7", []),
    (STOPS, "eval_strategy: epoch", "check_val_every_n_epoch: 1", []),
    (STOPS, "eval_strategy: epoch", "check_val_every_n_epoch: 2", ["check_val_every_n_epoch"]),
    # Early stopping on the training loss checks it at each evaluation, or at the end of each epoch
    (STOPS_BY_LOSS, "", "eval_delay: 3", ["eval_delay"]),
    (STOPS_BY_LOSS, "", "eval_strategy: epoch", ["eval_strategy"]),
    (STOPS_BY_LOSS, "", "logging_steps: 7", ["logging_steps"]),
    (STOPS_BY_LOSS, "", "limit_val_batches: 1\neval_shuffle: true", []),
    (STOPS_BY_EPOCH, "", "eval_delay: 3", []),
    (STOPS_BY_EPOCH, "", "logging_steps: 7", ["logging_steps"]),
]


@pytest.mark.slow
@pytest.mark.parametrize(("both", "before", "after", "keys"), DIFFERENCES)
def test_what_differs(resumed, both, before, after, keys):
    head = BASE.replace(
        "optimizer: {amsgrad: false}\n", "" if "optimizer:" in after else "optimizer: {amsgrad: false}\n"
    )
    found = resumed(f"{BASE}{both}{before}\n", f"{head}{both}{after}\n")
    assert keys_of_problems(found) == keys
    assert found.lines == [] and found.record == {}


def keys_of_problems(found):
    return [line.partition("`")[2].partition(":")[0] for line in found.problems]


@pytest.mark.slow
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


@pytest.mark.slow
def test_another_metric_for_the_best_model(resumed):
    text = BASE + "metric_for_best_model: eval_loss\n"
    assert not resumed(text, text).best_changed
    assert resumed(text, BASE + "metric_for_best_model: eval_l1\n").best_changed


@pytest.mark.slow
def test_an_adapter_on_random_weights_depends_on_the_seed(resumed):
    text = BASE + "lora_enable: true\n"
    (problem,) = resumed(text, text + "seed: 3\nresume_changed: allow\n").problems
    assert "`seed: 3`" in problem and "does not fit" in problem


# ---- rates ----


@pytest.mark.slow
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
        plan = lr_curves.LRSchedulerConfig(name, options, learning_rate=rate, **more)
        return lr_scheduler.planned_rates(plan, 12, 4, [rate * group for group in groups])

    before, after = (list(itertools.chain(*rates(rate))) for rate in (1e-3, 3e-3))
    assert ignores_learning_rate(run) == (before == pytest.approx(after))


@pytest.mark.slow
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


@pytest.mark.slow
def test_epochs_of_another_number_of_steps_are_another_length(resumed):
    """The data also decides the length of a run that is measured in epochs; only the start knows it."""
    longer = ["limit_train_batches=50", "resume_changed=allow"]
    assert resumed(EPOCHS, EPOCHS, longer).length_setting is None
    found = resumed(EPOCHS, EPOCHS, longer, actual=200)
    assert found.problems == [] and "200 steps instead of 100 steps" in found.lines[-1]
    assert found.length_setting.startswith("`limit_train_batches: 50` in --set with `num_train_epochs: 4` at ")
    assert resumed(EPOCHS, EPOCHS, longer, actual=100).length_setting is None  # there was no more data
    # Data that has grown, with the same settings.
    found = resumed(EPOCHS, EPOCHS, actual=120)
    assert found.length_setting.startswith("`num_train_epochs: 4` at ") and found.record["length"]["after"] == 120
    # In steps the length is what it was.
    assert resumed(BASE, BASE, ["limit_train_batches=50", "resume_changed=allow"], actual=100).length_setting is None


@pytest.mark.slow
def test_evaluations_at_shares_of_the_length_move_with_it(resumed):
    text = BASE + "lr_scheduler_type: constant\nearly_stopping: true\neval_steps: 0.1\n"
    (problem,) = resumed(text, text, ["max_steps=200"]).problems
    assert "`max_steps: 200` in --set moves the evaluations (eval_steps 0.1 is a share" in problem
    found = resumed(text, text, ["max_steps=200", "resume_changed=allow"])
    assert found.problems == [] and len(found.lines) == 2
    steps = text.replace("0.1", "10")
    assert resumed(steps, steps, ["max_steps=200"]).problems == []


@pytest.mark.slow
def test_another_length_is_recorded(resumed):
    """Whether the learning rate allows it, the schedule itself decides when the run starts."""
    found = resumed(BASE, BASE, ["max_steps=200"])
    assert found.problems == [] and found.length_setting == "`max_steps: 200` in --set"
    assert found.record["max_steps"] == {"before": 100, "after": 200, "origin": "--set"} and len(found.lines) == 1
    (problem,) = resumed(BASE, BASE, ["max_steps=39"]).problems
    assert problem.startswith("`max_steps: 39` in --set") and "39 steps" in problem
    assert resumed(BASE, BASE, ["max_steps=40"]).problems == []
    same = resumed(BASE, BASE.replace("max_steps: 100", "num_train_epochs: 4"))  # of 25 steps
    assert (same.problems, same.lines, same.length_setting) == ([], [], None)
    found = resumed(BASE, BASE.replace("max_steps: 100", "num_train_epochs: 5"))
    assert found.problems == [] and "125 steps instead of 100 steps" in found.lines[0]


@pytest.mark.slow
def test_without_an_end_there_is_nothing_to_stretch_a_schedule_to(resumed):
    endless = BASE.replace("max_steps: 100", "num_train_epochs: -1\nlr_decay_iters: 80")
    (problem,) = resumed(BASE + "lr_decay_iters: 80\n", endless, ["resume_schedule=rebase"]).problems
    assert problem.startswith("`resume_schedule: rebase` in --set") and "after.yaml:1:1" in problem


# ---- batch ----


@pytest.mark.slow
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


@pytest.mark.slow
def test_other_samples_a_step_are_refused_with_what_to_set(resumed, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    (problem,) = resumed(BASE, BASE, batch=(8, 1, 1)).problems
    assert "a step was of 8 samples and would be of 16" in problem and "--resume_changed allow" in problem
    assert "set global_batch_size 8," in problem
    assert resumed(BASE, BASE, ["resume_changed=allow"], batch=(8, 1, 1)).problems == []
    monkeypatch.setenv("WORLD_SIZE", "3")
    (problem,) = resumed(BASE, BASE, batch=(8, 1, 1)).problems
    assert "a number of processes that divides it, not 3" in problem


@pytest.mark.slow
def test_several_data_sets_are_drawn_by_the_step(resumed):
    """The size of a micro-batch does not matter there either, only its product with accumulation and processes."""
    text = "task_name: text\nmodel_config: gpt\nmax_steps: 100\nglobal_batch_size: 8\nlr_scheduler_type: constant\n"
    single = text + "dataset: {path: a}\n"
    assert resumed(single, single, ["per_device_train_batch_size=4"]).problems == []
    several = text + "dataset: {mode: multidataset, path: [a, b]}\n"
    assert resumed(several, several, ["per_device_train_batch_size=4"]).problems == []
    (problem,) = resumed(several, several, ["global_batch_size=4"]).problems
    assert "a step was of 8 samples and would be of 4" in problem
    moving = (
        text
        + "dataset: {mode: multidataset, path: [a, b], sampling_probs: [0.5, 0.5], sampling_probs_final: [0.1, 0.9]}\n"
    )
    assert resumed(moving, moving, ["max_steps=100"]).problems == []
    (problem,) = resumed(moving, moving, ["max_steps=200"]).problems
    assert "moves where dataset.sampling_probs_final is reached" in problem
    assert len(resumed(moving, moving, ["max_steps=200", "resume_changed=allow"]).lines) == 2


@pytest.mark.slow
def test_a_run_in_epochs_keeps_its_batch(resumed):
    epochs = BASE.replace("max_steps: 100", "num_train_epochs: 4")
    (problem,) = resumed(epochs, epochs, ["per_device_train_batch_size=4", "resume_changed=allow"]).problems
    assert "say the length as max_steps" in problem


@pytest.mark.slow
def test_the_batch_that_was_tuned_is_kept(resumed):
    text = BASE + "tune_batch_size: true\n"
    assert resumed(text, text, batch=(64, 1, 1)).problems == []
    assert len(resumed(text, text, ["gradient_accumulation_steps=2"], batch=(64, 1, 1)).problems) == 1


@pytest.mark.slow
def test_check_says_what_a_start_would(in_root, tmp_path):
    text = BASE + f"output_dir: {tmp_path / 'out'}\n"
    write_checkpoint(tmp_path / "out", resolve(training_config=file(tmp_path, "run", text)))
    hyper = HyperArguments(resume_from_checkpoint="auto", seed=3, learning_rate=0.5)
    (problem,) = static_checks.check_run(resolve(hyper, training_config=file(tmp_path, "run", text)))
    assert problem.startswith("`seed: 3` on the command line, and checkpoint-40 was trained with 42 (default)")
