"""What creating a model and its first jitted call cost in each backend, against each other.

python benchmarks/backend_cost.py tf_efficientnet_b0 tf_efficientnet_b7 --repeats 3

Every measurement has a process of its own, with no compilation cache; backends take turns, so that a busy machine slows
them alike. Figures are medians in seconds, ratios are to the fastest backend.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

from jeffnet import backends

BACKENDS = tuple(backends.BACKENDS)
COLUMNS = ("import", "create", "first call", "create + first call", "later call")


def measure(backend: str, name: str, size: int) -> dict[str, float]:
    """Seconds of each phase, in this process."""
    started = time.perf_counter()
    import jax
    import jax.numpy as jnp

    from jeffnet.backends import load_backend

    module = load_backend(backend)
    imported = time.perf_counter()
    images = jax.block_until_ready(jnp.zeros((1, size, size, 3)))  # the platform starts here, for all alike
    ready = time.perf_counter()
    model = module.create_model(name)
    created = time.perf_counter()
    call = _native_call(backend, model)
    jax.block_until_ready(call(images))
    called = time.perf_counter()
    jax.block_until_ready(call(images))
    again = time.perf_counter()
    return {
        "import": imported - started,
        "create": created - ready,
        "first call": called - created,
        "create + first call": called - ready,
        "later call": again - called,
    }


def _native_call(backend: str, model):
    """As a user of the framework jits it."""
    import jax

    if backend == "nnx":
        from flax import nnx

        jitted = nnx.jit(lambda model, images: model(images))
        return lambda images: jitted(model, images)
    if backend == "objax":
        from jeffnet.objax import objax

        return objax.Jit(model)
    model, variables = model
    jitted = jax.jit(model.apply)
    return lambda images: jitted(variables, images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--size", type=int, default=224, help="pixels along each side (default: %(default)s)")
    parser.add_argument("--measure", metavar="BACKEND", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.models[0], options.size)))
        return
    environment = {key: value for key, value in os.environ.items() if not key.startswith("JAX_COMPILATION_CACHE")}
    print("| model | backend | " + " | ".join(COLUMNS) + " | ratio |\n" + "|---" * (len(COLUMNS) + 3) + "|")
    for name in options.models:
        rows: dict[str, list[dict[str, float]]] = {backend: [] for backend in BACKENDS}
        for repeat in range(options.repeats):
            for backend in BACKENDS[repeat % len(BACKENDS) :] + BACKENDS[: repeat % len(BACKENDS)]:
                command = [sys.executable, "-W", "ignore", __file__, name, "--size", str(options.size)]
                answer = subprocess.run(
                    [*command, "--measure", backend], env=environment, capture_output=True, text=True, check=True
                )
                rows[backend].append(json.loads(answer.stdout.splitlines()[-1]))
        medians = {
            backend: {column: statistics.median(row[column] for row in rows[backend]) for column in COLUMNS}
            for backend in BACKENDS
        }
        fastest = min(row["create + first call"] for row in medians.values())
        for backend, row in medians.items():
            cells = " | ".join(f"{row[column]:.3f}" for column in COLUMNS)
            print(f"| `{name}` | {backend} | {cells} | {row['create + first call'] / fastest:.2f} |", flush=True)


if __name__ == "__main__":
    main()
