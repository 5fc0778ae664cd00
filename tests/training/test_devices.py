"""Several devices give what one gives."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np


def test_two_devices_give_the_parameters_of_one(tmp_path):
    facts = []
    for devices in (1, 2):
        done = subprocess.run(
            [sys.executable, "-m", "tests.training.small_run", tmp_path / str(devices), "4"],
            env=os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        )
        facts.append(json.loads(done.stdout))
        assert facts[-1]["devices"] == devices
    one, two = facts
    assert two["split"] > 0 and one["norms"].keys() == two["norms"].keys()
    np.testing.assert_allclose(
        list(one["norms"].values()), list(two["norms"].values()), rtol=1e-3, atol=1e-5
    )
