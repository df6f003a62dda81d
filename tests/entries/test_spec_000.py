"""The words of the image recipes of Hydra: groups, named sets, keys and commands, as their users type them."""

import json
import subprocess
import sys
import time

import pytest
import torch
from documents import checked
from ladi_folder import COUNTS, DAMAGE, INFRASTRUCTURE, SIZE, V2, V2A, write_ladi, write_network
from safetensors.torch import load_file

import train
from data.images.splits import read_splits
from loader.command_line.parser import parse_flags
from loader.errors import ConfigError
from loader.output.training_arguments import training_arguments
from loader.resolve.resolver import resolve
from loader.resolve.run_config import eval_strategy
from storage.checkpoints import step_of

COMMAND = [
    "task_name=images",
    "model_builder=google-bit-50",
    "scheduler_builder=exponential",
    "optimizer_builder=adamw",
    "optimizer_builder.lr=0.0001",
    "+scheduler_builder.gamma=0.8",
    "dataset=ladi_v2a_resized_all",
]


@pytest.fixture(scope="module")
def ladi(tmp_path_factory):
    return write_ladi(tmp_path_factory.mktemp("ladi"))


@pytest.fixture(autouse=True)
def in_the_root(in_root):
    """Named sets are found in configs/ of the repository."""


def run_of(*words):
    given = parse_flags(list(words))
    return resolve(given.hyper, given.command.set, aliases=given.aliases)


def images(*words):
    return run_of("task_name=images", *words)


def problems(*words):
    with pytest.raises(ConfigError) as raised:
        images(*words)
    return raised.value.problems


# ---- commands ----


@pytest.mark.slow
def test_the_command_as_printed(ladi, tmp_path):
    run = run_of(*COMMAND)
    assert (run.process.model_name_or_path, run.model.name) == ("google/bit-50", "auto")
    assert run.model.config.task == "image_classification"
    assert (run.hyper.optim, run.hyper.learning_rate) == ("adamw_torch_fused", 1e-4)
    assert (run.hyper.lr_scheduler_type, run.scheduler) == ("ExponentialLR", {"gamma": 0.8})
    assert (run.dataset.config.dataset_config_name, run.dataset.config.train_split) == ("v2a_resized", "all")
    assert checked(*COMMAND, f"dataset_base_dir={ladi}", f"output_dir={tmp_path / 'out'}") == (0, [])


@pytest.mark.slow
def test_the_words_name_the_task_themselves():
    assert run_of(*COMMAND[1:]).hyper.task_name == "images"
    assert run_of("dataset=ladi_v2").hyper.task_name == "images"
    assert run_of("dataset_config_name=v2").hyper.task_name == "images"
    assert run_of("optimizer_builder=adamw").hyper.task_name != "images"
    assert run_of("dataset=ladi_v2", "task_name=fashion_mosaics").hyper.task_name == "fashion_mosaics"


@pytest.mark.slow
def test_the_order_of_words_does_not_matter():
    run, other = run_of(*COMMAND), run_of(*reversed(COMMAND))
    assert other.tree.plain() == run.tree.plain()
    mixed = images("dataset.train_split=all", "dataset=ladi_v1_damage", "dataset={labels: [flood]}")
    config = mixed.dataset.config
    assert (config.dataset_config_name, config.train_split, config.labels) == ("v1_damage", "all", ["flood"])


def test_defaults():
    run = images()
    assert run.process.model_name_or_path == "google/vit-base-patch16-224-in21k"
    assert (run.dataset.config.dataset_config_name, run.dataset.config.train_split) == ("v2_resized", "train")
    assert (run.hyper.optim, run.optimizer["relative_step"], run.hyper.weight_decay) == ("adafactor", True, 0.01)
    assert (run.hyper.lr_scheduler_type, run.hyper.per_device_train_batch_size) == ("constant", 16)
    assert (run.hyper.num_train_epochs, run.checkpointing.every_n_epochs) == (50, 5)
    assert (run.loss.name, run.loss.config.pos_weight) == ("bce", "auto")


