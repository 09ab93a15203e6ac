"""A folder on each node for each job, whose files no other job sees, and a folder for its results.

Ray unpacks an upload once per node, and runs every job with that content in the same folder. The runtime_env's
`py_executable` is the command that starts each Python process of a job, its driver's parent too
(ray/_private/runtime_env/context.py, 2.60): it copies the unpacked files, and starts Python in the copy. That takes
20 ms for 30 files and 50 ms for 1,000; 20,000 would take seconds. The file `.ID` beside the copy is younger than all
that was copied. RAY_WORKLOAD_OUTPUTS, if the pod has it, is the folder or the bucket under which each job has its own.
"""

from collections.abc import Mapping
from typing import Any

from client.targets.target import OUTPUTS
from client.upload.ignore import Listing

_MAX_FILES = 1000
_MAX_BYTES = 32 << 20
_CONFLICTS = {"py_executable", "container", "image_uri"}  # of a runtime_env: they start the processes in another way

# The first process on a node copies; one that copied at the same time drops its copy. If that fails, as for lack of
# room, the job runs in the shared folder. Python is that of an activated environment (pip, uv, conda), else that of our
# parent, the raylet.
_START = """sh -c '
b=$PWD d="${{PWD%/runtime_resources/*}}/jobs/{id}"
{folder}{outputs}[ -n "$VIRTUAL_ENV$CONDA_PREFIX" ] ||
p=$(tr "\\0" "\\n" </proc/$PPID/cmdline | sed -n "s/^--python_worker_command=\\([^ ]*\\) .*/\\1/p")
exec "${{p:-python}}" "$@"' sh"""
_COPY = """\
[ -d "$d" ] || {{ mkdir -p "${{d%/*}}" && cp -a . "$d.$$" && mv -T "$d.$$" "$d" && : >"${{d%/*}}/.{id}" ||
rm -rf "$d.$$"; }} 2>/dev/null
[ -d "$d" ] && cd "$d" && export PYTHONPATH="${{PYTHONPATH%%"$b"*}}$d${{PYTHONPATH#*"$b"}}"
"""
_NO_COPY = """\
case "$PWD" in */runtime_resources/*) mkdir -p "$d" 2>/dev/null;; esac
"""
_OUTPUTS = """\
[ -d "$d" ] || d=$PWD
o="${{{name}:+${{{name}%/}}/{id}}}" o="${{o:-$d}}"
case "$o" in *://*) ;; *) mkdir -p "$o";; esac
export {name}="$o"
"""


def is_copied(uploaded: Listing) -> bool:
    """Whether a working directory is small enough to be copied for each job."""
    return len(uploaded.entries) <= _MAX_FILES and uploaded.size <= _MAX_BYTES


def own_folder(submission_id: str) -> str:
    """The folder of a job on each node of a cluster, if Ray has its usual folder."""
    return f"/tmp/ray/session_latest/jobs/{submission_id}"


def started_in_folder(
    submission_id: str, runtime_env: Mapping[str, Any], *, copied: bool, results_of: str | None = None
) -> dict[str, Any]:
    """The runtime_env of a job with folders of its own, unless it starts its processes in another way.

    Args:
        submission_id: of the job, which names the folders.
        runtime_env: with the working_dir that Ray unpacks.
        copied: the job runs in a copy of the working directory.
        results_of: the earlier attempt whose folder for results it uses, if there is one.
    """
    if _CONFLICTS & runtime_env.keys():
        return dict(runtime_env)
    folder = _COPY.format(id=submission_id) if copied else _NO_COPY
    given = OUTPUTS in runtime_env.get("env_vars", {})
    outputs = "" if given else _OUTPUTS.format(id=results_of or submission_id, name=OUTPUTS)
    return {**runtime_env, "py_executable": _START.format(id=submission_id, folder=folder, outputs=outputs)}


def outputs(
    submission_id: str, runtime_env: Mapping[str, Any], of_cluster: str | None, results_of: str | None = None
) -> str | None:
    """Where a job on a cluster leaves its results; None if that is not known.

    Args:
        submission_id: of the job.
        runtime_env: of the job, as it was asked for.
        of_cluster: the place for the results of all jobs, as in `Runtime.outputs`.
        results_of: as in `started_in_folder`.
    """
    if given := runtime_env.get("env_vars", {}).get(OUTPUTS):
        return str(given)
    if of_cluster is None or _CONFLICTS & runtime_env.keys():
        return of_cluster or None
    return f"{of_cluster.rstrip('/')}/{results_of or submission_id}" if of_cluster else own_folder(submission_id)
