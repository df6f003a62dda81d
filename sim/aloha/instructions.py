"""The instructions of the task two_cubes in words; imports only the standard library.

Of the phrasings the last is held out: recordings never use it, so that an evaluation can ask for it.
"""

COLOURS, ARMS = ("red", "blue"), ("left", "right")
VARIANTS = [(colour, arm) for colour in COLOURS for arm in ARMS]  # in the order in which seeds take them
PHRASINGS = [
    "pick up the {colour} cube with the {arm} arm",
    "use the {arm} arm to lift the {colour} cube",
    "lift the {colour} cube with the {arm} hand",
    "with the {arm} arm, raise the {colour} cube",
]
