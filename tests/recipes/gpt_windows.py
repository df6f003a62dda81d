"""Windows of one text."""

from text_sets import write_set

MODEL, DATA = "gpt", "text"
SIZES = ["--block_size", "16", "--n_layer", "1", "--n_head", "2", "--n_embd", "16", "--dropout", "0"]


def words(folder):
    write_set(folder / "text", tokens=(1200, 211))
    return ["--dataset", str(folder / "text"), "--model_config", "gpt", *SIZES, "--set", "sample_tokens=0"]


def inputs(folder):
    (folder / "prompts.txt").write_text("abc\nk\nabcdefghijklmnopabcdef\nop\n")  # the third is longer than a block
    return folder / "prompts.txt"
