"""Train anything: `python train.py --task_name TASK --training_config FILE --flag value …`.

Read top to bottom, this is a whole run: flags and YAML -> RunConfig -> TrainingArguments -> data -> model -> Trainer.
"""

from __future__ import annotations

from typing import Any

from loader.cli import refusing, run_config_or_exit
from loader.hyper import HyperArguments
from loader.run_config import RunConfig, with_dims

__all__ = ["HyperArguments", "main"]


def main(arguments: list[str] | None = None) -> Any:
    """Trains what the command line describes; returns the Trainer, its final model saved in the run's folder."""
    run = run_config_or_exit(arguments)  # also answers --help, --check, --print_config, --print_schema

    # torch and transformers are imported from here on: what came before answers in a fraction of a second.
    from transformers import set_seed

    from loader.resume import finished, resume_target, skipped
    from loader.training_arguments import training_arguments
    from prepare import with_prepared_data

    args = refusing(training_arguments, run)
    with args.main_process_first(local=True, desc="data preparation"):
        run = refusing(with_prepared_data, run)
        bundle = refusing(run.dataset.module.build, run.dataset.config, run)
    set_seed(run.seed)
    model = refusing(build_model, run, bundle)
    trainer = refusing(build_trainer, run, args, bundle, model)
    checkpoint = resume_target(run)
    if trainer.is_world_process_zero():
        print(
            "\n".join([*skipped(run), *bundle.summary, f"model: {run.model.name}, {_millions(model)} parameters"]),
            flush=True,
        )
        trainer.begin_run_folder()
    if checkpoint and finished(checkpoint):
        if trainer.is_world_process_zero():
            print(f"{checkpoint.name} is the run's last step: nothing is left to train", flush=True)
        trainer._load_from_checkpoint(str(checkpoint))
    else:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    trainer.save_model()
    if trainer.is_world_process_zero():
        print(f"final model in {run.output_dir}", flush=True)
    return trainer


def build_model(run: RunConfig, bundle: Any) -> Any:
    """The network, built for the data's dimensions."""
    return run.model.module.build(with_dims(run, bundle.dims), run.process)


def build_trainer(run: RunConfig, args: Any, bundle: Any, model: Any) -> Any:
    """The Trainer of a run; a ValueError where data and settings do not fit one another."""
    from loader import show
    from trainer.trainer import Trainer

    batch, samples = args.train_batch_size * args.world_size, len(bundle.sampler(run.seed))
    if args.dataloader_drop_last and samples < batch:
        raise ValueError(
            f"a batch of {batch} is larger than the data ({samples} samples an epoch), and "
            f"`dataloader_drop_last`{run.place('dataloader_drop_last')} drops what does not fill one; lower "
            "--per_device_train_batch_size"
        )
    if not bundle.eval_datasets and args.eval_strategy != "no":
        asked = [key for key in ("do_eval", "eval_strategy", "eval_steps") if run.on_command_line(key)]
        if asked:
            place = run.place(asked[0])
            raise ValueError(
                f"`{asked[0]}`{place} has nothing to evaluate on; hold data out with dataset.eval_fraction"
            )
        if args.eval_on_start or args.load_best_model_at_end:
            key = "eval_on_start" if args.eval_on_start else "load_best_model_at_end"
            raise ValueError(f"`{key}`{run.place(key)} needs evaluation; hold data out with dataset.eval_fraction")
        print("no evaluation: the data holds nothing out (dataset.eval_fraction)", flush=True)
        args.eval_strategy = type(args.eval_strategy)("no")
    sets = bundle.eval_datasets
    try:
        return Trainer(
            model,
            args,
            train_dataset=bundle.train_dataset,
            eval_dataset=next(iter(sets.values())) if len(sets) == 1 else sets or None,
            collate=bundle.collate,
            sampler=bundle.sampler,
            files={**bundle.files, "run.yaml": show.as_yaml(run)},
            optimizer_name=run.hyper.optim,
            optimizer_options=run.optimizer,
            param_groups=run.param_groups,
            parts=getattr(run.model.module, "PARTS", {}),
        )
    except OSError as error:
        place = run.place("output_dir")
        raise ValueError(f"`output_dir: {run.output_dir}`{place} cannot be made: {error.strerror}") from error


def _millions(model: Any) -> str:
    return f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.2f}M"


if __name__ == "__main__":
    main()
