"""A classifier: one hidden layer. Importing this needs no torch, so that `--check` is fast."""

from dataclasses import asdict, dataclass

from storage.config_keys import key

PROCESS_KEYS = frozenset()  # process parameters that the network reads
PARTS = {"trunk": r"^hidden(\.|$)", "head": r"^head(\.|$)"}  # names for `freeze`, `param_groups`, LoRA


@dataclass
class Config:
    width: int = key(32, "units of the hidden layer", ge=1)
    inputs: int | None = key(None, "columns of a row; known from the data", ge=1)
    classes: int | None = key(None, "known from the data", ge=2)


def build(config, process):
    from my_lab.network import Classifier, ClassifierConfig

    return Classifier(ClassifierConfig(**asdict(config)))


def load(folder):
    from models.pretrained import load_checkpoint
    from my_lab.network import Classifier

    return load_checkpoint(Classifier, folder)
