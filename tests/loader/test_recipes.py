"""Shipped recipes whose keys belong together."""

import pytest

from loader.resolve.resolver import resolve


@pytest.mark.parametrize(("recipe", "weights"), [("act_vision", "microsoft/resnet-18"), ("act_vision_scratch", None)])
def test_only_a_pretrained_backbone_has_a_small_learning_rate_of_its_own(in_root, recipe, weights):
    run = resolve(training_config=f"configs/training/{recipe}.yaml")
    assert run.model.config.backbone_weights == weights
    rates = [group.lr for group in run.param_groups if group.pattern == "backbone"]
    assert rates == ([1e-5] if weights else []) and run.hyper.learning_rate == 5e-5
