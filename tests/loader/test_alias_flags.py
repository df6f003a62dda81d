"""Flags in the words of language-model scripts: each sets what its document says, and contradictions are told."""

import dataclasses

import pytest
import yaml

from loader.command_line.parser import parse_flags
from loader.errors import ConfigError
from loader.resolve.resolver import resolve
from loader.schema.alias_flags import AliasFlags, alias_paths
from train import HyperArguments


def run_of(line, **flags):
    given = parse_flags(line.split())
    return resolve(given.hyper, given.command.set, aliases=given.aliases, **flags)


def problems_of(line):
    with pytest.raises(ConfigError) as error:
        run_of(line)
    return error.value.problems


# What the table of the fourth document says where nothing is given.
DOCUMENTED = {
    "dataset.path": "shakespeare_char",
    "output_dir": "out",
    "per_device_train_batch_size": 64,
    "max_steps": 3500,
    "learning_rate": 1e-3,
    "eval_steps": 250,
    "limit_val_batches": 200,
    "logging_steps": 10,
    "seed": 1337,
    "weight_decay": 0.1,
    "adam_beta1": 0.9,
    "adam_beta2": 0.99,
    "max_grad_norm": 1.0,
    "optim": "adamw_torch_fused",
    "lr_scheduler_type": "constant",
    "warmup_steps": 100,
}


def values(run):
    from loader.sources.config_tree import leaves

    return {path: node.plain() for path, node in leaves(run.tree)}


@pytest.mark.slow
def test_the_documents_defaults(in_root):
    run = run_of("--dataset shakespeare_char")
    found = values(run)
    assert {key: found[key] for key in DOCUMENTED} == DOCUMENTED
    assert (run.task, run.dataset.name, run.model.name) == ("text", "text", "gpt")
    decayed = values(run_of("--dataset shakespeare_char --decay_lr"))
    assert (decayed["lr_scheduler_type"], decayed["min_lr"], decayed["warmup_steps"]) == ("cosine", 1e-4, 100)
    assert decayed["lr_decay_iters"] is None  # the whole run: 3500 steps of 3500


SET = {
    "--lr 0.25 --epochs 2.5": {"learning_rate": 0.25, "num_train_epochs": 2.5},
    "--dataset books": {"dataset.path": "books"},
    "--training_mode multidataset --dataset_list a b": {"dataset.mode": "multidataset", "dataset.path": ["a", "b"]},
    "--training_mode multicontext --multicontext_datasets a b": {
        "dataset.mode": "multicontext",
        "dataset.path": ["a", "b"],
    },
    "--training_mode multidataset --dataset_list a b --dataset_sampling_probs .25 .75": {
        "dataset.sampling_probs": [0.25, 0.75]
    },
    "--training_mode multidataset --dataset_list a b --dataset_sampling_probs .5 .5 --dataset_sampling_probs_final 1 0 "
    "--dataset_sampling_probs_transition_method cosine": {
        "dataset.sampling_probs_final": [1.0, 0.0],
        "dataset.sampling_transition": "cosine",
    },
    "--training_mode multidataset --dataset_list a b --dataset_interleaving": {"dataset.interleave": True},
    "--training_mode multidataset --dataset_list a b --multidataset_wte": {"dataset.separate_embeddings": True},
    "--block_size 32": {"dataset.block_size": 32},
    "--dataset a --out_dir out/x": {"output_dir": "out/x"},
    "--dataset a --batch_size 3": {"per_device_train_batch_size": 3, "per_device_eval_batch_size": 3},
    "--dataset a --gradient_accumulation_steps 3": {"gradient_accumulation_steps": 3},
    "--dataset a --max_iters 7 --warmup_iters 2": {"max_steps": 7, "warmup_steps": 2},
    "--dataset a --eval_interval 5": {"eval_steps": 5, "save_steps": 5},
    "--dataset a --eval_interval 5 --save_steps 8": {"eval_steps": 5, "save_steps": 8},
    "--dataset a --eval_iters 9": {"limit_val_batches": 9},
    "--dataset a --log_interval 4": {"logging_steps": 4},
    "--init_from scratch": {"model_name_or_path": None},
    "--init_from gpt2": {"model.name": "gpt", "model_name_or_path": "gpt2"},
    "--init_from gpt2-medium": {"model_name_or_path": "gpt2-medium"},
    "--init_from gpt2 --gpt2_type gpt2-xl": {"model_name_or_path": "gpt2-xl"},
    "--init_from gpt2 --model_config gpt": {"model.name": "gpt", "model_name_or_path": "gpt2"},
    "--init_from gpt2 --model_config auto": {"model.name": "auto", "model_name_or_path": "gpt2"},
    "--init_from org/small": {"model.name": "auto", "model_name_or_path": "org/small"},
    "--init_from prev_run --prev_run_ckpt out/a": {
        "is_pretrained": True,
        "load_optimizer": True,
        "model_name_or_path": "out/a",
    },
    "--n_layer 2 --n_head 2 --n_embd 32 --dropout 0.1 --bias": {
        "model.n_layer": 2,
        "model.n_head": 2,
        "model.n_embd": 32,
        "model.dropout": 0.1,
        "model.bias": True,
    },
    "--dataset a --compile": {"torch_compile": True},
    "--dataset a --optimizer sgd": {"optim": "sgd"},
    "--dataset a --optimizer adamw": {"optim": "adamw_torch_fused", "learning_rate": 1e-3},
    "--dataset a --beta1 .8 --beta2 .95": {"adam_beta1": 0.8, "adam_beta2": 0.95},
    "--dataset a --grad_clip 0": {"max_grad_norm": 0.0},
    "--dataset a --lr_scheduler cosine": {"lr_scheduler_type": "cosine", "min_lr": 1e-4},
    "--dataset a --lr_scheduler exponential": {"lr_scheduler_type": "ExponentialLR"},
    "--dataset a --lr_scheduler cosine --decay_lr": {"lr_scheduler_type": "cosine"},
    "--dataset a --decay_lr --lr_decay_iters 50": {"lr_decay_iters": 50},
    "--dataset a --no_decay_lr": {"lr_scheduler_type": "constant"},
    "--dataset a --decay_lr --learning_rate 5e-5": {"min_lr": None},  # the recipe's floor is above it
    "--dataset a --max_sample_tokens 5 --sample_start_tokens x --num_samples 2 --temperature 1 --top_k 3": {
        "sample_tokens": 5,
        "sample_prompt": "x",
        "sample_count": 2,
        "sample_temperature": 1.0,
        "sample_top_k": 3,
    },
}


