"""Network: a perceptron on each point; the loss has a term over instances and one over samples."""

from dataclasses import asdict, dataclass

from storage.config_keys import key

PROCESS_KEYS = frozenset()


@dataclass
class Config:
    width: int = key(8, "of the hidden layer", ge=1)


def build(config, process):
    from kinds.network import Classifier, ClassifierConfig

    return Classifier(ClassifierConfig(**asdict(config)))


def load(folder):
    from kinds.network import Classifier

    from models.pretrained import load_checkpoint

    return load_checkpoint(Classifier, folder)
