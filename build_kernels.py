"""Compiles the C++ libraries into wheels: a step of hatchling's, which builds all else.

Where there is no compiler, or it fails, the wheel has none and is for every system: it compiles them when they are
first used. The environment variable JEFFNET_BUILD_KERNELS chooses: 0 does not compile them, 1 fails if they do not
compile. Editable installations have none.
"""

import importlib.util
import itertools
import os
import runpy
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import hatchling.build
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NATIVE = Path("jeffnet", "ops", "native")
# XLA runs kernels that were compiled with its headers of this version or an older one: releases use the oldest.
HEADERS = "jaxlib>=0.10.2"

native = runpy.run_path(str(Path(__file__).parent / NATIVE / "build.py"))


def __getattr__(name: str) -> Any:
    """The functions of a build backend that are not below are hatchling's."""
    return getattr(hatchling.build, name)


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    """What a wheel takes to build: jaxlib too, for its headers, if kernels are to be compiled."""
    headers = [HEADERS] if obstacle() is None else []
    return [*hatchling.build.get_requires_for_build_wheel(config_settings), *headers]


def obstacle() -> str | None:
    """Why kernels are not compiled; None if they are."""
    if os.environ.get("JEFFNET_BUILD_KERNELS") == "0":
        return "JEFFNET_BUILD_KERNELS is 0"
    if not native["processors"]():
        return "wheels have none for this system"
    if native["compiler"]() is None:
        return "no C++ compiler was found"
    return None


class KernelsHook(BuildHookInterface):
    """Adds the libraries for each kind of processor, and the name of the system to the wheel's."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the kernels, before the wheel is written; do nothing for an editable one."""
        if version == "editable":
            return
        self.folder = tempfile.TemporaryDirectory()
        try:
            libraries = self.compile(Path(self.folder.name))
        except native["NativeUnavailableError"] as error:
            if os.environ.get("JEFFNET_BUILD_KERNELS") == "1":
                raise
            self.app.display_warning(f"This wheel has no C++ kernels: {error}. It compiles them when it is used.")
            return
        build_data["force_include"].update(libraries)
        build_data["pure_python"] = False
        # Kernels do not use Python: one wheel is for all its versions.
        build_data["tag"] = f"py3-none-{platform_tag()}"

    def compile(self, folder: Path) -> dict[str, str]:
        """The libraries' paths, and where they belong in the wheel."""
        if reason := obstacle():
            raise native["NativeUnavailableError"](reason)
        package = importlib.util.find_spec("jaxlib")
        if package is None:
            raise native["NativeUnavailableError"](f"their headers are missing, which {HEADERS} has")
        include = str(Path(package.submodule_search_locations[0], "include"))
        files = {}
        for processor, library in itertools.product(native["processors"](), native["LIBRARIES"]):
            name = f"{library.name}-{processor.name}"
            file = folder / f"{name}.so"
            self.app.display_info(f"Compiling {library.title} for {processor.name} ...")
            native["compile_library"](library, Path(self.root, NATIVE), include, processor.flags, file)
            files[str(file)] = str(NATIVE / "prebuilt" / native["library_file"](name, file))
        return files

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the libraries, which are in the wheel now."""
        if version != "editable":
            self.folder.cleanup()


def platform_tag() -> str:
    """The name of this system in those of wheels: on macOS 11.0, the version that kernels are compiled for."""
    name = sysconfig.get_platform()
    name = "macosx-11.0-arm64" if name.startswith("macosx") else name
    return name.replace("-", "_").replace(".", "_")