@pytest.mark.parametrize("line", SET)
def test_a_word_sets(in_root, line):
    found = values(run_of(line))
    assert {key: found[key] for key in SET[line]} == SET[line]


def test_every_word_is_in_the_list():
    said = " ".join(SET).replace("--no_", "--").split()
    assert {f"--{field.name}" for field in dataclasses.fields(AliasFlags)} <= set(said)


# In a file -> on the command line -> what comes of it: the later word counts, whole, and with the others it needs.
LAYERED = [
    ("gpt2_type: gpt2-medium", "--init_from gpt2", {"model_name_or_path": "gpt2-medium"}),
    ("init_from: gpt2\ngpt2_type: gpt2-xl", "--gpt2_type gpt2-large", {"model_name_or_path": "gpt2-large"}),
    ("init_from: gpt2\ngpt2_type: gpt2-xl", "--init_from gpt2-medium", {"model_name_or_path": "gpt2-medium"}),
    ("init_from: gpt2\ngpt2_type: gpt2-xl", "--init_from scratch", {"model_name_or_path": None, "model.name": "gpt"}),
    ("init_from: org/small", "--init_from scratch", {"model_name_or_path": None, "model.name": "gpt"}),
    ("init_from: prev_run\nprev_run_ckpt: out/a", "--init_from scratch", {"is_pretrained": False}),
    (
        "init_from: prev_run\nprev_run_ckpt: out/a",
        "--init_from gpt2",
        {"is_pretrained": False, "load_optimizer": False},
    ),
    ("init_from: prev_run", "--prev_run_ckpt out/b", {"model_name_or_path": "out/b", "is_pretrained": True}),
    ("init_from: resume", "--init_from scratch", {"resume_from_checkpoint": None}),
    ("init_from:", "--dataset a", {"model_name_or_path": None}),
    ("lr_scheduler: linear", "--decay_lr", {"lr_scheduler_type": "linear"}),
    ("lr_scheduler: exponential", "--decay_lr", {"lr_scheduler_type": "ExponentialLR"}),
    ("scheduler: {name: linear}", "--decay_lr", {"lr_scheduler_type": "linear"}),
    ("lr_scheduler: none", "--decay_lr", {"lr_scheduler_type": "cosine"}),
    ("lr_scheduler: linear", "--no_decay_lr", {"lr_scheduler_type": "constant"}),
    ("decay_lr: true", "--lr_scheduler none", {"lr_scheduler_type": "constant"}),
    ("decay_lr: true", "--no_decay_lr", {"lr_scheduler_type": "constant"}),
    ("", "--lr_scheduler linear --set decay_lr=true", {"lr_scheduler_type": "linear"}),
    ("", "--lr_scheduler_type linear --decay_lr", {"lr_scheduler_type": "linear"}),
    ("", "--set training_mode=multidataset dataset_list=[a,b]", {"dataset.mode": "multidataset"}),
]


