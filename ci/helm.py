"""Print the path of helm: the one on PATH, else one that is built with Go into build/tools.

`ci/helm.py 4` builds Helm 4 as build/tools/helm4, so that the tests can use both versions. If there is no helm, the
script prints one line and exits with code 1.
"""

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

TOOLS = Path(__file__).resolve().parent.parent / "build" / "tools"
# Helm 3 renders for a Kubernetes version that the linker sets (that of its client-go); without it, for 1.20.
KUBE = [
    f"-X helm.sh/helm/v3/pkg/{at}.k8sVersion{n}" for at in ("chartutil", "lint/rules") for n in ("Major=1", "Minor=37")
]
PINNED = {"3": ("helm", "v3.22.0", KUBE), "4": ("helm4", "v4.3.1", [])}


def version(tool: str | Path, *arguments: str) -> str:
    """Return what a tool reports as its version, or an empty string."""
    command = [tool, *(arguments or ("version", "--short"))]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return said.stdout.strip()


def on_path() -> str | None:
    """Return the user's own helm."""
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return shutil.which("helm", path=os.pathsep.join(f for f in folders if Path(f).absolute() != TOOLS))


def go_install(name: str, tool: Path, command: str, link: str, is_built: Callable[[], bool], cgo: str = "0") -> str:
    """Build a tool with Go unless it is built. Return why that failed, or an empty string."""
    TOOLS.mkdir(parents=True, exist_ok=True)
    lock = os.open(TOOLS, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)  # of concurrent runs, only one builds
    try:
        if is_built():
            return ""
        for left in TOOLS.glob(".new*"):  # left by a killed build
            shutil.rmtree(left)
        print(f"building {name} with Go; this takes a few minutes", file=sys.stderr)
        kept = {k: v for k, v in os.environ.items() if k not in ("GOOS", "GOARCH")}
        with tempfile.TemporaryDirectory(prefix=".new", dir=TOOLS) as new:
            env = {**kept, "GOBIN": new, "CGO_ENABLED": cgo}
            go = ["go", "install", "-ldflags", f"-s -w {link}", command]
            built = subprocess.run(go, cwd=new, env=env, capture_output=True, text=True, check=False)
            if built.returncode:
                why = (built.stderr.strip() or f"exit code {built.returncode}").splitlines()[-1].strip()
                return f"go install: {why}"
            os.replace(next(Path(new).iterdir()), tool)
        return ""
    finally:
        os.close(lock)


def build(major: str) -> Path:
    """Return the pinned helm of a major version; build it if it is not there."""
    name, pinned, flags = PINNED[major]
    tool = TOOLS / name
    if version(tool) == pinned:
        return tool
    if not shutil.which("go"):
        sys.exit(
            "helm is missing, so there is no chart and no tests of it: install Helm 3 or 4 (https://helm.sh), or Go"
        )
    package = f"helm.sh/helm/v{major}"
    link = " ".join([f"-X {package}/internal/version.version={pinned}", *flags])
    command = f"{package}/cmd/helm@{pinned}"
    if why := go_install(f"Helm {pinned}", tool, command, link, lambda: version(tool) == pinned):
        sys.exit(f"helm could not be built: {why}; install Helm 3 or 4 (https://helm.sh)")
    return tool


def main() -> None:
    """Find or build helm and print its path."""
    major = sys.argv[1] if len(sys.argv) > 1 else ""
    if major == "4" or not (helm := on_path()):
        helm = str(build(major or "3"))
    elif not re.match(r"v[34]\.\d+\.\d+([-+]|$)", said := version(helm)):
        sys.exit(f"{helm} is no release of Helm 3 or 4 (its version is {said!r}): install a release")
    print(helm)


if __name__ == "__main__":
    main()
