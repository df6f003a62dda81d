"""Checks of data, model, processes and hub against the configuration, made when they exist."""

from __future__ import annotations

import inspect
import netrc
import os
import sys
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from loader.resolve.rules import is_by_user
from loader.resolve.run_config import RunConfig
from loader.sources.config_tree import find

WANDB_KEYS = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
COMPARED_LENGTHS = 1000  # samples


def check_start(run: RunConfig, args: Any, bundle: Any, model: Any) -> None:
    """ValueError if the hub, the data, the model and the arguments of a run do not fit one another."""
    check_hub(run, args)
    check_batch(run, args)
    check_data(run, args, bundle)
    check_model(run, args, model)
    check_forward(run, args, bundle, model)


def check_batch(run: RunConfig, args: Any) -> None:
    """Refuse a global batch size that does not match the actual number of processes and devices."""
    wanted, steps = run.hyper.global_batch_size, args.gradient_accumulation_steps
    actual = args.train_batch_size * steps * args.world_size
    if wanted not in (None, actual):
        raise ValueError(
            f"`global_batch_size: {wanted}`{run.place('global_batch_size')}: here a step is of {actual} samples "
            f"({args.train_batch_size} a process × {steps} accumulated × {args.world_size} processes); start the run "
            "with accelerate launch, or choose one device with `devices`"
        )


def check_hub(run: RunConfig, args: Any) -> None:
    """Refuse `push_to_hub` if the hub cannot be reached or does not accept the token, before anything is trained."""
    if not args.push_to_hub or args.process_index != 0:
        return
    from huggingface_hub import HfApi
    from huggingface_hub.errors import LocalTokenNotFoundError

    try:
        HfApi().whoami(token=args.hub_token)
    except LocalTokenNotFoundError:
        reason = "there is no token; run `hf auth login`, or set hub_token"
    except Exception as error:
        if not is_hub_error(error):
            raise
        reason = f"{hub_reason(error)}; leave it out and upload the final model later (hf upload)"
    else:
        return
    raise ValueError(f"`push_to_hub: true`{run.place('push_to_hub')}: {reason}")


def check_loggers(args: Any) -> None:
    """Refuse W&B without a key: its own start would fail later, or ask at a terminal that does not exist."""
    if "wandb" not in args.report_to or args.process_index != 0 or sys.stdin.isatty():
        return
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    if os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun") or any(map(os.environ.get, WANDB_KEYS)):
        return
    try:
        known = netrc.netrc(os.environ.get("NETRC")).authenticators(host or "") is not None
    except (OSError, netrc.NetrcParseError):
        known = False
    if not known:
        raise ValueError(
            f"W&B has no key for {host}: run `wandb login` or set WANDB_API_KEY; or write files alone "
            "(--set logging.mode=offline), and upload later with `wandb sync`"
        )


def is_hub_error(error: BaseException) -> bool:
    """Whether an error comes from the hub or from the way to it."""
    packages = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return bool(packages & {"huggingface_hub", "httpx", "httpx2", "requests"})


def hub_reason(error: BaseException) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    text = " ".join(str(error).split())[:200]
    return f"the hub answers {status}: {text}" if status else f"the hub cannot be reached ({text})"


def check_data(run: RunConfig, args: Any, bundle: Any) -> None:
    """Refuse settings that the data does not allow; without held-out data, evaluation by default is turned off."""
    _check_order(run, args, bundle)
    batch, samples = args.train_batch_size * args.world_size, len(bundle.sampler(run.seed))
    if args.dataloader_drop_last and samples < batch:
        raise ValueError(
            f"a batch of {batch} is larger than the data ({samples} samples an epoch), and "
            f"`dataloader_drop_last`{run.place('dataloader_drop_last')} drops what does not fill one; lower "
            "--per_device_train_batch_size"
        )
    if run.process.evaluate_test and not bundle.test_datasets:
        raise ValueError(f"`evaluate_test`{run.place('evaluate_test')}: the data has no test set; set it to false")
    if bundle.eval_datasets or (args.eval_strategy == "no" and run.process.check_val_every_n_epoch is None):
        return
    asked = [key for key in ("do_eval", "eval_strategy", "eval_steps") if run.on_command_line(key)]
    every = find(run.tree, "check_val_every_n_epoch")
    asked += ["check_val_every_n_epoch"] if every is not None and every.value and is_by_user(every.origin) else []
    if asked:
        place = run.place(asked[0])
        raise ValueError(f"`{asked[0]}`{place} has nothing to evaluate on; hold data out with dataset.eval_fraction")
    if args.eval_on_start or args.load_best_model_at_end:
        key = "eval_on_start" if args.eval_on_start else "load_best_model_at_end"
        raise ValueError(f"`{key}`{run.place(key)} needs evaluation; hold data out with dataset.eval_fraction")
    run.notes.append("no evaluation: the data holds nothing out (dataset.eval_fraction)")
    args.eval_strategy, run.process.check_val_every_n_epoch = type(args.eval_strategy)("no"), None


