"""jeffnet itself: its backends and its fused inference."""

from importlib.metadata import version
from typing import Any

import jeffnet
from jeffnet.bench.prepare import training_plan
from jeffnet.bench.program import LEARNING_RATE, MOMENTUM, Program


class _Jax(Program):
    """A model of one of the backends, as `jax.jit` compiles it."""

    backend = ""

    def load(self) -> None:
        import jax
        import jax.numpy as jnp

        from jeffnet.backends import load_backend
        from jeffnet.ops import native
        from jeffnet.ops.conv import lowering

        self.module = load_backend(self.backend)
        jax.block_until_ready(jnp.zeros(1))  # the platform starts here
        if jax.default_backend() == "cpu" and lowering() in ("auto", "native"):
            native.available()  # built once on a machine: no part of what compiling a model takes

    def create(self) -> None:
        if self.job.trains:
            self._create_training()
        else:
            self._create_inference()

    def _create_inference(self) -> None:
        import jax
        import jax.numpy as jnp

        dtype = jnp.dtype(self.job.dtype)
        *model, _ = self.module.from_pretrained(self.job.file("model.safetensors"), dtype=dtype)
        apply, variables = self.module.inference(*model)
        images, apply = jnp.asarray(self.job.pictures()), jax.jit(apply)
        self._step = lambda: apply(variables, images)

    def _create_training(self) -> None:
        import jax
        import jax.numpy as jnp
        import optax

        from jeffnet.ops.loss import cross_entropy
        from jeffnet.weights.start import Start, start_pretrained, statistics

        job, dtype = self.job, jnp.dtype(self.job.dtype)
        start, card = start_pretrained(job.file("model.safetensors"))
        plan, optimizer = training_plan(card), optax.sgd(LEARNING_RATE, MOMENTUM)
        images, labels = jnp.asarray(job.pictures()), jnp.asarray(job.labels())

        def loss_of(params: Any, stats: Any, images: Any, labels: Any) -> Any:
            # Nothing is dropped: the key is never used.
            key = jax.random.key(0)
            logits, stats = self.module.training(Start(plan, {**params, **stats}, dtype, jnp.float32, rng=key), images)
            return cross_entropy(logits, labels).mean(), stats

        def step(state: Any, images: Any, labels: Any) -> Any:
            params, stats, opt_state = state
            (loss, stats), gradients = jax.value_and_grad(loss_of, has_aux=True)(params, stats, images, labels)
            updates, opt_state = optimizer.update(gradients, opt_state, params)
            return (optax.apply_updates(params, updates), stats, opt_state), loss

        stats = statistics(start.arrays)
        params = {name: array for name, array in start.arrays.items() if name not in stats}
        self._state, compiled = (params, stats, optimizer.init(params)), jax.jit(step, donate_argnums=0)

        def advance() -> Any:
            self._state, loss = compiled(self._state, images, labels)
            jax.block_until_ready(self._state)
            return loss

        self._step = advance

    def call(self) -> Any:
        return self._step().block_until_ready()

    def describe(self) -> dict[str, Any]:
        import jax

        device = jax.devices()[0]
        packages = ["jax", "jaxlib", *(["flax"] if self.backend in ("linen", "nnx") else [])]
        return {
            "platform": device.platform,
            "device": device.device_kind,
            # Not by its metadata: it runs from a folder, too.
            "versions": {"jeffnet": jeffnet.__version__, **{package: version(package) for package in packages}},
        }

    def device_bytes(self) -> int | None:
        import jax

        stats = jax.devices()[0].memory_stats()
        return stats.get("peak_bytes_in_use") if stats else None


Linen, Nnx, Objax, Functional = (
    type(backend.capitalize(), (_Jax,), {"backend": backend}) for backend in ("linen", "nnx", "objax", "functional")
)


class Fused(_Jax):
    """`jeffnet.inference.fused`."""

    backend = "functional"

    def load(self) -> None:
        super().load()
        import jeffnet.inference.fused  # noqa: F401

    def create(self) -> None:
        import jax.numpy as jnp

        job = self.job
        *self._model, _ = self.module.from_pretrained(job.file("model.safetensors"), dtype=jnp.dtype(job.dtype))
        self._images = jnp.asarray(job.pictures())

    def compile(self) -> None:
        from jeffnet.inference.fused import fuse

        fused = fuse(*self._model, batch_size=self.job.batch_size, image_size=self.job.image_size)
        self._step = lambda: fused(self._images)
