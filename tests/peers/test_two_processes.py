"""Training, evaluation and predictions of two processes equal those of one with the double batch size."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import two_peers

ROOT = Path(two_peers.__file__).resolve().parent.parent


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path):
    """9, 7 and 5 samples: the last step leaves a process without samples of its own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "tests/two_peers.py", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    one = two_peers.results(tmp_path / "one", batch_size=4)
    for rank in (0, 1):
        two = torch.load(tmp_path / f"{rank}.pt")
        assert two.keys() == one.keys()
        for name, value in one["weights"].items():
            torch.testing.assert_close(two["weights"][name], value, rtol=1e-4, atol=1e-6)
        for name in ("eval", "predictions", "labels", "losses"):
            torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-5)
