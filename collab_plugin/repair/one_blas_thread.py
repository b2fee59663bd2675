"""The same bytes whatever the number of cores: sums of BLAS differ in the last bit with the number of its threads, and
what is rounded next may then fall to the other side."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy.linalg  # noqa: F401  (both bring a BLAS of their own, which has to be there to be limited)
import scipy.linalg  # noqa: F401
from threadpoolctl import threadpool_limits


@contextmanager
def one_blas_thread(limit: bool = True) -> Iterator[None]:
    """Limit the process's BLAS libraries to one thread each; nothing where ``limit`` is False."""
    if not limit:
        yield
        return
    with threadpool_limits(limits=1, user_api="blas"):
        yield
