"""A folder of its own for each job, on each node: what a job writes there, no other job sees.

Ray unpacks an upload once per node, and runs every job with that content in the same folder. The runtime_env's
`py_executable` is the command that starts each Python process of a job, its driver's parent too
(ray/_private/runtime_env/context.py, 2.60): it copies the unpacked files, and starts Python in the copy. That takes
20 ms for 30 files and 50 ms for 1,000; 20,000 would take seconds.
"""

from collections.abc import Mapping
from typing import Any

from client.upload.ignore import Listing

_MAX_FILES = 1000
_MAX_BYTES = 32 << 20
_CONFLICTS = {"py_executable", "container", "image_uri"}  # of a runtime_env: they start the processes in another way

# The first process on a node copies; one that copied at the same time drops its copy. If that fails, as for lack of
# room, the job runs in the shared folder. Python is that of an activated environment (pip, uv, conda), else that of our
# parent, the raylet.
_START = """sh -c '
b=$PWD d="${{PWD%/runtime_resources/*}}/jobs/{id}"
[ -d "$d" ] || {{ mkdir -p "${{d%/*}}" && cp -a . "$d.$$" && mv -T "$d.$$" "$d" || rm -rf "$d.$$"; }} 2>/dev/null
[ -d "$d" ] && cd "$d" && export PYTHONPATH="${{PYTHONPATH%%"$b"*}}$d${{PYTHONPATH#*"$b"}}"
[ -n "$VIRTUAL_ENV$CONDA_PREFIX" ] ||
p=$(tr "\\0" "\\n" </proc/$PPID/cmdline | sed -n "s/^--python_worker_command=\\([^ ]*\\) .*/\\1/p")
exec "${{p:-python}}" "$@"' sh"""


def is_copied(uploaded: Listing) -> bool:
    """Whether a working directory is small enough to be copied for each job."""
    return len(uploaded.entries) <= _MAX_FILES and uploaded.size <= _MAX_BYTES


def in_own_folder(submission_id: str, runtime_env: Mapping[str, Any]) -> dict[str, Any]:
    """The runtime_env of a job that runs in a folder of its own, where it does not start its processes in another way.

    Args:
        submission_id: of the job, which names the folder.
        runtime_env: with the working_dir that Ray unpacks.
    """
    if _CONFLICTS & runtime_env.keys():
        return dict(runtime_env)
    return {**runtime_env, "py_executable": _START.format(id=submission_id)}
