"""Pack records of tokens into rows of one length.

Shapes: R rows, T tokens of a row (`block_size`).
"""

from collections.abc import Sequence

import numpy as np

from data.records.chat import Encoded

# How many of the last rows a record may still go into: few positions stay empty, without a search over all rows.
OPEN_ROWS = 1024


def first_fit(lengths: Sequence[int], block_size: int) -> list[list[int]]:
    """Return the record numbers of each row: a record goes into the first of the last rows that has room for it."""
    rows: list[list[int]] = []
    room = np.zeros(len(lengths), np.int64)
    for number, length in enumerate(lengths):
        begin = max(0, len(rows) - OPEN_ROWS)
        fits = room[begin : len(rows)] >= length
        row = begin + int(fits.argmax()) if fits.any() else len(rows)
        if row == len(rows):
            rows.append([])
            room[row] = block_size
        rows[row].append(number)
        room[row] -= length
    return rows


def fill(records: Sequence[Encoded], rows: Sequence[Sequence[int]], block_size: int, pad: int) -> dict[str, np.ndarray]:
    """Return the rows as arrays, each (R, T): `input_ids` int32, `learned` bool, `position_ids` int32.

    Positions begin at 0 with each record, which tells a model where one ends. The rest of a row is pad tokens: after
    several records as if they were one more; after a single one as its continuation, which it does not attend to, so
    that a batch of such rows shows no boundary and needs no mask.
    """
    shape = (len(rows), block_size)
    arrays = {"input_ids": np.full(shape, pad, np.int32), "learned": np.zeros(shape, bool)}
    arrays["position_ids"] = np.zeros(shape, np.int32)
    for row, numbers in enumerate(rows):
        begin = 0
        for number in numbers:
            ids, learned = records[number][:2]
            end = begin + len(ids)
            arrays["input_ids"][row, begin:end] = ids
            arrays["learned"][row, begin:end] = learned
            arrays["position_ids"][row, begin:end] = np.arange(len(ids))
            begin = end
        first = begin if len(numbers) == 1 else 0
        arrays["position_ids"][row, begin:] = np.arange(first, first + block_size - begin)
    return arrays
