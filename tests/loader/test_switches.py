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


@pytest.mark.parametrize(
    ("name", "keys", "useless", "beside"),
    [
        ("records", "eval_path: b, eval_fraction: 0.2", "dataset.eval_fraction: 0.2", "dataset.eval_path: "),
        (
            "signals",
            "eval_path: b, datasplitter: {eval_fraction: 0.2}",
            "dataset.datasplitter.eval_fraction: 0.2",
            "dataset.eval_path: ",
        ),
        (
            "signals",
            "datasplitter: {by: session, test: [a], test_fraction: 0.2}",
            "dataset.datasplitter.test_fraction: 0.2",
            "dataset.datasplitter.test: ",
        ),
    ],
)
def test_a_share_to_hold_out_beside_held_out_data_is_refused(tmp_path, name, keys, useless, beside):
    file = tmp_path / "recipe.yaml"
    file.write_text(f"task_name: null\ndataset: {{name: {name}, path: a, {keys}}}\n")
    lines = check_run(resolve(training_config=file, settings=[f"output_dir={tmp_path / 'out'}"]))
    (line,) = [line for line in lines if useless in line]
    assert beside in line and "recipe.yaml:2:" in line
    run = resolve(training_config=file, settings=[f"output_dir={tmp_path / 'out'}", f"{beside.rstrip(': ')}=null"])
    assert not any(useless in line for line in check_run(run))


@pytest.mark.parametrize(
    ("backends", "section", "is_refused"),
    [
        ("mlflow", "{save_dir: x}", True),
        ("trackio", "{save_dir: x, name: a}", True),
        ("tensorboard", "{save_dir: x}", False),
        ("[mlflow, tensorboard]", "{save_dir: x}", False),
        ("none", "{save_dir: x, logger_type: CSVLogger}", False),
    ],
)
def test_a_folder_for_loggers_that_write_none_is_refused(tmp_path, backends, section, is_refused):
    file = tmp_path / "recipe.yaml"
    file.write_text(f"logging: {section}\nreport_to: {backends}\n")
    lines = check_run(resolve(training_config=file, settings=[f"output_dir={tmp_path / 'out'}"]))
    found = [line for line in lines if line.startswith("`logging.save_dir: x`")]
    assert len(found) == is_refused and all("recipe.yaml:1:" in line for line in found)


def test_keys_with_effect_stay(tmp_path):
    run, problems = checked(tmp_path, "network: transformer, num_layers: 2, num_heads: 2, hidden_dim: 8")
    config = run.model.config
    assert not problems
    assert (config.num_layers, config.num_heads, config.hidden_dim) == (2, 2, 8)
