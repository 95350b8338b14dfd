"""Real photographs: on noise, many operations would do next to nothing."""

import pytest
from PIL import Image


@pytest.fixture(scope="package")
def photographs() -> dict[str, Image.Image]:
    """Two photographs, of different sizes and neither square, each in colour and in grey."""
    datasets = pytest.importorskip("sklearn.datasets")
    found = {}
    for name, size in (("china", (96, 64)), ("flower", (70, 101))):
        image = Image.fromarray(datasets.load_sample_image(f"{name}.jpg")).resize(size)
        found[name], found[f"{name} in grey"] = image, image.convert("L")
    return found
