"""What is known to be wrong before a GPU is touched: conflicts, paths, step arithmetic, keys nothing here can use."""

from __future__ import annotations

import os
import typing

from .component import component_module, shipped
from .errors import Problems, did_you_mean, quoted
from .installed import backend_is_installed, reporting_backends, torch_optimizers
from .resume import check_resume, checkpoints, resume_target, wants_resume
from .run_config import RunConfig
from .schema import COMPONENTS, SWITCHES, ProcessArguments, keys_of
from .trainer_fields import trainer_fields

# What marks a folder as the output of an earlier run. (run.yaml alone is left by a start that failed.)
RUN_FILES = ("metrics.jsonl", "config.json", "model.safetensors", "adapter_config.json")
NO_WARMUP = {"constant": "constant_with_warmup", "reduce_lr_on_plateau": "linear", "greedy": "linear"}
# Process keys that the trainer itself honours, whatever the model and data.
TRAINER_PROCESS_KEYS = frozenset({"cache_dir"})


def check_run(run: RunConfig) -> list[str]:
    """Every problem of a resolved run, one line each; an empty list means it may start."""
    problems = Problems()
    _length(run, problems)
    _strategies(run, problems)
    _names(run, problems)
    _process_keys(run, problems)
    _components(run, problems)
    _output_dir(run, problems)
    return problems.lines


def warmup(run: RunConfig) -> float:
    """Warm-up as TrainingArguments takes it: steps, or below 1 a share of all steps."""
    # A ratio of 1 would read as «one step»; the largest number below it means all of them.
    return min(run.hyper.warmup_ratio, 1 - 2**-53) if run.hyper.warmup_ratio > 0 else run.hyper.warmup_steps


def evaluates(run: RunConfig) -> str:
    """The evaluation strategy: `eval_strategy` where YAML sets it, else every `eval_steps` when do_eval."""
    return run.trainer.get("eval_strategy") or ("steps" if run.hyper.do_eval else "no")


def holds_nothing_out(run: RunConfig) -> bool:
    """Whether the data's settings already say that there will be no evaluation set."""
    return run.dataset is not None and getattr(run.dataset.config, "eval_fraction", None) == 0


def _length(run: RunConfig, problems: Problems) -> None:
    hyper = run.hyper
    if hyper.max_steps == 0:
        problems.add(
            f"`max_steps: 0`{run.place('max_steps')} would train nothing; give a positive number, or -1 for epochs"
        )
    steps, warm = hyper.max_steps, warmup(run)
    if steps > 0 and warm >= steps and warm >= 1:
        problems.add(
            f"`warmup_steps: {warm:g}`{run.place('warmup_steps')} is not shorter than the run of {steps} steps"
            f" (`max_steps`{run.place('max_steps')}); the learning rate would never be reached"
        )
    key = "warmup_ratio" if hyper.warmup_ratio > 0 else "warmup_steps"
    chosen_over_it = run.rank("lr_scheduler_type") > run.rank(key)  # a file's warm-up, another layer's schedule
    if warm > 0 and hyper.lr_scheduler_type in NO_WARMUP and not chosen_over_it:
        problems.add(
            f"`{key}`{run.place(key)} would do nothing: lr_scheduler_type {hyper.lr_scheduler_type} has no warm-up; "
            f"{NO_WARMUP[hyper.lr_scheduler_type]} has"
        )
    if 1 <= warm != int(warm):
        problems.add(f"`warmup_steps: {warm:g}`{run.place('warmup_steps')} must be a whole number, or a share below 1")
    for name in ("logging_steps", "save_steps", "eval_steps"):
        value = getattr(hyper, name)
        if value is not None and value > 1 and value != int(value):
            problems.add(f"`{name}: {value:g}`{run.place(name)} must be a whole number, or a share below 1")


