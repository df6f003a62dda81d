"""A task or model named by a later layer supersedes what training files say for another one; each change has a note."""

import pytest

from loader.checks import static_checks
from loader.resolve.resolver import resolve
from loader.schema.hyper_arguments import HyperArguments

TASK = "task_name: sim_transfer_cube_state\n"


@pytest.fixture
def write(in_root, tmp_path):
    def write(name, text):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def resolved(tmp_path, file, *settings, **flags):
    hyper = HyperArguments(training_config=file, output_dir=str(tmp_path / "out"), **flags)
    run = resolve(hyper, list(settings))
    assert static_checks.check_run(run) == []
    return run


def notes_of(run, *paths):
    """The one note about each path, which says where the dropped value was."""
    lines = [[note for note in run.notes if note.startswith(f"`{path}")] for path in paths]
    assert [len(notes) for notes in lines] == [1] * len(paths), run.notes
    return [notes[0] for notes in lines]


@pytest.mark.slow
def test_weights_of_a_recipe_for_another_model_are_dropped(write, tmp_path):
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(10):
            (tmp_path / "images" / name / f"{index}.png").touch()
    data = f"dataset.path={tmp_path / 'images'}"
    run = resolved(tmp_path, None, data, task_name="images", model_config="convnet")
    assert run.process.model_name_or_path is None and run.model.name == "convnet"
    (note,) = notes_of(run, "model_name_or_path")
    assert "configs/training/images.yaml:6" in note and "convnet" in note
    run = resolved(tmp_path, None, data, task_name="images", model_config="image_classifier")  # the recipe's own kind
    assert run.process.model_name_or_path.startswith("google/vit")
    run = resolved(tmp_path, None, data, "model_name_or_path=here", task_name="images", model_config="auto")
    assert run.process.model_name_or_path == "here"


@pytest.mark.slow
def test_a_flag_that_names_a_model_supersedes_the_file(write, tmp_path):
    """Both a section with another `name`, and keys that belong to the model which the file names by `model_config`."""
    named = write("named.yaml", f"{TASK}model: {{name: act, num_heads: 4}}\nis_pretrained: false\n")
    run = resolved(tmp_path, named, model_config="mlp")
    assert run.model.name == "mlp"
    assert f"{named}:2" in notes_of(run, "model.name")[0]
    keys = write("keys.yaml", f"{TASK}model_config: act\nmodel: {{num_heads: 4, hidden_dim: 64}}\n")
    run = resolved(tmp_path, keys, model_config="mlp")
    assert run.model.name == "mlp" and run.model.config.hidden_dim == 64  # mlp has it too
    assert f"{keys}:3" in notes_of(run, "model.num_heads")[0]
    run = resolved(tmp_path, keys, "model.num_heads=8")
    assert run.model.name == "act" and run.model.config.num_heads == 8


@pytest.mark.slow
def test_a_recipe_that_overrides_the_named_task_says_so(write, tmp_path):
    """The training file has precedence, and both places are shown; not where the command line gives the key."""
    (tmp_path / "episodes").mkdir()
    (tmp_path / "episodes" / "0.hdf5").touch()
    data = f"{{name: demonstrations, path: {tmp_path / 'episodes'}, chunk_size: 10, eval_fraction: 0.2}}"
    task = write("mine.yaml", f"dataset: {data}\nmodel: act\n")
    run = resolved(tmp_path, "act_state", "dataset.eval_fraction=0.5", task_name=task)
    assert run.dataset.config.chunk_size == 200 and run.dataset.config.eval_fraction == 0.5
    (note,) = notes_of(run, "dataset.chunk_size")
    assert f"{task}:1" in note and "act_state.yaml:16" in note and "200" in note
    assert not [line for line in run.notes if "eval_fraction" in line]
    assert not [line for line in resolved(tmp_path, "act_state").notes if "dataset." in line]
