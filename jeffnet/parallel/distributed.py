"""Several processes that work together through `jax.distributed`.

Each process calls `connect` before it uses JAX. From then on `jax.devices()` are those of all, and what is compiled for
them runs in all of them at once: every process must call the same functions in the same order.
"""

import functools
import hashlib
import itertools
import json
import logging
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

import jeffnet
from jeffnet._jax_compat import coordination
from jeffnet.errors import ConfigError, JeffnetError, UsageError, first_line
from jeffnet.parallel.heartbeats import BAD_CAST, called_on_loss
from jeffnet.system.versions import versions

# A process that has not been heard of for so long counts as gone, and the others stop.
HEARTBEAT_SECONDS = 30
# How long processes wait for the others to start, and to end.
START_SECONDS = 300

# How often a process says that it waits for another, which is alive: it may be busy alone for any time.
_PATIENCE_SECONDS = 600
_PART = 2**20  # bytes of a message
_LAST_SECONDS = 3
_rounds = itertools.count()
_PREEMPTION = "jax_enable_preemption_service"
_connected = threading.Event()
_LOGGER = logging.getLogger("jeffnet")

# What the command exits with where another process is gone: EX_PROTOCOL.
EXIT_LOST = 76

# How XLA, Gloo, NCCL and the coordination service say that somebody does not answer.
_SIGNS_OF_LOSS = (
    "gloo", "nccl", "connection closed", "connection reset", "connection refused", "connection aborted", "socket",
    "broken pipe", "peer", "heartbeat", "coordination service", "unavailable", "deadline_exceeded", "barrier",
)  # fmt: skip


class LostProcessError(JeffnetError):
    """Another process has died or does not answer, so this one cannot continue."""

    exit_code = EXIT_LOST


