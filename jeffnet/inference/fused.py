"""A model that only infers, compiled for one shape of batch: as fast as this machine can run it.

    from jeffnet.inference.fused import fuse, load_fused

    fused = fuse(model, variables, batch_size=16, image_size=224)
    logits = fused(images)
    fused.save("b0.fused")
    logits = load_fused("b0.fused")(images)

BatchNorm is folded into the convolutions, bias, activation, gate and shortcut are computed where the convolution has
its outputs at hand, and the batch goes through the network in pieces that fit the caches.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from jax import Array, lax
from jax.experimental import serialize_executable
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jeffnet.arch.plan import Block, Conv, ConvPart, Dense, Plan, SqueezeExcite
from jeffnet.arch.summary import layers
from jeffnet.backends import to_start
from jeffnet.errors import ConfigError, WeightsError
from jeffnet.ops import native
from jeffnet.ops.activations import ACTIVATIONS
from jeffnet.ops.broadcast import over_channels
from jeffnet.ops.conv import conv_general_dilated, lowering, make_window
from jeffnet.ops.dense import ACTS, dense_conv, depthwise_act, inverted_residual, pack_bias, pack_kernel
from jeffnet.ops.depthwise import Window
from jeffnet.ops.native import limits
from jeffnet.ops.network import apply_network, as_floats
from jeffnet.parallel.mesh import Layout
from jeffnet.system.files import written_atomically
from jeffnet.system.processor import cache_bytes, processors, short_fingerprint, vector_bits

_METADATA_KEY = "jeffnet-fused"
_FORMAT = 2
_EXECUTABLE = "executable"
_MOST_ANEW = 0.15


def fuse(
    *model: Any,
    batch_size: int,
    image_size: int | tuple[int, int],
    piece: int | None = None,
    compiler_options: Mapping[str, Any] | None = None,
    devices: Sequence[Any] | None = None,
) -> "FusedModel":
    """Fold, compile and load a model for inference.

    Args:
      model: what any backend's `create_model` returns: `model, variables`, the pair, or a module.
      batch_size: pictures of a call; fewer may come.
      image_size: height and width in pixels.
      piece: pictures that go through the network at once; None chooses by the processor's largest cache, and takes the
        whole batch on other platforms.
      compiler_options: of XLA, as in `jax.jit`; None chooses.
      devices: of this host, which share each batch, such as `jax.local_devices()`; None takes the first alone.

    Returns:
      The compiled model. It has its own copy of the weights: `model` need not be kept.

    Raises:
      ConfigError: `batch_size`, `image_size` or `piece` is below 1, the devices cannot share a batch evenly, or the
        model is abstract.
      JeffnetError: `model` is none of ours.
    """
    start = to_start(model[0] if len(model) == 1 else model)
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    for name, number in (
        ("batch_size", batch_size),
        ("image_size", min(height, width)),
        ("piece", 1 if piece is None else piece),
    ):
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
    use_native = on_cpu and dtype == jnp.float32 and lowering() in ("auto", "native") and native.available()
    if piece is None:
        piece = _best_piece(start.plan, share, height, width) if on_cpu else share
    network = _Network(start.plan, dtype, use_native, min(piece, share))
    arrays: Any = network.pack(start.arrays)
    images = jax.ShapeDtypeStruct((batch_size, height, width, start.plan.in_chans), dtype)
    if compiler_options is None:
        compiler_options = {"xla_cpu_prefer_vector_width": vector_bits()} if on_cpu else {}
    apply, options = network.apply, dict(compiler_options)
    if layout:
        # Inside it each device has a program of its own, in which C++ may be called.
        rows, whole = layout.batch.spec, layout.whole.spec
        apply = jax.shard_map(apply, mesh=layout.mesh, in_specs=(whole, rows), out_specs=rows, check_vma=False)
        arrays, images = layout.place(arrays), images.update(sharding=layout.batch)
    lowered = jax.jit(apply, compiler_options=options).lower(arrays, images)
    with _not_cached():
        compiled = lowered.compile()
    return FusedModel(compiled, arrays if layout else jax.device_put(arrays), images, network.piece)


class FusedModel:
    """A compiled model: `fused(images)` gives logits.

    Attributes:
      images: shape and dtype of the batch.
      piece: pictures that go through the network at once.
    """

    def __init__(
        self,
        compiled: Any,
        arrays: dict[str, Array],
        images: jax.ShapeDtypeStruct,
        piece: int,
        executable: bytes | None = None,
    ) -> None:
        self.images, self.piece = images, piece
        # XLA cannot write again what it has read: `executable` is what it was read from.
        self._compiled, self._arrays, self._executable = compiled, arrays, executable

    def __call__(self, images: Any) -> Array:
        """Logits `(N, num_classes)`, or pooled features where the model has no classifier.

        Args:
          images: `(N, H, W, C)` with N from 0 to the batch size, normalised.

        Raises:
          ArchitectureError: pictures of integers: pixels that were not normalised.
          ConfigError: another shape.
        """
        count = images.shape[0] if getattr(images, "ndim", 0) == 4 else -1
        if not 0 <= count <= self.images.shape[0] or images.shape[1:] != self.images.shape[1:]:
            limit = f"(0 to {self.images.shape[0]}, {', '.join(map(str, self.images.shape[1:]))})"
            raise ConfigError(
                f"images of shape {getattr(images, 'shape', None)}: compiled for {limit}; fuse for others"
            )
        batch = as_floats(images, self.images.dtype)
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
        payload = self._executable or serialize_executable.serialize(self._compiled)[0]
        arrays = {name: np.asarray(array) for name, array in self._arrays.items()}
        arrays[_EXECUTABLE] = np.frombuffer(payload, np.uint8)
        about = {
            "format": _FORMAT,
            "made for": _conditions(),
            "images": [list(self.images.shape), self.images.dtype.name],
            "piece": self.piece,
        }
        text = json.dumps(about)
        with written_atomically(path) as partial:
            save_file(arrays, partial, {_METADATA_KEY: f"{_checksum(text, arrays)} {text}"})


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
    if not Path(path).is_file():
        raise WeightsError(f"'{path}' is no file")
    try:
        with safe_open(path, "numpy") as file:
            entry = (file.metadata() or {}).get(_METADATA_KEY)
            arrays = {name: file.get_tensor(name) for name in file.keys()} if entry else {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"'{path}' is no fused model, or is cut off: {error}") from error
    if entry is None:
        raise WeightsError(f"'{path}' is no fused model: make one by `fuse(...).save(path)`")
    checksum, _, about = entry.partition(" ")
    if checksum != _checksum(about, arrays):
        raise WeightsError(
            f"'{path}' is damaged, by its checksum, or of an older version: copy it again, or fuse the model anew"
        )
    facts = json.loads(about)
    here = _conditions()
    made_for = facts["made for"]
    other = [
        f"{name}: {made_for.get(name)}, here {value}" for name, value in here.items() if made_for.get(name) != value
    ]
    if facts["format"] != _FORMAT or other:
        raise WeightsError(
            f"'{path}' was compiled elsewhere ({'; '.join(other) or 'another format'}): fuse the model anew"
        )
    if here["kernels"] != "none":
        native.load()  # registers what the executable calls
    payload = arrays.pop(_EXECUTABLE).tobytes()
    images = jax.ShapeDtypeStruct(tuple(facts["images"][0]), jnp.dtype(facts["images"][1]))
    in_tree = jax.tree.structure(((arrays, images), {}))
    compiled = serialize_executable.deserialize_and_load(
        payload, in_tree, jax.tree.structure(0), execution_devices=jax.devices()[:1]
    )
    return FusedModel(compiled, jax.device_put(arrays), images, facts["piece"], payload)


def _checksum(about: str, arrays: Mapping[str, np.ndarray]) -> str:
    """Of all that a file holds; an executable with a flipped bit may do anything."""
    digest = hashlib.sha256(about.encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"\0{name} {array.dtype} {array.shape}\0".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


@contextlib.contextmanager
def _not_cached() -> Iterator[None]:
    """Keep what is compiled out of JAX's persistent cache: XLA cannot write what comes from there, as `save` does."""
    option = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, option)
    jax.config.update(option, math.inf)
    try:
        yield
    finally:
        jax.config.update(option, before)