def _strategies(run: RunConfig, problems: Problems) -> None:
    for key, why in _dead_flags(run):
        problems.add(f"`{key}`{run.place(key)} would do nothing: {why}")
    if run.trainer.get("fp16") and run.trainer.get("bf16"):
        problems.add(f"`fp16`{run.place('fp16')} and `bf16`{run.place('bf16')} are both true; keep one")
    needs_metric = run.trainer.get("load_best_model_at_end") or run.hyper.save_strategy == "best"
    if needs_metric and (evaluates(run) == "no" or holds_nothing_out(run)):
        key = "load_best_model_at_end" if run.trainer.get("load_best_model_at_end") else "save_strategy"
        problems.add(f"`{key}`{run.place(key)} needs evaluation to know what is best; hold data out, and set do_eval")
    if run.hyper.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy") and (
        evaluates(run) == "no" or holds_nothing_out(run)
    ):
        kind = f"`lr_scheduler_type: {run.hyper.lr_scheduler_type}`{run.place('lr_scheduler_type')}"
        problems.add(f"{kind} follows the evaluation loss; hold data out, and set do_eval")
    if run.hyper.save_strategy == "best" and not run.trainer.get("metric_for_best_model"):
        problems.add(f"`save_strategy: best`{run.place('save_strategy')} needs metric_for_best_model (loss, say)")
    if run.trainer.get("dataloader_prefetch_factor") and run.hyper.dataloader_num_workers == 0:
        problems.add(
            f"`dataloader_prefetch_factor`{run.place('dataloader_prefetch_factor')} needs worker processes; "
            "set dataloader_num_workers above 0"
        )
    if run.trainer.get("dataloader_persistent_workers") and run.hyper.dataloader_num_workers == 0:
        problems.add(
            f"`dataloader_persistent_workers`{run.place('dataloader_persistent_workers')} needs worker processes; "
            "set dataloader_num_workers above 0"
        )


def _dead_flags(run: RunConfig) -> list[tuple[str, str]]:
    """Flags typed although another setting takes away what they act on; YAML may hold such project defaults."""
    hyper, strategy = run.hyper, evaluates(run)
    backends = [hyper.report_to] if isinstance(hyper.report_to, str) else hyper.report_to or []
    # save_steps is also how often a run evaluates that sets no eval_steps.
    saves_dead = hyper.save_strategy != "steps" and (hyper.eval_steps is not None or strategy != "steps")
    dead = {
        "eval_steps": (strategy != "steps", f"evaluation is `{strategy}`"),
        "save_steps": (saves_dead, f"save_strategy is {hyper.save_strategy}"),
        "save_total_limit": (hyper.save_strategy == "no", "save_strategy is no"),
        "logging_steps": (hyper.logging_strategy != "steps", f"logging_strategy is {hyper.logging_strategy}"),
        "logging_dir": (not {"tensorboard", "all"} & set(backends), "report_to has no tensorboard"),
        "do_eval": (
            hyper.do_eval and holds_nothing_out(run),
            "the data holds nothing out (dataset.eval_fraction is 0)",
        ),
    }
    return [(key, why) for key, (is_dead, why) in dead.items() if is_dead and run.on_command_line(key)]


def _names(run: RunConfig, problems: Problems) -> None:
    """Optimizers and reporting backends are words that only the installed packages know."""
    known = (*typing.get_args(trainer_fields()["optim"].annotation), *torch_optimizers())
    if run.hyper.optim not in known and torch_optimizers():
        folded = {name.lower(): name for name in known}
        near = folded.get(run.hyper.optim.lower())
        hint = f"; did you mean `{near}`?" if near else did_you_mean(run.hyper.optim, known)
        problems.add(
            f"`optim: {run.hyper.optim}`{run.place('optim')} is neither a TrainingArguments name nor a torch.optim "
            f"class{hint or '; torch.optim has ' + ', '.join(torch_optimizers())}"
        )
    asked = run.hyper.report_to
    for name in [asked] if isinstance(asked, str) else asked or []:
        if name in ("none", "all"):
            continue
        if name not in reporting_backends():
            hint = did_you_mean(name, reporting_backends()) or f"; there are {quoted(reporting_backends())}, none, all"
            problems.add(f"`report_to: {name}`{run.place('report_to')} is not a reporting backend{hint}")
        elif not backend_is_installed(name):
            problems.add(f"`report_to: {name}`{run.place('report_to')} is not installed; pip install {name}, or none")


