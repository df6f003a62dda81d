"""The instructions of the tasks in words; imports only the standard library.

Of the phrasings of two_cubes the last is held out: recordings never use it, so that an evaluation can ask for it.
"""

ALONE = {
    "transfer_cube": "pick up the cube with the right arm and hand it to the left arm",
    "insertion": "pick up the peg and the socket, and insert the peg into the socket",
}

COLOURS, ARMS = ("red", "blue"), ("left", "right")
VARIANTS = [(colour, arm) for colour in COLOURS for arm in ARMS]  # in the order in which seeds take them
PHRASINGS = [
    "pick up the {colour} cube with the {arm} arm",
    "use the {arm} arm to lift the {colour} cube",
    "lift the {colour} cube with the {arm} hand",
    "with the {arm} arm, raise the {colour} cube",
]
