"""`train.py --estimate_memory` against the tensors of a real step, and against torch's own memory tracker."""

import json
import os
import warnings

import pytest
import torch
from demonstration_files import write_act_folder
from recipes import auto_records, gpt_windows
from recipes import images as image_recipe
from recipes import vla as vla_recipe
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaForCausalLM

import train
from estimate import arguments_without_gpu, attempt, build_bundle, estimate, micro_batch
from loader.command_line.entry import run_config
from loader.command_line.memory_request import memory_request
from loader.command_line.parser import parse_flags
from loader.errors import ConfigError
from models.adapt.quantize import resident_tensors
from trainer.loss_terms import outputs_with_loss
from trainer.memory_ledger import Steps
from trainer.optimization.optimizers import build_optimizer

GPT = ["--block_size", "64", "--n_layer", "3", "--n_head", "4", "--n_embd", "64", "--per_device_train_batch_size", "8"]
ACT = ["hidden_dim=32", "feedforward_dim=32", "num_heads=2", "encoder_layers=2", "cvae_layers=1", "backbone=resnet10"]
LLAMA = (
    "{name: auto, config: {model_type: llama, hidden_size: 64, num_hidden_layers: 3, num_attention_heads: 4, "
    "intermediate_size: 128, max_position_embeddings: 64}}"
)
VIT = (
    "{name: auto, task: image_classification, config: {model_type: vit, hidden_size: 64, num_hidden_layers: 3, "
    "num_attention_heads: 4, intermediate_size: 128, patch_size: 4}}"
)


def gpt(folder):
    return [*gpt_windows.words(folder), *GPT]


def act(folder):
    write_act_folder(folder / "episodes", (12, 12), cameras={"top": (48, 64)})
    (folder / "task.yaml").write_text(f"dataset: {{name: demonstrations, path: {folder / 'episodes'}, chunk_size: 20}}")
    return ["--task_name", str(folder / "task.yaml"), "--model_config", "act", *(f"model.{each}" for each in ACT)]


def llama(folder):
    return auto_records.words(folder, model=LLAMA)


def vit(folder):
    return image_recipe.words(folder, model=VIT)


def vla(folder):
    return vla_recipe.words(folder)


def vla_tokens(folder):
    return [*vla(folder), "model.head=tokens", "dataset.normalization={state: zscore, action: min_max}"]


# With the largest relative error. A VLA computes logits for tokens in a mask, of which the estimate knows no values.
WORKLOADS = [(gpt, 0.05), pytest.param(act, 0.05, marks=pytest.mark.slow), (llama, 0.05), (vit, 0.05)]
WORKLOADS += [pytest.param(each, 0.15, marks=pytest.mark.slow) for each in (vla, vla_tokens)]


def read(folder, words, *more):
    return run_config([*words, "--output_dir", str(folder / "out"), "accelerator=cpu", "--estimate_memory", *more])


def real(run, bundle):
    """(model, optimizer, batch) of a run, in memory."""
    args = arguments_without_gpu(run)
    adapted = train.build_model(run, bundle, args)
    optimizer = build_optimizer(
        adapted.model, run.hyper.optim, run.optimizer_options, args=args,
        specs=[*run.param_groups, *adapted.groups], parts=adapted.parts, layer_decay=run.process.layer_decay,
    )  # fmt: skip
    return adapted.model.train(), optimizer, micro_batch(bundle, args.per_device_train_batch_size)[0]


def step(model, optimizer, batch, half=None):
    with torch.autocast("cpu", dtype=half or torch.bfloat16, enabled=half is not None):
        loss = outputs_with_loss(model, batch)["loss"]
    loss.backward()
    optimizer.step()


