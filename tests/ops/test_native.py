"""The C++ kernels are the package's or compiled here; what stands in the way is said, and nothing half done is left."""

import importlib.util
import logging
import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jeffnet._jax_compat import include_folder
from jeffnet.ops import native
from jeffnet.ops.native.build import LIBRARIES, library_file

# Takes the place of the compiler: it answers after a while, with what it finds beside itself, in two pieces.
COMPILER = """#!/bin/sh
folder=$(dirname "$0")
if [ "$1" = --version ]; then cat "$folder/version"; exit; fi
echo "$@" >> "$folder/calls"
while [ "$1" != -o ]; do shift; done
head -c 4 "$folder/library" > "$2"
sleep 0.1
tail -c +5 "$folder/library" >> "$2"
"""


class Compiler:
    """A script under the name that `CXX` gives; `calls` are those that made a library."""

    def __init__(self, folder, monkeypatch, script=COMPILER):
        self.folder = folder
        folder.mkdir()
        (folder / "version").write_text("made up 1.0\n")
        (folder / "library").write_bytes(b"no library, but there whole")
        self.program = folder / "compiler"
        self.program.write_text(script)
        self.program.chmod(self.program.stat().st_mode | stat.S_IEXEC)
        monkeypatch.setenv("CXX", str(self.program))

    @property
    def calls(self):
        path = self.folder / "calls"
        return [line for line in path.read_text().splitlines() if "-shared" in line] if path.exists() else []


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JEFFNET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "native"


@pytest.fixture
def compiler(tmp_path, monkeypatch, cache):
    return Compiler(tmp_path / "compiler", monkeypatch)


@pytest.fixture
def fresh(cache):
    return copy_of(native.__file__)


