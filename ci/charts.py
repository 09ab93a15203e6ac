"""Put the chart's dependencies into its charts/ folder, in the versions of Chart.lock.

They are downloaded from their repository. If it cannot be reached, they are packed from the folder that
RAY_WORKLOAD_UPSTREAM names, which holds the unpacked charts. Exit code 1: the dependencies are not available; 2: the
chart or its repository has an error.
"""

import fcntl
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import yaml

CHART = Path(__file__).resolve().parent.parent / "charts" / "ray-workload"
UPSTREAM = Path(os.environ.get("RAY_WORKLOAD_UPSTREAM") or "~/.cache/ray-workload/upstream").expanduser()
DOWNLOAD_SECONDS = 20
FIELDS = ("name", "version", "repository", "condition", "tags", "enabled", "import-values", "alias")
Dependencies = list[dict[str, Any]]


class UnavailableError(Exception):
    """The dependencies are not available from one source; the text says why."""


def wrong(why: str) -> NoReturn:
    """Exit with code 2 and a message about what must be corrected."""
    print(why, file=sys.stderr)
    sys.exit(2)


def digest(wanted: Dependencies, locked: Dependencies) -> str:
    """Return Helm's digest of the dependencies in Chart.yaml and Chart.lock: a hash of their JSON as Go writes it."""
    both = [[{f: d[f] for f in FIELDS if f == "repository" or d.get(f)} for d in part] for part in (wanted, locked)]
    text = json.dumps(both, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def locked(chart: Path) -> Dependencies:
    """Return the dependencies in Chart.lock, which must match Chart.yaml."""
    try:
        wanted = yaml.safe_load((chart / "Chart.yaml").read_bytes())["dependencies"]
        lock = yaml.safe_load((chart / "Chart.lock").read_bytes())
        have: Dependencies = lock["dependencies"]
        matches = digest(wanted, have) == lock["digest"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        wrong(f"{chart}: Chart.yaml and Chart.lock cannot be read: {' '.join(str(error).split())}")
    if not matches:
        wrong(f"{chart}: Chart.lock is out of sync with Chart.yaml: run `helm dependency update {chart}`")
    return have


def identity(chart: Path) -> tuple[str, str]:
    """Return the name and version of an unpacked chart or of a complete archive."""
    if chart.is_dir():
        text = (chart / "Chart.yaml").read_bytes()
    else:
        data = io.BytesIO(gzip.decompress(chart.read_bytes()))  # reads all of it: fails if the archive is damaged
        with tarfile.open(fileobj=data) as archive:
            member = archive.next()
            while member and not re.fullmatch(r"[^/]+/Chart\.yaml", member.name):
                member = archive.next()
            file = archive.extractfile(member) if member else None
            text = file.read() if file else b""
    metadata = yaml.safe_load(text) or {}
    return str(metadata.get("name")), str(metadata.get("version"))


def loaded(folder: Path) -> Iterator[Path]:
    """Yield the entries of a charts/ folder that helm loads as charts."""
    for entry in sorted(folder.iterdir()):
        if entry.name[0] not in "._" and entry.suffix != ".prov":
            yield entry


def holds(folder: Path, wanted: Dependencies) -> bool:
    """Return whether a folder holds exactly these charts, all of them complete."""
    try:
        return sorted(map(identity, loaded(folder))) == sorted((d["name"], d["version"]) for d in wanted)
    except (OSError, EOFError, ValueError, zlib.error, tarfile.TarError, yaml.YAMLError, AttributeError):
        return False


def run(helm: str, *args: str | Path, home: Path, timeout: float = 120) -> "subprocess.CompletedProcess[str]":
    """Run helm without the user's settings, so that it neither uses their repositories nor changes their files."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("HELM_")}
    env.update({f"HELM_{part}_HOME": str(home / part.lower()) for part in ("CACHE", "CONFIG", "DATA")})
    return subprocess.run([helm, *args], env=env, capture_output=True, text=True, timeout=timeout, check=False)


def download(helm: str, chart: Path, wanted: Dependencies, new: Path) -> None:
    """Download with helm into a copy of the chart, so that a killed helm leaves no files in the chart itself."""
    for name in ("Chart.yaml", "Chart.lock"):
        shutil.copy(chart / name, new)
    # If there is a Chart.lock, helm uses only repositories that have been added.
    urls = sorted({d["repository"] for d in wanted if d["repository"].startswith("http")})
    (new / "config").mkdir()
    repositories = [{"name": f"repository-{number}", "url": url} for number, url in enumerate(urls)]
    (new / "config" / "repositories.yaml").write_text(yaml.safe_dump({"repositories": repositories}))
    try:
        done = run(helm, "dependency", "build", new, home=new, timeout=DOWNLOAD_SECONDS)
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"no answer in {DOWNLOAD_SECONDS} s") from None
    if not done.returncode:
        return
    index = re.search(r"Unable to get an update from .*\n\s*(.*)", done.stdout)
    archive = re.search(r"could not download .*?: (Get \".*)", done.stderr)  # on a host that cannot be reached
    if unreachable := index or archive:
        raise UnavailableError(unreachable[1])
    wrong(f"{chart}: helm dependency build: {' '.join(done.stderr.split())}")


def pack(helm: str, wanted: Dependencies, new: Path) -> None:
    """Pack the charts in the folder UPSTREAM."""
    for dependency in wanted:
        source, want = UPSTREAM / dependency["name"], (dependency["name"], dependency["version"])
        try:
            found = identity(source)
        except (OSError, yaml.YAMLError, AttributeError, ValueError):
            raise UnavailableError(f"{source} is no unpacked chart") from None
        if found != want:
            raise UnavailableError(f"{source} has {' '.join(found)}, but Chart.lock {' '.join(want)}")
        packed = run(helm, "package", "-d", new / "charts", source, home=new)
        if packed.returncode:
            raise UnavailableError(f"helm package {source}: {' '.join(packed.stderr.split())}")


def fetch(chart: Path, wanted: Dependencies, new: Path) -> str:
    """Get the charts into new/charts from the first source that has them. Returns that source."""
    finder = [sys.executable, str(Path(__file__).with_name("helm.py"))]
    found = subprocess.run(finder, stdout=subprocess.PIPE, text=True, check=False)
    if found.returncode:
        sys.exit(found.returncode)
    helm, urls = found.stdout.strip(), " and ".join(sorted({d["repository"] for d in wanted}))
    try:
        download(helm, chart, wanted, new)
        return urls
    except UnavailableError as error:
        unreachable = f"{urls} cannot be reached: {error}"
    try:
        pack(helm, wanted, new)
        return f"{UPSTREAM} ({unreachable})"
    except UnavailableError as error:
        hint = f"set RAY_WORKLOAD_UPSTREAM, or `helm pull` them from a mirror into {chart / 'charts'}"
        sys.exit(f"the chart's dependencies are not available: {unreachable}; {error}; {hint}")


def main() -> None:
    """Get the dependencies unless they are there already."""
    chart = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(os.path.relpath(CHART))
    wanted, folder = locked(chart), chart / "charts"
    names = ", ".join(f"{d['name']} {d['version']}" for d in wanted)
    folder.mkdir(exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)  # of concurrent runs, only one downloads
    if holds(folder, wanted):
        print(f"{folder}: {names} are there")
        return
    for left in folder.glob(".new*"):  # left by a killed run; helm ignores names that begin with a dot
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=".new", dir=folder) as new:
        (Path(new) / "charts").mkdir()
        source = fetch(chart, wanted, Path(new))
        if not holds(Path(new) / "charts", wanted):
            wrong(f"{chart}: the charts from {source} are not those in Chart.lock")
        fresh = list(loaded(Path(new) / "charts"))
        for archive in fresh:
            archive.replace(folder / archive.name)
    for entry in loaded(folder):
        if entry.name not in {archive.name for archive in fresh}:  # helm would render it as well
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    print(f"{folder}: {names} from {source}")


if __name__ == "__main__":
    main()
