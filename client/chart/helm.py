"""The release `ray` of the chart, installed and removed by pyhelm3, which runs this machine's helm.

Values go to helm as they were given: --values and --set are its own arguments, and mean here what they mean to helm.
"""

import asyncio
import logging
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from pyhelm3 import Client, Command  # type: ignore[import-untyped]
from pyhelm3.errors import Error, ReleaseNotFoundError  # type: ignore[import-untyped]

from client.errors import ClientError, HelmFailed, NotAuthorised, TimedOut, Unreachable, UsageError
from client.kube.api import Object

RELEASE = "ray"
_CLONE = Path(__file__).resolve().parents[2]
_CHART = _CLONE / "charts" / "ray-workload"
_WATCH_SECONDS = 0.5
_UNINSTALL_SECONDS = (
    3600  # cleanup.timeoutSeconds of the chart ends the hook; if it does not start, the client stops waiting
)

# How helm reports wrong values: its own parser, a schema, our templates, the API server.
_BAD_VALUES = re.compile(
    r"don't meet the specifications|mistake\(s\) in the values|failed parsing --set|failed to parse|^open "
    r"|type mismatch| is invalid|error validating|unable to (?:decode|parse)|cannot unmarshal|error unmarshaling"
    r"|strict decoding|cannot overwrite table|quantities must match"
    r"|unable to build kubernetes objects"
)
_ERRORS: tuple[tuple[str, type[ClientError]], ...] = (
    (r"timed out waiting|context deadline exceeded", TimedOut),
    (r"cluster unreachable|dial tcp|connection refused|no route to host|i/o timeout", Unreachable),
    (r"User \".*\" cannot |Unauthorized|must be logged in", NotAuthorised),
    (r"", HelmFailed),
)
T = TypeVar("T")
Watch = Callable[[], object]


def find_chart(given: str | None, files: Sequence[str]) -> str:
    """The chart to install: a folder or an archive that exists, or an OCI URL.

    Args:
        given: by the user; None for the clone's chart.
        files: of values, which must exist.

    Raises:
        UsageError: the chart or a file does not exist.
    """
    if missing := next((f for f in files if "://" not in f and not Path(f).is_file()), None):
        raise UsageError(f"-f {missing}: there is no such file", "check the path")
    hint = "use --chart with a folder like charts/ray-workload of a clone, an archive (.tgz), or oci://HOST/PATH"
    if given and "://" in given:
        if not given.startswith("oci://"):
            raise UsageError(f"--chart {given} is not an OCI URL", hint)
        return given
    path = Path(given) if given else _CHART
    if not path.is_file() and not (path / "Chart.yaml").is_file():
        raise UsageError(f"{path} is not a chart" if given else "this client is not in a clone with a chart", hint)
    return str(path)


class _Command(Command):  # type: ignore[misc]
    """Runs helm so that it ends when we do, with further arguments for `upgrade`.

    Relies on how pyhelm3 0.5 builds its command line; pyproject.toml has the bound.
    """

    def __init__(self, tool: str, context: str | None, upgrade_arguments: Sequence[str]) -> None:
        # pyhelm3 starts a shell, and on cancellation ends only that: `exec` replaces the shell with helm.
        super().__init__(executable="exec", kubecontext=context)
        self.tool, self.upgrade_arguments = tool, upgrade_arguments

    def client_version(self) -> Any:
        return Command(executable=self.tool).client_version()

    async def run(self, command: list[str], input: bytes | None = None) -> bytes:
        further = self.upgrade_arguments if command[0] == "upgrade" else ()
        output: bytes = await super().run([self.tool, *command, *further], input)
        return output