def copy_of(file):
    """The module anew: what it knows already it does not look for again."""
    spec = importlib.util.spec_from_file_location("native_of_the_tests", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def refusal(module, caplog):
    """Why the kernels cannot be loaded, as the error says it; a warning says the same, once."""
    with caplog.at_level(logging.WARNING, "jeffnet"):
        for _ in range(2):
            assert not module.available()
            with pytest.raises(module.NativeUnavailableError) as raised:
                module.load()
    reason = str(raised.value)
    assert reason == module.failure() and len(reason.splitlines()) == 1
    assert [reason in record.getMessage() for record in caplog.records].count(True) == 1
    assert all(record.levelno == logging.WARNING for record in caplog.records)
    return reason


def test_the_reason_is_not_logged_to_whom_it_was_told(fresh, monkeypatch, caplog):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no-such-compiler" in fresh.failure()
    assert not fresh.available() and not caplog.records


def test_compiling_is_a_warning_and_using_again_is_not(compiler, caplog):
    for expected in (["compiling the C++ kernels, once for this machine: that may take a minute"], []):
        caplog.clear()
        native._path()
        assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == expected


def test_without_a_compiler_the_reason_is_said_once(fresh, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert "no C++ compiler was found (c++, g++, clang++)" in refusal(fresh, caplog)


def test_a_compiler_that_is_not_there_is_named(fresh, monkeypatch, caplog):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "CXX=no-such-compiler" in refusal(fresh, caplog)


@pytest.mark.parametrize(
    ("answer", "said"), [("echo unknown option >&2; exit 1", "unknown option"), ("exit 3", "exit status 3")]
)
def test_a_compiler_that_fails_is_quoted(answer, said, fresh, monkeypatch, tmp_path, cache, caplog):
    script = f'#!/bin/sh\nif [ "$1" != --version ]; then {answer}; fi\n'
    compiler = Compiler(tmp_path / "compiler", monkeypatch, script)
    reason = refusal(fresh, caplog)
    assert str(compiler.program) in reason and said in reason
    assert list(cache.iterdir()) == []


def test_a_library_that_cannot_be_loaded_is_named(fresh, compiler, cache, caplog):
    reason = refusal(fresh, caplog)
    (library,) = cache.iterdir()
    assert str(library) in reason and "cannot be loaded" in reason


def test_what_was_compiled_is_used_again(compiler, cache):
    library = native._path()
    assert library.parent == cache and library.read_bytes() == (compiler.folder / "library").read_bytes()
    changed = library.stat().st_mtime_ns
    assert native._path() == library and library.stat().st_mtime_ns == changed
    assert len(compiler.calls) == 1 and list(cache.iterdir()) == [library]


def test_all_that_it_depends_on_makes_another_library(compiler, cache, monkeypatch):
    built = {native._path()}
    (compiler.folder / "version").write_text("made up 1.1\n")
    built.add(native._path())
    monkeypatch.setattr(native, "THIS_PROCESSOR", (*native.THIS_PROCESSOR, "-funroll-loops"))
    built.add(native._path())
    monkeypatch.setattr(native, "fingerprint", lambda: "another processor")
    built.add(native._path())
    assert len(built) == len(compiler.calls) == 4
    assert "-funroll-loops" not in compiler.calls[1] and "-funroll-loops" in compiler.calls[2]


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.name)
def test_every_source_makes_another_library(library, compiler, cache, tmp_path):
    folder = tmp_path / "sources"
    shutil.copytree(Path(native.__file__).parent, folder, ignore=shutil.ignore_patterns("__pycache__"))
    built = {copy_of(native.__file__)._path(library)}
    assert {copy_of(folder / "__init__.py")._path(library)} == built
    for name in (*library.sources, *library.headers):
        (folder / name).write_text((folder / name).read_text() + "// changed\n")
        built.add(copy_of(folder / "__init__.py")._path(library))
    assert len(built) == 1 + len(library.sources) + len(library.headers)


def test_every_source_belongs_to_one_library():
    folder = Path(native.__file__).parent
    named = [name for library in LIBRARIES for name in (*library.sources, *library.headers)]
    assert sorted(named) == sorted(path.name for path in folder.iterdir() if path.suffix in (".cc", ".h"))


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Where temporary files lie."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(native.tempfile, "tempdir", str(folder))
    return folder


def test_where_the_cache_cannot_be_written_a_user_has_another(compiler, cache, temporary):
    cache.parent.write_text("a file where the folder should be")
    library = native._path()
    assert library.is_relative_to(temporary)
    assert library.read_bytes() == (compiler.folder / "library").read_bytes()
    assert native._path() == library and len(compiler.calls) == 1
    assert cache.parent.is_file()


def test_a_user_without_a_home_has_one_too(compiler, monkeypatch, temporary):
    monkeypatch.delenv("JEFFNET_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def homeless(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(native.Path, "expanduser", homeless)
    assert native._path() == native._path()
    assert native._path().is_relative_to(temporary) and len(compiler.calls) == 1


def test_where_nothing_can_be_kept_a_process_builds_for_itself(compiler, cache, temporary):
    cache.parent.write_text("a file where the folder should be")
    (temporary / f"jeffnet-native-{os.geteuid()}").write_text("another one")
    program = "from jeffnet.ops import native; print(native._path().read_text())"
    environment = {**os.environ, "TMPDIR": str(temporary)}
    answer = subprocess.check_output([sys.executable, "-c", program], text=True, env=environment)
    assert answer == "no library, but there whole\n"
    assert [path.name for path in temporary.iterdir()] == [f"jeffnet-native-{os.geteuid()}"]


def test_where_others_write_nothing_is_built(compiler, cache, temporary):
    """Neither in the cache nor among temporary files."""
    cache.parent.mkdir()
    for folder in (cache.parent, temporary):
        folder.chmod(0o777)
    with pytest.raises(native.NativeUnavailableError, match=r"temporary.* may be written by others \(mode 777\): let"):
        native._path()
    assert list(cache.parent.iterdir()) == list(temporary.iterdir()) == []


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "longer"])
def test_a_damaged_library_is_built_anew(damage, compiler, cache):
    library = native._path()
    content = library.read_bytes()
    flipped = bytes([content[0] ^ 1]) + content[1:]
    library.write_bytes({"empty": b"", "cut": content[:9], "flipped": flipped, "longer": content + b"\0"}[damage])
    assert native._path() == library and library.read_bytes() == content
    assert native._path() == library and len(compiler.calls) == 2
    assert list(cache.iterdir()) == [library]


