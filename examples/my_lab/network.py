"""The network of `my_lab.net`."""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from models.pretrained import pretrained_config
from my_lab.net import Config

ClassifierConfig = pretrained_config(Config, "my_lab_net", "ClassifierConfig", __name__)


class Classifier(PreTrainedModel):
    config_class = ClassifierConfig

    def __init__(self, config):
        super().__init__(config)
        self.hidden = nn.Linear(config.inputs, config.width)
        self.head = nn.Linear(config.width, config.classes)
        self.post_init()

    def forward(self, rows, label=None):  # rows (batch, inputs), label (batch,): the names of the batch's entries
        logits = self.head(torch.relu(self.hidden(rows)))
        if label is None:
            return {"logits": logits}
        return {"loss": F.cross_entropy(logits, label), "logits": logits}
