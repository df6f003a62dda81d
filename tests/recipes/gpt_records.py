"""Packed records."""

from . import auto_records

MODEL, DATA = "gpt", "records"


def words(folder):
    return auto_records.words(folder, packing=True, model="{name: gpt, n_layer: 1, n_head: 2, n_embd: 16, dropout: 0}")


inputs = auto_records.inputs
