"""Put the dependencies of the chart into its charts/ folder, in the versions of Chart.lock.

They come from their repository; where that cannot be reached, from the folder RAY_WORKLOAD_UPSTREAM, which has them
unpacked. Exit code 1: they cannot be had. 2: the chart or its repository is wrong.
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
PATIENCE = 20  # seconds for the repository
FIELDS = ("name", "version", "repository", "condition", "tags", "enabled", "import-values", "alias")
Dependencies = list[dict[str, Any]]


class UnavailableError(Exception):
    """Not to be had here; the text says why."""


def wrong(why: str) -> NoReturn:
    """End with what must be mended."""
    print(why, file=sys.stderr)
    sys.exit(2)


def digest(wanted: Dependencies, locked: Dependencies) -> str:
    """Helm's own hash of what Chart.yaml wants and Chart.lock has: that of the JSON that Go makes of it."""
    both = [[{f: d[f] for f in FIELDS if f == "repository" or d.get(f)} for d in part] for part in (wanted, locked)]
    text = json.dumps(both, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def locked(chart: Path) -> Dependencies:
    """The dependencies of Chart.lock, which must be made for this Chart.yaml."""
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
    """Name and version of an unpacked chart, or of a whole archive."""
    if chart.is_dir():
        text = (chart / "Chart.yaml").read_bytes()
    else:
        data = io.BytesIO(gzip.decompress(chart.read_bytes()))  # all of it: a cut or changed archive is refused
        with tarfile.open(fileobj=data) as archive:
            member = archive.next()
            while member and not re.fullmatch(r"[^/]+/Chart\.yaml", member.name):
                member = archive.next()
            file = archive.extractfile(member) if member else None
            text = file.read() if file else b""
    metadata = yaml.safe_load(text) or {}
    return str(metadata.get("name")), str(metadata.get("version"))


def loaded(folder: Path) -> Iterator[Path]:
    """What helm reads as a chart in a charts/ folder."""
    for entry in sorted(folder.iterdir()):
        if entry.name[0] not in "._" and entry.suffix != ".prov":
            yield entry


def holds(folder: Path, wanted: Dependencies) -> bool:
    """Whether these charts are there, whole, and no other ones."""
    try:
        return sorted(map(identity, loaded(folder))) == sorted((d["name"], d["version"]) for d in wanted)
    except (OSError, EOFError, ValueError, zlib.error, tarfile.TarError, yaml.YAMLError, AttributeError):
        return False


def run(helm: str, *args: str | Path, home: Path, timeout: float = 120) -> "subprocess.CompletedProcess[str]":
    """Run helm with nothing of the user's: neither are their repositories asked, nor is a file of theirs changed."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("HELM_")}
    env.update({f"HELM_{part}_HOME": str(home / part.lower()) for part in ("CACHE", "CONFIG", "DATA")})
    return subprocess.run([helm, *args], env=env, capture_output=True, text=True, timeout=timeout, check=False)


def download(helm: str, chart: Path, wanted: Dependencies, new: Path) -> None:
    """From the repository, by helm, in a copy of the chart, so that a killed helm leaves nothing in the real one."""
    for name in ("Chart.yaml", "Chart.lock"):
        shutil.copy(chart / name, new)
    # With a Chart.lock, helm takes only repositories that were added.
    urls = sorted({d["repository"] for d in wanted if d["repository"].startswith("http")})
    (new / "config").mkdir()
    repositories = [{"name": f"repository-{number}", "url": url} for number, url in enumerate(urls)]
    (new / "config" / "repositories.yaml").write_text(yaml.safe_dump({"repositories": repositories}))
    try:
        done = run(helm, "dependency", "build", new, home=new, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"no answer in {PATIENCE} s") from None
    if not done.returncode:
        return
    index = re.search(r"Unable to get an update from .*\n\s*(.*)", done.stdout)
    archive = re.search(r"could not download .*?: (Get \".*)", done.stderr)  # no HTTP answer: it is another host's
    if unreachable := index or archive:
        raise UnavailableError(unreachable[1])
    wrong(f"{chart}: helm dependency build: {' '.join(done.stderr.split())}")


def pack(helm: str, wanted: Dependencies, new: Path) -> None:
    """From the folder of unpacked charts."""
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
    """Get the charts from where they can be had, into new/charts. Returns that place."""
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
        way = f"set RAY_WORKLOAD_UPSTREAM, or `helm pull` them from a mirror into {chart / 'charts'}"
        sys.exit(f"no dependencies, so no chart and no tests of it: {unreachable}; {error}; {way}")


def main() -> None:
    """Leave, or get and put in place."""
    chart = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(os.path.relpath(CHART))
    wanted, folder = locked(chart), chart / "charts"
    names = ", ".join(f"{d['name']} {d['version']}" for d in wanted)
    folder.mkdir(exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)  # two at once get them once
    if holds(folder, wanted):
        print(f"{folder}: {names} are there")
        return
    for left in folder.glob(".new*"):  # by a killed run; helm does not read what begins with a dot
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=".new", dir=folder) as new:
        (Path(new) / "charts").mkdir()
        source = fetch(chart, wanted, Path(new))
        if not holds(Path(new) / "charts", wanted):
            wrong(f"{chart}: not the charts of Chart.lock came from {source}")
        fresh = list(loaded(Path(new) / "charts"))
        for archive in fresh:
            archive.replace(folder / archive.name)
    for entry in loaded(folder):
        if entry.name not in {archive.name for archive in fresh}:  # helm would render it too
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    print(f"{folder}: {names} from {source}")


if __name__ == "__main__":
    main()
