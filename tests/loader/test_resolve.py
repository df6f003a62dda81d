"""Layers: which value wins, where it came from, and what is refused."""

import importlib.util
import json
import subprocess
import sys

import pytest
import yaml

from loader.checks import static_checks
from loader.command_line.parser import HyperArguments
from loader.errors import ConfigError
from loader.output import render
from loader.output.json_schema import json_schema
from loader.resolve.resolver import resolve
from loader.resolve.run_config import eval_strategy, with_dims
from loader.resume import find_checkpoint

STATE = "sim_transfer_cube_state"


@pytest.fixture
def write(tmp_path):
    def write_file(text, name="run.yaml"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write_file


def origin(run, key):
    return run.origins()[key]


def test_later_layers_win_and_say_so(in_root, write):
    path = write("learning_rate: 0.0005\nmax_steps: 2000\nhistory_images_length: 2\nmodel:\n  hidden_dim: 64\n")
    run = resolve(HyperArguments(max_steps=7), ["model.hidden_dim=32"], training_config=path)
    assert run.hyper.learning_rate == 0.0005 and origin(run, "learning_rate").endswith("run.yaml:1")
    assert run.hyper.max_steps == 7 and origin(run, "max_steps") == "cli"
    assert run.model.config.hidden_dim == 32 and origin(run, "model.hidden_dim") == "set"
    assert run.process.history_images_length == 2
    assert origin(run, "seed") == "default"
    assert origin(run, "preload_data") == "configs/training/default.yaml:7"
    assert origin(run, "dataset.name") == f"configs/task/{STATE}.yaml:9"


def test_a_flag_typed_with_the_default_still_beats_yaml(in_root, write):
    run = resolve(HyperArguments(learning_rate=5e-5), training_config=write("learning_rate: 0.1\n"))
    assert run.hyper.learning_rate == 5e-5 and origin(run, "learning_rate") == "cli"


def test_naming_default_yaml_changes_nothing(in_root):
    named = resolve(HyperArguments(training_config="configs/training/default.yaml"))
    bare = resolve()
    assert {**named.origins(), "training_config": ""} == {**bare.origins(), "training_config": ""}


def test_default_yaml_has_every_process_key_at_its_default(in_root):
    from loader.schema.keys import keys_of
    from loader.schema.process_arguments import ProcessArguments

    written = yaml.safe_load((in_root / "configs/training/default.yaml").read_text())
    assert written == {name: key.default for name, key in keys_of(ProcessArguments).items()}


def test_the_documents_process_keys_are_all_there(shared):
    import re

    from loader.schema.keys import keys_of
    from loader.schema.process_arguments import ProcessArguments

    text = next((shared / "specs").glob("001*")).read_text()
    section = text.split("### Stable Process Parameters")[1].split("## Creating")[0]
    named = {name for line in section.splitlines() if line.startswith("- ") for name in re.findall(r"`(\w+)`", line)}
    assert len(named) == 33 and named <= set(keys_of(ProcessArguments))


@pytest.mark.keys("extends")
def test_extends_is_a_chain(in_root, write):
    write("learning_rate: 0.1\nmax_steps: 5\nseed: 1\n", "grandparent.yaml")
    write("extends: grandparent.yaml\nmax_steps: 6\n", "parent.yaml")
    run = resolve(training_config=write("extends: parent.yaml\nseed: 3\n"))
    assert (run.hyper.learning_rate, run.hyper.max_steps, run.hyper.seed) == (0.1, 6, 3)
    assert origin(run, "max_steps").endswith("parent.yaml:2")


def test_extends_takes_a_list_and_names_in_configs(in_root, write):
    write("seed: 1\nmax_steps: 5\n", "a.yaml")
    write("seed: 2\n", "b.yaml")
    run = resolve(training_config=write("extends: [a.yaml, b.yaml, default]\n"))
    assert (run.hyper.seed, run.hyper.max_steps) == (2, 5)


def test_extends_of_a_link_is_beside_the_file_too(in_root, write, tmp_path):
    (tmp_path / "shelf").mkdir()
    write("max_steps: 6\n", "shelf/parent.yaml")
    (tmp_path / "link.yaml").symlink_to(write("extends: parent.yaml\n", "shelf/child.yaml"))
    assert resolve(training_config=tmp_path / "link.yaml").hyper.max_steps == 6


def test_extends_cycle(in_root, write):
    write("extends: b.yaml\n", "a.yaml")
    path = write("extends: a.yaml\n", "b.yaml")
    with pytest.raises(ConfigError, match="circle: .*b.yaml -> .*a.yaml -> .*b.yaml"):
        resolve(training_config=path)


def test_extends_of_a_missing_file_names_the_line(in_root, write):
    with pytest.raises(ConfigError, match=r"none.yaml at .*run.yaml:1:1 does not exist"):
        resolve(training_config=write("extends: none.yaml\n"))


def test_named_sets_and_keys_beside_them(in_root, write):
    run = resolve(training_config=write("optimizer: adafactor\n"))
    assert run.hyper.optim == "adafactor" and origin(run, "optim").startswith("configs/optimizer/adafactor.yaml:")
    run = resolve(training_config=write("optimizer: adamw\nlearning_rate: 0.2\n"))
    assert run.hyper.learning_rate == 0.2
    assert "`optim: adamx` at" in problems(training_config=str(write("optimizer: adamx\n")))


@pytest.mark.slow
def test_the_optimizer_section_is_the_same_setting_as_the_flag(in_root, write):
    path = write("optimizer: {name: SGD, lr: 0.3, momentum: 0.9, betas: [0.8, 0.9]}\n")
    run = resolve(training_config=path)
    assert (run.hyper.optim, run.hyper.learning_rate, run.optimizer) == ("SGD", 0.3, {"momentum": 0.9})
    assert (run.hyper.adam_beta1, run.hyper.adam_beta2) == (0.8, 0.9)
    assert resolve(HyperArguments(learning_rate=0.1), training_config=path).hyper.learning_rate == 0.1
    with pytest.raises(ConfigError, match="`optimizer.lr` at .* and `learning_rate` at .* are the same setting"):
        resolve(training_config=write("learning_rate: 1\noptimizer: {lr: 2}\n"))


def test_the_scheduler_section(in_root, write):
    run = resolve(training_config=write("scheduler: {name: cosine_with_min_lr, min_lr: 1e-6}\n"))
    assert run.hyper.lr_scheduler_type == "cosine_with_min_lr" and run.scheduler == {"min_lr": 1e-6}


@pytest.mark.slow
def test_a_training_file_with_its_own_data_is_its_own_task(in_root, write, tmp_path, shared):
    own = "dataset: {name: demonstrations, path: a, chunk_size: 10}\nmodel: mlp\n"
    run = resolve(training_config=write(own))
    assert run.env is None and run.hyper.task_name is None and run.task == "demonstrations"
    assert run.dataset.config.state_keys is None and run.model.name == "mlp"
    again = resolve(training_config=write(render.as_yaml(run), "again.yaml"))
    assert again.env is None and again.dataset.config == run.dataset.config
    named = resolve(HyperArguments(task_name=STATE), training_config=write(own))
    assert named.env is not None and named.dataset.config.path == "a"
    assert resolve(training_config=write("dataset: {chunk_size: 9}\n")).env is not None  # the task's data, changed
    run = resolve(None, [f"output_dir={tmp_path / 'out'}"], shared / "cases/configs/no_task.yaml")
    assert (run.env, run.process.image_aspect_ratio) == (None, "square") and static_checks.check_run(run) == []


@pytest.mark.slow
@pytest.mark.parametrize("written", ["mlp", "configs/model/mlp.yaml"])
def test_the_last_word_on_the_model_wins(in_root, write, written):
    assert resolve().model.name == "act"  # the task's
    assert resolve(training_config=write("model: mlp\n")).model.name == "mlp"
    assert resolve(HyperArguments(model_config=written)).model.name == "mlp"
    assert resolve(HyperArguments(model_config="act"), training_config=write("model: mlp\n")).model.name == "act"


def test_words_that_yaml_takes_for_something_else(in_root, write):
    run = resolve(training_config=write("save_strategy: no\nrun_name: 2024\nlogging_strategy: 'no'\n"))
    assert run.hyper.save_strategy == "no" and run.trainer["run_name"] == "2024"


def test_every_trainer_field_is_a_yaml_key(in_root, write):
    text = "gradient_accumulation_steps: 4\nbf16: true\ntf32: true\nmax_grad_norm: 0.5\ntorch_compile: false\n"
    text += "gradient_checkpointing: true\nlr_scheduler_kwargs: {num_cycles: 2}\n"
    run = resolve(training_config=write(text))
    assert run.trainer == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lerning_rate: 1\n", r"unknown key `lerning_rate` at .*:1:1; did you mean `learning_rate`\?"),
        ("hidden_dim: 1\n", "it is a key of `model`: write it under `model:`"),
        ("model: {hiden_dim: 8}\n", "unknown key `model.hiden_dim` at .*:1:9; did you mean `hidden_dim`"),
        ("dataset: {chunk_size: 0}\n", "`dataset.chunk_size: 0` at .* must be at least 1"),
        ("learning_rate: -1\n", "`learning_rate: -1` at .*:1:1 must be at least 0"),
        ("learning_rate: fast\n", "`learning_rate: fast` at .* must be a number"),
        ("learning_rate: .nan\n", "must be a finite number"),
        ("max_steps: 1.5\n", "`max_steps: 1.5` at .* must be a whole number"),
        ("max_steps: true\n", "must be a whole number"),
        ("preload_data: 'maybe'\n", "must be true or false"),
        ("preload_data: 2\n", "must be true or false"),
        ("bits: 5\n", "`bits: 5` at .* must be one of 4, 8, 16"),
        ("gradient_accumulation_steps: 0\n", "must be at least 1"),
        ("bf16: [1]\n", "`bf16.* must be true or false"),
        ("model: [act]\n", "`model` at .* must be a mapping"),
        ("model: {name: act, kl_weight: {a: 1}}\n", "`model.kl_weight.* must be a number"),
        ("model: {name: nets.nowhere}\n", "no module `nets.nowhere`"),
        ("model: {name: atc}\n", "no module `models.atc`; did you mean `act`"),
        ("model: {name: '../act'}\n", "is not a module name"),
        ("env: {name: aloha, task: juggling}\n", "`env.task: juggling` at .* must be one of transfer_cube, insertion"),
        (
            "task_name: sim_transfer_cub_state\n",
            "no such task in configs/task/; did you mean `sim_transfer_cube_state`",
        ),
        ("model_config: atc\n", "no such model in configs/model/; did you mean `act`"),
        ("training_config: x.yaml\n", "is a flag; a file builds on another with `extends"),
        ("do_predict: true\n", "`do_predict` at .* has no effect here"),
        ("param_groups: {pattern: x}\n", "`param_groups` at .* must be a list"),
        ("param_groups: [{patern: x}]\n", r"unknown key `param_groups\[0\].patern`"),
        ("param_groups: [{pattern: x, lr: 1, lr_factor: 2}]\n", "`lr` and `lr_factor` are both given"),
    ],
)
def test_refusals(in_root, write, text, says):
    with pytest.raises(ConfigError, match=says) as raised:
        resolve(training_config=write(text))
    assert all("\n" not in line for line in raised.value.problems)


