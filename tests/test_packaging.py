"""What users receive: the contents of the distributions, and that the wheel works where nothing else is installed.

Compiling the kernels for each kind of processor takes minutes. Here a compiler that answers with the kernels of this
machine takes its place, but for the slow tests.
"""

import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml

import jeffnet
from jeffnet.ops import native
from jeffnet.ops.native.build import LIBRARIES, processors
from jeffnet.system.extras import PACKAGES, install
from jeffnet.system.processor import features

pytestmark = pytest.mark.users

ROOT = Path(__file__).parents[1]


# What an installed package must be able to run. The release runs it too.
PROGRAM = Path(__file__).parent / "fused_program.py"


def _build(folder: Path, *options: str, **settings: str) -> Path:
    """The wheel that is built of this project. Not isolated: what builds it is installed with the tests."""
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), *options, str(ROOT), **settings)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def copying(tmp_path_factory) -> dict[str, str]:
    """Settings for a build whose compiler copies the kernels of this machine, or without kernels where it has none."""
    if not processors() or not native.available():
        return {"JEFFNET_BUILD_KERNELS": "0"}
    program = tmp_path_factory.mktemp("compiler") / "c++"
    program.write_text(f'#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\ncp "{native.load()._name}" "$2"\n')
    program.chmod(0o755)
    return {"CXX": str(program), "JEFFNET_BUILD_KERNELS": "1"}


@pytest.fixture(scope="module")
def distributions(tmp_path_factory, copying) -> tuple[Path, Path]:
    """Paths of the source distribution and of the wheel built from it."""
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("dist")
    wheel = _build(folder, **copying)
    return next(folder.glob("*.tar.gz")), wheel


@pytest.fixture(scope="module")
def backend():
    """The build backend."""
    pytest.importorskip("hatchling")
    spec = importlib.util.spec_from_file_location("build_kernels", ROOT / "build_kernels.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _kernels(wheel: Path) -> set[tuple[str, str]]:
    """The libraries of a wheel, each with a kind of processor."""
    with zipfile.ZipFile(wheel) as archive:
        found = re.findall(
            r"^jeffnet/ops/native/prebuilt/([a-z]+)-(.+)-[0-9a-f]{16}\.so$", "\n".join(archive.namelist()), re.M
        )
    return set(found)


def test_wheel_holds_the_package_and_its_kernels_and_nothing_else(distributions, copying):
    with zipfile.ZipFile(distributions[1]) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        about = archive.read(f"jeffnet-{jeffnet.__version__}.dist-info/WHEEL").decode()
    metadata = f"jeffnet-{jeffnet.__version__}.dist-info/"
    kernels = {name for name in names if name.startswith("jeffnet/ops/native/prebuilt/")}
    assert {name for name in names if name.startswith("jeffnet/")} - kernels == _package_files()
    assert {name for name in names if not name.startswith("jeffnet/")} == {
        metadata + name for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")
    }
    kinds = itertools.product(LIBRARIES, processors()) if "CXX" in copying else ()
    expected = {(library.name, processor.name) for library, processor in kinds}
    assert _kernels(distributions[1]) == expected and len(kernels) == len(expected)
    # For any Python, and for this system alone if there are kernels.
    tag = "py3-none-" + ("(linux|macosx)_.*" if expected else "any")
    assert re.fullmatch(rf"jeffnet-{re.escape(jeffnet.__version__)}-{tag}\.whl", distributions[1].name)
    assert f"Root-Is-Purelib: {'false' if expected else 'true'}\n" in about


@pytest.mark.parametrize("settings", [{"JEFFNET_BUILD_KERNELS": "0"}, {"CXX": "no-such-compiler"}], ids=str)
def test_without_a_compiler_or_on_request_the_wheel_is_for_all_systems(settings, distributions, tmp_path):
    with tarfile.open(distributions[0]) as archive:
        archive.extractall(tmp_path, filter="data")
    (sources,) = tmp_path.iterdir()
    build = (sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path))
    _run(*build, cwd=sources, **settings)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl") and not _kernels(wheel)


@pytest.mark.skipif(not processors(), reason="wheels have no kernels for this system")
def test_a_wheel_that_must_have_kernels_is_not_built_without(distributions, tmp_path):
    build = (sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path))
    with pytest.raises(AssertionError, match=r"no C\+\+ compiler was found"):
        _run(*build, cwd=ROOT, CXX="no-such-compiler", JEFFNET_BUILD_KERNELS="1")
    assert not list(tmp_path.iterdir())