class Helm:
    """The release in one namespace of one context."""

    def __init__(self, context: str | None, namespace: str) -> None:
        """Find helm: on PATH, or where `make charts` builds it.

        Raises:
            ClientError: there is none.
        """
        self.context, self.namespace = context, namespace
        found = shutil.which("helm") or shutil.which("helm", path=str(_CLONE / "build" / "tools"))
        if not found:
            hint = "install Helm 3 or 4 (https://helm.sh), or build it with `make charts`, which needs Go"
            raise ClientError("helm is not on PATH", hint)
        self._tool = found

    def install(
        self, target: str, chart: str, files: Sequence[str], sets: Sequence[str], seconds: float, watch: Watch
    ) -> Object | None:
        """Install or upgrade the release. Waits for hooks only, and rolls nothing back.

        Args:
            target: selects the chart's values-TARGET.yaml, which comes first.
            chart: as `find_chart` returned it.
            files: helm's --values, on top.
            sets: helm's --set, on top of these.
            seconds: how long hooks may take.
            watch: called twice a second while helm runs; an error that it raises ends helm.

        Returns:
            The release's RayCluster, if it has one.

        Raises:
            UsageError: the chart cannot be used, or a value is wrong.
            ClientError: helm failed for another reason; the message is its own.
        """

        async def work() -> Object | None:
            async with self._folder(chart) as folder:
                values = folder / f"values-{target}.yaml"
                if not values.is_file():
                    raise UsageError(
                        f"the chart {chart} has no {values.name}", f"`up {target}` needs a chart that has it"
                    )
                arguments = [part for file in (str(values), *files) for part in ("--values", file)]
                client = self._client([*arguments, *(part for item in sets for part in ("--set", item))])
                try:
                    found = await client.get_chart(folder)
                except (Error, ValueError) as error:
                    reason = " ".join(str(error).split())
                    raise UsageError(f"the chart {chart} cannot be used", reason) from error
                options = {"namespace": self.namespace, "timeout": f"{max(1, int(seconds))}s"}
                if client.version.major > 3:  # as Helm 3: a server-side apply conflicts with groups that were scaled
                    options["server_side"] = "false"
                return await _ray_cluster(await client.install_or_upgrade_release(RELEASE, found, **options))

        return self._run(work(), watch)

    def find(self) -> tuple[bool, Object | None]:
        """Whether the release exists, and its RayCluster, if it has one."""

        async def work() -> tuple[bool, Object | None]:
            try:
                return True, await _ray_cluster(await self._revision())
            except ReleaseNotFoundError:
                return False, None

        return self._run(work())

    def uninstall(self, watch: Watch, *, hooks: bool = True) -> None:
        """Remove the release and wait until its objects are gone. A release that does not exist is no error.

        Args:
            watch: as in `install`.
            hooks: run the chart's own.

        Raises:
            ClientError: helm or a hook failed.
        """
        options = {"namespace": self.namespace, "no_hooks": not hooks, "timeout": f"{_UNINSTALL_SECONDS}s"}
        self._run(self._client().uninstall_release(RELEASE, wait=True, **options), watch)

    def _client(self, upgrade_arguments: Sequence[str] = ()) -> Any:
        logging.getLogger("pyhelm3").setLevel(logging.CRITICAL)  # it logs whole commands, values included
        try:
            return Client(_Command(self._tool, self.context, upgrade_arguments), executable=self._tool)
        except (subprocess.CalledProcessError, ValueError) as error:
            raise ClientError(f"{self._tool} does not report its version", "put another helm on PATH") from error

    async def _revision(self) -> Any:
        return await self._client().get_current_revision(RELEASE, namespace=self.namespace)

    def _run(self, work: Coroutine[Any, Any, T], watch: Watch = lambda: None) -> T:
        try:
            return asyncio.run(_watched(work, watch))
        except Error as error:
            raise self._error(error.stderr.decode(errors="replace")) from error

    def _error(self, output: str) -> ClientError:
        """Turn helm's stderr into an error of the client; several mistakes become a list."""
        text = re.sub(r"\n*Use --debug flag.*", "", output[max(output.find("Error: "), 0) :].strip(), flags=re.DOTALL)
        text = re.sub(r"^(Error: )?(\w+ FAILED: )?(execution error at \(.*?\): )?", "", text)
        message = " ".join(text.split()) or "it failed without a message"
        release, down = f"release {RELEASE} in namespace {self.namespace}", "run `down`, then `up` again"
        if missing := re.search(r"missing in charts/ directory: (.*)", message):
            hint = "run `make charts` in a clone, or `helm dependency build CHART`"
            return UsageError(f"the chart's dependencies are missing ({missing[1]})", hint)
        if "another operation" in text and "in progress" in text:
            pending = self._run(self._revision()).status.value
            rollback = f"`helm rollback {RELEASE} -n {self.namespace} --kube-context {self.context}`"
            cure = down if pending == "pending-install" else f"run {rollback}, then `up` again"
            hint = f"wait for it; if it was killed, {cure}"
            return ClientError(f"another helm is changing {release}", hint)
        if "has no deployed releases" in text:
            return ClientError(f"the removal of {release} was interrupted", down)
        if _BAD_VALUES.search(text):
            mistakes, chart = [], ""
            for line in map(str.strip, text.split("\n")):
                if line.startswith("- "):
                    mistakes.append(chart + line[2:])
                elif re.fullmatch(r"[\w-]+:", line):
                    chart = f"{line} "
            if len(mistakes) > 1:
                return UsageError("\n  - ".join([f"helm refuses {len(mistakes)} of the values:", *mistakes]))
            return UsageError(f"helm refuses the values: {mistakes[0] if mistakes else message}")
        return next(kind for pattern, kind in _ERRORS if re.search(pattern, text))(f"helm: {message}")

    @asynccontextmanager
    async def _folder(self, chart: str) -> AsyncIterator[Path]:
        """The chart as a folder, for the values files in it."""
        if "://" in chart:
            async with self._client().pull_chart(chart) as pulled:
                yield pulled.ref
        elif Path(chart).is_dir():
            yield Path(chart)
        else:
            with tempfile.TemporaryDirectory(prefix="helm.") as folder:
                try:
                    shutil.unpack_archive(chart, folder, filter="data")
                    metadata = next(Path(folder).glob("*/Chart.yaml"))
                except (shutil.ReadError, tarfile.TarError, OSError, EOFError, StopIteration) as error:
                    hint = "use a .tgz that `helm package` made"
                    raise UsageError(f"{chart} is not the archive of a chart", hint) from error
                yield metadata.parent


async def _ray_cluster(revision: Any) -> Object | None:
    return next((o for o in await revision.resources() if o and o["kind"] == "RayCluster"), None)


async def _watched(work: Coroutine[Any, Any, T], watch: Watch) -> T:
    task = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait({task}, timeout=_WATCH_SECONDS))[0]:
            with suppress(Unreachable, NotAuthorised):  # helm may go on where we cannot see how far it is
                watch()
        return task.result()
    finally:
        task.cancel()  # pyhelm3 then ends helm and waits for it
        with suppress(asyncio.CancelledError, Exception):
            await task