def test_all_problems_are_told_together(in_root, write):
    with pytest.raises(ConfigError) as raised:
        resolve(
            HyperArguments(task_name="nowhere"), ["x"], training_config=write("bits: 5\nlerning_rate: 1\nseed: a\n")
        )
    assert len(raised.value.problems) >= 5


def test_keys_in_the_wrong_kind_of_file(in_root, write):
    task = write("learning_rate: 1\nmodel: act\nnonsense: 2\n", "task.yaml")
    with pytest.raises(ConfigError) as raised:
        resolve(HyperArguments(task_name=str(task)))
    first, second = raised.value.problems[:2]
    assert "`learning_rate`" in first and "it belongs in a training file" in first
    assert "`nonsense`" in second and "a task file holds `dataset`, `env`, `model`" in second


@pytest.mark.slow
def test_an_outside_component_and_its_own_failing_import(in_root, write, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    write("import module_that_is_nowhere\n", "my_lab/broken.py")
    source = "from dataclasses import dataclass\n@dataclass\nclass Config:\n    width: int = 3\n"
    write(f"{source}def build(config, process): ...\ndef load(folder): ...\n", "my_lab/nets.py")
    write("", "my_lab/__init__.py")
    assert resolve(training_config=write("model: {name: my_lab.nets, width: 5}\n")).model.config.width == 5
    with pytest.raises(ConfigError, match="`my_lab.broken` exists, but importing it failed.*module_that_is_nowhere"):
        resolve(training_config=write("model: {name: my_lab.broken}\n"))
    with pytest.raises(ConfigError, match="no module `my_lab.nowhere`"):
        resolve(training_config=write("model: {name: my_lab.nowhere}\n"))


def problems(*settings, **flags):
    try:
        return "\n".join(static_checks.check_run(resolve(HyperArguments(**flags), list(settings))))
    except ConfigError as error:
        return str(error)


@pytest.mark.slow
@pytest.mark.keys("use_reasoning", "use_prev_subtask", "select_seg_token_mask", "llm_loss_weight")
def test_process_keys_nothing_can_use_are_refused(in_root):
    """Nothing is silently dead: each key is live for the chosen parts, or only its neutral value is accepted."""
    from loader.schema.keys import keys_of
    from loader.schema.process_arguments import ProcessArguments
    from storage.config_keys import COMPONENT

    run = resolve()
    live = {name for name, key in keys_of(ProcessArguments).items() if key.used_by != COMPONENT}
    live |= run.dataset.module.PROCESS_KEYS | run.model.module.PROCESS_KEYS
    dead = {"use_reasoning", "use_prev_subtask", "select_seg_token_mask", "llm_loss_weight"}
    dead |= {"sample_tokens", "sample_prompt", "sample_count", "sample_temperature", "sample_top_k"}  # a policy's
    assert set(keys_of(ProcessArguments)) - live == dead
    for name, key in keys_of(ProcessArguments).items():
        if name in live and key.needs is None:
            continue
        other = {bool: not key.default, str: "x", int: 8, float: 0.5}.get(type(key.default), "0.5")
        special = {"lora_bias": "all", "quant_type": "fp4", "bits": 8, "lora_options": "{use_dora: true}"}
        said = problems(f"{name}={str(special.get(name, other)).lower()}")
        assert f"`{name}" in said, name


@pytest.mark.slow
def test_conflicts_and_lengths(in_root, tmp_path):
    out = str(tmp_path / "out")
    assert problems(output_dir=out) == ""
    assert "`max_steps: 0` on the command line would train nothing" in problems(output_dir=out, max_steps=0)
    assert "both set the same length" in problems(output_dir=out, max_steps=5, num_train_epochs=2.0)
    assert "both set the same length" in problems(output_dir=out, warmup_steps=5, warmup_ratio=0.1)
    assert "not shorter than the run" in problems(output_dir=out, warmup_steps=50, max_steps=50)
    assert "are both true" in problems("bf16=true", "fp16=true", output_dir=out)
    assert "needs evaluation" in problems("load_best_model_at_end=true", output_dir=out, do_eval=False)
    assert problems("dataloader_prefetch_factor=2", output_dir=out) == ""  # the run says that it does nothing
    assert "needs worker processes" in problems("dataloader_persistent_workers=true", output_dir=out)
    assert "does not exist" in problems("dataset.path=/no/such/folder", output_dir=out)


@pytest.mark.slow
def test_names_that_only_installed_packages_know(in_root, tmp_path):
    out = str(tmp_path / "out")
    assert problems(output_dir=out, optim="RMSprop") == problems(output_dir=out, optim="adafactor") == ""
    assert "did you mean `AdamW`" in problems(output_dir=out, optim="Adamw")
    assert "neither a TrainingArguments name nor a class of torch.optim" in problems(output_dir=out, optim="nonsense")
    assert problems(output_dir=out, report_to=["none"]) == ""
    assert "did you mean `tensorboard`" in problems(output_dir=out, report_to=["tensorbord"])
    assert "`report_to: 5` in --set is not a reporting backend" in problems("report_to=5", output_dir=out)
    if importlib.util.find_spec("dvclive") is None:
        assert "is not installed; pip install dvclive" in problems(output_dir=out, report_to=["dvclive"])


def test_names_read_from_source_are_those_of_the_packages():
    import torch
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    from loader.schema.installed import reporting_backends, torch_optimizers

    assert set(reporting_backends()) == set(INTEGRATION_TO_CALLBACK)
    classes = {name for name, kind in vars(torch.optim).items() if isinstance(kind, type)} - {"Optimizer"}
    assert set(torch_optimizers()) == classes


@pytest.mark.slow
def test_a_reader_that_leaves_early_is_no_error(in_root):
    words = f"{sys.executable} train.py --print_schema | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", words], cwd=in_root, capture_output=True, text=True)
    assert done.stdout == "{\n0\n" and "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_later_of_two_lengths_wins(in_root, write):
    path = write("max_steps: 500\nwarmup_steps: 100\n")
    assert resolve(training_config=path).hyper.max_steps == 500
    longer = resolve(HyperArguments(num_train_epochs=3.0, warmup_ratio=0.25), training_config=path)
    assert longer.hyper.max_steps == -1 and static_checks.warmup(longer) == 0.25
    assert static_checks.warmup(resolve(HyperArguments(warmup_ratio=0.25))) == 0.25