def connect(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Connect to the other processes, if there are any.

    Without arguments it is one where JAX recognises how it was started: SLURM, Open MPI, Kubernetes, Cloud TPU.

    Args:
      coordinator: `host:port` of process 0, which all can reach.
      num_processes: how many there are; 1 alone does not even look for others.
      process_id: which this is, from 0.

    Raises:
      ConfigError: only some of the arguments are given, or they do not fit together.
      LostProcessError: the others did not start within 5 minutes.
    """
    given = {"--coordinator": coordinator, "--num-processes": num_processes, "--process-id": process_id}
    if num_processes == 1 and coordinator is None:
        return
    missing = [name for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        raise UsageError(f"{', '.join(missing)} missing: give --coordinator, --num-processes and --process-id together")
    if coordinator is not None:
        _check(coordinator, num_processes or 0, process_id or 0)
    # Runs look for SIGTERM themselves; JAX's service would keep it from them. Read once, as it is started.
    before = getattr(jax.config, _PREEMPTION)
    jax.config.update(_PREEMPTION, False)
    try:
        with called_on_loss(_end_lost):
            jax.distributed.initialize(
                coordinator,
                num_processes,
                process_id,
                initialization_timeout=START_SECONDS,
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
                shutdown_timeout_seconds=START_SECONDS,
            )
        _connected.set()
    except ValueError as error:
        # So JAX says that it recognises no cluster.
        if coordinator is not None or "coordinator_address" not in str(error):
            raise
    except RuntimeError as error:
        if isinstance(error, jax.errors.JaxRuntimeError) or str(error) == BAD_CAST:
            reason = "" if str(error) == BAD_CAST else f": {first_line(error)}"
            raise LostProcessError(f"not all processes started within {START_SECONDS} s{reason}") from error
        # JAX was used already, by a program that calls us: it is too late to look for others.
        if coordinator is not None:
            raise ConfigError(f"--coordinator {coordinator}: {first_line(error)}") from error
    finally:
        jax.config.update(_PREEMPTION, before)
    if _connected.is_set():
        # Processes tell each other their devices, for which they have a few minutes: now they are together.
        jax.devices()


def is_primary() -> bool:
    """Whether this is process 0, which writes files."""
    return jax.process_index() == 0


@contextmanager
def lost_processes_reported() -> Iterator[None]:
    """Turns errors that a dead process causes into a LostProcessError."""
    try:
        yield
    except Exception as error:
        loss = _loss(error)
        if loss is None or jax.process_count() == 1:
            raise
        raise LostProcessError(_lost(jax.process_count(), f" ({first_line(loss)})")) from error


def _lost(count: int, detail: str = "") -> str:
    return f"another of the {count} processes is gone or does not answer{detail}: start all of them again"


def _end_lost() -> None:
    """End this process from a thread of JAX; Python's streams may be locked by the main thread."""
    if _connected.is_set():
        bar = "\n" if os.isatty(2) else ""  # of progress may be in the line
        os.write(2, f"{bar}error: {_lost(coordination().num_processes)}\n".encode())
        os._exit(EXIT_LOST)


def gathered(value: Any) -> list[Any]:
    """The values of all processes, in their order; they must be JSON."""
    return [json.loads(content) for content in gathered_bytes(json.dumps(value).encode())]


def gathered_bytes(content: bytes) -> list[bytes]:
    """The bytes of all processes, in their order.

    They go through the coordination service, not through the devices: those may be busy with a step, and what they
    exchange must come in the same order everywhere.
    """
    count = jax.process_count()
    if count == 1:
        return [content]
    client, process, number = coordination().client, jax.process_index(), next(_rounds)
    assert client is not None
    parts = [content[start : start + _PART] for start in range(0, max(len(content), 1), _PART)]
    for part, piece in enumerate(parts):
        # The service keeps no empty values.
        client.key_value_set_bytes(_key(number, process, part), bytes([part + 1 < len(parts)]) + piece)
    if number > 1:  # all came to the round before this one, and so have read what was given before that
        client.key_value_delete(f"{_key(number - 2, process)}/")
    return [_received(client, number, other) for other in range(count)]


def _received(client: Any, number: int, process: int) -> bytes:
    pieces, more = [], True
    while more:
        try:
            piece = client.blocking_key_value_get_bytes(_key(number, process, len(pieces)), 1000 * _PATIENCE_SECONDS)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
            _LOGGER.warning("waiting for process %d, which is alive, for %d s more", process, _PATIENCE_SECONDS)
            continue
        more = bool(piece[0])
        pieces.append(piece[1:])
    return b"".join(pieces)


def _key(number: int, process: int, part: int | None = None) -> str:
    return f"jeffnet/{number}/{process}" + ("" if part is None else f"/{part}")


def on_primary(work: Callable[[], Any]) -> Any:
    """Run `work` in process 0; all processes get its result, JSON, or raise the JeffnetError that it raised."""
    if jax.process_count() == 1:
        return work()
    error, value = None, None
    try:
        value = work() if is_primary() else None
    except JeffnetError as raised:
        error = raised
    message, value = gathered([error and str(error), value])[0]
    if error:
        raise error
    if message:
        raise JeffnetError(f"process 0: {message}")
    return value


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    return any(gathered(bool(flag)))


def wait_for_all() -> None:
    """Wait until all processes get here."""
    gathered(None)


def compile_together(function: Callable, *arguments: Any) -> None:
    """Compile a function of `jax.jit`, or a partial of one, before its first call, and wait until all processes have.

    Processes that run a program connect to each other first, for which Gloo gives them 30 seconds.
    """
    if jax.process_count() > 1:
        whole = functools.partial(function, *arguments)
        whole.func.lower(*whole.args).compile()  # pyright: ignore[reportFunctionMemberAccess]
        wait_for_all()


def check_agreement(facts: Mapping[str, Any]) -> None:
    """Raises ConfigError in every process if facts, which must be JSON, or versions or devices differ between them."""
    if jax.process_count() == 1:
        return
    always = {
        **versions(),
        "code of jeffnet": code_hash(),
        "python": ".".join(platform.python_version_tuple()[:2]),
        "devices": f"{jax.local_device_count()} x {jax.local_devices()[0].device_kind}",
        "JAX_ENABLE_X64": jax.config.read("jax_enable_x64"),
    }
    first, *others = gathered(always | dict(facts))
    for number, other in enumerate(others, 1):
        different = [name for name in {**first, **other} if first.get(name) != other.get(name)]
        if different:
            listed = "; ".join(f"{name} {other.get(name)!r} instead of {first.get(name)!r}" for name in different)
            raise ConfigError(f"process {number} differs from process 0: {listed}: start all with the same")


def code_hash() -> str:
    """A hash of this package's sources."""
    folder = Path(jeffnet.__file__).parent
    content = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".py", ".cc", ".h"):
            content.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return content.hexdigest()[:16]


def leave(status: int) -> None:
    """End this process at once if others may wait for it; they will notice. Does nothing where it is alone."""
    # Asked in this order: a command that failed early must not start the devices in order to end.
    if coordination().client is None or jax.process_count() == 1:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    if is_primary():
        # What the others have to read of this error is kept here, and they end with this process.
        time.sleep(_LAST_SECONDS)
    os._exit(status)


def _check(coordinator: str, num_processes: int, process_id: int) -> None:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise UsageError(f"--coordinator {coordinator!r}: give the address of process 0 as HOST:PORT")
    if not 0 <= process_id < num_processes:
        raise UsageError(
            f"--process-id {process_id} of --num-processes {num_processes}: give an id from 0 to {num_processes - 1}"
        )


def _loss(error: Any) -> Exception | None:
    """The cause of an error, if it means that another process does not answer."""
    while error is not None:
        text = str(error).lower()
        if isinstance(error, jax.errors.JaxRuntimeError) and any(sign in text for sign in _SIGNS_OF_LOSS):
            return error
        error = error.__cause__ or error.__context__
    return None
