"""The two images every case starts from, made once for all modules here."""

from __future__ import annotations

import pytest

from tests.badinput.world import Image, make_image


@pytest.fixture(scope="session")
def closed_image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    return make_image(tmp_path_factory.mktemp("closed"))


@pytest.fixture(scope="session")
def killed_image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    return make_image(tmp_path_factory.mktemp("killed"), killed=True)


@pytest.fixture
def closed(closed_image: Image) -> Image:
    """A store that was closed in order."""
    closed_image.restore()
    return closed_image


@pytest.fixture
def killed(killed_image: Image) -> Image:
    """A store whose process was killed with a segment and the journal open."""
    killed_image.restore()
    return killed_image


@pytest.fixture(params=["closed", "killed"])
def image(request: pytest.FixtureRequest) -> Image:
    """Both, one after the other."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Image)
    return found