@pytest.mark.slow
def test_output_dir(in_root, tmp_path):
    (tmp_path / "file").write_text("")
    assert "is a file; name a folder" in problems(output_dir=str(tmp_path / "file"))
    assert "`output_dir` on the command line is empty" in problems(output_dir=" ")
    assert "cannot be made" in problems(output_dir=str(tmp_path / "file" / "below"))
    used = tmp_path / "used"
    (used / "checkpoint-5").mkdir(parents=True)
    said = problems(output_dir=str(used))
    assert "already holds a run (checkpoint-5)" in said
    assert "--resume_from_checkpoint auto" in said and "another --output_dir" in said
    assert problems(output_dir=str(used), resume_from_checkpoint="auto") == ""  # a torn one: the run starts fresh
    assert problems(output_dir=str(tmp_path / "fresh"), resume_from_checkpoint="auto") == ""
    assert "is not a checkpoint folder" in problems(output_dir=str(used), resume_from_checkpoint=str(tmp_path / "no"))
    assert "has no manifest.json" in problems(output_dir=str(used), resume_from_checkpoint=str(used / "checkpoint-5"))


def test_checkpoints_are_ordered_by_step(tmp_path):
    for name in ("checkpoint-9", "checkpoint-100", "checkpoint-20", "checkpoint-x", "checkpoint-7.tmp"):
        (tmp_path / name).mkdir()
    assert [path.name for path in find_checkpoint.checkpoints(tmp_path)] == [
        "checkpoint-9",
        "checkpoint-20",
        "checkpoint-100",
    ]


