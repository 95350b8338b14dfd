"""The ranges of a network's values from pictures, for files of 8-bit integers."""

from collections.abc import Callable
from dataclasses import replace

from jeffnet.data.preprocess import EvalTransform
from jeffnet.errors import ConfigError
from jeffnet.export.network import ExportNetwork
from jeffnet.export.pictures import read_pictures
from jeffnet.export.targets import TARGETS, check_int8
from jeffnet.inference.quantized import PASSES, calibrate, normalized_batches

CALIBRATION_IMAGES = 200


def quantized(
    network: ExportNetwork,
    target: str,
    data: str | None,
    images: int = CALIBRATION_IMAGES,
    kernel_bits: int | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> ExportNetwork:
    """A network with the grids of its values: those of its training, or those that pictures show.

    Args:
      network: in floats.
      target: in which it will be written.
      data: pictures, see `jeffnet.export.pictures.read_pictures`; None for a model that was trained with `quantize`.
      images: how many of them to use.
      kernel_bits: of its kernels; None for those of its training, or the target's.
      progress: called with what is being done.

    Raises:
      ConfigError: the target has no 8-bit integers or not these, the model was trained with others, or there is nothing
        to learn the ranges from.
      DatasetError: there are no such pictures.
      ImageError: a picture cannot be decoded.
    """
    check_int8(True, target, network.options.dtype, data, kernel_bits)
    trained = network.card.quantization
    bits = _kernel_bits(network, target, kernel_bits)
    if data is None:
        if trained is None:
            raise ConfigError(
                f"{network.card.model} was not trained with 8-bit integers: give pictures to calibrate with "
                "(--calibrate DATA; in Python calibrate_with)"
            )
        return replace(network, quantization=replace(trained, kernel_bits=bits))
    preprocessing = network.card.preprocessing
    transform = EvalTransform(preprocessing, network.image_size)
    progress(f"{network.card.model}: read pictures")
    pictures = read_pictures(data, transform, network.card.in_chans, images)
    seen = 0

    def tell(count: int) -> None:
        nonlocal seen
        seen += count
        share = seen / (PASSES * len(pictures))
        progress(f"{network.card.model}: learn the ranges of its values, {share:.0%}")

    tell(0)
    batches = normalized_batches(pictures, preprocessing, tell)
    grids = calibrate(network.plan, network.execution, network.arrays, batches)
    return replace(network, quantization=replace(grids, kernel_bits=bits))


def _kernel_bits(network: ExportNetwork, target: str, asked: int | None) -> int:
    """Those of the training where the target has them: a target that has others rounds more finely."""
    trained = network.card.quantization.kernel_bits if network.card.quantization else None
    if asked and trained and asked != trained:
        raise ConfigError(
            f"{network.card.model} was trained with kernels of {trained} bits, not {asked}: leave these out, "
            f"or train it with quantize.kernel_bits {asked}"
        )
    able = TARGETS[target].kernel_bits
    return next(bits for bits in (asked, trained, able[0]) if bits in able)
