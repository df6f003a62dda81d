"""See `kinds.classifier`."""

import torch
from kinds.classifier import Config
from kinds.instances import CLASSES
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from models.pretrained import pretrained_config

ClassifierConfig = pretrained_config(Config, "kinds_classifier", "ClassifierConfig", __name__)


class Classifier(PreTrainedModel):
    config_class = ClassifierConfig
    loss_weights = {"size": 0.1}

    def __init__(self, config):
        super().__init__(config)
        self.hidden = nn.Linear(2, config.width)
        self.head = nn.Linear(config.width, CLASSES)
        self.size = nn.Linear(config.width, 1)
        self.post_init()

    def forward(self, points, truth=None):
        hidden = torch.tanh(self.hidden(torch.cat(points)))
        logits = self.head(hidden)
        if truth is None:
            return {"logits": logits}
        counts = [len(part) for part in points]
        sizes = torch.stack([part.sum() for part in self.size(hidden)[:, 0].split(counts)])
        losses = {
            "class": F.cross_entropy(logits, torch.cat(truth["classes"])),
            "size": F.mse_loss(sizes, truth["sizes"]),
        }
        return {"loss": losses["class"] + 0.1 * losses["size"], "losses": losses, "logits": logits}

    def loss_items(self, batch):
        return {"class": sum(map(len, batch["points"])), "size": len(batch["points"])}