@pytest.mark.parametrize(("text", "line", "expected"), LAYERED)
def test_words_in_several_layers(in_root, tmp_path, text, line, expected):
    file = tmp_path / "mine.yaml"
    file.write_text(f"extends: gpt_base.yaml\n{text}\n")
    found = values(run_of(f"--training_config {file} {line}"))
    assert {key: found[key] for key in expected} == expected


def test_words_in_a_file_mean_text(in_root, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("training_mode: multidataset\ndataset_list: [a, b]\nn_layer: 1\n")
    assert run_of(f"--training_config {file}").dataset.name == "text"


def test_exponential_falls_to_min_lr(in_root):
    from trainer.optimization.lr_curves import LRSchedulerConfig
    from trainer.optimization.lr_scheduler import planned_rates

    run = run_of("--dataset a --lr_scheduler exponential --max_iters 8 --warmup_iters 2 --lr_decay_iters 6")
    assert (run.schedule.interval, run.scheduler, run.hyper.min_lr) == ("step", {}, 1e-4)
    plan = LRSchedulerConfig(
        "ExponentialLR", interval="step", warmup_steps=2, min_lr=1e-4, decay_steps=6, learning_rate=1e-3
    )
    rates = [rate for (rate,) in planned_rates(plan, 8, 4)]
    by_hand = [0, 5e-4, *(1e-3 * 0.1 ** (step / 4) for step in range(5)), 1e-4]
    assert rates[:8] == pytest.approx(by_hand, rel=1e-6)


REFUSED = {
    "--init_from gpt2-medium --gpt2_type gpt2": "`init_from: gpt2-medium` on the command line and `gpt2_type: gpt2`",
    "--init_from gpt2 --gpt2_type gpt2-huge": "`gpt2_type: gpt2-huge` on the command line",
    "--dataset a --gpt2_type gpt2-xl": "`gpt2_type: gpt2-xl` on the command line",
    "--dataset a --prev_run_ckpt out/a": "`prev_run_ckpt: out/a` on the command line",
    "--init_from prev_run": "needs `prev_run_ckpt`",
    "--init_from=": "`init_from` on the command line is empty",
    "--init_from gpt2 --gpt2_type=": "`gpt2_type` on the command line is empty",
    "--dataset a --lr_scheduler_type linear --decay_lr false": "contradicts the schedule `linear`",
    "--dataset a --eval_interval 0": "`eval_interval: 0` on the command line must be at least 1",
    "--training_mode multicontext --dataset_list a b": "`dataset_list` on the command line",
    "--dataset a --max_iters 5 --max_steps 6": "`max_iters` on the command line and `max_steps` on the command line",
    "--dataset a --out_dir x --output_dir y": "are the same setting",
    "--dataset a --decay_lr --lr_scheduler none": "on the command line contradicts the schedule `constant`",
    "--dataset a --no_decay_lr --lr_scheduler cosine": "contradicts the schedule `cosine`",
    "--init_from scratch --gpt2_type gpt2-xl": "`gpt2_type: gpt2-xl` on the command line",
    "--dataset a --eval_interval 5 --eval_steps 6": "`eval_interval` on the command line and `eval_steps`",
    "--dataset a --batch_size 5 --per_device_train_batch_size 6": "are the same setting",
    "--init_from resume --out_dir /no/where": "/no/where",
}


@pytest.mark.parametrize("line", REFUSED)
def test_words_that_contradict_one_another(in_root, line):
    (problem,) = problems_of(line)
    assert REFUSED[line] in problem


@pytest.mark.parametrize("line", ["--dataset", "--batch_size x", "--training_mode both", "--datset a", "--eval_iter 5"])
def test_mistyped(in_root, line):
    (problem,) = problems_of(line)
    assert "flag `--" in problem


def test_aliases_are_one_block_of_those_with_another_name(in_root):
    run = run_of("--max_iters 9 --eval_interval 3 --block_size 8 --n_layer 2 --lr 0.1 --out_dir out")
    (block,) = [note for note in run.notes if note.startswith("read as")]
    names = [line.split()[0] for line in block.splitlines()[1:] if "(cli)" in line]
    assert sorted(names) == ["eval_interval", "lr", "max_iters", "out_dir"]  # block_size and n_layer keep their names


def test_words_in_yaml(in_root, tmp_path):
    """A word is a key of a training file too, with the place it stands at."""
    file = tmp_path / "mine.yaml"
    file.write_text("task_name: text\nmax_iters: 9\neval_interval: 3\ndecay_lr: true\ninit_from: gpt2\n")
    run = run_of(f"--training_config {file} --warmup_iters 1")
    found = values(run)
    assert (found["max_steps"], found["save_steps"], found["lr_scheduler_type"]) == (9, 3, "cosine")
    assert run.origins()["max_steps"] == f"{file}:2" and found["model_name_or_path"] == "gpt2"
    assert any("max_iters" in note and "`max_steps`: 9" in note for note in run.notes)
    assert run.hyper.learning_rate == HyperArguments().learning_rate  # a file of one's own is the whole recipe


@pytest.mark.slow
@pytest.mark.parametrize("words", ["dataset=novels", "--set dataset=novels", "--training_config {file}"])
def test_dataset_names_data_wherever_it_is_written(in_root, tmp_path, words):
    """As the flag does; a name that is nearly one of a named set is refused as before."""
    (tmp_path / "mine.yaml").write_text("dataset: novels\n")
    run = run_of(words.format(file=tmp_path / "mine.yaml"))
    assert (run.task, run.dataset.config.path) == ("text", "novels")
    assert "did you mean `ladi_v" in problems_of("dataset=ladi_v9")[0]
    assert run_of("--task_name images dataset=/data/cats").dataset.config.path == "/data/cats"


def test_a_task_of_ones_own_stays(in_root):
    """`--dataset` is the chosen task's data; only where none is chosen it means text."""
    run = run_of("--task_name sim_transfer_cube_state --dataset /some/episodes")
    assert run.dataset.name == "demonstrations" and run.dataset.config.path == "/some/episodes"
    assert values(run)["max_steps"] == -1


@pytest.mark.slow
def test_resume_needs_only_the_folder(in_root, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    from loader.output import render

    first = run_of(f"--dataset books --out_dir {out} --n_layer 3 --max_iters 40 --warmup_iters 4")
    (out / "run.yaml").write_text(render.as_yaml(first) + render.END)
    again = run_of(f"--init_from resume --out_dir {out}")
    assert again.hyper.resume_from_checkpoint == "newest"
    before, now = values(first), values(again)
    changed = {key for key in {*before, *now} if before.get(key) != now.get(key)}
    assert changed <= {"resume_from_checkpoint", "num_train_epochs"}
    assert yaml.safe_load((out / "run.yaml").read_text())["model"]["n_layer"] == 3


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--lr_scheduler step", "needs `step_size`: --set scheduler.step_size=…"),
        ("--optimizer sgd --beta1 0.5", "`adam_beta1` on the command line has no effect"),
    ],
)
def test_what_check_sees_of_the_course(in_root, tmp_path, line, says):
    from loader.checks.static_checks import check_run

    found = check_run(run_of(f"--dataset shakespeare_char --out_dir {tmp_path / 'out'} {line}"))
    assert len(found) == 1 and says in found[0]


