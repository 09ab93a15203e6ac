"""Submit Python scripts to Ray: `client.submit("job.py").wait()`. The command line is `ray-workload`."""

from importlib import import_module

TYPE_CHECKING = False  # type checkers take it as true; `python -m client` would import a `typing.py` in its folder
if TYPE_CHECKING:
    from client.batch.api import BatchJob, BatchRun, chain, sweep
    from client.errors import (
        ClientError,
        ContactLost,
        Detached,
        JobLost,
        JobNotFound,
        NotAuthorised,
        TimedOut,
        Unreachable,
        UsageError,
    )
    from client.job.api import attach, jobs, submit
    from client.job.job import Job
    from client.ray_api.record import JobRecord, JobResult

__version__ = "0.1.0"

__all__ = [
    "BatchJob",
    "BatchRun",
    "ClientError",
    "ContactLost",
    "Detached",
    "Job",
    "JobLost",
    "JobNotFound",
    "JobRecord",
    "JobResult",
    "NotAuthorised",
    "TimedOut",
    "Unreachable",
    "UsageError",
    "attach",
    "chain",
    "jobs",
    "submit",
    "sweep",
]

_HOME = {
    "BatchJob": "batch.api",
    "BatchRun": "batch.api",
    "chain": "batch.api",
    "sweep": "batch.api",
    "Job": "job.job",
    "JobRecord": "ray_api.record",
    "JobResult": "ray_api.record",
    "attach": "job.api",
    "jobs": "job.api",
    "submit": "job.api",
}


def __getattr__(name: str) -> object:
    """Import a public name on its first use: `ray-workload --help` needs none of them."""
    if name not in __all__:
        raise AttributeError(f"module 'client' has no attribute {name!r}")
    return getattr(import_module(f"client.{_HOME.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    """The public names, for completion and `help`."""
    return ["__version__", *__all__]