def _conditions() -> dict[str, str]:
    """What a compiled model depends on."""
    device = jax.devices()[0]
    return {
        "jax": jax.__version__,
        "jaxlib": jaxlib.version.__version__,
        "platform": device.platform,
        "device": short_fingerprint() if device.platform == "cpu" else device.device_kind,
        "kernels": native.library_name() if device.platform == "cpu" and native.available() else "none",
    }


def _best_piece(plan: Plan, batch_size: int, height: int, width: int) -> int:
    """As many pictures as have their largest input and output in the cache, and divide the batch."""
    scale = (height * width) / max(height, width) ** 2
    rows = [row.out_size**2 * row.out_channels * scale * 4 for row in layers(plan, max(height, width))]
    largest = max(before + after for before, after in itertools.pairwise(rows))
    fitting = max(1, int(cache_bytes() / 2 / largest))
    return max(size for size in range(1, min(fitting, batch_size) + 1) if batch_size % size == 0)


@dataclasses.dataclass(frozen=True)
class _Network:
    """The folded network as a function of its arrays, named by convolution: each part's `kernel` and `bias`."""

    plan: Plan
    dtype: Any
    native: bool
    piece: int

    def pack(self, arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The folded arrays, in the order in which they are read."""
        packed: dict[str, np.ndarray] = {}
        for op in _convolutions(self.plan):
            scale, bias = _folded_norm(op, arrays, self.plan.bn_epsilon)
            first = 0
            for part in op.parts:
                own = slice(first, first + part.out_channels)
                kernel = np.asarray(arrays[f"{part.name}.kernel"], np.float64) * scale[own]
                packed |= self._packed(op, part, kernel, bias[own])
                first += part.out_channels
        if self.plan.classifier is not None:
            op = _classifier_conv(self.plan.classifier)
            kernel = np.asarray(arrays[f"{op.name}.kernel"], np.float64)[None, None]
            packed |= self._packed(op, op.parts[0], kernel, np.asarray(arrays[f"{op.name}.bias"], np.float64))
        return packed

    def _packed(self, op: Conv, part: ConvPart, kernel: np.ndarray, bias: np.ndarray) -> dict:
        kernel, bias = kernel.astype(self.dtype), bias.astype(self.dtype)
        if self._form(op, part) == "dense":
            kernel, bias = pack_kernel(kernel), pack_bias(bias)
        return {f"{part.name}.kernel": kernel, f"{part.name}.bias": bias}

    def _form(self, op: Conv, part: ConvPart) -> str:
        """Which of the kernels computes a part of a convolution: 'dense', 'depthwise', or 'jax' for none."""
        if not self.native or op.act not in ACTS:
            return "jax"
        size = (part.kernel_size, part.kernel_size)
        # 'SAME' pads by less than the kernel reaches.
        pads = ((0, 0), (0, 0)) if isinstance(part.padding, str) else part.padding
        window = Window((op.stride, op.stride), pads, (op.dilation, op.dilation))
        if part.groups == 1 and limits.dense((*size, part.in_channels, part.out_channels), window):
            return "dense"
        depthwise = part.groups == part.in_channels == part.out_channels
        return "depthwise" if depthwise and limits.depthwise((*size, 1, part.in_channels), window) else "jax"

    def _is_pointwise(self, op: Conv | SqueezeExcite) -> bool:
        """Whether an operation is one product of all channels at each place."""
        return (
            isinstance(op, Conv)
            and [part.kernel_size for part in op.parts] == [1]
            and op.stride == 1
            and op.parts[0].padding in ("SAME", ((0, 0), (0, 0)))
            and self._form(op, op.parts[0]) == "dense"
        )

    def apply(self, arrays: Mapping[str, Array], images: Array) -> Array:
        """Logits, or pooled features."""
        trunk = self._trunk(arrays)
        count = images.shape[0]
        if self.piece < count:
            # The last piece of an uneven batch is filled up with what is already there.
            filled = -(-count // self.piece) * self.piece
            images = (
                jnp.pad(images, ((0, filled - count), (0, 0), (0, 0), (0, 0)), mode="wrap")
                if filled > count
                else images
            )
            pieces = images.reshape(-1, self.piece, *images.shape[1:])
            x = lax.map(trunk, pieces)
            x = x.reshape(-1, *x.shape[2:])[:count]
        else:
            x = trunk(images)
        # The classifier's weights are large against its work: they are read once for the whole batch.
        return x if self.plan.classifier is None or self.plan.test_window else self._classifier(arrays, x)

    def _trunk(self, arrays: Mapping[str, Array]) -> Any:
        """Pooled features of some pictures; with test-time pooling, which comes after the classifier, logits."""
        output = "logits" if self.plan.test_window else "pre_logits"

        def run(images: Array) -> Array:
            outputs = apply_network(
                self.plan,
                images,
                self.dtype,
                lambda op, x: self._conv(arrays, op, x),
                lambda block, x: self._block(arrays, block, x),
                (lambda x: self._classifier(arrays, x)) if self.plan.classifier else None,
                output=output,
            )
            return outputs[-1]

        return run

    def _block(self, arrays: Mapping[str, Array], block: Block, x: Array) -> Array:
        shortcut, gate, ops, means = x, None, block.ops, None
        bands = self._bands(block, x)
        if bands:
            whole = len(ops) == 3
            with jax.named_scope(block.name):
                x, means = self._inverted(arrays, ops, x, bands, shortcut if block.residual and whole else None)
            if whole:
                return x
            ops = ops[2:]
        for index, op in enumerate(ops):
            last = index + 1 == len(ops)
            if isinstance(op, SqueezeExcite):
                # The convolution that comes next multiplies by the gate.
                if gate is not None:
                    x, means = x * gate, None
                means = x.mean((1, 2), keepdims=True) if means is None else means
                gate = self._conv(arrays, op.expand, self._conv(arrays, op.reduce, means))
                if last:
                    x = x * gate + shortcut if block.residual else x * gate
                continue
            means = None
            if gate is None and not last and self._gives_means(op):
                x, means = self._with_means(arrays, op, x)
            else:
                x = self._conv(arrays, op, x, gate, shortcut if last and block.residual else None)
            gate = None
        return x

    def _gives_means(self, op: Conv) -> bool:
        return all(self._form(op, part) == "depthwise" for part in op.parts)

    def _with_means(self, arrays: Mapping[str, Array], op: Conv, x: Array) -> tuple[Array, Array]:
        """A depthwise convolution, and the means of its outputs over each picture."""
        outputs, first = [], 0
        for part in op.parts:
            own = slice(first, first + part.in_channels)
            kernel, bias = arrays[f"{part.name}.kernel"], arrays[f"{part.name}.bias"]
            window = make_window(x.shape[1:3], kernel.shape[:2], (op.stride,) * 2, part.padding, (op.dilation,) * 2)
            with jax.named_scope(part.name):
                outputs.append(depthwise_act(x if len(op.parts) == 1 else x[..., own], kernel, bias, window, op.act))
            first = own.stop
        if len(outputs) == 1:
            return outputs[0]
        return tuple(jnp.concatenate(each, axis=-1) for each in zip(*outputs, strict=True))  # pyright: ignore[reportReturnType]

    def _bands(self, block: Block, x: Array) -> int:
        """Into how many bands pictures are cut to compute a block's first convolutions together; 0 for not at all."""
        match block.ops:
            case [expand, Conv(parts=[part]) as depthwise, *rest] if self._is_pointwise(expand) and rest:
                pass
            case _:
                return 0
        size = (part.kernel_size,) * 2
        window = make_window(x.shape[1:3], size, (depthwise.stride,) * 2, part.padding, (depthwise.dilation,) * 2)
        together = limits.inverted(x.shape, (*size, 1, part.in_channels), window)
        if not together or self._form(depthwise, part) != "depthwise":
            return 0
        # The kernel of whole blocks ends with a product of all channels and no activation.
        if len(rest) == 1 and not (self._is_pointwise(rest[0]) and rest[0].act is None):
            return 0
        bands = -(-len(processors()) // x.shape[0])
        # A band computes the rows under its neighbour's kernels too; that must stay a small part of its work.
        rows, anew = x.shape[1] / bands, part.kernel_size - depthwise.stride
        return bands if bands == 1 or anew <= rows * _MOST_ANEW else 0

    def _inverted(
        self, arrays: Mapping[str, Array], ops: tuple, x: Array, bands: int, shortcut: Array | None
    ) -> tuple[Array, Array]:
        expand, depthwise = ops[:2]
        part = depthwise.parts[0]
        size = (part.kernel_size,) * 2
        window = make_window(x.shape[1:3], size, (depthwise.stride,) * 2, part.padding)
        names = [op.parts[0].name for op in ops if isinstance(op, Conv)]
        pairs = [(arrays[f"{name}.kernel"], arrays[f"{name}.bias"]) for name in names]
        project, features = (pairs[2], ops[2].out_channels) if len(ops) == 3 else (None, 0)
        acts = (expand.act, depthwise.act)
        return inverted_residual(x, pairs[0], pairs[1], window, acts, bands, project, features, shortcut)

    def _conv(
        self,
        arrays: Mapping[str, Array],
        op: Conv,
        x: Array,
        gate: Array | None = None,
        shortcut: Array | None = None,
    ) -> Array:
        outputs, channel, feature = [], 0, 0
        for part in op.parts:
            own, made = slice(channel, channel + part.in_channels), slice(feature, feature + part.out_channels)
            whole = len(op.parts) == 1
            with jax.named_scope(part.name):
                outputs.append(
                    self._part(
                        arrays,
                        op,
                        part,
                        x if whole else x[..., own],
                        gate if gate is None or whole else gate[..., own],
                        shortcut if shortcut is None or whole else shortcut[..., made],
                    )
                )
            channel, feature = own.stop, made.stop
        return outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=-1)

    def _part(
        self,
        arrays: Mapping[str, Array],
        op: Conv,
        part: ConvPart,
        x: Array,
        gate: Array | None,
        shortcut: Array | None,
    ) -> Array:
        kernel, bias = arrays[f"{part.name}.kernel"], arrays[f"{part.name}.bias"]
        size = (part.kernel_size, part.kernel_size)
        window = make_window(x.shape[1:3], size, (op.stride,) * 2, part.padding, (op.dilation,) * 2)
        form = self._form(op, part)
        if form == "dense":
            return dense_conv(x, kernel, bias, size, part.out_channels, window, op.act, gate, shortcut)
        x = x if gate is None else x * gate
        if form == "depthwise":
            x, _ = depthwise_act(x, kernel, bias, window, op.act)
        else:
            x = conv_general_dilated(
                x, kernel, window.strides, window.pads, rhs_dilation=window.dilation, feature_group_count=part.groups
            )
            x = x + over_channels(bias, x)
            x = ACTIVATIONS[op.act](x) if op.act else x
        return x if shortcut is None else x + shortcut

    def _classifier(self, arrays: Mapping[str, Array], x: Array) -> Array:
        assert self.plan.classifier is not None
        op = _classifier_conv(self.plan.classifier)
        if self._form(op, op.parts[0]) != "dense":
            x = x @ arrays[f"{op.name}.kernel"][0, 0]
            return x + over_channels(arrays[f"{op.name}.bias"], x)
        rows = x.reshape(-1, 1, 1, x.shape[-1])
        return self._conv(arrays, op, rows).reshape(*x.shape[:-1], op.out_channels)


def _classifier_conv(classifier: Dense) -> Conv:
    """The classifier as a convolution of pictures of one place."""
    name = classifier.name
    part = ConvPart(name, classifier.in_features, classifier.out_features, 1, 1, "SAME")
    return Conv(name, (part,), 1, 1, True, None, None)


def _convolutions(plan: Plan) -> list[Conv]:
    found = [plan.stem]
    for block in plan.blocks:
        for op in block.ops:
            found += [op] if isinstance(op, Conv) else [op.reduce, op.expand]
    return [*found, plan.head]


def _folded_norm(op: Conv, arrays: Mapping[str, Any], epsilon: float) -> tuple[np.ndarray, np.ndarray]:
    """By what a convolution's outputs are multiplied, and what is added, for its bias and norm; float64."""

    def take(name: str, leaf: str) -> np.ndarray:
        return np.asarray(arrays[f"{name}.{leaf}"], np.float64)

    scale, bias = np.ones(op.out_channels), np.zeros(op.out_channels)
    if op.bias:
        bias = np.concatenate([take(part.name, "bias") for part in op.parts])
    if op.norm:
        scale = take(op.norm, "scale") / np.sqrt(take(op.norm, "var") + epsilon)
        bias = (bias - take(op.norm, "mean")) * scale + take(op.norm, "bias")
    return scale, bias