@pytest.mark.parametrize("kind", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_what_is_no_file_is_not_read(kind, compiler, cache):
    library = native._path()
    library.unlink()
    kind(library)
    assert native._path().read_bytes() == (compiler.folder / "library").read_bytes()


@pytest.mark.parametrize("which", ["library", "its folder", "the cache"])
def test_a_library_that_others_may_write_is_not_loaded(which, compiler, cache, temporary):
    """The same content, from a folder of this user's own."""
    library = native._path()
    {"library": library, "its folder": cache, "the cache": cache.parent}[which].chmod(0o777)
    another = native._path()
    assert len(compiler.calls) == 2
    if which == "library":
        assert another == library and library.stat().st_mode & 0o022 == 0
    else:
        assert another != library and another.is_relative_to(cache.parent if which == "its folder" else temporary)
    assert native._path() == another and len(compiler.calls) == 2


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o077])
def test_no_umask_gives_others_a_library_to_write(umask, compiler, cache):
    before = os.umask(umask)
    try:
        library = native._path()
    finally:
        os.umask(before)
    for path in (library, cache, cache.parent):
        assert path.stat().st_mode & 0o022 == 0
    assert native._path() == library and len(compiler.calls) == 1


def test_what_a_compiler_prints_may_be_in_any_encoding(compiler, monkeypatch, caplog):
    (compiler.folder / "version").write_bytes(b"compilateur fran\xe7ais 1.0\n")
    first = native._path()
    (compiler.folder / "version").write_bytes(b"compilateur fran\xe8ais 1.0\n")
    assert native._path() != first
    compiler.program.write_text(
        "#!/bin/sh\nif [ \"$1\" != --version ]; then printf 'fehler \\374\\n' >&2; exit 1; fi\n"
    )
    assert "fehler" in refusal(copy_of(native.__file__), caplog)


def test_what_killed_processes_left_is_removed(compiler, cache):
    for name, age in (("build-abandoned", 10_000), ("build-underway", 0)):
        (cache / name).mkdir(parents=True)
        os.utime(cache / name, (time.time() - age,) * 2)
    library = native._path()
    assert sorted(cache.iterdir()) == sorted([cache / "build-underway", library])


def test_processes_that_build_at_once_do_not_disturb_each_other(compiler, cache):
    """Each finds the whole library under its name, whoever was first."""
    program = "from jeffnet.ops import native; print(native._path().read_text())"
    command = [sys.executable, "-c", program]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) for _ in range(2)]
    answers = [process.communicate(timeout=120)[0] for process in started]
    assert answers == ["no library, but there whole\n"] * 2
    assert len(list(cache.iterdir())) == 1


V3 = "fpu abm avx avx2 bmi1 bmi2 f16c fma movbe xsave"
V4 = f"{V3} avx512bw avx512cd avx512dq avx512f avx512vl"


class Package:
    """Libraries of the installed package, and the processor that it finds."""

    def __init__(self, module, folder, monkeypatch):
        self.module, self.folder, self.monkeypatch = module, folder, monkeypatch
        folder.mkdir()
        monkeypatch.setattr(module, "_PREBUILT", folder)
        self.processor("x86_64", V4)

    def processor(self, machine, features):
        self.monkeypatch.setattr("platform.system", lambda: "Linux")
        self.monkeypatch.setattr("platform.machine", lambda: machine)
        self.monkeypatch.setattr(self.module, "features", lambda: frozenset(features.split()))

    def add(self, processor, content=b"no library, but there whole"):
        path = self.folder / "library"
        path.write_bytes(content)
        return path.rename(self.folder / library_file(f"kernels-{processor}", path))


@pytest.fixture
def package(fresh, tmp_path, monkeypatch):
    return Package(fresh, tmp_path / "prebuilt", monkeypatch)


