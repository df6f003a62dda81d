"""Components as a user would keep them outside of Keel: `dataset: {name: outside.tokens}`."""
