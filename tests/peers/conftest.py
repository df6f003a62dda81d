"""Code written for transformers' Trainer, run against both Trainers."""

import pytest
import transformers
from peer_code import Line, Points
from transformers import TrainingArguments

import trainer.trainer

BOTH = {"transformers": transformers.Trainer, "keel": trainer.trainer.Trainer}


@pytest.fixture(params=list(BOTH))
def peer(request):
    return BOTH[request.param]


@pytest.fixture
def arguments(tmp_path):
    def make(**options):
        defaults = {
            "max_steps": 4,
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 4,
            "learning_rate": 0.01,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            "dataloader_pin_memory": False,
        }
        return TrainingArguments(output_dir=str(tmp_path / "out"), **{**defaults, **options})

    return make


@pytest.fixture
def make(peer, arguments):
    """`make(model=…, callbacks=…, …, **fields of TrainingArguments)` -> a Trainer of either kind."""
    own = ("model", "train_dataset", "eval_dataset", "callbacks", "optimizers", "compute_metrics", "compute_loss_func")
    own += ("model_init", "data_collator", "optimizer_cls_and_kwargs", "kind", "args")

    def build(**options):
        given = {name: options.pop(name) for name in own if name in options}
        kind, args = given.pop("kind", peer), given.pop("args", None) or arguments(**options)
        given = {"train_dataset": Points(), "eval_dataset": Points(8, seed=1)} | given
        if "model_init" not in given:
            given.setdefault("model", Line())
        return kind(args=args, **given)

    return build