def test_an_editable_installation_compiles_nothing_and_needs_no_headers(backend, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("CXX", sys.executable)  # found, but no compiler
    monkeypatch.delenv("JEFFNET_BUILD_KERNELS", raising=False)
    hook = backend.KernelsHook(str(ROOT), {}, None, None, str(tmp_path), "wheel")
    changes = {}
    hook.initialize("editable", changes)
    hook.finalize("editable", changes, "")
    assert changes == {}
    assert backend.HEADERS not in backend.get_requires_for_build_editable()
    assert (backend.HEADERS in backend.get_requires_for_build_wheel()) is bool(processors())
    monkeypatch.setenv("JEFFNET_BUILD_KERNELS", "0")
    assert backend.HEADERS not in backend.get_requires_for_build_wheel()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert backend.HEADERS.replace("jaxlib", "jax") in project["dependencies"]


def _logits(wheel: Path, folder: Path) -> np.ndarray:
    """Of `PROGRAM` with an installed wheel, no compiler and an empty cache. Dependencies are those of the tests."""
    venv.create(folder / "venv", with_pip=False)
    python = next((folder / "venv").glob("[bS]*/python*"))
    _run(sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel))
    (packages,) = (folder / "venv").glob("[lL]ib/**/site-packages")
    (packages / "tests.pth").write_text(sysconfig.get_path("purelib"))
    (folder / "empty").mkdir()
    settings = {"PATH": str(folder / "empty"), "JEFFNET_CACHE": str(folder / "cache")}
    process = subprocess.run(
        [python, str(PROGRAM)], cwd=folder, env=_environment(**settings), capture_output=True, text=True, timeout=300
    )
    assert process.returncode == 0 and not process.stderr, process.stderr
    answer = json.loads(process.stdout)
    assert Path(answer["package"]).is_relative_to(packages)
    assert Path(answer["kernels"]).parent == packages / "jeffnet/ops/native/prebuilt"
    assert not (folder / "cache").exists()
    return np.array(answer["logits"])


def _check_logits(wheel: Path, folder: Path) -> None:
    """They are those of the kernels that were compiled on this machine."""
    answer = json.loads(_run(sys.executable, str(PROGRAM), cwd=folder, PYTHONPATH=str(ROOT)))
    assert "prebuilt" not in answer["kernels"]
    np.testing.assert_allclose(_logits(wheel, folder), answer["logits"], rtol=1e-5, atol=1e-7)
    assert np.std(answer["logits"]) > 0


@pytest.fixture
def suits():
    """Skips where wheels have no kernels for the processor."""
    if not any(processor.features <= features() for processor in processors()):
        pytest.skip("wheels have no kernels for this processor")
    if not native.available():
        pytest.skip(f"no C++ kernels: {native.failure()}")


def test_an_installed_wheel_runs_its_kernels_without_a_compiler(suits, distributions, tmp_path):
    _check_logits(distributions[1], tmp_path)


@pytest.mark.slow
def test_compiled_for_all_processors_the_kernels_give_the_same(suits, tmp_path):
    wheel = _build(tmp_path, "--wheel", JEFFNET_BUILD_KERNELS="1")
    assert _kernels(wheel) == {processor.name for processor in processors()}
    _check_logits(wheel, tmp_path)


def test_sdist_holds_what_a_reader_needs_and_no_tests_or_data(distributions):
    with tarfile.open(distributions[0]) as archive:
        files = [member.name.split("/", 1)[1] for member in archive if member.isfile()]
    top = {name.split("/")[0] for name in files}
    required = {"jeffnet", "build_kernels.py", "README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml", "PKG-INFO"}
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


def _environment(**settings: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | settings


def _run(*command: str, cwd: Path | None = None, **settings: str) -> str:
    """What a command prints, with more environment variables."""
    environment = _environment(**settings)
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


def test_the_release_publishes_what_every_job_has_built_and_only_that_job_may():
    workflow = (ROOT / ".github/workflows/release.yml").read_text()
    jobs = yaml.safe_load(workflow)["jobs"]
    assert {*jobs["publish"]["needs"]} == {*jobs} - {"publish"}
    assert [name for name, job in jobs.items() if job.get("permissions", {}).get("id-token")] == ["publish"]
    uses = re.findall(r"uses: *(\S+)", workflow)
    assert uses and all(re.fullmatch(r"[\w./-]+@v\d+(\.\d+)*", action) for action in uses)
    released = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["cibuildwheel"]
    assert released["environment"]["JEFFNET_BUILD_KERNELS"] == "1" and PROGRAM.name in released["test-command"]
