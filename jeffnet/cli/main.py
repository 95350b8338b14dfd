"""The command `jeffnet`."""

import argparse
import contextlib
import errno
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence

import jeffnet
from jeffnet.cli import bench, convert, info, list_, predict, train, validate
from jeffnet.cli.parser import Parser
from jeffnet.cli.text import PrintableFormatter, any_text
from jeffnet.errors import JeffnetError, OutputError
from jeffnet.system.code_cache import code_folders, make_code_folder, untrusted
from jeffnet.system.files import cache_folder
from jeffnet.system.processor import short_fingerprint
from jeffnet.text.names import printable, printable_lines

# Each module has `add_parser(commands, common)`, whose parser's `run` takes the parsed arguments. What is slow to
# import is imported there, so that the others start at once.
_COMMANDS = (list_, info, predict, validate, train, convert, bench)

# What the command exits with where something failed that its input is not to blame for: EX_SOFTWARE.
EXIT_CRASH = 70

# No room on a disk, which is no defect of ours wherever it shows.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_MOST_KEPT = 2**30  # bytes; what was used least recently goes first

# What commands set of the process.
_VARIABLES = ("JAX_COMPILATION_CACHE_DIR", "JAX_COMPILATION_CACHE_MAX_SIZE", "XLA_PYTHON_CLIENT_PREALLOCATE")
_LOGGERS = ("jeffnet", "huggingface_hub", "absl", "asyncio")

_logger = logging.getLogger("jeffnet")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
      arguments: without the program's name; None takes the process's.

    Returns:
      The exit status: 0; 1 where the input will not do; 2 for wrong usage; 70 where something else failed; 130 when
      interrupted. Training has two more: 75 when it was asked to stop, 76 when another process is gone.
    """
    options = _parse(arguments)
    try:
        # A program that calls us goes on after it; a process of our own ends, and in ending still needs the settings.
        with any_text(), contextlib.nullcontext() if arguments is None else _restored():
            status = _run(options)
    except SystemExit as stop:  # as it was asked, or another process did it: no process waits for this one in vain
        return int(stop.code or 0)
    if status and "jax" in sys.modules:
        from jeffnet.parallel.distributed import leave

        leave(status)
    return status


@contextlib.contextmanager
def _restored() -> Iterator[None]:
    """After it the process has its settings back that commands change."""
    variables = {name: os.environ.get(name) for name in _VARIABLES}
    loggers = [(logger, logger.level, logger.propagate) for logger in map(logging.getLogger, _LOGGERS)]
    root, hook = logging.getLogger(), sys.unraisablehook
    handlers, level = root.handlers[:], root.level
    try:
        with warnings.catch_warnings():
            yield
    finally:
        for name, value in variables.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        for logger, logger_level, propagate in loggers:
            logger.setLevel(logger_level)
            logger.propagate = propagate
        sys.unraisablehook, root.handlers[:] = hook, handlers
        root.setLevel(level)


def _run(options: argparse.Namespace) -> int:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PrintableFormatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("jeffnet").setLevel(logging.INFO)  # what was taken of a file
    _keep_compiled()
    logging.getLogger("huggingface_hub").propagate = False  # it prints its messages itself
    if not options.debug:
        # Orbax's threads tell of what the main one raises, and of what they then leave undone.
        for name in ("absl", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    try:
        options.run(options)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        # Whoever reads our output has seen enough; nothing more can be written, not even on exit.
        _forget_output()
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _FULL:
            place = repr(error.filename) if error.filename else "the output"
            error = OutputError(f"cannot write {place}: {error.strerror}")
            _forget_output()
        known = isinstance(error, JeffnetError)
        if options.debug:
            traceback.print_exc()
        elif known:
            print(f"error: {printable_lines(str(error))}", file=sys.stderr)
        else:
            text = printable(str(error).strip().partition("\n")[0])
            print(f"error: {type(error).__name__}: {text} (--debug shows where)", file=sys.stderr)
        return getattr(error, "exit_code", 1) if known else EXIT_CRASH
    return 0


def _forget_output() -> None:
    """Let what cannot be written vanish, which Python would try again on exit, and fail with a status of its own."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def _keep_compiled() -> None:
    """Keep what XLA compiles in the user's cache folder: the next run of a command starts at once.

    `JAX_COMPILATION_CACHE_DIR` names another folder; empty, it switches that off. JAX, not imported yet, reads it. What
    lies there is run: a folder into which others may write is not used.
    """
    named = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if named is not None:
        if named and "://" not in named and (reason := untrusted(named)):
            _logger.warning("JAX_COMPILATION_CACHE_DIR=%s, which holds programs to run, is not used: %s", named, reason)
            os.environ["JAX_COMPILATION_CACHE_DIR"] = ""
    else:
        try:
            # A home folder may be shared by machines for which different code is compiled.
            folders = code_folders(f"xla-{short_fingerprint().replace(' ', '-')}")
        except OutputError:  # a user without a home: nothing is kept
            return
        usable = next(filter(make_code_folder, folders), None)
        if usable is not None:
            os.environ["JAX_COMPILATION_CACHE_DIR"] = str(usable)
        elif reason := untrusted(cache_folder()):
            _logger.warning("compiled programs are not kept: %s; JEFFNET_CACHE can name another folder", reason)
    os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(_MOST_KEPT))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    options, rest = _parser().parse_known_args(arguments)
    options.arguments = arguments
    # Entries of a recipe are options too, but only the recipe knows them.
    if hasattr(options, "overrides"):
        options.overrides = rest
    return options


def _parser() -> Parser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser = Parser(prog="jeffnet", description="EfficientNets and MobileNets for JAX.")
    parser.add_argument("--version", action="version", version=f"jeffnet {jeffnet.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add_parser(commands, common)
    return parser
