"""Small text data sets as prepare.py writes them, and runs on them through the command line."""

import shlex

import numpy as np
from text_folders import write_text_folder

import train

ALPHABET = "\n abcdefghijklmnop"
SMALL = (
    "--batch_size 4 --block_size 16 --n_layer 1 --n_head 2 --n_embd 16 --max_iters 6 --warmup_iters 2 "
    "--eval_interval 3 --eval_iters 2 --log_interval 1 --max_sample_tokens 4"
)


def write_set(folder, seed=0, tokens=(1200, 400), alphabet=ALPHABET):
    """A character data set of a seeded text in which each letter depends on the one before."""
    from data.text.tokenizers import char_tokenizer

    generator = np.random.default_rng(seed)
    train, val = (np.cumsum(generator.integers(1, 4, count)) % len(alphabet) for count in tokens)
    write_text_folder(folder, train, val, vocab_size=len(alphabet), text_bytes=len(val))
    char_tokenizer(sorted(alphabet)).save_pretrained(folder)
    return folder


def run(line, *more):
    """`python train.py LINE …` in this process."""
    return train.main([*shlex.split(line), *map(str, more), "--set", "report_to=none"])