# ---- dataset ----


@pytest.mark.parametrize(
    ("name", "labels", "train", "val"),
    [
        ("ladi_v1_damage", DAMAGE, COUNTS["train"], None),
        ("ladi_v1_infra", INFRASTRUCTURE, COUNTS["train"], None),
        ("ladi_v2", V2, COUNTS["train"], COUNTS["val"]),
        ("ladi_v2a", V2A, COUNTS["train"], COUNTS["val"]),
        ("ladi_v2_resized", V2, COUNTS["train"], COUNTS["val"]),
        ("ladi_v2a_resized", V2A, COUNTS["train"], COUNTS["val"]),
        ("ladi_v2_resized_all", V2, COUNTS["train"] + COUNTS["val"], COUNTS["val"]),
        ("ladi_v2a_resized_all", V2A, COUNTS["train"] + COUNTS["val"], COUNTS["val"]),
    ],
)
def test_the_sets_of_ladi(ladi, name, labels, train, val):
    tables, notes = read_splits(images(f"dataset={name}", f"dataset_base_dir={ladi}").dataset.config, 0)
    assert tables["train"].names == list(labels) and len(tables["test"].images) == COUNTS["test"]
    sizes = [len(tables[split].images) for split in ("train", "val")]
    if val is None:  # version 1 has no validation set of its own
        assert sum(sizes) == train and 0 < sizes[1] < 5
    else:
        assert sizes == [train, val]
    assert ("_resized" in str(tables["train"].images[0])) == ("_resized" in name)
    assert any("train_split: all" in note for note in notes) == name.endswith("_all")
    assert all(image.is_file() for table in tables.values() for image in table.images)


@pytest.mark.keys(
    "dataset(images).dataset_base_dir", "dataset(images).dataset_config_name", "dataset(images).train_split"
)
@pytest.mark.parametrize("prefix", ["", "dataset."])
def test_keys_of_the_dataset(ladi, prefix):
    words = [f"{prefix}dataset_base_dir={ladi}", f"{prefix}dataset_config_name=v1_damage", f"{prefix}train_split=all"]
    tables, _ = read_splits(images(*words).dataset.config, 0)
    assert tables["train"].names == list(DAMAGE)
    assert len(tables["train"].images) == COUNTS["train"] + COUNTS["test"]


@pytest.mark.keys("dataset(images).labels")
@pytest.mark.parametrize("word", ["labels", "model_builder.labels"])
def test_labels_are_the_columns_that_are_learned(ladi, word):
    config = images(f"{word}=[water_any,roads_any]", f"dataset_base_dir={ladi}").dataset.config
    assert read_splits(config, 0)[0]["train"].names == ["water_any", "roads_any"]


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ([], "dataset.dataset_base_dir"),
        (["dataset_base_dir=LADI", "dataset.path=x.csv"], "x.csv"),
        (["dataset_base_dir=LADI", "dataset_config_name=v3"], "v3"),
        (["dataset_base_dir=LADI", "labels=[nope]"], "nope"),
        (["dataset_base_dir=/not/there"], "/not/there"),
        (["dataset=ladi_v9"], "ladi_v9"),
        (["dataset_base_dir=LADI", "train_split=half"], "train_split: half"),
    ],
)
def test_data_that_cannot_be_used(ladi, words, value):
    code, lines = checked("task_name=images", *(word.replace("LADI", str(ladi)) for word in words))
    assert code == 2 and len(lines) == 1 and value in lines[0]


# ---- model ----


@pytest.mark.parametrize(
    ("name", "hub_id"),
    [
        ("google-bit-50", "google/bit-50"),
        ("google-vit-base-patch16-224-in21k", "google/vit-base-patch16-224-in21k"),
        ("microsoft-swinv2-large-patch4-window12-192-22k", "microsoft/swinv2-large-patch4-window12-192-22k"),
        ("apple-mobilevitv2-1.0-imagenet1k-256", "apple/mobilevitv2-1.0-imagenet1k-256"),
        ("facebook/dinov2-base", "facebook/dinov2-base"),
    ],
)
def test_a_builder_is_a_model_of_the_hub(name, hub_id):
    assert images(f"model_builder={name}").process.model_name_or_path == hub_id


