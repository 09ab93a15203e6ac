"""Ray's Job API. Only requests that may be repeated are repeated.

All is plain REST, and needs no `ray`, except for a runtime_env that only Ray's Job SDK can check. Sources, all of Ray
2.60: ray/dashboard/modules/job/job_head.py (routes, status codes), ray/dashboard/modules/node/node_head.py
(/logical/actors, /nodes), ray/dashboard/modules/job/common.py (SUPERVISOR's name).
"""

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import requests

from client.errors import (
    ClientError,
    ContactLost,
    Detached,
    JobNotFound,
    NotReady,
    ServerFailed,
    Unreachable,
    UsageError,
)
from client.http import was_sent
from client.ray_api.http import HINT, POLL_TIMEOUT, RayServer, refused
from client.ray_api.logs import JobLogs
from client.ray_api.record import JobRecord, record

_SUBMIT_TIMEOUT = (5.0, 60.0)  # the server itself waits for a node agent, and stores an upload
_SUBMIT_TRIES = 6
_ACTORS = 200  # of a request: the server takes lines of 8,190 bytes
_CHUNK = 1 << 20
SUPERVISOR = "_ray_internal_job_actor_"
_USAGE = re.compile(r"^([\d.]+)(?:([KMGT]?)i?B)?/\S+ (.+?)(?: \(.*)?$", re.MULTILINE)  # 1.0/2.0 CPU, 0B/5.75GiB memory
_UPLOADED = re.compile(r"(gcs|local)://|(gs|s3)://.*\.(zip|whl)$")
_T = TypeVar("_T")


