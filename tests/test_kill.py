"""Runs that are killed at random moments, with SIGKILL and with SIGTERM, and go on: every weight is that of the run let be.

Fifty of them are `make kill`.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sft_recipes.stopping import CODE


@pytest.mark.parametrize(("number", "times"), [("SIGKILL", 5), ("SIGTERM", 3)])
def test_every_killed_run_ends_with_the_weights_of_the_one_that_was_not(number, times):
    program = Path(__file__).with_name("kill.py")
    command = [sys.executable, str(program), "--times", str(times), "--seed", "1", "--signal", number]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads(done.stdout[done.stdout.index("{") :])  # a library may have greeted
    assert found["identical"] == times and found["slowest"] < 30
    assert set(found["exit_codes"]) <= ({"-9", "0"} if number == "SIGKILL" else {str(CODE), "-15", "0"})  # before it listens, it just ends