def test_the_packages_library_is_the_best_that_the_processor_can_run(package):
    assert package.module._prebuilt() is None
    bf16, v4, v3, arm = map(package.add, ("x86-64-bf16", "x86-64-v4", "x86-64-v3", "armv8-a"))
    for machine, features, chosen in [
        ("x86_64", f"{V4} avx512_bf16", bf16),
        ("x86_64", V4, v4),
        ("x86_64", f"{V3} avx512_bf16", v3),
        ("x86_64", V4.replace("avx512vl", ""), v3),
        ("x86_64", V3, v3),
        ("x86_64", V3.replace("fma", "fma4"), None),
        ("x86_64", "", None),
        ("aarch64", "fp asimd", arm),
        ("riscv64", V4, None),
    ]:
        package.processor(machine, features)
        assert package.module._prebuilt() == chosen, (machine, features)


def test_a_processor_of_no_library_compiles(package, compiler, cache, caplog):
    package.add("x86-64-v4")
    package.processor("x86_64", V3)
    assert str(cache) in refusal(package.module, caplog) and len(compiler.calls) == 1


@pytest.mark.parametrize(
    ("damage", "said"), [(None, "cannot be loaded"), (b"cut", "is damaged: install jeffnet again")], ids=["no", "cut"]
)
def test_a_damaged_library_of_the_package_is_named(damage, said, package, monkeypatch, caplog):
    """Here there is no compiler either, and one warning says both."""
    library = package.add("x86-64-v4")
    if damage:
        library.write_bytes(damage)
    monkeypatch.setenv("CXX", "no-such-compiler")
    reason = refusal(package.module, caplog)
    assert str(library) in reason and said in reason and "CXX=no-such-compiler" in reason


@pytest.fixture(scope="module")
def compiled():
    """The kernels that the other tests use; made before a test has a cache of its own."""
    if not native.available():
        pytest.skip(f"no C++ kernels: {native.failure()}")
    return Path(native.load()._name)


def test_compiled_kernels_replace_a_damaged_library_of_the_package(compiled, package, monkeypatch, caplog):
    library = package.add("x86-64-v4")
    monkeypatch.setattr(package.module, "_path", lambda library: compiled)
    assert package.module.available() and package.module.available()
    (record,) = caplog.records
    assert str(library) in record.getMessage() and "compiled on this machine" in record.getMessage()


# Kernels whose headers are of version 0.99. They must not be called.
FROM_THE_FUTURE = """
#include <cstdlib>
#include "xla/ffi/api/c_api.h"
static XLA_FFI_Error* Kernel(XLA_FFI_CallFrame* frame) {
  XLA_FFI_Extension_Base* extension = frame->extension_start;
  if (!extension || extension->type != XLA_FFI_Extension_Metadata) std::abort();
  XLA_FFI_Api_Version& version = reinterpret_cast<XLA_FFI_Metadata_Extension*>(extension)->metadata->api_version;
  version.major_version = 0;
  version.minor_version = 99;
  return nullptr;
}
"""


def test_a_library_for_another_version_of_xla_is_refused_before_it_is_called(package, tmp_path, monkeypatch, caplog):
    program = native.compiler()
    if program is None:
        pytest.skip("no C++ compiler")
    if "XLA_FFI_Extension_Base" not in (Path(include_folder()) / "xla/ffi/api/c_api.h").read_text():
        pytest.skip("the program is written for headers that releases are built with, of jaxlib 0.10")
    kernels = [
        f'extern "C" XLA_FFI_Error* {name}(XLA_FFI_CallFrame* frame) {{ return Kernel(frame); }}'
        for name in native._TARGETS
    ]
    source, library = tmp_path / "future.cc", tmp_path / "future.so"
    source.write_text(FROM_THE_FUTURE + "\n".join(kernels))
    subprocess.run([program, "-shared", "-fPIC", f"-I{include_folder()}", str(source), "-o", str(library)], check=True)
    added = package.add("x86-64-v4", library.read_bytes())
    monkeypatch.setenv("CXX", "no-such-compiler")
    reason = refusal(package.module, caplog)
    assert str(added) in reason and "0.99" in reason


@pytest.mark.slow
def test_a_first_build_leaves_one_library(cache, tmp_path):
    if native.compiler() is None:
        pytest.skip("no C++ compiler")
    program = "from jeffnet.ops import native; native.load(); print(native.library_name())"
    names = {subprocess.check_output([sys.executable, "-c", program], text=True).strip() for _ in range(2)}
    assert [path.name.rpartition("-")[0] for path in cache.iterdir()] == list(names)