def _check_order(run: RunConfig, args: Any, bundle: Any) -> None:
    """Refuse an order of samples that the data does not allow: only samples of several lengths can be grouped."""
    key, strategy = "train_sampling_strategy", getattr(args, "train_sampling_strategy", "random")
    if strategy == "random":
        return
    place = f"`{key}: {strategy}`{run.place(key)}"
    if strategy != "group_by_length":
        raise ValueError(f"{place}: the data set decides the order of its samples; leave it out, or set `shuffle`")
    data, sample = bundle.train_dataset, bundle.train_dataset[0]
    if not (isinstance(sample, Mapping) and "input_ids" in sample):
        raise ValueError(f"{place}: the samples of {run.dataset.name} have no `input_ids`; leave it out")
    length = len(sample["input_ids"])
    if all(len(data[index]["input_ids"]) == length for index in range(min(len(data), COMPARED_LENGTHS))):
        raise ValueError(f"{place}: all samples of {run.dataset.name} have {length} tokens; leave it out")


def check_forward(run: RunConfig, args: Any, bundle: Any, model: Any) -> None:
    """Refuse a network whose forward does not take the entries of a batch, by name."""
    network = model.get_base_model() if hasattr(model, "get_base_model") else model
    parameters = inspect.signature(network.forward).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters) or bundle.train_transform is not None:
        return
    data = bundle.train_dataset
    batch = bundle.collate(data.__getitems__([0]) if hasattr(data, "__getitems__") else [data[0]])
    takes = [parameter.name for parameter in parameters]
    extra = [] if args.remove_unused_columns or run.loss is not None else [name for name in batch if name not in takes]
    needs = [parameter.name for parameter in parameters if parameter.default is parameter.empty]
    absent = [name for name in needs if name not in batch]
    if extra or absent:
        wrong = f"does not take `{extra[0]}`" if extra else f"needs `{absent[0]}`"
        raise ValueError(
            f"`model.name: {run.model.name}`{run.place('model.name')}: forward {wrong}; the batches of "
            f"{run.dataset.name} have {', '.join(batch)}, and forward takes {', '.join(takes)}: name them alike"
        )


def check_model(run: RunConfig, args: Any, model: Any) -> None:
    """Refuse settings that the network does not support."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    for key in ("gradient_checkpointing", "activation_checkpointing"):
        able = any(isinstance(module, GradientCheckpointingLayer) for module in model.modules())
        if getattr(args, key, False) and run.was_set(key) and not able:
            name, place = run.model.name, run.place(key)
            raise ValueError(f"`{key}`{place}: model {name} has no layers to recompute; leave it out")
    _check_transformers_only(run, args, model)


def _check_transformers_only(run: RunConfig, args: Any, model: Any) -> None:
    """Refuse settings of transformers that work with some of its own models alone."""
    from torch import nn
    from transformers.utils import is_liger_kernel_available

    network = model.get_base_model() if hasattr(model, "get_base_model") else model
    is_of_transformers = type(network).__module__.startswith("transformers.")
    takes_labels = "labels" in inspect.signature(network.forward).parameters
    try:
        has_embedding = isinstance(network.get_input_embeddings(), nn.Embedding)
    except (AttributeError, NotImplementedError):
        has_embedding = False
    own = f"model {run.model.name} computes its loss itself"
    for key, works, reason in (
        ("label_smoothing_factor", is_of_transformers and takes_labels, f"{own}; set `loss.label_smoothing`"),
        ("label_smoothing_factor", run.loss is None, f"`loss: {run.loss and run.loss.name}` replaces the model's loss"),
        ("neftune_noise_alpha", has_embedding, f"model {run.model.name} has no embedding of tokens; leave it out"),
        ("use_liger_kernel", is_liger_kernel_available(), "the package liger-kernel is not installed"),
        ("use_liger_kernel", is_of_transformers, f"model {run.model.name} is not one of transformers; leave it out"),
    ):
        if getattr(args, key, None) and not works:
            raise ValueError(f"`{key}`{run.place(key)}: {reason}")


def check_eval_runner(run: RunConfig, bundle: Any) -> tuple[str, Any, int]:
    """What `eval_runner` evaluates: name of the data set, the data set, time steps of the free runs (0: none).

    Raises:
        ValueError: there is no such split, or it cannot be continued.
    """
    section, place = run.eval_runner, run.place("eval_runner")
    kinds = {"val": bundle.eval_datasets, "test": bundle.test_datasets, "train": {"train": bundle.train_dataset}}
    if not kinds[section.metrics_split]:
        raise ValueError(f"`eval_runner.metrics_split: {section.metrics_split}`{place}: the data has no such split")
    name, dataset = next(iter(kinds[section.metrics_split].items()))
    if not section.generator.enabled or "free_run" not in section.analyses:
        return name, dataset, 0
    if bundle.free_run is None:
        raise ValueError(
            f"`eval_runner.analyses`{place}: {run.dataset.name} data has nothing to continue; set "
            "eval_runner.generator.enabled to false"
        )
    useless = getattr(bundle.free_run, "without_effect", {})
    for key, value in section.generator.sampling.options.items():
        if key in useless and value is not None:
            key = f"eval_runner.generator.sampling.{key}"
            raise ValueError(f"`{key}: {value}`{run.place(key)} has no effect: {useless[key.rpartition('.')[2]]}")
    length, context = bundle.dims["context"], section.example_sampler.context_length_steps
    if context is not None and context >= length:
        raise ValueError(
            f"`eval_runner.example_sampler.context_length_steps: {context}`{place} must be less than the window of "
            f"{length} steps"
        )
    return name, dataset, max(1, length // 4) if context is None else length - context
