"""What tests of models share."""

import pytest

from tests.pipelines import PIPELINES, write_pipeline


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """A folder with a pipeline of each kind."""
    folder = tmp_path_factory.mktemp("pipelines")
    for name in PIPELINES:
        write_pipeline(name, folder / name)
    return folder