def test_model_dims_that_contradict_the_data_name_both_places(in_root, write):
    run = resolve(training_config=write("model: {action_dim: 7}\n"))
    with pytest.raises(
        ConfigError, match=r"`model.action_dim: 7` at .*:1:9 contradicts the data \(dataset at .*\), which has 14"
    ):
        with_dims(run, {"action_dim": 14, "state_dim": 14})
    assert with_dims(resolve(), {"action_dim": 14, "unheard_of": 1}).action_dim == 14


@pytest.mark.slow
def test_printed_configuration_is_a_valid_training_file_with_the_same_meaning(in_root, write):
    original = resolve(HyperArguments(max_steps=30, do_eval=False), ["model.kl_weight=2", "save_strategy=no"])
    again = resolve(training_config=write(render.as_yaml(original)))
    assert again.hyper == original.hyper and again.process == original.process
    assert again.model.config == original.model.config and again.dataset.config == original.dataset.config
    assert static_checks.check_run(again) == []


def test_printed_json_has_value_and_origin(in_root):
    shown = json.loads(render.as_json(resolve(HyperArguments(max_steps=30))))
    assert shown["max_steps"] == {"value": 30, "origin": "cli"}
    assert shown["model.hidden_dim"]["origin"].startswith("configs/model/act.yaml:")


