"""A mixture of two texts with embeddings of their own."""

from text_sets import write_set

from .gpt_windows import SIZES

MODEL, DATA = "gpt", "text"


def words(folder):
    sets = [str(write_set(folder / name, seed=seed, tokens=(1200, 211 + 40 * seed))) for seed, name in enumerate("ab")]
    mixture = ["--training_mode", "multidataset", "--multidataset_wte", "--dataset_list", *sets]
    return [*mixture, "--model_config", "gpt", *SIZES]
