"""What `remat` saves and costs: memory between forward and backward pass, and the time of a gradient.

python benchmarks/rematerialisation.py tf_efficientnet_b0 --batch-size 16

Memory is what XLA allocates besides arguments and results, in MB; the programs take turns. On a CPU the third one is
compiled without the option that keeps XLA from undoing it (docs/speed.md).
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp

from jeffnet.arch.zoo import model_preprocessing
from jeffnet.functional import create_model
from jeffnet.system.processor import remat_options


def gradient(name: str, images: jax.Array, remat: bool, options: dict[str, str]):
    """A compiled gradient of a loss, and the variables that it takes."""
    model, variables = create_model(name, remat=remat)

    def loss(params, stats, images):
        logits, _ = model.apply(
            {"params": params, "batch_stats": stats}, images, train=True, rngs={"dropout": jax.random.key(0)}
        )
        return jnp.square(logits).mean()

    arguments = (variables["params"], variables["batch_stats"], images)
    compiled = jax.jit(jax.grad(loss), compiler_options=options).lower(*arguments).compile()
    return compiled, arguments


def main() -> None:
    """Measure, and print one line for each program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    size = model_preprocessing(options.model).image_size
    images = jax.random.normal(jax.random.key(0), (options.batch_size, size, size, 3))
    programs = {
        "all kept": gradient(options.model, images, False, {}),
        "remat": gradient(options.model, images, True, remat_options()),
        "remat, no option": gradient(options.model, images, True, {}),
    }
    taken: dict[str, list[float]] = {name: [] for name in programs}
    for number in range(options.repeats + 1):
        for name, (compiled, arguments) in programs.items():
            began = time.perf_counter()
            jax.block_until_ready(compiled(*arguments))
            if number:  # the first touches the memory
                taken[name].append(time.perf_counter() - began)
    base = statistics.median(taken["all kept"])
    for name, (compiled, _) in programs.items():
        memory, seconds = compiled.memory_analysis().temp_size_in_bytes / 1e6, statistics.median(taken[name])
        print(f"{name:18} {memory:8.0f} MB {1e3 * seconds:8.0f} ms, {seconds / base:.2f} of the time")


if __name__ == "__main__":
    main()