def test_secrets_are_not_printed(in_root, monkeypatch):
    monkeypatch.setenv("A_TOKEN", "hunter2")
    run = resolve(settings=["hub_token=${env:A_TOKEN}"])
    assert run.trainer["hub_token"] == "hunter2"
    assert "hunter2" not in render.as_yaml(run) + render.as_json(run)


@pytest.mark.slow
def test_schema_accepts_what_ships_and_refuses_what_is_wrong(in_root):
    import jsonschema

    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for path in sorted(in_root.glob("configs/*/*.yaml")):
        content = yaml.safe_load(path.read_text())
        assert list(validator.iter_errors(content)) == [], path
        assert path.read_text().startswith("# yaml-language-server: $schema=../schema.json"), path
    for wrong in ({"lerning_rate": 1}, {"bits": 5}, {"learning_rate": -1}, {"model": {"name": "act", "x": 1}}):
        assert list(validator.iter_errors(wrong)), wrong
    from loader.schema.keys import REPLACED
    from loader.sources.key_aliases import yaml_keys

    assert set(schema["properties"]) == yaml_keys() - set(REPLACED) - {"training_config"} | {"training", "defaults"}


@pytest.mark.slow
def test_shipped_schema_is_the_printed_one(in_root):
    """Under the locked transformers; another version has other fields."""
    import transformers

    locked = (in_root / "constraints.txt").read_text()
    if f"transformers=={transformers.__version__}" not in locked:
        pytest.skip("another transformers than the locked one is installed")
    assert json.loads((in_root / "configs/schema.json").read_text()) == json.loads(json.dumps(json_schema()))


