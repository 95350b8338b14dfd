"""A model that only infers, compiled for one shape of batch: as fast as this machine can run it.

    from jeffnet.inference.fused import fuse, load_fused

    fused = fuse(model, variables, batch_size=16, image_size=224)
    logits = fused(images)
    fused.save("b0.fused")
    logits = load_fused("b0.fused")(images)

BatchNorm and LayerScale are folded into the convolutions, bias, activation, gate and shortcut are computed where the
convolution has its outputs at hand, and the batch goes through the network in pieces that fit the caches. What no C++
kernel computes, such as attention, JAX computes in between: `FusedModel.unfused` names it.

Of a model in bfloat16 (`create_model(name, dtype="bfloat16")`) weights and the maps between operations are bfloat16. On
CPUs pictures, logits, means, gates and all sums are float32. Processors with AVX512-BF16 multiply bfloat16 numbers at
up to twice the speed of float32; others compute with them as float32, in half the memory but more slowly.
"""

import contextlib
import logging
import math
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import serialize_executable

from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.backends import to_start
from jeffnet.errors import ConfigError, InputError, one_line
from jeffnet.inference.folding import fold_norms
from jeffnet.inference.fused_file import conditions, read_fused, write_fused
from jeffnet.inference.fused_network import FusedNetwork, best_piece
from jeffnet.inference.kept_programs import keep_program, kept_program, program_key, programs_folder
from jeffnet.ops import native
from jeffnet.ops.conv import lowering
from jeffnet.ops.image import normalize
from jeffnet.ops.network import as_floats
from jeffnet.parallel.mesh import Layout
from jeffnet.system.processor import vector_bits
from jeffnet.weights.start import Start

_log = logging.getLogger("jeffnet")
_COMPILING = threading.Lock()


def fuse(
    *model: Any,
    batch_size: int,
    image_size: int | tuple[int, int],
    piece: int | None = None,
    compiler_options: Mapping[str, Any] | None = None,
    devices: Sequence[Any] | None = None,
    preprocessing: Preprocessing | None = None,
) -> "FusedModel":
    """Fold, compile and load a model for inference.

    With `jax_compilation_cache_dir`, JAX's option, compiled programs for one CPU are kept in that folder.

    Args:
      model: what any backend's `create_model` returns: `model, variables`, the pair, or a module; or the start of one.
      batch_size: pictures of a call; fewer may come.
      image_size: height and width in pixels.
      piece: pictures that go through the network at once; None chooses by the processor's largest cache, and takes the
        whole batch on other platforms.
      compiler_options: of XLA, as in `jax.jit`; None chooses.
      devices: of this host, which share each batch, such as `jax.local_devices()`; None takes the first alone.
      preprocessing: makes a model that takes pixels, uint8 of 0 to 255, and normalises them by this mean and standard
        deviation; None makes one of normalised images.

    Returns:
      The compiled model. It has its own copy of the weights: `model` need not be kept.

    Raises:
      ConfigError: `batch_size`, `image_size` or `piece` is below 1, the devices cannot share a batch evenly, or the
        model is abstract.
      JeffnetError: `model` is none of ours.
    """
    given = model[0] if len(model) == 1 else model
    start = given if isinstance(given, Start) else to_start(given)
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    numbers = {"batch_size": batch_size, "image_size": min(height, width), "piece": 1 if piece is None else piece}
    for name, number in numbers.items():
        if number < 1:
            raise ConfigError(f"{name} {number} is below 1")
    if any(isinstance(array, jax.ShapeDtypeStruct) for array in start.arrays.values()):
        raise ConfigError("the model has shapes instead of arrays: create it without abstract=True")
    layout = Layout.of(devices) if devices and len(devices) > 1 else None
    share = batch_size // (layout.devices if layout else 1)
    if layout and batch_size % layout.devices:
        raise ConfigError(f"batch_size {batch_size} cannot be shared by {layout.devices} devices: give a multiple")
    on_cpu = jax.default_backend() == "cpu"
    dtype = jnp.dtype(start.dtype)
    has_kernels = dtype in (jnp.float32, jnp.bfloat16)
    use_native = on_cpu and has_kernels and lowering() in ("auto", "native") and native.available()
    if piece is None:
        piece = best_piece(start.plan, share, height, width, dtype.itemsize) if on_cpu else share
    plan, folded = fold_norms(start.plan, start.arrays, np.float32 if use_native else dtype)
    network = FusedNetwork(plan, start.execution, dtype, use_native, min(piece, share))
    arrays: Any = network.pack(folded)
    taken = jnp.dtype(jnp.uint8) if preprocessing else network.ends
    images = jax.ShapeDtypeStruct((batch_size, height, width, start.plan.in_chans), taken)
    if compiler_options is None:
        compiler_options = {"xla_cpu_prefer_vector_width": vector_bits()} if on_cpu else {}
    norms = (preprocessing.mean, preprocessing.std) if preprocessing else None
    if layout:
        arrays, images = layout.place(arrays), images.update(sharding=layout.batch)
    program, executable = _program(network, norms, arrays, images, dict(compiler_options), layout)
    arrays = arrays if layout else jax.device_put(arrays)
    return FusedModel(program, arrays, images, network.piece, network.unfused, executable)


