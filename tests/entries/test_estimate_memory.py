"""`train.py --estimate_memory` against the tensors of a real step, and against torch's own memory tracker."""

import pytest
import torch
from demonstration_files import write_act_folder
from recipes import auto_records, gpt_windows
from recipes import images as image_recipe
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils._pytree import tree_leaves

import train
from estimate import arguments_without_gpu, build_bundle, estimate, micro_batch
from loader.command_line.entry import run_config
from trainer.loss_terms import outputs_with_loss
from trainer.optimization.optimizers import build_optimizer

GPT = ["--block_size", "64", "--n_layer", "3", "--n_head", "4", "--n_embd", "64", "--per_device_train_batch_size", "8"]
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
    write_act_folder(folder / "episodes", (12, 12))
    (folder / "task.yaml").write_text(f"dataset: {{name: demonstrations, path: {folder / 'episodes'}, chunk_size: 20}}")
    return ["--task_name", str(folder / "task.yaml"), "--model_config", "act", "model.hidden_dim=64"]


def llama(folder):
    return auto_records.words(folder, model=LLAMA)


def vit(folder):
    return image_recipe.words(folder, model=VIT)


WORKLOADS = [gpt, act, llama, vit]


def read(folder, words, *more):
    (folder / "data").mkdir(exist_ok=True)
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


def tracked(run, bundle):
    """Peak of the second of two real steps, by torch's tracker: (all, parameters, gradients, optimizer)."""
    model, optimizer, batch = real(run, bundle)
    tracker = MemTracker()
    tracker.track_external(model, optimizer, *(leaf for leaf in tree_leaves(batch) if isinstance(leaf, torch.Tensor)))
    with tracker:
        for step in range(2):
            if step:
                tracker.reset_mod_stats()
            outputs_with_loss(model, batch)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
    (snapshot,) = tracker.get_tracker_snapshot("peak").values()
    return {getattr(kind, "value", str(kind)): size for kind, size in snapshot.items()}


@pytest.mark.parametrize("workload", WORKLOADS)
def test_tracker(workload, tmp_path):
    run = read(tmp_path, workload(tmp_path))
    bundle = build_bundle(run)
    found = estimate(run, bundle, 1, False)
    print(found)
    print(tracked(run, bundle))
    assert 0
