"""The name that a user probably meant."""

import pytest

from storage.suggestions import MOST_COMPARED, did_you_mean, nearest

KNOWN = ["AdamW", "SGD", "learning_rate"]


@pytest.mark.parametrize(
    ("word", "meant"),
    [("lerning_rate", "learning_rate"), ("sgd", "SGD"), ("warmup", None), ("AdamW" * MOST_COMPARED, None), (3, None)],
)
def test_the_nearest_name(word, meant):
    assert nearest(word, KNOWN) == meant
    hint = did_you_mean(word, KNOWN, "none of these")
    assert hint == "none of these" if meant is None else f"`{meant}`" in hint


def test_a_cutoff_decides_how_near_it_must_be():
    assert nearest("rate", KNOWN) is None and nearest("rate", KNOWN, cutoff=0.4) == "learning_rate"
