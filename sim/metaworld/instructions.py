"""What each Meta-World task is called, and its instructions in words; imports only the standard library.

Of the phrasings of a task the last is held out: recordings never use it, so that an evaluation can ask for it.
"""

TASKS = {
    "assembly": ["put the ring on the peg", "assemble the ring and the peg", "place the round nut over the peg"],
    "basketball": ["put the ball into the basket", "dunk the basketball", "drop the ball through the hoop"],
    "bin-picking": [
        "move the block to the other bin",
        "pick the block from one bin and put it into the other",
        "take the block over to the second bin",
    ],
    "box-close": ["close the box with its lid", "put the lid on the box", "cover the box with the lid"],
    "button-press-topdown": [
        "press the button from above",
        "push the button down from the top",
        "press down on the button from above",
    ],
    "button-press-topdown-wall": [
        "press the button behind the wall from above",
        "push the button down past the wall",
        "press down on the button behind the wall",
    ],
    "button-press": ["press the button from the front", "push the button in", "press in the button at the front"],
    "button-press-wall": [
        "press the button behind the wall from the front",
        "push in the button around the wall",
        "press in the button behind the wall",
    ],
    "coffee-button": [
        "press the button of the coffee machine",
        "start the coffee machine",
        "push the coffee machine's button",
    ],
    "coffee-pull": [
        "pull the mug away from the coffee machine",
        "take the mug out of the coffee machine",
        "draw the mug from the coffee machine",
    ],
    "coffee-push": [
        "push the mug under the coffee machine",
        "put the mug into the coffee machine",
        "slide the mug to the coffee machine",
    ],
    "dial-turn": ["turn the dial", "rotate the dial", "turn the dial around"],
    "disassemble": ["take the ring off the peg", "remove the ring from the peg", "lift the round nut off the peg"],
    "door-close": ["close the door", "push the door shut", "shut the door"],
    "door-lock": ["lock the door", "turn the door's lock to locked", "turn the lock so that the door is locked"],
    "door-open": ["open the door", "pull the door open", "open up the door"],
    "door-unlock": [
        "unlock the door",
        "turn the door's lock to unlocked",
        "turn the lock so that the door is unlocked",
    ],
    "hand-insert": ["put the hand into the hole", "insert the gripper into the hole", "lower the hand into the hole"],
    "drawer-close": ["close the drawer", "push the drawer shut", "shut the drawer"],
    "drawer-open": ["open the drawer", "pull the drawer open", "open up the drawer"],
    "faucet-open": ["open the faucet", "turn the faucet on", "turn on the water at the faucet"],
    "faucet-close": ["close the faucet", "turn the faucet off", "turn off the water at the faucet"],
    "hammer": ["hammer the nail into the wall", "drive the nail in with the hammer", "hit the nail with the hammer"],
    "handle-press-side": [
        "press the handle down from the side",
        "push the sideways handle down",
        "press down the handle at the side",
    ],
    "handle-press": ["press the handle down", "push the handle down", "press down the handle"],
    "handle-pull-side": [
        "pull the handle up from the side",
        "lift the sideways handle up",
        "pull up the handle at the side",
    ],
    "handle-pull": ["pull the handle up", "lift the handle up", "pull up the handle"],
    "lever-pull": ["pull the lever up", "lift the lever", "pull up the lever"],
    "pick-place-wall": [
        "lift the puck over the wall and put it at the goal",
        "pick the puck and place it behind the wall",
        "carry the puck over the wall to the goal",
    ],
    "pick-out-of-hole": [
        "pick the puck out of the hole",
        "take the puck out of the hole",
        "lift the puck from the hole",
    ],
    "pick-place": [
        "pick up the puck and place it at the goal",
        "lift the puck to the goal",
        "pick the puck up and carry it to the goal",
    ],
    "plate-slide": ["slide the plate into the net", "push the plate into the net", "slide the plate to the net"],
    "plate-slide-side": [
        "slide the plate sideways into the net",
        "push the plate to the side into the net",
        "slide the plate to the net at the side",
    ],
    "plate-slide-back": [
        "slide the plate back out of the net",
        "pull the plate out of the net",
        "slide the plate back from the net",
    ],
    "plate-slide-back-side": [
        "slide the plate back sideways out of the net",
        "pull the plate to the side out of the net",
        "slide the plate back from the net at the side",
    ],
    "peg-insert-side": [
        "insert the peg into the hole at the side",
        "put the peg into the side hole",
        "push the peg into the hole at the side",
    ],
    "peg-unplug-side": [
        "pull the peg out of the hole at the side",
        "unplug the peg from the side",
        "take the peg out of the side hole",
    ],
    "soccer": ["kick the ball into the goal net", "score a goal with the ball", "shoot the ball into the goal net"],
    "stick-push": ["push the box with the stick", "use the stick to push the box", "move the box away with the stick"],
    "stick-pull": ["pull the box with the stick", "use the stick to pull the box", "draw the box near with the stick"],
    "push": ["push the puck to the goal", "slide the puck to the goal", "push the puck along the table to the goal"],
    "push-wall": [
        "push the puck around the wall to the goal",
        "slide the puck around the wall",
        "push the puck past the wall to the goal",
    ],
    "push-back": ["push the puck back to the goal", "pull the puck back to the goal", "slide the puck back"],
    "reach": ["reach the goal", "move the hand to the goal", "reach for the goal with the hand"],
    "reach-wall": [
        "reach the goal behind the wall",
        "move the hand around the wall to the goal",
        "reach for the goal behind the wall with the hand",
    ],
    "shelf-place": [
        "put the puck onto the shelf",
        "pick the puck and place it on the shelf",
        "place the puck on the shelf",
    ],
    "sweep-into": ["sweep the puck into the hole", "sweep the puck down the hole", "wipe the puck into the hole"],
    "sweep": ["sweep the puck off the table", "sweep the puck to the side", "wipe the puck off the table"],
    "window-open": ["open the window", "slide the window open", "open up the window"],
    "window-close": ["close the window", "slide the window shut", "shut the window"],
}

# The instruction of the control `wrong` where tasks share a scene: of the task whose expert least often reaches the
# goal of the first as well. Of 50 starts the expert of pick-place reaches all goals of reach and push, that of push 36
# of reach and 43 of pick-place, that of reach none of the others: a policy that obeys `wrong` succeeds in 24 % of mt3.
OPPOSITES = {"reach": "push", "push": "reach", "pick-place": "reach"}

# Named sets of tasks. Those of mt3 have one scene: hand, puck and goal.
SETS = {
    "mt3": ["reach", "push", "pick-place"],
    "mt10": [
        *["reach", "push", "pick-place", "door-open", "drawer-open", "drawer-close", "button-press-topdown"],
        *["peg-insert-side", "window-open", "window-close"],
    ],
    "mt50": list(TASKS),
}
