"""What the primitives of a convolution and its two gradients share.

The three are the partial transposes of one trilinear form, so each one's derivatives are the others. They have the
parameters `window`, `size` (height and width of the picture or of the kernel, which the operands do not tell; None for
the convolution) and `lowering`, and may have more.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

from jeffnet._jax_compat import Primitive, defbilinear, same_axes


def bind(primitive: Primitive, a: Array, b: Array, **how: Any) -> Array:
    """A primitive of two operands, which may vary over different axes of a mesh."""
    return primitive.bind(*same_axes(a, b), **how)


def unless_empty(form: Callable[..., Array], shape: Callable[..., tuple[int, ...]]) -> Callable[..., Array]:
    """What computes a primitive, from the function that computes it where there is anything to add up.

    Args:
      form: takes the operands and the parameters but `lowering`.
      shape: of the result, from the operands, the window and the size.
    """

    def run(a: Array, b: Array, *, window: Any, size: Any, lowering: str, **how: Any) -> Array:
        del lowering
        result = shape(a, b, window, size)
        if any(0 in sizes for sizes in (a.shape, b.shape, result)):  # sums of nothing
            return jnp.zeros(result, a.dtype)
        return form(a, b, window=window, size=size, **how)

    return run


def define_derivatives(forward: Primitive, input_gradient: Primitive, kernel_gradient: Primitive) -> None:
    """The derivatives of a convolution of images by a kernel, and of its gradients `(g, kernel)` and `(images, g)`."""

    def convolved(images: Array, kernel: Array, *, size: Any, **how: Any) -> Array:
        return bind(forward, images, kernel, size=None, **how)

    # The operand to differentiate by is undefined: only its `aval` is there.
    def by_images(g: Array, images: Any, kernel: Array, *, size: Any, **how: Any) -> Array:
        return bind(input_gradient, g, kernel, size=images.aval.shape[1:3], **how)

    def by_kernel(g: Array, images: Array, kernel: Any, *, size: Any, **how: Any) -> Array:
        return bind(kernel_gradient, images, g, size=kernel.aval.shape[:2], **how)

    defbilinear(forward, by_images, by_kernel)
    defbilinear(
        input_gradient,
        lambda images, g, kernel, **how: convolved(images, kernel, **how),
        lambda images, g, kernel, **how: by_kernel(g, images, kernel, **how),
    )
    defbilinear(
        kernel_gradient,
        lambda kernel, images, g, **how: by_images(g, images, kernel, **how),
        lambda kernel, images, g, **how: convolved(images, kernel, **how),
    )
