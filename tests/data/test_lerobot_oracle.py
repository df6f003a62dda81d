"""lerobot itself reads what Keel writes, and Keel what lerobot writes; runs where its environment has been set up."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPTS = Path(__file__).resolve().parents[1] / "oracles"
DEFAULT = Path(tempfile.gettempdir()) / "lerobot-oracle"


def compared(script):
    """What a script's `compare` prints."""
    folder = Path(os.environ.get("KEEL_LEROBOT_ORACLE", DEFAULT))
    if not (folder / "bin/python").exists():
        pytest.skip(f"no environment in {folder}; `python tests/oracles/lerobot_oracle.py setup` creates it")
    words = [sys.executable, SCRIPTS / script, "compare", folder]
    done = subprocess.run(words, capture_output=True, text=True, timeout=1000)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().rpartition("\n")[2])


def test_lerobot_s_policies_answer_the_same_in_keel():
    results = compared("lerobot_policies.py")
    assert len(results) == 9
    for name, differences in results.items():
        assert {"chunk", "actions"} <= differences.keys() and max(differences.values()) < 1e-5, (name, differences)


def test_lerobot_and_keel_give_the_same_samples():
    results = compared("lerobot_oracle.py")
    assert set(results) == {"written_by_keel_libsvtav1", "written_by_keel_libx264", "written_by_lerobot"}
    for name, figures in results.items():
        assert figures.pop("samples") == 63 and figures.pop("largest_pixel_distance") <= 1, name
        assert figures.pop("mean_loss_of_encoding") < 4, name  # of 255, at the encoder's usual loss
        assert set(figures.values()) == {0}, (name, figures)
