"""Training, evaluation and predictions of two processes equal those of one with the double batch size."""

import pytest
import torch
import two_peers
from forked_runs import server


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path):
    """9, 7 and 5 samples: the last step leaves a process without samples of its own."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = server()([*command, "tests/two_peers.py", tmp_path])
    assert done.returncode == 0, done.stderr[-2000:]
    one = two_peers.results(tmp_path / "one", batch_size=4)
    for rank in (0, 1):
        two = torch.load(tmp_path / f"{rank}.pt")
        assert two.keys() == one.keys()
        for name, value in one["weights"].items():
            torch.testing.assert_close(two["weights"][name], value, rtol=1e-4, atol=1e-6)
        for name in ("eval", "predictions", "labels", "losses"):
            torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-5)
