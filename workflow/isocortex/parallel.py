"""How dask uses the cores that a rule was given."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def dask_workers(threads: int) -> Iterator[None]:
    """Compute dask graphs on ``threads`` threads inside the block.

    Linear algebra runs on one thread a block meanwhile, so that blocks times library threads
    never exceed the cores that Snakemake counted for the job.

    Parameters
    ----------
    threads
        Number of dask workers, at least 1; pass ``snakemake.threads``.
    """
    import dask
    from threadpoolctl import threadpool_limits

    if threads < 1:
        raise ValueError(f"threads is {threads}: pass at least 1")
    with dask.config.set(scheduler="threads", num_workers=threads), threadpool_limits(limits=1):
        yield
