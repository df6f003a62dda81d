"""A metric: the share of rows whose class is predicted."""

from metrics.metric import Metric


class Accuracy(Metric):
    directions = {"accuracy": "max"}  # which direction is better: for early stopping, the best checkpoint …

    def reset(self):
        self.right = self.rows = 0

    def update(self, batch, outputs):
        predicted = outputs["logits"].argmax(-1)
        self.right += int((predicted == batch["label"]).sum())
        self.rows += len(predicted)

    def compute(self, loss=None):
        return {"accuracy": self.right / self.rows}