def source(*words):
    run = images(*words)
    return run.process.model_name_or_path, str(run.output_dir)


@pytest.mark.slow
def test_folders_of_models(tmp_path):
    """`base_model_path` is a folder or a hub id; names are looked up in the two folders."""
    hub, mine = tmp_path / "hub", tmp_path / "mine"
    for folder in (hub / "google/bit-50", hub / "a-b", mine / "first"):
        folder.mkdir(parents=True)
    in_hub, in_mine = f"hf_models_dir={hub}", f"finetuned_models_dir={mine}"
    default = str(images().output_dir)
    assert source(f"base_model_path={hub / 'a-b'}") == (str(hub / "a-b"), default)
    assert source("base_model_path=gpt-x") == ("gpt-x", default)
    assert source("model_builder=google-bit-50", in_hub) == (str(hub / "google/bit-50"), default)
    assert source("base_model_path=google/bit-50", in_hub) == (str(hub / "google/bit-50"), default)
    assert source("model_builder=a-b", f"model_builder.{in_hub}") == (str(hub / "a-b"), default)
    assert source("model_builder=x", f"model_builder.base_model_path={mine / 'first'}")[0] == str(mine / "first")
    # A run that starts from a foundation model is kept in `finetuned_models_dir`, and does not overwrite its start.
    assert source("model_builder=google-bit-50", in_hub, in_mine)[1] == str(mine / "google-bit-50-finetuned")
    assert source("model_builder=google-bit-50", in_mine) == ("google/bit-50", str(mine / "google-bit-50-finetuned"))
    assert source(f"base_model_path={hub / 'a-b'}/", in_mine)[1] == str(mine / "a-b-finetuned")
    assert source("model_builder=first", in_mine) == (str(mine / "first"), str(mine / "first-finetuned"))
    assert source("model_builder=first", in_mine, "--output_dir", "o")[1] == "o"
    assert source("model_name_or_path=x/y")[0] == "x/y"  # a later layer than the recipe's


@pytest.mark.slow
def test_models_that_are_not_there(tmp_path):
    (tmp_path / "a/m").mkdir(parents=True)
    (tmp_path / "b/m").mkdir(parents=True)
    folders = [f"hf_models_dir={tmp_path / 'a'}", f"finetuned_models_dir={tmp_path / 'b'}"]
    (line,) = problems("model_builder=google-bit-5", *folders)
    assert "`model_builder: google-bit-5`" in line and str(tmp_path / "a") in line and "google/bit-5" in line
    (line,) = problems("model_builder=m", *folders)
    assert str(tmp_path / "a/m") in line and str(tmp_path / "b/m") in line
    (line,) = problems("base_model_path=x", "model_name_or_path=y")
    assert "`base_model_path`" in line and "`model_name_or_path`" in line
    (line,) = problems("hf_models_dir=/x", "model_name_or_path=y")
    assert "`hf_models_dir`" in line and "`model_name_or_path`" in line
    (line,) = problems("base_model_path=[a]")
    assert line.startswith("`base_model_path` in --set")
    with pytest.raises(ConfigError, match="`hf_models_dir` in --set needs"):
        run_of("hf_models_dir=/x")


# ---- data loader, optimizer, scheduler, length ----


@pytest.mark.slow
def test_sets_of_the_data_loader():
    run = images("dataloader_builder=default")
    assert (run.hyper.do_eval, run.process.evaluate_test, run.hyper.per_device_train_batch_size) == (True, True, 16)
    run = images("dataloader_builder=full", "dataset=ladi_v2_resized")
    assert (run.hyper.do_eval, run.process.evaluate_test, run.dataset.config.train_split) == (False, False, "all")
    assert eval_strategy(run) == "no" and eval_strategy(images()) == "epoch"
    run = images("dataloader_builder={splits: [train, validation], per_device_batch_size: 3}")
    assert (run.hyper.do_eval, run.process.evaluate_test, run.dataset.config.train_split) == (True, False, "train")
    assert (run.hyper.per_device_train_batch_size, run.hyper.per_device_eval_batch_size) == (3, 3)
    assert images("dataloader_builder.num_workers_per_process=7").hyper.dataloader_num_workers == 7


