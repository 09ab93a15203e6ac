"""The release `ray` of the chart, through pyhelm3, which runs this machine's helm. Nothing is printed here.

Values go to helm as they came: -f and --set are arguments of its own, and so mean what they mean to helm.
"""

import asyncio
import logging
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import yaml

from client.errors import ClientError, NotAuthorised, TimedOut, Unreachable, UsageError

RELEASE = "ray"
_CLONE = Path(__file__).resolve().parents[2]
_CHART = _CLONE / "charts" / "ray-workload"
_BEAT_SECONDS = 0.5
_UNINSTALL_SECONDS = 3600  # the chart's own cleanup.timeoutSeconds ends it, and we do where it does not start

# What helm says of values that are wrong: its own parser, a schema, our templates, the API server.
_BAD_VALUES = re.compile(
    r"don't meet the specifications|mistake\(s\) in the values|failed parsing --set|failed to parse|^open "
    r"|type mismatch| is invalid|error validating|unable to (?:decode|parse)|cannot unmarshal|error unmarshaling"
    r"|strict decoding|cannot overwrite table|quantities must match"
    r"|unable to build kubernetes objects"
)
_KINDS: tuple[tuple[str, type[ClientError]], ...] = (
    (r"timed out waiting|context deadline exceeded", TimedOut),
    (r"cluster unreachable|dial tcp|connection refused|no route to host|i/o timeout", Unreachable),
    (r"User \".*\" cannot |Unauthorized|must be logged in", NotAuthorised),
)
Object = dict[str, Any]
Beat = Callable[[], object]
T = TypeVar("T")


class HelmFailed(ClientError):
    """Helm did not do it; the text is its own."""


def checked(given: str | None, files: Sequence[str]) -> str:
    """The chart to use: a folder or an archive that is there, or a URL.

    Args:
        given: the user's own; None for the clone's.
        files: of values.

    Raises:
        UsageError: there is no chart, its dependencies are missing, or a file is not there.
    """
    if nowhere := next((f for f in files if "://" not in f and not Path(f).is_file()), None):
        raise UsageError(f"-f {nowhere}: there is no such file")
    if given and "://" in given:
        if not given.startswith("oci://"):
            raise UsageError(f"--chart {given} is not one: give a folder, an archive, or oci://HOST/PATH")
        return given
    path = Path(given) if given else _CHART
    if path.is_file():
        return str(path)
    if not (path / "Chart.yaml").is_file():
        clone = "there is no clone around this client" if not given else f"{path} is no chart"
        raise UsageError(f"{clone}: give --chart with a folder that has a Chart.yaml, an archive, or oci://HOST/PATH")
    try:
        wanted = [d["name"] for d in yaml.safe_load((path / "Chart.yaml").read_bytes()).get("dependencies") or ()]
    except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        raise UsageError(f"{path}/Chart.yaml is not that of a chart: {' '.join(str(error).split())}") from error
    have = path / "charts"
    if missing := [name for name in wanted if not any(have.glob(f"{name}-*.tgz")) and not (have / name).is_dir()]:
        cure = "make charts" if path.resolve() == _CHART else f"helm dependency build {path}"
        raise UsageError(f"the chart's dependencies are missing ({', '.join(missing)}): run `{cure}`")
    return str(path)


