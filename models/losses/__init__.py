"""Losses that replace a network's own: `loss: {name: …}` names a file here, or a dotted path.

A module has a torch-free `Config`, `PROCESS_KEYS`, and `build(config)`, which returns a callable loss:

    loss(outputs, batch) -> {"loss": mean} and, with several terms, {"losses": {term: mean}}
    loss.targets         batch keys that the network must not see, so that it returns its predictions
    loss.loss_items, loss.loss_weights    as those of a network, see docs/task_contract.md
    loss.problem_type    optional: single_label_classification, multi_label_classification, or another word; data that
                         names another problem is refused
    loss.fit(statistics) optional: called with the bundle's statistics of the training split, and the data's
                         `problem_type` or None, before the loss is used
"""

# problem_type of the data -> what its samples have, and the losses for it
LOSSES_OF = {
    "multi_label_classification": ("any number of labels", "bce, asymmetric or focal"),
    "single_label_classification": ("one class each", "cross_entropy or focal"),
    "values": ("values", "mse or gaussian_nll"),
}
