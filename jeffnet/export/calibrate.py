"""The ranges of a network's values from pictures, for files of 8-bit integers."""

from dataclasses import replace

from jeffnet.data.preprocess import EvalTransform
from jeffnet.errors import ConfigError
from jeffnet.export.network import ExportNetwork
from jeffnet.export.pictures import read_pictures
from jeffnet.export.targets import check_int8
from jeffnet.inference.quantized import calibrate, normalized_batches

CALIBRATION_IMAGES = 200


def quantized(network: ExportNetwork, target: str, data: str | None, images: int = CALIBRATION_IMAGES) -> ExportNetwork:
    """A network with the grids of its values: those of its training, or those that pictures show.

    Args:
      network: in floats.
      target: in which it will be written.
      data: pictures, see `jeffnet.export.pictures.read_pictures`; None for a model that was trained with `quantize`.
      images: how many of them to use.

    Raises:
      ConfigError: the target has no 8-bit integers, or there is nothing to learn the ranges from.
      DatasetError: there are no such pictures.
      ImageError: a picture cannot be decoded.
    """
    check_int8(True, target, network.options.dtype)
    if data is None:
        if network.card.quantization is None:
            raise ConfigError(
                f"{network.card.model} was not trained with 8-bit integers: give pictures to calibrate with "
                "(--calibrate DATA)"
            )
        return replace(network, quantization=network.card.quantization)
    preprocessing = network.card.preprocessing
    transform = EvalTransform(preprocessing, network.image_size)
    pictures = read_pictures(data, transform, network.card.in_chans, images)
    batches = normalized_batches(pictures, preprocessing)
    grids = calibrate(network.plan, network.execution, network.arrays, batches)
    return replace(network, quantization=grids)
