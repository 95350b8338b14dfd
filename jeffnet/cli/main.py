"""The command `jeffnet`."""

import argparse
import contextlib
import errno
import gc
import importlib
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator, Sequence

import jeffnet
from jeffnet.cli.parser import Parser
from jeffnet.cli.text import PrintableFormatter, any_text
from jeffnet.errors import JeffnetError, OutputError
from jeffnet.system.code_cache import code_folders, make_code_folder, untrusted
from jeffnet.system.files import cache_folder
from jeffnet.system.processor import short_fingerprint
from jeffnet.text.names import printable, printable_lines

# Every module has `add_parser(commands, common)`; `run` of its parser takes the parsed arguments and imports what is
# slow to import, so that other commands start at once.
_COMMANDS = {
    **{"list": "list_", "info": "info", "predict": "predict", "validate": "validate", "data": "data"},
    **{"embed": "embed", "train": "train", "recipes": "recipes", "convert": "convert", "export": "export"},
    **{"bench": "bench"},
}

# The exit status of an internal error: EX_SOFTWARE.
EXIT_CRASH = 70

# A full disk is not an internal error.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_MOST_KEPT = 2**30  # bytes of compiled programs; the least recently used are deleted first

# Settings of the process that commands change.
_VARIABLES = ("JAX_COMPILATION_CACHE_DIR", "JAX_COMPILATION_CACHE_MAX_SIZE", "XLA_PYTHON_CLIENT_PREALLOCATE")
_LOGGERS = ("", "jeffnet", "huggingface_hub", "absl", "asyncio")  # the first is the root

_logger = logging.getLogger("jeffnet")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
      arguments: without the program's name; None takes the process's.

    Returns:
      The exit status: 0 for success, 1 for invalid input, 2 for wrong usage, 70 for an internal error, 130 if
      interrupted. Training adds 75 if it was asked to stop, and 76 if another process is lost.
    """
    options = _parse(arguments)
    try:
        # A calling program gets its settings back; a process that ends still needs the commands' until its end.
        with any_text(), contextlib.nullcontext() if arguments is None else _restored():
            status = _run(options)
    except SystemExit as stop:  # the other processes stop too: none waits for this one
        return int(stop.code or 0)
    if status and "jax" in sys.modules:
        from jeffnet.parallel.distributed import leave

        leave(status)
    if arguments is None:
        gc.freeze()  # the process ends: looking for garbage among JAX's objects once more would take 0.1 s
    return status


@contextlib.contextmanager
def _restored() -> Iterator[None]:
    """Restore the settings of the process afterwards."""
    variables = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    loggers = [(logger, logger.level, logger.propagate) for logger in map(logging.getLogger, _LOGGERS)]
    root, hook = logging.getLogger(), sys.unraisablehook
    handlers = root.handlers[:]
    try:
        with warnings.catch_warnings():
            yield
    finally:
        for name in _VARIABLES:
            os.environ.pop(name, None)
        os.environ.update(variables)
        for logger, level, propagate in loggers:
            logger.setLevel(level)
            logger.propagate = propagate
        sys.unraisablehook, root.handlers[:] = hook, handlers


def _run(options: argparse.Namespace) -> int:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PrintableFormatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("jeffnet").setLevel(logging.INFO)  # such as which arrays of a file are used
    _keep_compiled()
    logging.getLogger("huggingface_hub").propagate = False  # it has a handler
    if not options.debug:
        # Orbax's threads log what the main thread raises, and the work that they abandon.
        for name in ("absl", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    try:
        options.run(options)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader of the output is gone; nothing more can be written, not even on exit.
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
    """Discard unwritten output: Python would try to write it on exit, and fail with another status."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def _keep_compiled() -> None:
    """Keep compiled programs in the user's cache folder, so that the next run of a command starts at once.

    `JAX_COMPILATION_CACHE_DIR` names another folder, or none if it is empty; JAX reads it when it is imported. The
    programs are executed, so a folder that others can write to is not used.
    """
    named = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if named is not None:
        if named and "://" not in named and (reason := untrusted(named)):
            _logger.warning("JAX_COMPILATION_CACHE_DIR=%s, which holds programs to run, is not used: %s", named, reason)
            os.environ["JAX_COMPILATION_CACHE_DIR"] = ""
    else:
        try:
            # Machines that share a home folder may need different code.
            folders = code_folders(f"xla-{short_fingerprint().replace(' ', '-')}")
        except OutputError:  # the user has no home folder
            return
        usable = next(filter(make_code_folder, folders), None)
        if usable is not None:
            os.environ["JAX_COMPILATION_CACHE_DIR"] = str(usable)
        elif reason := untrusted(cache_folder()):
            _logger.warning("compiled programs are not kept: %s; JEFFNET_CACHE can name another folder", reason)
    os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(_MOST_KEPT))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    given = sys.argv[1:] if arguments is None else arguments
    # The other commands are for help and for errors; their modules take a while to import.
    commands = given[:1] if given and given[0] in _COMMANDS else _COMMANDS
    options, rest = _parser(commands).parse_known_args(arguments)
    options.arguments = arguments
    # Entries of a recipe are options too, but only the recipe knows them.
    if hasattr(options, "overrides"):
        options.overrides = rest
    return options


def _parser(chosen: Iterable[str]) -> Parser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser = Parser(prog="jeffnet", description="EfficientNets and MobileNets for JAX.")
    parser.add_argument("--version", action="version", version=f"jeffnet {jeffnet.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in chosen:
        importlib.import_module(f"jeffnet.cli.{_COMMANDS[name]}").add_parser(commands, common)
    return parser
