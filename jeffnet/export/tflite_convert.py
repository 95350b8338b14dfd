"""A network as the bytes of a TFLite file: by LiteRT's converter, or by TensorFlow's where that one is not installed.

Both get a float32 graph of a fixed batch with XLA's convolutions, which they recognise. LiteRT's converter has no
documented interface yet: all that is used of it is here.
"""

import importlib
import importlib.util
from typing import Any

import jax
from jax import Array

from jeffnet._jax_compat import foreign_call
from jeffnet._tensorflow import silence
from jeffnet.errors import ConfigError, first_line
from jeffnet.export.network import ExportNetwork
from jeffnet.export.traced import as_function
from jeffnet.system.extras import install

# Stands for a point in the StableHLO that the converter gets, and is taken out of it again.
_POINT = "jeffnet_point"
# Of the places that operations come from, of which the converter makes the names of tensors: the number of a point.
PLACE = "#{}#"
INPUT = "images"
SIGNATURE = "serving_default"


def convert(network: ExportNetwork) -> tuple[bytes, list[str], str]:
    """A network in float32, of the fixed batch of its options or of 1.

    Returns:
      The file; the names of the network's points, of which the names of tensors have the numbers, see `PLACE`; and the
      name and version of the converter.

    Raises:
      ConfigError: no converter is installed, or it cannot convert the network.
    """
    if importlib.util.find_spec("litert_converter") is not None:
        return _by_litert(network)
    if importlib.util.find_spec("tensorflow") is not None:
        return _by_tensorflow(network)
    raise ConfigError(f"writing TFLite needs litert-converter: {install('tflite')}")


def _by_litert(network: ExportNetwork) -> tuple[bytes, list[str], str]:
    from importlib.metadata import version

    from jax import export

    # Compiled modules, of whose names type checkers know nothing.
    modules = ("converter_api_ext", "mlir.ir", "mlir.passmanager")
    with silence():
        converter, ir, passmanager = (importlib.import_module(f"litert_converter.{name}") for name in modules)
    points: list[str] = []

    def mark(name: str, value: Array) -> Array:
        points.append(name)
        return foreign_call(_POINT, value, value, number=len(points) - 1)

    function = as_function(network, "xla", mark)

    def inlined(images: Array) -> Array:
        # JAX's own functions, such as activations, as parts of those that call them, so that they have a place too.
        with jax.disable_jit():
            return function(images)

    checks = [export.DisabledSafetyCheck.custom_call(_POINT)]
    images = network.images(network.options.batch_size or 1)
    output = "probabilities" if "softmax" in network.options.include else "logits"
    exported = export.export(jax.jit(inlined), platforms=("cpu",), disabled_checks=checks)(images)
    with ir.Context() as context:
        converter.prepare_mlir_context(context)
        module = ir.Module.parse(exported.mlir_module())
        _name_places(ir, module)
        options = converter.ConvertToTFLConfig()
        options.model_origin_framework = "JAX"
        try:
            converter.set_signature(module.operation, SIGNATURE, [INPUT], [output])
            converter.run_convert_to_tfl_passes(module, passmanager.PassManager(context=context), options)
            content = converter.export_flatbuffer_to_bytes(module.operation)
        except Exception as error:  # whatever the converter raises
            raise ConfigError(f"litert-converter cannot convert {network.card.model}: {first_line(error)}") from error
    return bytes(content), points, f"litert-converter {version('litert-converter')}"


def _name_places(ir: Any, module: Any) -> None:
    """Give every operation the place of the next point, whose value it is computed for, and take out the points."""
    block = next(iter(next(iter(module.body.operations)).regions[0]))
    waiting = []
    for operation in list(block.operations):
        waiting.append(operation)
        if operation.operation.name != "stablehlo.custom_call":
            continue
        number = ir.IntegerAttr(operation.attributes["mhlo.backend_config"]["number"]).value
        for each in waiting:
            each.operation.location = ir.Location.name(PLACE.format(number))
        operation.results[0].replace_all_uses_with(operation.operands[0])
        operation.operation.erase()
        waiting = []


def _by_tensorflow(network: ExportNetwork) -> tuple[bytes, list[str], str]:
    from jeffnet._tensorflow import tf
    from jeffnet.export.savedmodel import as_tensorflow

    images = network.images(network.options.batch_size or 1)
    concrete = tf.function(as_tensorflow(network, "xla"), autograph=False).get_concrete_function(
        tf.TensorSpec(images.shape, images.dtype.name, INPUT)
    )
    try:
        content = tf.lite.TFLiteConverter.from_concrete_functions([concrete], concrete).convert()
    except Exception as error:
        raise ConfigError(f"TensorFlow's converter cannot convert {network.card.model}: {first_line(error)}") from error
    return bytes(content), [], f"tensorflow {tf.__version__}"
