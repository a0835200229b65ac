"""The stack that a thread's signal handlers run on, which OpenVINO replaces by its own."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _Stack(ctypes.Structure):
    """stack_t of Linux."""

    _fields_ = (
        ("ss_sp", ctypes.c_void_p),
        ("ss_flags", ctypes.c_int),
        ("ss_size", ctypes.c_size_t),
    )


@contextmanager
def kept_signal_stack() -> Iterator[None]:
    """Put the calling thread's signal stack back when the block ends, whatever has replaced it.

    OpenVINO's CPU plugin sets one of its own for every Core and, when the last user of it goes, puts
    back the one it found. Of two that go in the order they came, the second puts back the first one's,
    unmapped by then, and the next signal (a Ctrl-C, a child that ends) kills the process. A stack that
    is not the current one it only frees (src/plugins/intel_cpu/src/sigstack_manager.cpp of 2026.4).
    """
    if sys.platform != "linux":
        yield
        return
    libc = ctypes.CDLL(None)
    stack = _Stack()
    libc.sigaltstack(None, ctypes.byref(stack))
    try:
        yield
    finally:
        libc.sigaltstack(ctypes.byref(stack), None)
