"""What users receive: the contents of the distributions, and that the wheel works where nothing else is installed."""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import jeffnet
from jeffnet.system.extras import PACKAGES, install

pytestmark = pytest.mark.users

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def distributions(tmp_path_factory) -> tuple[Path, Path]:
    """Paths of the source distribution and of the wheel built from it."""
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("dist")
    # Not isolated: the build backend is installed with the tests, so that nothing is fetched here.
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT))
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


def test_wheel_holds_the_package_and_nothing_else(distributions):
    with zipfile.ZipFile(distributions[1]) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    metadata = f"jeffnet-{jeffnet.__version__}.dist-info/"
    assert {name for name in names if name.startswith("jeffnet/")} == _package_files()
    assert {name for name in names if not name.startswith("jeffnet/")} == {
        metadata + name for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")
    }


def test_sdist_holds_what_a_reader_needs_and_no_tests_or_data(distributions):
    with tarfile.open(distributions[0]) as archive:
        files = [member.name.split("/", 1)[1] for member in archive if member.isfile()]
    top = {name.split("/")[0] for name in files}
    required = {"jeffnet", "README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml", "PKG-INFO"}
    assert required <= top <= required | {"deploy", "docker", "docs", ".gitignore"}
    assert {name for name in files if name.startswith("jeffnet/")} == _package_files()


def test_metadata(distributions):
    with zipfile.ZipFile(distributions[1]) as archive:
        metadata = archive.read(f"jeffnet-{jeffnet.__version__}.dist-info/METADATA").decode()
    assert f"Version: {jeffnet.__version__}\n" in metadata
    assert "License-Expression: Apache-2.0\n" in metadata
    for extra in ("digits", "objax", "torch", "tf", "tfds", "datasets", "keras", "dev"):
        assert f"Provides-Extra: {extra}\n" in metadata
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist:") and "extra ==" not in line]
    for heavy in ("torch", "timm", "tensorflow", "datasets", "pyarrow", "keras", "h5py", "objax", "scikit-learn"):
        assert not [line for line in required if heavy in line]


@pytest.mark.slow
def test_wheel_works_in_an_environment_of_its_own(distributions, tmp_path):
    """With its declared dependencies alone: an undeclared one would be missing here."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = next((tmp_path / "venv").glob("[bS]*/python*"))
    _run(str(python), "-m", "pip", "install", "--quiet", str(distributions[1]))
    _run(str(python), "-m", "pip", "check")
    version = _run(str(python), "-c", "import jeffnet; print(jeffnet.__version__)", cwd=tmp_path)
    assert version.strip() == jeffnet.__version__
    assert "usage: jeffnet" in _run(str(python.parent / "jeffnet"), "--help", cwd=tmp_path)


def _package_files() -> set[str]:
    """Sources, the marker of typing and tables of ImageNet's classes: nothing else belongs into a distribution."""
    native = {path for kind in ("*.cc", "*.h") for path in (ROOT / "jeffnet/ops/native").glob(kind)}
    package = ROOT / "jeffnet"
    tables = {
        f"jeffnet/{name}"
        for name in ("arch/imagenet_classes.tsv", "arch/imagenet21k.tsv.gz", "data/imagenet_subsets.tsv")
    }
    return {str(path.relative_to(ROOT)) for path in [*package.rglob("*.py"), *native]} | tables | {"jeffnet/py.typed"}


def _run(*command: str, cwd: Path | None = None) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=600, check=False
    )
    assert process.returncode == 0, f"{' '.join(command)}\n{process.stdout}\n{process.stderr}"
    return process.stdout


def test_the_citation_is_of_this_version():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {jeffnet.__version__}\n" in citation and "\nlicense: Apache-2.0\n" in citation


def test_the_packages_that_messages_name_are_those_of_the_extras():
    """Asked for `jeffnet[x]`, pip would look for jeffnet in the registry: messages name the packages themselves."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {*PACKAGES} == {*project} - {"dev", "docs", "demo"}
    for extra, packages in PACKAGES.items():
        names = {re.match(r"[\w-]+", requirement)[0] for requirement in project[extra]}
        assert {*packages.split()} == names - ({"tensorflow"} if "tensorflow-cpu" in packages else {"tensorflow-cpu"})
    assert install("bench", "keras", "tfds", "tf").count("tensorflow-datasets") == 1
    for path in (ROOT / "jeffnet").rglob("*.py"):
        assert "pip install 'jeffnet" not in path.read_text(), path
