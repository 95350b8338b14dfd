"""Do `tf_` models, padded as TensorFlow does, run as fast as their twins? Padding is resolved when compiling.

python benchmarks/twins.py efficientnet_b0 mobilenetv3_large_100 mixnet_s

Both fused, in turns in one process; ratios of medians, above 1 where the `tf_` model is faster.
"""

import argparse
import statistics
import time

import jax.numpy as jnp

from jeffnet.arch.zoo import model_preprocessing
from jeffnet.functional import create_model
from jeffnet.inference.fused import fuse


def main() -> None:
    """Measure, and print one line for each pair."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="names without tf_")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    for name in options.models:
        size = model_preprocessing(f"tf_{name}").image_size
        for batch in options.batch_size:
            images = jnp.zeros((batch, size, size, 3))
            twins = [fuse(*create_model(twin), batch_size=batch, image_size=size) for twin in (f"tf_{name}", name)]
            calls = max(1, 16 // batch)
            taken: list[list[float]] = [[], []]
            for number in range(options.repeats + 1):
                for which in (0, 1) if number % 2 else (1, 0):
                    began = time.perf_counter()
                    for _ in range(calls):
                        twins[which](images).block_until_ready()
                    if number:  # the first turn warms the caches up
                        taken[which].append((time.perf_counter() - began) / calls)
            tf, own = map(statistics.median, taken)
            print(
                f"{name}, batch {batch}: tf_ {batch / tf:.1f} images/s, other {batch / own:.1f}, ratio {own / tf:.3f}"
            )


if __name__ == "__main__":
    main()
