"""Fixtures for tests of whole runs."""

import pytest
from small_runs import SmallRuns


@pytest.fixture
def run(in_root, tmp_path):
    """Starts small runs on demonstrations; the working folder is the repository's root."""
    return SmallRuns(tmp_path)