def _process_keys(run: RunConfig, problems: Problems) -> None:
    """A process key that nothing in this run can use must be at its default: no setting is silently dead."""
    chosen = [part for part in (run.dataset, run.model, run.env) if part is not None]
    live = TRAINER_PROCESS_KEYS.union(*(getattr(part.module, "PROCESS_KEYS", ()) for part in chosen))
    for name, key in keys_of(ProcessArguments).items():
        value = getattr(run.process, name)
        if value == key.default:
            continue
        if name not in live:
            users = _users(name)
            able = f"; used by {users}" if users else " yet"
            problems.add(
                f"`{name}: {_shown(value)}`{run.place(name)} would do nothing: no model or data here uses `{name}`"
                f"{able}; set it to {_shown(key.default)}"
            )
            continue
        for switch, dependents in SWITCHES.items():
            if name in dependents and not getattr(run.process, switch):
                problems.add(f"`{name}: {_shown(value)}`{run.place(name)} would do nothing while `{switch}` is false")


def _users(name: str) -> str:
    """Shipped components that use a process key, for the error that says who could."""
    found = []
    for section in COMPONENTS:
        for component in shipped(section):
            if name in getattr(component_module(section, component), "PROCESS_KEYS", ()):
                found.append(f"{section} {component}")
    return quoted(found)


def _shown(value: object) -> str:
    return (
        {True: "true", False: "false", None: "null"}.get(value, str(value))
        if not isinstance(value, float)
        else f"{value:g}"
    )


def _components(run: RunConfig, problems: Problems) -> None:
    if run.dataset is None:
        problems.add(f"no data: the task `{run.hyper.task_name}` has no `dataset`; name another with --task_name")
    elif getattr(run.dataset.config, "path", "") is None and run.env is None:
        problems.add(f"`dataset.path`{run.place('dataset.path')} is not set, and there is no `env` to record data in")
    elif hasattr(run.dataset.module, "check") and not _recordable(run):
        problems.lines += run.dataset.module.check(run.dataset.config, run)
    for name in keys_of(type(run.model.config)) if run.model and run.dataset else ():
        stated, given = getattr(run.model.config, name), getattr(run.dataset.config, name, None)
        if None not in (stated, given) and stated != given:
            problems.add(
                f"`model.{name}: {stated}`{run.place(f'model.{name}')} contradicts `dataset.{name}: {given}`"
                f"{run.place(f'dataset.{name}')}; leave `model.{name}` out"
            )
    if run.model is None:
        problems.add(f"no model: name one with --model_config; there are {quoted(shipped('model'))}")


def _recordable(run: RunConfig) -> bool:
    """Whether the task's data is recorded on first use: it names an environment and no path of its own."""
    return run.env is not None and getattr(run.dataset.config, "path", None) is None


def _output_dir(run: RunConfig, problems: Problems) -> None:
    folder, place = run.output_dir, run.place("output_dir")
    if not run.hyper.output_dir.strip():
        problems.add(f"`output_dir`{place} is empty; name a folder")
        return
    if folder.exists() and not folder.is_dir():
        problems.add(f"`output_dir: {folder}`{place} is a file; name a folder")
        return
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        problems.add(f"`output_dir: {folder}`{place} cannot be made: {existing} is a file")
    elif not os.access(existing, os.W_OK | os.X_OK):
        problems.add(f"`output_dir: {folder}`{place} is not writable ({existing}); name a folder you may write to")
        return
    target = resume_target(run)
    if wants_resume(run):
        check_resume(run, problems)
    own = wants_resume(run) and (target is None or target.absolute().parent == folder.absolute())
    if not own and (
        used := [path.name for path in (*map(folder.joinpath, RUN_FILES), *checkpoints(folder)) if path.exists()]
    ):
        problems.add(
            f"`output_dir: {folder}`{place} already holds a run ({used[0]}); continue it with "
            "--resume_from_checkpoint auto, or name another --output_dir"
        )
