"""What a run prints before its first step."""

import pytest
from small_runs import SmallRuns


@pytest.mark.slow
@pytest.mark.parametrize("averages", [True, False])
def test_a_run_says_that_it_evaluates_averaged_weights(tmp_path, capsys, averages):
    SmallRuns(tmp_path)(f"using_ema: {str(averages).lower()}", max_steps=1)
    assert capsys.readouterr().out.count("averaged weights") == averages
