"""A real dataset to draw from: two categories, made by the synthesis line."""

from pathlib import Path

import pytest

from pipelines.engine import LocalBackend
from pipelines.plan import render_settings
from pipelines.run import run, stages_of
from pipelines.settings import RunConfig
from tests.conftest import config_of


def make_dataset(config: RunConfig) -> str:
    """Run a config in this process; the URL of its dataset."""
    run(config, lambda wanted, output: LocalBackend(stages_of(wanted), (render_settings(wanted), output)))
    return config.output


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory, photo_folder: Path) -> str:
    """`compression` (two variants a photo) and `reflection`, 128 px, of splits train and val. Not to be changed."""
    return make_dataset(config_of(tmp_path_factory.mktemp("pairs"), photo_folder))
