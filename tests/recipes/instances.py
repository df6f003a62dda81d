"""The synthetic kind: variable numbers of instances, a transform, weighted sampling, metrics of torchmetrics."""

MODEL, DATA = "kinds.classifier", "kinds.instances"


def words(folder):
    (folder / "task.yaml").write_text("dataset: {name: kinds.instances}\nmodel: {name: kinds.classifier}\n")
    (folder / "training.yaml").write_text(f"task_name: {folder / 'task.yaml'}\n")
    return ["--training_config", str(folder / "training.yaml")]