@pytest.mark.slow
@pytest.mark.parametrize("flags", [["--help"], ["--check"], ["--print_config"], ["--print_schema"]])
def test_answers_without_importing_torch_or_transformers(in_root, tmp_path, flags):
    """What makes them fast is what they do not load; the clock itself is left to the benchmarks."""
    code = (
        "import sys, train\n"
        f"try: train.main({[*flags, '--output_dir', str(tmp_path / 'out')]!r})\n"
        "except SystemExit as leave: assert leave.code == 0, leave.code\n"
        "heavy = {'torch', 'transformers', 'h5py', 'mujoco', 'cv2'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=in_root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout and not (tmp_path / "out").exists()


# ---- what a hostile reader found ----


def reloaded(run, write):
    return resolve(training_config=write(render.as_yaml(run), "again.yaml"))


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("max_steps: 6000\nwarmup_steps: 100\n", {"num_train_epochs": 2.0, "warmup_ratio": 0.1}),
        ("max_steps: 6000\n", {"num_train_epochs": 3.0}),  # the default's value, typed
        ("num_train_epochs: 7\n", {"max_steps": 5}),
        ("eval_strategy: epoch\n", {"do_eval": False}),
        ("eval_strategy: no\n", {"do_eval": True}),
        ("eval_strategy: no\n", {"eval_steps": 7.0}),
        ("run_name: $${env:HOME}\n", {}),
        ("optimizer: {name: SGD, momentum: 0.9}\n", {"optim": "AdamW"}),
    ],
)
def test_a_printed_configuration_means_the_same_when_read_again(in_root, write, text, flags):
    from loader.output.training_arguments import argument_values

    run = resolve(HyperArguments(**flags), training_config=write(text))
    again = reloaded(run, write)
    assert argument_values(again) == argument_values(run) and again.optimizer == run.optimizer
    assert again.hyper == run.hyper


def test_a_flag_beats_the_evaluation_strategy_of_a_file(in_root, write):
    path = write("eval_strategy: no\n")
    assert eval_strategy(resolve(training_config=path)) == "no"
    assert eval_strategy(resolve(HyperArguments(do_eval=True), training_config=path)) == "steps"
    assert (
        eval_strategy(resolve(HyperArguments(do_eval=False), training_config=write("eval_strategy: epoch\n"))) == "no"
    )


def test_two_lengths_in_one_layer_even_at_the_defaults_value(in_root):
    assert "both set the same length" in problems(max_steps=100, num_train_epochs=3.0)


def test_settings_choose_first_and_override_after(in_root):
    run = resolve(settings=["model=mlp", "model.hidden_dim=32", "optimizer=adafactor", "optimizer.lr=0.5"])
    assert (run.model.name, run.model.config.hidden_dim) == ("mlp", 32)
    assert (run.hyper.optim, run.hyper.learning_rate) == ("adafactor", 0.5)


def test_another_optimizer_leaves_the_earlier_ones_options_behind(in_root, write):
    write("optimizer: adafactor\n", "p.yaml")
    run = resolve(training_config=write("extends: p.yaml\noptimizer: {name: SGD, momentum: 0.9}\n"))
    assert run.optimizer == {"momentum": 0.9}
    assert resolve(HyperArguments(optim="SGD"), training_config=write("optimizer: adafactor\n")).optimizer == {}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["optimizer.betas=[1]"], "`optimizer.betas` in --set must be a list of two numbers"),
        (["param_groups=[{pattern: '('}]"], "is not a regular expression"),
        (["env=null"], "there is no `env` to record data in"),
        (["extends=x"], "a file is built on with `extends` in the file itself"),
        ([".".join("a" * 3000) + "=1"], "no key is that deep"),
        (["seed=" + "9" * 5000], "`seed: 999"),
        (["model_config=5"], "`5` in --set: no such model"),
        (["hub_token=[secret]"], "`hub_token` in --set must be"),
    ],
)
def test_settings_that_once_slipped_through(in_root, settings, says):
    said = problems(*settings)
    assert says in said and "secret" not in said


