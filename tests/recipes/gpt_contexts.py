"""Two streams of tokens side by side."""

from text_sets import write_set

from .gpt_windows import SIZES

MODEL, DATA = "gpt", "text"


def words(folder):
    sets = [str(write_set(folder / name, seed=seed, tokens=(1200, 211))) for seed, name in enumerate("ab")]
    return ["--training_mode", "multicontext", "--multicontext_datasets", *sets, "--model_config", "gpt", *SIZES]