class RayJobs:
    """The jobs of one cluster."""

    def __init__(self, server: RayServer) -> None:
        """Make no request yet."""
        self._server, self._http = server, server.http
        self.logs = JobLogs(server)

    def version(self) -> dict[str, str]:
        """The server's `ray_version` and `session_name`, which changes when the head restarts.

        Raises:
            Unreachable: what answers is not a Ray dashboard.
        """
        response = self._http.request("GET", "/api/version")
        try:
            answer = response.json()
            return {"ray_version": str(answer["ray_version"]), "session_name": str(answer.get("session_name"))}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            code, url = response.status_code, self._http.server.url
            raise Unreachable(f"{url} is not a Ray dashboard (it answers {code} to /api/version)", HINT) from error

    def nodes(self) -> Sequence[dict[str, float]]:
        """The resources of each node that is alive, by name; memory in bytes."""
        nodes = self._state("nodes", detail="true")
        return [node.get("resources_total") or {} for node in nodes if node.get("state") == "ALIVE"]

    def node_is_gone(self, node_id: str | None) -> bool:
        """Whether the cluster says that a node is dead, or does not know it."""
        return bool(node_id) and all(n["node_id"] != node_id or n.get("state") == "DEAD" for n in self._state("nodes"))

    def lost(self, jobs: Iterable[JobRecord]) -> set[str]:
        """The ids of jobs whose node is gone, which Ray may report as running for ever."""
        running = [job for job in jobs if job.status == "RUNNING" and job.node_id]
        if not running:
            return set()
        alive = {node["node_id"] for node in self._state("nodes") if node.get("state") != "DEAD"}
        return {job.submission_id for job in running if job.node_id not in alive}

    def resources(self) -> dict[str, float]:
        """The cluster's resources in total, by name; memory in bytes."""
        total: dict[str, float] = {}
        for node in self.nodes():
            for name, amount in node.items():
                if not name.startswith("node:"):
                    total[name] = total.get(name, 0) + amount
        return total

    def used(self) -> dict[str, float]:
        """The resources in use a few seconds ago, by name; empty if the autoscaler does not report them."""
        response = self._http.request("GET", "/nodes?view=summary")
        nodes = self._read(response, lambda data: list((data["data"].get("nodeLogicalResources") or {}).values()))
        used: dict[str, float] = {}
        for amount, unit, name in _USAGE.findall("\n".join(nodes)):
            used[name] = used.get(name, 0) + float(amount) * 1024 ** ("KMGT".find(unit) + 1 if unit else 0)
        return used

    def get(self, submission_id: str) -> JobRecord:
        """One job, without its driver's start time.

        Raises:
            JobNotFound: there is none.
        """
        response = self._http.request("GET", _job_path(submission_id), timeout=POLL_TIMEOUT)
        if response.status_code == 404:
            self.version()  # not a Ray server at all? then this says so
            raise self._not_found(submission_id)
        return self._read(response, record)

    def list(self) -> list[JobRecord]:
        """All submitted jobs of the cluster, the newest first, without their drivers' start times."""
        response = self._http.request("GET", "/api/jobs/")
        jobs = self._read(response, lambda data: [record(job) for job in data if job.get("submission_id")])
        return sorted(jobs, key=lambda job: job.submit_time or 0, reverse=True)

    def with_start_times(self, jobs: Sequence[JobRecord]) -> Sequence[JobRecord]:
        """The same jobs with the start times of their drivers, as far as the cluster still knows them.

        A job's record has no such time; its supervisor actor starts just before its driver.
        """
        wanted = {SUPERVISOR + job.submission_id for job in jobs if job.status != "PENDING"}
        if not wanted:
            return jobs
        key, value = ("name", SUPERVISOR + jobs[0].submission_id) if len(jobs) == 1 else ("class_name", "JobSupervisor")
        actors = self._state("actors", filter_keys=key, filter_predicates="=", filter_values=value)
        ids = [actor["actor_id"] for actor in actors if actor["name"] in wanted]
        if not ids:
            return jobs
        found: list[dict[str, Any]] = []
        for first in range(0, len(ids), _ACTORS):
            response = self._http.request("GET", f"/logical/actors?ids={','.join(ids[first : first + _ACTORS])}")
            found += self._read(response, lambda data: list(data["data"]["actors"].values()))
        times = {actor["name"]: actor.get("startTime") or None for actor in found}
        return [replace(job, start_time=times.get(SUPERVISOR + job.submission_id)) for job in jobs]

    def _state(self, kind: str, **query: str) -> Sequence[dict[str, Any]]:
        response = self._http.request("GET", f"/api/v0/{kind}?{urlencode({**query, 'limit': '10000'})}")
        return self._read(response, lambda data: list(data["data"]["result"]["result"]))

    def stop(self, submission_id: str) -> None:
        """Ask for the end of a job. Ray ignores this while the job is pending, but answers that it succeeded."""
        response = self._http.request("POST", _job_path(submission_id) + "/stop", timeout=_SUBMIT_TIMEOUT)
        if response.status_code == 404:
            raise self._not_found(submission_id)
        if not response.ok:
            raise refused(response)

    def delete(self, submission_id: str) -> None:
        """Remove a finished job from the list."""
        self._http.request("DELETE", _job_path(submission_id))

    def _not_found(self, submission_id: str) -> JobNotFound:
        return JobNotFound(f"there is no job {submission_id} at {self._server.address}", "`list` shows all jobs")

    def has_package(self, uri: str) -> bool:
        """Whether the server has an upload already."""
        return self._http.request("GET", _package_path(uri)).status_code == 200

    def upload(self, uri: str, path: Path, size: int, sent: Callable[[int], object]) -> None:
        """Send a package; `sent` takes the bytes of each step.

        Its name is its content's, so it may be sent again when an answer is lost.
        """

        def chunks() -> Iterator[bytes]:
            with open(path, "rb") as file:
                while chunk := file.read(_CHUNK):
                    yield chunk
                    sent(len(chunk))

        for last in (False, False, True):
            try:
                body = _Sized(chunks(), size)
                response = self._http.request("PUT", _package_path(uri), data=body, timeout=_SUBMIT_TIMEOUT)
                if not response.ok:
                    raise refused(response)
                return
            except Unreachable:
                if last:
                    raise

    def submit(self, arguments: Mapping[str, Any], changed: Callable[[int], str] = lambda _: "") -> bool:
        """Submit a job once, however often the answer is lost: the id tells whether an earlier attempt arrived.

        Args:
            arguments: of `JobSubmissionClient.submit_job`, with a `submission_id`, and a `spec_hash` in the metadata.
            changed: names the files of the working_dir that changed after a time in milliseconds.

        Returns:
            False where the same id with the same spec was there before.

        Raises:
            ClientError: another job has this id, or the server refused.
            ContactLost: nothing answers any more, and an attempt may have arrived.
        """
        hint = f"`status {arguments['submission_id']}` shows whether the job arrived"
        may_have_arrived = False
        try:
            for pause in (0.2 * 2**n for n in range(_SUBMIT_TRIES)):
                try:
                    return self._submit_once(arguments, changed) or may_have_arrived
                except Unreachable as error:
                    may_have_arrived, lost = may_have_arrived or was_sent(error), error
                    time.sleep(pause)
        except KeyboardInterrupt as error:
            raise Detached("interrupted while the job was sent", hint) from error
        if not may_have_arrived:
            raise lost
        raise ContactLost(str(lost), hint) from lost

    def _submit_once(self, arguments: Mapping[str, Any], changed: Callable[[int], str]) -> bool:
        """Send a job; False where the same id with the same spec is there."""
        # Ray refuses an id that is taken in words of its own, and on a full disk fails after it has started the job:
        # whatever it answers, what counts is whether the job is there.
        try:
            if needs_sdk(arguments.get("runtime_env", {})):
                from client.ray_api.sdk import submit_job

                submit_job(self.submit_plain, arguments)
            else:
                self.submit_plain(arguments)
            return True
        except (UsageError, ServerFailed) as error:
            try:
                found = self.get(arguments["submission_id"])
            except JobNotFound:
                raise error from None
        if found.metadata.get("spec_hash") == arguments["metadata"]["spec_hash"]:
            return False
        what = self._difference(found, arguments, changed)
        raise ClientError(f"another job, with a different {what}, has the id {found.submission_id}", "use another --id")

    def _difference(self, found: JobRecord, arguments: Mapping[str, Any], changed: Callable[[int], str]) -> str:
        """The parts of a job that differ from one submitted before, as far as the server reports them."""
        response = self._http.request("GET", _job_path(found.submission_id))
        theirs = self._read(response, lambda data: dict(data.get("runtime_env") or {}))
        ours = arguments.get("runtime_env", {})
        parts = ["entrypoint"] if found.entrypoint != arguments["entrypoint"] else []
        if ours.get("working_dir") != theirs.get("working_dir"):
            names = changed(found.submit_time or 0)
            parts.append(f"folder (changed since then: {names})" if names else "folder")
        if any(ours.get(key) != theirs.get(key) for key in ("env_vars", "py_modules")):  # Ray completes other keys
            parts.append("runtime_env")
        return " and ".join(parts) or "runtime_env or resources"

    def submit_plain(self, arguments: Mapping[str, Any]) -> requests.Response:
        """Send a job as the SDK does, once and unchecked."""
        response = self._http.request("POST", "/api/jobs/", json=dict(arguments), timeout=_SUBMIT_TIMEOUT)
        if "No available agent" in response.text:
            raise NotReady("the cluster has no node that takes jobs yet", "try again when its head is ready")
        if not response.ok:
            raise refused(response)
        return response

    def _read(self, response: requests.Response, read: Callable[[Any], _T]) -> _T:
        if not response.ok:
            raise refused(response)
        try:
            return read(response.json())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Unreachable(f"{self._http.server.url} does not answer as a Ray dashboard does", HINT) from error


@dataclass
class _Sized:
    """An upload's chunks together with their sum, so that it is sent with a Content-Length."""

    chunks: Iterator[bytes]
    size: int

    def __iter__(self) -> Iterator[bytes]:
        return self.chunks

    def __len__(self) -> int:
        return self.size


def needs_sdk(runtime_env: Mapping[str, Any]) -> bool:
    """Whether a runtime_env has more than uploads and variables: Ray's SDK must check it, and takes long to import."""
    uris = [runtime_env.get("working_dir", "gcs://"), *runtime_env.get("py_modules", ())]
    variables = [text for pair in runtime_env.get("env_vars", {}).items() for text in pair]
    return not (
        runtime_env.keys() <= {"working_dir", "py_modules", "env_vars", "py_executable"}
        and all(map(_UPLOADED.match, uris))
        and all(isinstance(text, str) for text in variables)
    )


def _job_path(submission_id: str) -> str:
    return "/api/jobs/" + quote(submission_id, safe="")


def _package_path(uri: str) -> str:
    return "/api/packages/" + uri.replace("://", "/")