@pytest.mark.slow
def test_sets_of_the_optimizer():
    """lr null is AdamW's 1e-3 and Adafactor's relative steps."""
    assert images("optimizer_builder=adamw").hyper.learning_rate == 1e-3
    assert images("optimizer_builder=adamw", "optimizer_builder.lr=null").hyper.learning_rate == 1e-3
    run = images("optimizer_builder=adamw", "optimizer_builder.lr=0.5", "optimizer_builder.weight_decay=0.2")
    assert (run.hyper.learning_rate, run.hyper.weight_decay) == (0.5, 0.2)
    assert images("optimizer_builder=adafactor").optimizer["relative_step"] is True
    assert "relative_step" not in images("optimizer_builder=adafactor", "optimizer_builder.lr=0.5").optimizer
    run = images("optimizer_builder.optimizer_name=adamw", "+optimizer_builder.amsgrad=true")
    assert (run.hyper.optim, run.optimizer) == ("adamw_torch_fused", {"amsgrad": True})


@pytest.mark.slow
@pytest.mark.parametrize("word", ["optimizer_builder.is_main_process", "is_main_process"])
def test_is_main_process_reaches_no_constructor(word):
    run, plain = images("optimizer_builder=adamw", f"{word}=true"), images("optimizer_builder=adamw")
    assert run.tree.plain() == plain.tree.plain()
    assert len(problems(f"{word}=3")) == 1


@pytest.mark.slow
def test_sets_of_the_scheduler():
    assert images("scheduler_builder=none").hyper.lr_scheduler_type == "constant"
    adamw = "optimizer_builder=adamw"
    assert images(adamw, "scheduler_builder=reducelronplateau").hyper.lr_scheduler_type == "ReduceLROnPlateau"
    assert images(adamw, "scheduler_builder=exponential").scheduler == {"gamma": 0.9}
    for text, name in (("exponential", "ExponentialLR"), ("reducelronplateau", "ReduceLROnPlateau")):
        assert images(adamw, f"scheduler_builder.scheduler_name={text}").hyper.lr_scheduler_type == name
    assert images(adamw, "scheduler_builder.scheduler_name=null").hyper.lr_scheduler_type == "constant"


@pytest.mark.parametrize(
    ("words", "epochs", "every"),
    [
        (["train_builder=default"], 50, 5),
        (["train_builder=debug"], 2, 1),
        (["train_builder=debug", "train_builder.epochs=7"], 7, 1),
        (["train_builder.checkpoint_every=3"], 50, 3),
        (["epochs=4", "checkpoint_every=2"], 4, 2),
    ],
)
def test_sets_of_the_training(words, epochs, every):
    run = images(*words)
    assert (run.hyper.num_train_epochs, run.checkpointing.every_n_epochs) == (epochs, every)


# ---- missing values ----


@pytest.mark.parametrize(
    "word",
    [
        "train_builder.epochs", "train_builder.checkpoint_every", "optimizer_builder.optimizer_name",
        "scheduler_builder.scheduler_name", "dataloader_builder.splits", "scheduler_builder.gamma", "epochs",
        "model_builder", "base_model_path", "model_builder.hf_models_dir", "dataset.dataset_base_dir", "seed",
    ],
)  # fmt: skip
def test_a_missing_value_is_asked_for_by_name(word):
    (line,) = problems("optimizer_builder=adamw", f"{word}=???")
    assert f"`{word}`" in line or f"`{word.rpartition('.')[2]}`" in line


RECIPE = """\
task_name: images
base_model_path: ???
train_builder:
  epochs: ???
  checkpoint_every: ???
optimizer_builder:
  optimizer_name: ???
"""


