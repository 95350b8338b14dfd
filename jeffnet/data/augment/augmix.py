"""AugMix: a picture mixed with several chains of operations on it."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from jeffnet.data.augment.magnitudes import CANVAS, OPERATIONS, Canvas, Noise
from jeffnet.data.augment.randaugment import INCREASING

# What the robustness benchmarks test (noise, blur, weather ...) is not among them; nor is what inverts a picture.
_MIXED = tuple(name.replace("_rel", "_short") for name in INCREASING if name not in ("invert", "solarize_add"))
_DEEPEST = 3

UNIFORM = Noise(math.inf)


@dataclass(frozen=True)
class AugMix:
    """Mixes chains of operations by Dirichlet weights, and the mixture with the picture by a Beta share.

    Attributes:
      magnitude: of the operations.
      width: how many chains.
      depth: operations in a chain; None draws 1 to 3 for each.
      alpha: parameter of both distributions.
      blended: mixes in 8-bit pixels, chain by chain, rather than in floating point, which is exact.
      noise: on the magnitude; by default uniform from 0 to that.
      canvas: for pixels from outside the picture.

    Source: Hendrycks et al., "AugMix", arXiv:1912.02781; operations on colours, kept for tests there, as in timm.
    """

    magnitude: float = 3.0
    width: int = 3
    depth: int | None = None
    alpha: float = 1.0
    blended: bool = False
    noise: Noise = UNIFORM
    canvas: Canvas = CANVAS

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """The picture, changed at random; mode 'RGB' or 'L'."""
        weights = rng.dirichlet([self.alpha] * self.width)
        share = rng.beta(self.alpha, self.alpha)
        chains = [self._chain(image, rng) for _ in weights]
        return (_blended if self.blended else _mixed)(image, chains, share * weights)

    def _chain(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        for _ in range(self.depth or int(rng.integers(1, _DEEPEST + 1))):
            operation = OPERATIONS[_MIXED[rng.integers(len(_MIXED))]]
            image = operation(image, self.noise.around(self.magnitude, rng), rng, self.canvas)
        return image


def _mixed(image: Image.Image, chains: list[Image.Image], shares: np.ndarray) -> Image.Image:
    """Sum of the chains' results times their shares and of the picture times what is left."""
    total = np.float32(1 - shares.sum()) * np.asarray(image, np.float32)
    for chain, share in zip(chains, shares, strict=True):
        total += np.float32(share) * np.asarray(chain, np.float32)
    return Image.fromarray(np.clip(np.rint(total), 0, 255).astype(np.uint8))


def _blended(image: Image.Image, chains: list[Image.Image], shares: np.ndarray) -> Image.Image:
    """The same by one blend for each chain, rounded every time."""
    kept = 1 - shares.sum()
    for chain, share in zip(chains, shares, strict=True):
        kept += share
        if kept > 0:
            image = Image.blend(image, chain, share / kept)
    return image