class Helm:
    """The release in one namespace of one context."""

    def __init__(self, context: str, namespace: str) -> None:
        """Find helm: on PATH, or where `make charts` builds it.

        Raises:
            ClientError: there is none.
        """
        self.context, self.namespace = context, namespace
        found = shutil.which("helm") or shutil.which("helm", path=str(_CLONE / "build" / "tools"))
        if not found:
            raise ClientError(
                "helm is not on PATH: install Helm 3 or 4 (https://helm.sh); where there is Go, `make charts` builds it"
            )
        self._tool = found

    def install(
        self, target: str, chart: str, files: Sequence[str], sets: Sequence[str], seconds: float, beat: Beat
    ) -> Object | None:
        """Install or upgrade the release. Nothing is waited for but hooks, and nothing is rolled back.

        Args:
            target: whose values file of the chart comes first.
            chart: as `checked` gave it.
            files: helm's --values, on top.
            sets: helm's --set, on top of these.
            seconds: for its hooks.
            beat: called twice a second meanwhile; what it raises ends helm.

        Returns:
            The RayCluster that it holds, if any.

        Raises:
            UsageError: the chart cannot be used, or a value is wrong.
            ClientError: helm refuses it for another reason, which the text has.
        """
        from pyhelm3 import Chart  # type: ignore[import-untyped]

        async def act() -> Any:
            async with self._unpacked(chart) as path:
                values = path / f"values-{target}.yaml"
                if not values.is_file():
                    raise UsageError(f"the chart {chart} has no {values.name}: it is not one for `up {target}`")
                more = [part for file in (str(values), *files) for part in ("--values", file)]
                client = self._client([*more, *(part for item in sets for part in ("--set", item))])
                try:  # helm itself would take 0.1 s to say what is in it
                    metadata = yaml.safe_load((path / "Chart.yaml").read_bytes())
                    found = Chart(client._command, ref=path, metadata=metadata)
                except (ValueError, yaml.YAMLError) as error:
                    reason = " ".join(str(error).split())
                    raise UsageError(f"{path}/Chart.yaml is not that of a chart: {reason}") from error
                options: Object = {"timeout": f"{max(1, int(seconds))}s", "atomic": False, "wait": False}
                if client.version.major > 3:  # as Helm 3 does: the server would refuse groups that have been scaled
                    options["server_side"] = "false"
                return await client.install_or_upgrade_release(RELEASE, found, namespace=self.namespace, **options)

        return _cluster(self._run(act(), beat))

    def find(self) -> tuple[bool, Object | None]:
        """Whether the release is there, and the RayCluster that it holds, if any."""
        from pyhelm3.errors import ReleaseNotFoundError  # type: ignore[import-untyped]

        async def act() -> Any:
            try:
                return await self._client().get_current_revision(RELEASE, namespace=self.namespace)
            except ReleaseNotFoundError:
                return None

        revision = self._run(act(), lambda: None)
        return revision is not None, _cluster(revision) if revision else None

    def uninstall(self, beat: Beat, *, hooks: bool = True) -> None:
        """Remove the release and wait until its objects are gone; it is no error where there is none.

        Args:
            beat: as in `install`.
            hooks: whether the chart's own run.

        Raises:
            ClientError: helm could not, or a hook failed.
        """
        options: Object = {"namespace": self.namespace, "no_hooks": not hooks, "timeout": f"{_UNINSTALL_SECONDS}s"}

        async def act() -> None:
            await self._client().uninstall_release(RELEASE, wait=True, **options)

        self._run(act(), beat)

    def _client(self, more: Sequence[str] = ()) -> Any:
        """A client of pyhelm3 whose upgrades have more arguments."""
        from pyhelm3 import Client, Command

        class WithMore(Command):  # type: ignore[misc]
            async def run(self, command: list[str], input: bytes | None = None) -> bytes:
                given = more if command[0] == "upgrade" else ()
                # pyhelm3 goes through a shell, and would end that alone: helm takes its place.
                self._executable = "exec"
                done: bytes = await super().run([tool, *command, *given], input)
                return done

        tool = self._tool
        logging.getLogger("pyhelm3").setLevel(logging.CRITICAL)  # it logs the whole command, values included
        try:
            return Client(WithMore(executable=tool, kubecontext=self.context), executable=tool)
        except (subprocess.CalledProcessError, ValueError) as error:
            raise ClientError(f"{tool} does not tell its version: put another helm on PATH") from error

    def _run(self, work: Awaitable[T], beat: Beat) -> T:
        from pyhelm3.errors import Error

        try:
            return asyncio.run(_beside(work, beat))
        except Error as error:
            raise self._refusal(error.stderr.decode(errors="replace")) from error

    def _refusal(self, said: str) -> ClientError:
        """What helm said, as an error of ours; several mistakes are a list."""
        text = re.sub(r"\n*Use --debug flag.*", "", said[max(said.find("Error: "), 0) :].strip(), flags=re.DOTALL)
        text = re.sub(r"^(Error: )?(\w+ FAILED: )?(execution error at \(.*?\): )?", "", text)
        one_line = " ".join(text.split()) or "it said nothing"
        release = f"release {RELEASE} in namespace {self.namespace}"
        if "another operation" in text and "in progress" in text:
            return ClientError(f"another helm works on {release}: wait for it; {self._cure()}")
        if "has no deployed releases" in text:
            return ClientError(f"{release} was being removed: run `down` with the same options, then `up` again")
        if _BAD_VALUES.search(text):
            mistakes, chart = [], ""
            for line in map(str.strip, text.split("\n")):
                if line.startswith("- "):
                    mistakes.append(chart + line[2:])
                elif re.fullmatch(r"[\w-]+:", line):
                    chart = f"{line} "
            if len(mistakes) > 1:
                return UsageError("\n  - ".join([f"helm refuses {len(mistakes)} of the values:", *mistakes]))
            return UsageError(f"helm refuses the values: {mistakes[0] if mistakes else one_line}")
        kind = next((kind for pattern, kind in _KINDS if re.search(pattern, text)), HelmFailed)
        return kind(f"helm: {one_line}")

    def _cure(self) -> str:
        """What to do where the other helm was killed."""

        async def act() -> str:
            found = await self._client().get_current_revision(RELEASE, namespace=self.namespace)
            return str(found.status.value)

        if self._run(act(), lambda: None) == "pending-install":
            return "if it was killed, run `down` with the same options, then `up` again"
        rollback = f"helm rollback {RELEASE} -n {self.namespace} --kube-context {self.context}"
        return f"if it was killed, run `{rollback}`, then `up` again"

    @asynccontextmanager
    async def _unpacked(self, chart: str) -> AsyncIterator[Path]:
        """The chart as a folder: its values files are wanted."""
        if "://" in chart:
            async with self._client().pull_chart(chart) as pulled:
                yield Path(pulled.ref)
        elif Path(chart).is_dir():
            yield Path(chart)
        else:
            with tempfile.TemporaryDirectory(prefix="helm.") as folder:
                try:
                    with tarfile.open(chart) as archive:
                        archive.extractall(folder, filter="data")
                except (tarfile.TarError, OSError, EOFError) as error:
                    raise UsageError(f"{chart} is no archive of a chart (.tgz)") from error
                found = next(Path(folder).glob("*/Chart.yaml"), None)
                if not found:
                    raise UsageError(f"{chart} is no archive of a chart: it has no Chart.yaml")
                yield found.parent


def _cluster(revision: Any) -> Object | None:
    """The RayCluster in what a release holds."""
    return next((o for o in revision.resources_ if o and o["kind"] == "RayCluster"), None)


async def _beside(work: Awaitable[T], beat: Beat) -> T:
    task = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait({task}, timeout=_BEAT_SECONDS))[0]:
            beat()
        return task.result()
    finally:
        task.cancel()  # pyhelm3 ends helm then, and waits for it
        with suppress(asyncio.CancelledError, Exception):
            await task