class FusedModel:
    """A compiled model: `fused(images)` gives logits.

    Attributes:
      images: shape and dtype of the batch.
      piece: pictures that go through the network at once.
      unfused: canonical names of the operations that JAX computes, wholly or in part, since no C++ kernel does; of all
        where there are no C++ kernels, as on accelerators.
    """

    def __init__(
        self,
        compiled: Any,
        arrays: dict[str, Array],
        images: jax.ShapeDtypeStruct,
        piece: int,
        unfused: tuple[str, ...],
        executable: bytes | None = None,
    ) -> None:
        self.images, self.piece, self.unfused = images, piece, unfused
        # XLA cannot write again what it has read: `executable` is what it was read from.
        self._compiled, self._arrays, self._executable = compiled, arrays, executable

    def __call__(self, images: Any) -> Array:
        """Logits `(N, num_classes)`, or pooled features where the model has no classifier.

        Args:
          images: `(N, H, W, C)` with N from 0 to the batch size: normalised, or, where the model was fused with a
            preprocessing, uint8 pixels.

        Raises:
          InputError: another shape, or integers for normalised images, or other than uint8 for pixels.
        """
        count = images.shape[0] if getattr(images, "ndim", 0) == 4 else -1
        if not 0 <= count <= self.images.shape[0] or images.shape[1:] != self.images.shape[1:]:
            limit = f"(0 to {self.images.shape[0]}, {', '.join(map(str, self.images.shape[1:]))})"
            raise InputError(f"images of shape {getattr(images, 'shape', None)}: compiled for {limit}; fuse for others")
        batch = as_floats(images, self.images.dtype) if self.images.dtype != jnp.uint8 else _as_pixels(images)
        shared = self.images.sharding is not None
        if count < self.images.shape[0]:
            batch = jnp.pad(batch, ((0, self.images.shape[0] - count), (0, 0), (0, 0), (0, 0)))
        logits = self._compiled(self._arrays, jax.device_put(batch, self.images.sharding) if shared else batch)
        return logits[:count] if count < len(batch) else logits

    def memory(self) -> dict[str, int]:
        """Bytes of the weights, of one batch's pictures, and of what is computed between them and the logits."""
        analysis = self._compiled.memory_analysis()
        return {
            "weights": sum(array.nbytes for array in self._arrays.values()),
            "images": int(np.prod(self.images.shape)) * self.images.dtype.itemsize,
            "temporary": int(getattr(analysis, "temp_size_in_bytes", 0)),
        }

    def program(self) -> str:
        """The compiled program as XLA writes it; the scope of each operation is the layer's canonical name."""
        return self._compiled.as_text() or ""

    def save(self, path: str | os.PathLike) -> None:
        """Write the compiled model to one file, for this kind of machine and this version of JAX.

        Args:
          path: of the file; what is there is replaced.

        Raises:
          ConfigError: it was compiled for several devices.
        """
        if self.images.sharding is not None:
            raise ConfigError("a model that was fused for several devices cannot be saved: fuse it for one")
        executable = self._executable or serialize_executable.serialize(self._compiled)[0]
        write_fused(path, executable, self._arrays, self.images, self.piece, self.unfused)