def tracked(model, optimizer, batch, half=None):
    """Part -> bytes at the peak of the second of two real steps, by torch's tracker."""
    tracker = MemTracker()
    tracker.track_external(model, optimizer, *(leaf for leaf in tree_leaves(batch) if isinstance(leaf, torch.Tensor)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of modules without a backward pass
        with tracker:
            for _ in range(2):
                tracker.reset_mod_stats()  # it counts one iteration; the peak stays
                step(model, optimizer, batch, half)
                optimizer.zero_grad()
    (snapshot,) = tracker.get_tracker_snapshot("peak").values()
    return {getattr(kind, "value", str(kind)): size for kind, size in snapshot.items()}


def assert_as_tracked(found, seen, error=0.05):
    parts = found.at_peak
    assert not found.unknown and found.phase != "optimizer step"
    assert parts["weights"] == seen["Parameter"] + seen["Buffer"]
    assert (parts["gradients"], parts["optimizer"]) == (seen["Gradient"], seen["Optstate"])
    assert parts["activations"] == pytest.approx(seen["Activation"] + seen["Temp"], rel=error)  # most are equal


@pytest.mark.slow
@pytest.mark.parametrize(("workload", "error"), WORKLOADS)
def test_a_step_against_the_tracker_of_torch(workload, error, tmp_path):
    run = read(tmp_path, workload(tmp_path))
    bundle = build_bundle(run)
    assert_as_tracked(estimate(run, bundle, 1, False), tracked(*real(run, bundle)), error)


@pytest.mark.slow
def test_recomputed_layers_of_a_vla_against_the_tracker(tmp_path):
    run = read(tmp_path, vla(tmp_path), "gradient_checkpointing=true")
    bundle = build_bundle(run)
    model, optimizer, batch = real(run, bundle)
    model.gradient_checkpointing_enable()
    assert_as_tracked(estimate(run, bundle, 1, False), tracked(model, optimizer, batch), 0.15)


@pytest.mark.slow
def test_half_precision_and_recomputed_layers_against_the_tracker(tmp_path):
    words = gpt(tmp_path)
    plain = read(tmp_path, words)
    bundle = build_bundle(plain)
    half, less = (read(tmp_path, words, each) for each in ("bf16=true", "gradient_checkpointing=true"))
    sizes = [estimate(run, bundle, 1, False) for run in (plain, half, less)]
    assert_as_tracked(sizes[1], tracked(*real(half, bundle), half=torch.bfloat16))
    model, optimizer, batch = real(less, bundle)
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    assert_as_tracked(sizes[2], tracked(model, optimizer, batch))
    assert all(each.at_peak["activations"] < 0.9 * sizes[0].at_peak["activations"] for each in sizes[1:])


def nbytes(tensors):
    """Bytes of tensors, of which several may be the same."""
    return sum({each.data_ptr(): each.nbytes for each in tensors if isinstance(each, torch.Tensor)}.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["--optim", "adamw_torch"],
        ["--optim", "adafactor"],
        ["--optim", "adafactor", "optimizer.scale_parameter=true"],
        ["--optim", "SGD", "optimizer.momentum=0.9"],
        ["--optim", "Muon"],
        ["--optim", "adamw_bnb_8bit"],
        ["lora_enable=true"],
        ["lora_enable=true", "use_quantization=true", "bits=4"],
        ["lora_enable=true", "use_quantization=true", "bits=8"],
        ["weights_dtype=bfloat16"],
    ],
    ids=" ".join,
)
def test_weights_gradients_and_optimizer_are_those_of_a_real_step(words, tmp_path):
    run = read(tmp_path, gpt(tmp_path), *words)
    bundle = build_bundle(run)
    found = estimate(run, bundle, 1, False)
    model, optimizer, batch = real(run, bundle)
    step(model, optimizer, batch)
    parts = found.largest
    assert not found.unknown
    assert parts["optimizer"] == nbytes(tree_leaves(dict(optimizer.state)))
    assert parts["gradients"] == nbytes(parameter.grad for parameter in model.parameters())
    assert parts["weights"] == nbytes(tensor for _, tensor in resident_tensors(model))
    assert found.trained == sum(value.numel() for value in model.parameters() if value.requires_grad)


@pytest.mark.slow
def test_accumulation_averages_and_several_processes(tmp_path):
    words = gpt(tmp_path)
    run = read(tmp_path, words)
    bundle = build_bundle(run)
    one = estimate(run, bundle, 1, False)
    two = estimate(read(tmp_path, words, "gradient_accumulation_steps=2", "using_ema=true"), bundle, 4, False)
    whole = one.largest["gradients"]
    assert (two.at_peak["gradients"], two.at_peak["averaged weights"], two.at_peak["DDP buckets"]) == (whole,) * 3
    assert two.at_peak["batch"] == 2 * one.at_peak["batch"] and "4 processes = 64" in two.batch
    assert two.at_peak["activations"] == pytest.approx(one.at_peak["activations"], rel=0.05)


@pytest.mark.slow
def test_shards(tmp_path):
    """FSDP2 divides rows as `torch.chunk` does; the first process has the largest part."""
    run = read(tmp_path, gpt(tmp_path))
    bundle = build_bundle(run)
    found = estimate(run, bundle, 3, True)
    model, optimizer, batch = real(run, bundle)
    step(model, optimizer, batch)
    shards = sum(value.chunk(3)[0].nbytes for value in model.parameters())
    counters = nbytes(value["step"] for value in optimizer.state.values())
    assert (found.largest["weights"], found.largest["gradients"]) == (shards, shards)
    assert found.largest["optimizer"] == 2 * shards + counters
    blocks = [module for module in model.modules() if type(module).__name__ == "Block"]
    outside = nbytes(model.parameters()) - sum(nbytes(block.parameters()) for block in blocks)
    largest = max(nbytes(block.parameters()) for block in blocks)
    assert found.largest["gathered by FSDP"] == outside + 2 * largest + max(outside, largest)


@pytest.mark.slow
def test_pretrained_weights(tmp_path):
    words = auto_records.words(tmp_path, model="{name: auto}")
    config = LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=30,
        tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "llama")
    run = read(tmp_path, words, f"model_name_or_path={tmp_path / 'llama'}", "lora_enable=true")
    bundle = build_bundle(run)
    found = estimate(run, bundle, 1, False)
    model, _, _ = real(run, bundle)
    assert found.largest["weights"] == nbytes(tensor for _, tensor in resident_tensors(model))
    assert found.parameters == sum(value.numel() for value in model.parameters())


