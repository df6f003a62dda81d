"""Small text data sets as prepare.py would leave them, and runs on them through the command line."""

import json
import shlex

import numpy as np
import torch
from text_folders import write_text_folder

import train

ALPHABET = "\n abcdefghijklmnop"
SMALL = (
    "--batch_size 4 --block_size 16 --n_layer 1 --n_head 2 --n_embd 16 --max_iters 6 --warmup_iters 2 "
    "--eval_interval 3 --eval_iters 2 --log_interval 1 --max_sample_tokens 4"
)


def write_set(folder, seed=0, tokens=(1200, 400), alphabet=ALPHABET):
    """A character data set of a seeded text in which each letter says something of the next."""
    from data.text.tokenizers import char_tokenizer

    generator = np.random.default_rng(seed)
    train, val = (np.cumsum(generator.integers(1, 4, count)) % len(alphabet) for count in tokens)
    write_text_folder(folder, train, val, vocab_size=len(alphabet), text_bytes=len(val))
    char_tokenizer(sorted(alphabet)).save_pretrained(folder)
    return folder


def run(line, *more):
    """`python train.py LINE …` in this process."""
    return train.main([*shlex.split(line), *map(str, more), "--set", "report_to=none"])


def metrics(folder, key):
    """`{step: value}` of the lines of metrics.jsonl that have a key."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[key] for line in lines if key in line}


def same_weights(left, right):
    left, right = left.model.state_dict(), right.model.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
