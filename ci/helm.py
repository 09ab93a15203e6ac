"""Print the path of helm: the one on PATH, or else one built with Go into build/tools, once.

`ci/helm.py 4` builds Helm 4 as build/tools/helm4, for the tests to have both. Without helm: exit code 1 and one line.
"""

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

TOOLS = Path(__file__).resolve().parent.parent / "build" / "tools"
# Helm 3 takes the Kubernetes version it renders for from the linker (it is that of its client-go), or says 1.20.
KUBE = [
    f"-X helm.sh/helm/v3/pkg/{at}.k8sVersion{n}" for at in ("chartutil", "lint/rules") for n in ("Major=1", "Minor=37")
]
PINNED = {"3": ("helm", "v3.22.0", KUBE), "4": ("helm4", "v4.3.1", [])}


def version(helm: str | Path) -> str:
    """What it says its version is."""
    try:
        said = subprocess.run([helm, "version", "--short"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return said.stdout.strip()


def on_path() -> str | None:
    """The user's own helm."""
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return shutil.which("helm", path=os.pathsep.join(f for f in folders if Path(f).absolute() != TOOLS))


def build(major: str) -> Path:
    """The pinned helm of this major version."""
    name, pinned, flags = PINNED[major]
    tool = TOOLS / name
    if version(tool) == pinned:
        return tool
    if not shutil.which("go"):
        sys.exit(
            "no helm, so no chart and no tests of it: install Helm 3 or 4 (https://helm.sh), or Go to build it with"
        )
    TOOLS.mkdir(parents=True, exist_ok=True)
    lock = os.open(TOOLS, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)  # two at once build it once
    if version(tool) == pinned:
        return tool
    for left in TOOLS.glob(".new*"):  # by a killed build
        shutil.rmtree(left)
    print(f"building Helm {pinned} with Go, which takes some minutes", file=sys.stderr)
    package = f"helm.sh/helm/v{major}"
    link = " ".join(["-s -w", f"-X {package}/internal/version.version={pinned}", *flags])
    kept = {k: v for k, v in os.environ.items() if k not in ("GOOS", "GOARCH")}
    with tempfile.TemporaryDirectory(prefix=".new", dir=TOOLS) as new:
        command = ["go", "install", "-ldflags", link, f"{package}/cmd/helm@{pinned}"]
        env = {**kept, "GOBIN": new, "CGO_ENABLED": "0"}
        built = subprocess.run(command, cwd=new, env=env, capture_output=True, text=True, check=False)
        if built.returncode:
            why = (built.stderr.strip() or f"exit code {built.returncode}").splitlines()[-1].strip()
            sys.exit(
                f"no helm, so no chart and no tests of it: install Helm 3 or 4 (https://helm.sh); go install: {why}"
            )
        os.replace(Path(new, "helm"), tool)
    return tool


def main() -> None:
    """Find or build."""
    major = sys.argv[1] if len(sys.argv) > 1 else ""
    if major == "4" or not (helm := on_path()):
        helm = str(build(major or "3"))
    elif not re.match(r"v[34]\.\d+\.\d+([-+]|$)", said := version(helm)):
        sys.exit(f"no chart and no tests of it: {helm} is no release of Helm 3 or 4 (it says {said!r}); install one")
    print(helm)


if __name__ == "__main__":
    main()