class Chooses(torch.nn.Module):
    """The shape of what it computes depends on values."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x[torch.unique(x[:, 0].long())])


class Breaks(torch.optim.SGD):
    def step(self, closure=None):
        raise NotImplementedError("no fake tensors")


@pytest.mark.parametrize(
    ("model", "optimizer", "unknown"),
    [(Chooses, torch.optim.Adam, "activations"), (lambda: torch.nn.Linear(4, 3), Breaks, "optimizer")],
)
def test_what_cannot_be_estimated_is_named(model, optimizer, unknown):
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        network = model()
        steps = Steps(
            network, list(network.parameters()), lambda batch: network(batch).sum(), [torch.zeros(2, 4)],
            lambda: optimizer(network.parameters(), lr=0.1),
        )  # fmt: skip
    ledger, _, found = attempt(mode, steps)
    assert list(found) == [unknown]
    assert (ledger.largest["weights"], ledger.largest["gradients"]) == (60, 60)
    assert ledger.largest["optimizer"] == (2 * 60 + 2 * 4 if unknown == "activations" else 0)


@pytest.mark.parametrize(
    ("choose", "places"), [(lambda x: x[x[:, 0] > 0], 50), (lambda x: x[torch.nonzero(x[:, 0])[:, 0]], 50 * 8)]
)
def test_masks_are_taken_for_true(choose, places):
    """The most that they can choose: all of 50 rows, beside the rows themselves and the mask or their places."""
    with FakeTensorMode() as mode:
        layer = torch.nn.Linear(4, 3)
        steps = Steps(
            layer, list(layer.parameters()), lambda batch: layer(choose(batch * 2)).sum(), [torch.zeros(50, 4)],
            lambda: torch.optim.SGD(layer.parameters(), lr=0.1),
        )  # fmt: skip
    ledger, _, unknown = attempt(mode, steps)
    assert not unknown and ledger.assumed["forward pass"] == 1
    assert ledger.largest["activations"] == 2 * 50 * 4 * 4 + places
    assert ledger.largest["gradients"] == (4 * 3 + 3) * 4


# ---- the command ----


@pytest.mark.slow
def test_it_fits_or_says_what_to_change(tmp_path, capsys):
    words = [*gpt(tmp_path), "--output_dir", str(tmp_path / "out"), "--estimate_memory"]
    train.main([*words, "--gpu_memory", "1GiB"])
    assert "fits" in capsys.readouterr().out
    train.main([*words, "json"])
    total = json.loads(capsys.readouterr().out)["total"]
    with pytest.raises(ConfigError):
        train.main([*words, "json", "--gpu_memory", f"{total * 0.8 / 2**20}MiB"])
    changes = json.loads(capsys.readouterr().out)["changes"]
    halved = "--per_device_train_batch_size 4 gradient_accumulation_steps=2"
    assert next(iter(changes)) == halved and changes[halved] < 0.8 * total
    assert changes["gradient_checkpointing=true"] < total and changes["bf16=true"] < total
    assert not (tmp_path / "out").exists()
    train.main([*words, "json", *halved.split()])  # the change as the line says it
    assert json.loads(capsys.readouterr().out)["total"] == changes[halved]


@pytest.mark.parametrize(
    "words",
    [
        ["--estimate_memory", "--gpu_memory", "lots"],
        ["--estimate_memory", "--gpu_memory", "0GiB"],
        ["--gpu_memory", "24GiB"],
        ["--num_processes", "2"],
        ["--estimate_memory", "-m", "seed=1,2"],
    ],
)
def test_bad_requests(words):
    with pytest.raises(ConfigError):
        run_config(words)


@pytest.mark.parametrize(("text", "size"), [("24", 24 * 2**30), ("24GB", 24 * 2**30), ("800 MiB", 800 * 2**20)])
def test_sizes(text, size, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = ["--estimate_memory", "--gpu_memory", text]
    request = memory_request(words, parse_flags(words))
    assert (request.gpu_bytes, request.processes) == (size, 2)
    words = ["--estimate_memory", "--num_processes", "8"]
    assert memory_request(words, parse_flags(words)).processes == 8


@pytest.mark.slow
def test_processes_are_assumed_for_this_command_only(tmp_path, capsys):
    """They divide the global batch size, and no later run in this process counts as launched."""
    words = [*gpt(tmp_path), "--output_dir", str(tmp_path / "out"), "--global_batch_size", "64"]
    train.main([*words, "--estimate_memory", "json", "--num_processes", "4"])
    assert json.loads(capsys.readouterr().out)["batch"].endswith("× 4 processes = 64")
    assert "WORLD_SIZE" not in os.environ


def test_missing_demonstrations_are_not_recorded(tmp_path, monkeypatch):
    monkeypatch.setenv("KEEL_HOME", str(tmp_path / "home"))
    run = read(tmp_path, ["--task_name", "sim_transfer_cube_state"])
    with pytest.raises(ConfigError):
        build_bundle(run)
    assert list(tmp_path.iterdir()) == []
