"""One of several processes that train, evaluate and predict: started by torch.distributed.run with a folder."""

import sys

import torch
from peer_code import Line, Points
from transformers import TrainingArguments

from trainer.trainer import Trainer


def build(folder, batch_size):
    args = TrainingArguments(
        output_dir=f"{folder}/out",
        num_train_epochs=1,
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=2,
        learning_rate=0.05,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )

    def compute_metrics(prediction):
        return {"count": len(prediction.predictions), "sum": float(prediction.predictions.sum())}

    data = {"train_dataset": Points(9), "eval_dataset": Points(7, seed=1)}
    return Trainer(Line(), args, compute_metrics=compute_metrics, **data)


def results(folder, batch_size):
    """Everything that must not depend on the number of processes."""
    trainer = build(folder, batch_size)
    trainer.train()
    metrics = trainer.evaluate()
    result = trainer.predict(Points(5, seed=4))
    return {
        "weights": trainer.model.state_dict(),
        "eval": torch.tensor([metrics[f"eval_{name}"] for name in ("loss", "count", "sum")]),
        "predictions": torch.from_numpy(result.predictions),
        "labels": torch.from_numpy(result.label_ids),
        "losses": torch.tensor([entry["loss"] for entry in trainer.state.log_history if "loss" in entry]),
    }


if __name__ == "__main__":
    out = sys.argv[1]
    outcome = results(out, batch_size=2)
    torch.save(outcome, f"{out}/{torch.distributed.get_rank()}.pt")
    torch.distributed.destroy_process_group()
