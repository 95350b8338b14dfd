"""Worker processes of the loaders."""

import multiprocessing
import os
import threading


def end_with_caller(*_: int) -> None:
    """End this worker process when its parent ends, in whatever way.

    One that was killed cannot end its workers, which would wait for it for ever.
    """
    # The kernel's signal at a parent's death would not do: it comes when the thread ends that started the worker, and
    # the parent of a worker may be a fork server.
    threading.Thread(target=_wait_for_end_of_caller, daemon=True).start()


def _wait_for_end_of_caller() -> None:
    caller = multiprocessing.parent_process()
    assert caller is not None
    caller.join()
    os._exit(1)
