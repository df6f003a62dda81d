"""A loss in place of the network's own: the hinge loss of Crammer and Singer."""

from dataclasses import dataclass
from functools import partial

from storage.config_keys import key

PROCESS_KEYS = frozenset()


@dataclass
class Config:
    margin: float = key(1.0, "distance that the right class must have from the others", gt=0)


def build(config):
    loss = partial(hinge, margin=config.margin)
    loss.targets = ("label",)  # entries of the batch that the network does not see, so that it returns predictions
    return loss


def hinge(outputs, batch, margin):
    from torch.nn import functional as F

    return {"loss": F.multi_margin_loss(outputs["logits"], batch["label"], margin=margin)}