@pytest.mark.slow
def test_a_line_break_of_another_kind_survives(in_root, tmp_path):
    from loader.output import render

    file = tmp_path / "again.yaml"
    given = parse_flags(["--dataset", "a", "--max_sample_tokens", "5", "--sample_start_tokens", "x\x85y\u2028"])
    file.write_text(render.as_yaml(resolve(given.hyper, aliases=given.aliases)))
    assert resolve(training_config=file).process.sample_prompt == "x\x85y\u2028"


@pytest.mark.slow
def test_prev_run_is_that_runs_network(in_root, tmp_path):
    """Its kind and its settings, unless others are said."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a/run.yaml").write_text("model: {name: auto, task: masked_lm}\n")
    line = f"--dataset a --init_from prev_run --prev_run_ckpt {tmp_path / 'a'}"
    found = values(run_of(line))
    assert (found["model.name"], found["model.task"]) == ("auto", "masked_lm")
    assert run_of(f"{line} --model_config gpt").model.name == "gpt"
    assert values(run_of(f"{line} --set model.task=causal_lm"))["model.task"] == "causal_lm"


def test_every_word_has_a_home():
    known = {"eval_interval", "init_from", "gpt2_type", "prev_run_ckpt", "decay_lr"}
    assert {name for name, path in alias_paths().items() if path is None} == known


@pytest.mark.keys("gradient_accumulation_steps")
def test_accumulation_is_a_flag_of_every_task(in_root, tmp_path):
    """It names no task, has precedence over a file, and a number below 1 is refused."""
    (tmp_path / "x.yaml").write_text("task_name: sim_transfer_cube_state\ngradient_accumulation_steps: 4\n")
    run = run_of(f"--training_config {tmp_path / 'x.yaml'} --gradient-accumulation-steps 2 --global_batch_size 12")
    assert run.task == "sim_transfer_cube_state" and run.trainer["gradient_accumulation_steps"] == 2
    assert run.hyper.per_device_train_batch_size == 6
    (line,) = problems_of("--gradient_accumulation_steps 0")
    assert "`gradient_accumulation_steps: 0` on the command line" in line