def test_a_later_layer_gives_what_is_missing(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE)
    with pytest.raises(ConfigError) as raised:
        run_of("--training_config", str(file))
    places = {line.split("`")[1]: line.split(" at ")[1].split()[0] for line in raised.value.problems}
    assert places == {
        "base_model_path": f"{file}:2:1",
        "train_builder.epochs": f"{file}:4:3",
        "train_builder.checkpoint_every": f"{file}:5:3",
        "optimizer_builder.optimizer_name": f"{file}:7:3",
    }
    run = run_of("--training_config", str(file), "train_builder=debug", "optimizer_builder=adamw", "model_builder=a-b")
    assert (run.hyper.num_train_epochs, run.process.model_name_or_path) == (2, "a/b")


# ---- trainings ----


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder of pretrained networks, with one in it."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    write_network(folder / "tiny/vit-32")
    return folder


def words_of(ladi, folder, *words):
    return ["task_name=images", f"dataset_base_dir={ladi}", f"cache_dir={folder / 'cache'}", "report_to=none", *words]


def steps(folder):
    return sorted(step_of(path) for path in folder.glob("checkpoint-*"))


@pytest.mark.slow
def test_from_a_pretrained_folder_to_a_finetuned_one_and_on(ladi, models, tmp_path):
    """Two steps an epoch; a checkpoint when epoch % 2 == 0 and at the end; the second run starts from the first."""
    folders = [f"hf_models_dir={models}", f"finetuned_models_dir={tmp_path / 'mine'}"]
    words = words_of(ladi, tmp_path, *folders, "dataset=ladi_v2a", "epochs=3", "checkpoint_every=2")
    first = train.main([*words, "model_builder=tiny-vit-32"])
    out = tmp_path / "mine/tiny-vit-32-finetuned"
    assert steps(out) == [4, 6]
    config = json.loads((out / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification" and list(config["id2label"].values()) == list(V2A)
    assert json.loads((out / "preprocessor_config.json").read_text())["size"] == {"height": SIZE, "width": SIZE}
    group = first.optimizer.param_groups[0]
    assert group["relative_step"] is True and group["weight_decay"] == 0.01
    second = train.main([*words, f"model_builder={out.name}", "optimizer_builder.lr=0", "epochs=1", "weight_decay=0"])
    assert second.args.output_dir == f"{out}-finetuned"
    before, after = load_file(out / "model.safetensors"), load_file(f"{out}-finetuned/model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    group = second.optimizer.param_groups[0]
    assert (group["relative_step"], group["lr"]) == (False, 0.0)


def test_training_arguments_of_the_command():
    args = training_arguments(run_of(*COMMAND, "train_builder=debug"))
    assert (args.num_train_epochs, args.optim, args.learning_rate) == (2, "adamw_torch_fused", 1e-4)


@pytest.mark.slow
def test_an_interrupted_sweep_continues(ladi, models, tmp_path):
    """SIGTERM in the second of two runs saves it; the same command leaves the first alone and resumes the second."""
    out = tmp_path / "sweep"
    words = words_of(ladi, tmp_path, f"model_builder={models / 'tiny/vit-32'}", "checkpoint_every=10", "do_eval=false")
    command = [sys.executable, "train.py", "-m", *words, "evaluate_test=false", "epochs=1,60", f"output_dir={out}"]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        deadline = time.monotonic() + 120
        while not steps(out / "1") and started.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        started.terminate()
        printed, _ = started.communicate(timeout=60)
    finally:
        started.kill()
    assert started.returncode == 75, printed
    runs = json.loads((out / "sweep.json").read_text())["runs"]
    assert [run["exit_code"] for run in runs] == [0, 75]
    saved, first = steps(out / "1")[-1], (out / "0/model.safetensors").stat().st_mtime_ns
    assert 0 < saved < 120 and not (out / "1/model.safetensors").exists()
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"resuming from {out / '1' / f'checkpoint-{saved}'}" in done.stdout
    assert (out / "0/model.safetensors").stat().st_mtime_ns == first and steps(out / "1")[-1] == 120