def load_fused(path: str | os.PathLike) -> FusedModel:
    """A compiled model from the file that `FusedModel.save` wrote; traces and compiles nothing.

    The file holds machine code and a pickle, which are run: load only files from a source that you trust. Its checksum
    finds damage, not malice.

    Args:
      path: of the file.

    Returns:
      The model, ready to be called.

    Raises:
      WeightsError: no such file, another kind of file, a damaged one, or one for another machine or version of JAX.
    """
    executable, arrays, images, piece, unfused = read_fused(path)
    compiled = _loaded(executable, arrays, images)
    arrays: Any = jax.device_put(arrays)
    return FusedModel(compiled, arrays, images, piece, unfused, executable)


def _program(
    network: FusedNetwork,
    norms: tuple[Any, Any] | None,
    arrays: Any,
    images: jax.ShapeDtypeStruct,
    options: dict[str, Any],
    layout: Layout | None,
) -> tuple[Any, bytes | None]:
    """The compiled program of a network, and what it was read from if it was kept on disk."""

    def apply(arrays: Any, images: Array) -> Array:
        return network.apply(arrays, normalize(images, *norms, network.ends) if norms else images)

    def compiled() -> Any:
        function = apply
        if layout:
            # Inside it each device has a program of its own, in which C++ may be called.
            specs = {"in_specs": (layout.whole.spec, layout.batch.spec), "out_specs": layout.batch.spec}
            function = jax.shard_map(apply, mesh=layout.mesh, check_vma=False, **specs)
        lowered = jax.jit(function, compiler_options=options).lower(arrays, images)
        with _not_cached():
            return lowered.compile()

    # Programs are loaded for the first device.
    is_first = jax.config.jax_default_device in (None, jax.devices()[0])  # pyright: ignore[reportAttributeAccessIssue]
    folder = programs_folder() if jax.default_backend() == "cpu" and is_first and not layout else None
    if folder is None:
        return compiled(), None
    key = program_key(network, norms, images, lowering(), sorted(options.items()), conditions())
    executable = kept_program(folder, key)
    if executable is not None:
        try:
            return _loaded(executable, arrays, images), executable
        except Exception as error:  # whatever pickle and XLA raise: compiling always works
            _log.debug("a kept program cannot be loaded: %s", one_line(error))
    program = compiled()
    keep_program(folder, key, serialize_executable.serialize(program)[0])
    return program, None


def _loaded(executable: bytes, arrays: Any, images: jax.ShapeDtypeStruct) -> Any:
    in_tree = jax.tree.structure(((arrays, images), {}))
    return serialize_executable.deserialize_and_load(
        executable, in_tree, jax.tree.structure(0), execution_devices=jax.devices()[:1]
    )


def _as_pixels(images: Any) -> Array:
    if images.dtype != np.uint8:
        raise InputError(f"images of {images.dtype}: the model was fused with a preprocessing and takes uint8 pixels")
    return jnp.asarray(images)


@contextlib.contextmanager
def _not_cached() -> Iterator[None]:
    """Keep what is compiled out of JAX's persistent cache: XLA cannot write what comes from there, as `save` does."""
    option = "jax_persistent_cache_min_compile_time_secs"
    with _COMPILING:  # another thread would take infinity for the value to restore
        before = getattr(jax.config, option)
        jax.config.update(option, math.inf)
        try:
            yield
        finally:
            jax.config.update(option, before)
