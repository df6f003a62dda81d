"""`python -m models.export`: plain weights whose outputs are the checkpoint's, and folders that stand alone."""

import json
import shutil

import peft
import pytest
import torch
from adapting import MODULES, build_adapted, disturb, outputs

from models import adapt, export
from models.adapt import quantize
from storage import manifest

pytestmark = pytest.mark.slow  # many models are built, saved and merged


def checkpoint(name, folder, **settings):
    adapted = build_adapted(name, **settings)
    disturb(adapted.model)
    adapted.save(folder)
    (folder / "statistics.json").write_text('{"mean": 1}')
    (folder / "run.yaml").write_text("model:\n  name: act\n")
    for left in ("optimizer.pt", "trainer_state.json", "rng_state.pth", "ema.safetensors"):
        (folder / left).write_text("{}")
    return outputs(adapted.model, name)


@pytest.mark.parametrize("name", list(MODULES))
@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [
        ({}, 0),
        ({"lora_enable": True}, 1e-5),
        ({"lora_enable": True, "lora_options": {"use_dora": True}}, 1e-5),
        ({"lora_enable": True, "lora_options": {"init_lora_weights": "pissa_niter_2"}}, 1e-5),
        ({"lora_enable": True, "use_quantization": True, "bits": 4}, 1e-5),
        ({"lora_enable": True, "lora_options": {"use_dora": True}, "use_quantization": True, "bits": 4}, 1e-5),
    ],
)
def test_merged_weights_give_the_checkpoints_outputs(name, settings, tolerance, tmp_path):
    expected = checkpoint(name, tmp_path / "run", **settings)
    export.main(["--checkpoint", str(tmp_path / "run"), "--merge", "--out", str(tmp_path / "out")])
    shutil.rmtree(tmp_path / "run")  # nothing is left to lean on
    model = MODULES[name].load(tmp_path / "out")
    torch.testing.assert_close(outputs(model, name), expected, rtol=0, atol=tolerance)
    assert "lora" not in "".join(model.state_dict()) and not quantize.quantized_layers(model)
    files = {path.name for path in (tmp_path / "out").iterdir()} - {"generation_config.json"}
    assert files == {"config.json", "model.safetensors", "statistics.json", "run.yaml"}
    torch.testing.assert_close(outputs(adapt.load_adapted(tmp_path / "out", MODULES[name]), name), outputs(model, name))


@pytest.mark.parametrize("merge", [True, False])
def test_an_exported_folder_has_a_manifest_of_its_own(merge, tmp_path, capsys):
    """That of the checkpoint lists files which are left out, and others' content."""
    checkpoint("act", tmp_path / "run", lora_enable=True)
    manifest.write(tmp_path / "run", step=7, world_size=2, batch=[4, 1, 2])
    export.main(["--checkpoint", str(tmp_path / "run"), *["--merge"] * merge, "--out", str(tmp_path / "out")])
    assert manifest.verify(tmp_path / "out") is None
    described = manifest.read(tmp_path / "out")
    assert (described["step"], described["world_size"], described["batch"]) == (7, 2, [4, 1, 2])
    assert ("model.safetensors" in described["files"]) == merge and "trainer_state.json" not in described["files"]


@pytest.mark.keys("use_quantization")
@pytest.mark.parametrize(
    "settings", [{}, {"lora_enable": True}, {"freeze": ["encoder"], "use_quantization": True, "bits": 4}]
)
def test_a_copy_stands_alone(settings, tmp_path):
    expected = checkpoint("act", tmp_path / "run", **settings)
    export.main(["--checkpoint", str(tmp_path / "run"), "--out", str(tmp_path / "out")])
    shutil.rmtree(tmp_path / "run")
    model = adapt.load_adapted(tmp_path / "out", MODULES["act"])
    torch.testing.assert_close(outputs(model, "act"), expected, rtol=0, atol=1e-6)
    assert bool(quantize.quantized_layers(model)) == ("bits" in settings)
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert not files & {"optimizer.pt", "trainer_state.json", "rng_state.pth", "ema.safetensors"}
    if "lora_enable" in settings:
        config = json.loads((tmp_path / "out/adapter_config.json").read_text())
        base = MODULES["act"].load(config["base_model_name_or_path"])
        reloaded = peft.PeftModel.from_pretrained(base, str(tmp_path / "out"))
        torch.testing.assert_close(outputs(reloaded, "act"), expected, rtol=0, atol=1e-6)


def refused(capsys, *arguments):
    capsys.readouterr()  # progress bars of what came before
    with pytest.raises(SystemExit) as caught:
        export.main(list(map(str, arguments)))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert caught.value.code == 2
    return line


def test_bad_input_is_one_line_and_exit_code_2(tmp_path, capsys):
    checkpoint("act", tmp_path / "run", lora_enable=True)
    run, full, out = tmp_path / "run", tmp_path / "full", tmp_path / "o"
    full.mkdir()
    (full / "x").write_text("")
    assert f"--out {full}" in refused(capsys, "--checkpoint", run, "--merge", "--out", full)
    assert str(full) in refused(capsys, "--checkpoint", full, "--merge", "--out", out)
    shutil.rmtree(run / "base")
    assert str(run / "base") in refused(capsys, "--checkpoint", run, "--merge", "--out", out)
    (run / "adaptation.json").write_text('{"module": "models.nowhere"}')
    assert "models.nowhere" in refused(capsys, "--checkpoint", run, "--merge", "--out", out)
    (run / "adaptation.json").unlink()
    assert "adaptation.json" in refused(capsys, "--checkpoint", run, "--out", out) and not out.exists()


@pytest.mark.parametrize("options", [{"layer_replication": [[0, 1], [0, 1]]}, {"lora_bias": True}])
def test_an_adapter_that_cannot_be_merged_is_refused(options, tmp_path, capsys):
    """Copies of a layer share one weight, and layers without a bias cannot take one."""
    checkpoint("llama", tmp_path / "run", lora_enable=True, lora_options=options)
    refused(capsys, "--checkpoint", str(tmp_path / "run"), "--merge", "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("merge", [["--merge"], []])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("adapter_model.safetensors", b"\x00\x01"),
        ("base/model.safetensors", b""),
        ("config.json", b"{"),
        ("adapter_config.json", b"["),
        ("adapter_config.json", None),
        ("adaptation.json", b"[]"),
        ("adaptation.json", b'{"module": 3}'),
    ],
)
def test_a_damaged_file_is_named_before_anything_is_written(name, content, merge, tmp_path, capsys):
    checkpoint("act", tmp_path / "run", lora_enable=True)
    file = tmp_path / "run" / name
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    assert file.name in refused(capsys, "--checkpoint", tmp_path / "run", "--out", tmp_path / "out", *merge)
    assert not (tmp_path / "out").exists()
