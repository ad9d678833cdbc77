"""One small run that the tests of both entry points look at."""

from pathlib import Path

import pytest

from experiments import train
from experiments.configs import digits_edm


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory) -> Path:
    """The working directory of `digits_edm:smoke`."""
    workdir = tmp_path_factory.mktemp("digits_run")
    train.train_and_evaluate(digits_edm.get_config("smoke"), workdir)
    return workdir
