"""Lets us choose how a process ends when JAX's coordination service loses another one, instead of an abort.

The service's client, in C++, calls a function then, from a thread of its own, whatever Python is doing: by default one
that writes a native stack and aborts. jaxlib lets Python give another, which `jax.distributed` does not pass on; and
jaxlib 0.10 cannot convert the function's argument to Python, throws `std::bad_cast` instead of calling it, and so gets
to the C++ library's last resort, `std::terminate`. Both end in the function that is given here.
"""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from jeffnet._jax_compat import clients_call

# What jaxlib's `connect` raises in place of why it cannot, since it calls the function too.
BAD_CAST = "std::bad_cast"

_HANDLER = ctypes.CFUNCTYPE(None)
_POINTER = ctypes.sizeof(ctypes.c_void_p)
_kept: list[Any] = []  # what C++ has the addresses of


@contextmanager
def called_on_loss(end: Callable[[], None]) -> Iterator[None]:
    """Within it, new clients of the coordination service call a function instead of aborting.

    Args:
      end: ends the process. It runs in another thread than the main one, which may be anywhere.
    """
    with clients_call(end) as is_possible:
        yield
    if not is_possible:
        return
    with suppress(OSError, AttributeError):  # not the C++ library of GCC
        _call_on_bad_cast(end)


def _call_on_bad_cast(end: Callable[[], None]) -> None:
    library = ctypes.CDLL("libstdc++.so.6")
    current_type = library.__cxa_current_exception_type
    current_type.restype = ctypes.c_void_p
    set_terminate = library._ZSt13set_terminatePFvvE
    set_terminate.argtypes, set_terminate.restype = [_HANDLER], _HANDLER

    @_HANDLER
    def on_terminate() -> None:
        # A type_info is a pointer to its functions and one to its name.
        thrown = current_type()
        if thrown and ctypes.string_at(ctypes.c_void_p.from_address(thrown + _POINTER).value or 0) == b"St8bad_cast":
            end()
        before()

    before = set_terminate(on_terminate)
    _kept.append(on_terminate)
