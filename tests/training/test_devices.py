"""Several devices give what one gives."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.training.small_run import run_and_describe


@pytest.mark.slow
def test_two_devices_give_the_parameters_of_one(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.small_run", tmp_path / "two", "4", "0"],
        env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    one, two = run_and_describe(tmp_path / "one", 4, 0), json.loads(done.stdout)
    assert (one["devices"], two["devices"]) == (1, 2)
    assert two["split"] > 0 and one["norms"].keys() == two["norms"].keys()
    np.testing.assert_allclose(
        list(one["norms"].values()), list(two["norms"].values()), rtol=1e-3, atol=1e-5
    )
