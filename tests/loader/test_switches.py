"""Keys of components that another key of theirs, or its value, makes useless."""

import pytest

from loader.checks.static_checks import check_run
from loader.resolve.resolver import resolve


def checked(tmp_path, in_file, *settings):
    file = tmp_path / "recipe.yaml"
    file.write_text(f"task_name: sim_transfer_cube_state\nmodel: {{name: flow, {in_file}}}\n")
    run = resolve(training_config=file, settings=[f"output_dir={tmp_path / 'out'}", *settings])
    return run, check_run(run)


USELESS = [
    ("network: mlp, kernel_size: 3", "model.kernel_size: 3", "model.network: unet"),
    ("network: unet, num_layers: 2", "model.num_layers: 2", "model.network: transformer or mlp"),
    ("network: mlp, num_heads: 2", "model.num_heads: 2", "model.network: transformer"),
    ("image_pooling: mean, keypoints: 8", "model.keypoints: 8", "model.image_pooling: spatial_softmax"),
]


@pytest.mark.parametrize(("in_file", "useless", "needed"), USELESS)
def test_a_key_that_needs_another_value_is_refused_with_its_place(tmp_path, in_file, useless, needed):
    (line,) = checked(tmp_path, in_file)[1]
    assert useless in line and needed in line and "recipe.yaml:2:" in line


def test_a_later_layer_that_chooses_another_value_drops_the_key(tmp_path):
    run, problems = checked(tmp_path, "network: mlp, num_layers: 2", "model.network=unet")
    assert not problems
    assert run.model.config.num_layers == 4 and run.model.config.network == "unet"
    assert [note for note in run.notes if "model.num_layers: 2" in note]


def test_keys_with_effect_stay(tmp_path):
    run, problems = checked(tmp_path, "network: transformer, num_layers: 2, num_heads: 2, hidden_dim: 8")
    config = run.model.config
    assert not problems
    assert (config.num_layers, config.num_heads, config.hidden_dim) == (2, 2, 8)
