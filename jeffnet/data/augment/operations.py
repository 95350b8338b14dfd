"""What augmentation does to one picture: functions of a Pillow picture, mode 'RGB' or 'L', that return a new one.

Pictures keep their size and mode. Where an operation moves pixels, `fill` is the colour, 0 to 255 by channel, of what
comes in from outside: one value serves all channels, and grey pictures take the mean of three. `resample` is Pillow's
filter. What `PIL.ImageOps` has as it is needed (autocontrast, equalize, invert) is not here again.
"""

from PIL import Image, ImageEnhance, ImageFilter, ImageOps

Fill = tuple[int, ...]


def posterize(image: Image.Image, bits: int) -> Image.Image:
    """Keeps the highest `bits` of every value; 8 or more keep all, and less than 1 keeps 1.

    So does TensorFlow, on which the papers' policies were trained: it shifts a byte by 7 bits at most.
    """
    return ImageOps.posterize(image, max(bits, 1)) if bits < 8 else image


def solarize(image: Image.Image, threshold: float) -> Image.Image:
    """Inverts values of `threshold` or more; 256 leaves all."""
    return image.point([value if value < threshold else 255 - value for value in range(256)] * len(image.getbands()))


def solarize_add(image: Image.Image, amount: int) -> Image.Image:
    """Adds to the values below 128, up to 255."""
    table = [min(value + amount, 255) if value < 128 else value for value in range(256)]
    return image.point(table * len(image.getbands()))


def color(image: Image.Image, factor: float) -> Image.Image:
    """Saturation: 0 is grey, 1 the picture itself, more is more colourful. Grey pictures stay what they are."""
    return ImageEnhance.Color(image).enhance(factor)


def contrast(image: Image.Image, factor: float) -> Image.Image:
    """Distance from the mean grey: 0 is that grey alone, 1 the picture itself."""
    return ImageEnhance.Contrast(image).enhance(factor)


def brightness(image: Image.Image, factor: float) -> Image.Image:
    """0 is black, 1 the picture itself."""
    return ImageEnhance.Brightness(image).enhance(factor)


def sharpness(image: Image.Image, factor: float) -> Image.Image:
    """0 is smoothed over 3 x 3 pixels, 1 the picture itself, more is sharper."""
    return ImageEnhance.Sharpness(image).enhance(factor)


def desaturate(image: Image.Image, share: float) -> Image.Image:
    """Takes away so much of the saturation: 1 leaves a grey picture, still of three channels if it had them."""
    return color(image, min(max(1 - share, 0.0), 1.0))


def gaussian_blur(image: Image.Image, radius: float) -> Image.Image:
    """Blurs with a bell curve whose standard deviation is `radius` pixels."""
    return image.filter(ImageFilter.GaussianBlur(radius))


def rotate(image: Image.Image, degrees: float, fill: Fill, resample: Image.Resampling) -> Image.Image:
    """Turns the picture about its centre, anticlockwise."""
    return image.rotate(degrees, resample, fillcolor=_colour(image, fill))


def shear_x(image: Image.Image, factor: float, fill: Fill, resample: Image.Resampling) -> Image.Image:
    """Moves every row to the left by `factor` times its distance from the top."""
    return _affine(image, (1, factor, 0, 0, 1, 0), fill, resample)


def shear_y(image: Image.Image, factor: float, fill: Fill, resample: Image.Resampling) -> Image.Image:
    """Moves every column up by `factor` times its distance from the left edge."""
    return _affine(image, (1, 0, 0, factor, 1, 0), fill, resample)


def translate_x(image: Image.Image, pixels: float, fill: Fill, resample: Image.Resampling) -> Image.Image:
    """Moves the picture to the left."""
    return _affine(image, (1, 0, pixels, 0, 1, 0), fill, resample)


def translate_y(image: Image.Image, pixels: float, fill: Fill, resample: Image.Resampling) -> Image.Image:
    """Moves the picture up."""
    return _affine(image, (1, 0, 0, 0, 1, pixels), fill, resample)


def translate_x_relative(image: Image.Image, share: float, fill: Fill, resample: Image.Resampling) -> Image.Image:
    """Moves the picture to the left by a share of its width."""
    return translate_x(image, share * image.width, fill, resample)


def translate_y_relative(image: Image.Image, share: float, fill: Fill, resample: Image.Resampling) -> Image.Image:
    """Moves the picture up by a share of its height."""
    return translate_y(image, share * image.height, fill, resample)


def _affine(image: Image.Image, matrix: tuple[float, ...], fill: Fill, resample: Image.Resampling) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample, fillcolor=_colour(image, fill))


def _colour(image: Image.Image, fill: Fill) -> float | tuple[int, ...]:
    """The fill as Pillow wants it for the picture's mode."""
    channels = len(image.getbands())
    if channels == 1:
        return round(sum(fill) / len(fill))
    return fill if len(fill) == channels else fill * channels