@pytest.mark.slow
def test_schedules(in_root, write, tmp_path):
    out = str(tmp_path / "out")
    assert problems(output_dir=out, lr_scheduler_type="constant", warmup_steps=5) == ""
    assert "did you mean `cosine`" in problems(output_dir=out, lr_scheduler_type="cosin")
    assert "did you mean `StepLR`" in problems(output_dir=out, lr_scheduler_type="steplr")
    assert "takes no such option; did you mean `gamma`" in problems("scheduler={name: StepLR, step_size: 1, gama: 2}")
    assert problems(output_dir=out, num_train_epochs=-1, lr_scheduler_type="constant") == ""
    assert "moves every step" in problems("scheduler={name: cosine, interval: epoch}")
    assert "follows no metric" in problems("scheduler={name: StepLR, step_size: 1, monitor: eval_loss}")


def test_rules_that_need_what_is_not_there(in_root, tmp_path):
    out = str(tmp_path / "out")
    assert "`ema` in --set" in problems("ema.decay=0.9", output_dir=out)
    assert "must be a share of at most 1.0" in problems("limit_train_batches=1.5", output_dir=out)
    assert "no module `nowhere`" in problems("callbacks=[nowhere.Mine]", output_dir=out)
    assert "has no effect: optimizer SGD has no `betas`" in problems(output_dir=out, optim="SGD", adam_beta1=0.5)


@pytest.mark.slow
def test_devices_and_strategies(in_root, tmp_path, monkeypatch):
    out = str(tmp_path / "out")
    assert "asks for 2 process(es), and 1 was launched" in problems("devices=2", output_dir=out)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert problems("devices=2", "strategy=ddp", output_dir=out) == problems("devices=[0, 1]", output_dir=out) == ""
    assert "asks for 1" in problems("devices=1", output_dir=out)
    assert "is not supported" in problems("accelerator=tpu", output_dir=out)
    assert "set the key `fsdp`" in problems("strategy=fsdp", output_dir=out)


def test_two_names_for_the_model_in_one_file(in_root, write):
    with pytest.raises(ConfigError, match="name two models; keep one"):
        resolve(training_config=write("model: mlp\nmodel_config: act\n"))


@pytest.mark.slow
def test_paths_are_absolute_and_other_folders_hide_no_name(tmp_path, monkeypatch):
    """A run's folder of the same name is no data set, and a file is found from any working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words").mkdir()
    (tmp_path / "words/run.yaml").write_text("")
    (tmp_path / "chat.jinja").write_text("{{ messages }}")
    text = ["task_name=text", "dataset.path=words"]
    assert resolve(settings=text).dataset.config.path == "words"
    (tmp_path / "words/train.bin").write_bytes(b"")
    assert resolve(settings=text).dataset.config.path == str(tmp_path / "words")
    for template, found in (("chat.jinja", str(tmp_path / "chat.jinja")), ("'{{ messages }}'", "{{ messages }}")):
        run = resolve(settings=["task_name=records", f"dataset.chat_template={template}"])
        assert run.dataset.config.chat_template == found
    (tmp_path / "labels.csv").write_text("path,a\n")
    for key in ("eval_path", "test_path", "root", "dataset_base_dir"):
        for given, found in (("labels.csv", str(tmp_path / "labels.csv")), ("owner/name", "owner/name")):
            words = [f"dataset.{key}={given}", "dataset.name=images", "model=convnet"]
            assert getattr(resolve(settings=words).dataset.config, key) == found


def test_a_file_name_is_looked_up_in_configs_from_anywhere(tmp_path, monkeypatch, write):
    monkeypatch.chdir(tmp_path)
    assert resolve(training_config="act_state.yaml").hyper.max_steps == 6000
    assert resolve(training_config=write("extends: act_state.yaml\n")).hyper.max_steps == 6000


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--output_dir", "--task_name", "--training_config", "--resume_from_checkpoint"])
def test_names_too_long_for_the_file_system(in_root, flag):
    words = [sys.executable, "train.py", "--check", flag, "a" * 5000]
    done = subprocess.run(words, cwd=in_root, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr and done.stderr.count("error:") == 1


@pytest.mark.slow
def test_an_ascii_only_log(in_root):
    import os

    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "train.py", "--help"], cwd=in_root, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
