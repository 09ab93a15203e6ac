"""The images of `ci/kind images --e2e`: their sizes, and the packages in those with extras or packages of your own."""

import json
import re

import pytest

from tests.conftest import ROOT
from tests.e2e._cluster import run_pods, tiny_pod
from tests.e2e.conftest import IMAGE, JOBS_IMAGE, OWN_IMAGE, get, kubectl, new_namespace

# Runs in a pod: the user, the versions of all packages, and the modules that have no bytecode.
INSIDE = """
import json, os, pathlib, sysconfig
from importlib import metadata, util
site = pathlib.Path(sysconfig.get_path("purelib"))
versions = {d.name.lower().replace("_", "-"): d.version for d in metadata.distributions()}
slow = [str(path) for path in site.rglob("*.py") if not os.path.exists(util.cache_from_source(path))]
print(json.dumps([os.getuid(), versions, slow]))
"""


def inside(image: str) -> tuple[int, dict[str, str], list[str]]:
    with new_namespace("image") as where:
        run_pods(tiny_pod("image", where, image=image))
        done = kubectl("exec", "-n", where, "image", "--", "python", "-c", INSIDE)
    uid, versions, slow = json.loads(done.stdout)
    return uid, versions, slow


@pytest.mark.parametrize(("image", "row"), [(IMAGE, "none"), (JOBS_IMAGE, "`data serve services tune`")])
def test_an_image_has_the_size_that_the_docs_state(image: str, row: str) -> None:
    """The base image of the rig and of the docs may differ by 0.1 GB."""
    (stated,) = re.findall(rf"^\| {row} \| ([\d.]+) GB \|", (ROOT / "docs/images.md").read_text(), re.MULTILINE)
    nodes = [found for node in get("nodes")["items"] for found in node["status"]["images"]]
    (size,) = {found["sizeBytes"] for found in nodes if any(n.endswith(f"/{image}") for n in found["names"] or ())}
    assert abs(size / 1e9 - float(stated)) < 0.1, size


def test_extras_have_the_versions_of_the_lock_and_bytecode() -> None:
    uid, versions, slow = inside(JOBS_IMAGE)
    locked = re.findall(r"^([a-z0-9-]+)==([^ ]+)", (ROOT / "requirements-jobs.txt").read_text(), re.MULTILINE)
    assert {"pyarrow", "pandas", "fastapi", "matplotlib", "confluent-kafka", "psycopg", "redis"} <= set(versions)
    assert dict(versions.items() - set(locked)).keys() == {"pip"}
    assert uid == 1000 and not slow, slow[:5]


def test_packages_of_ones_own_come_on_top() -> None:
    plain, own = inside(IMAGE), inside(OWN_IMAGE)
    assert own[1].items() - plain[1].items() == {("einops", own[1]["einops"])} and own[1].keys() > plain[1].keys()
    assert own[0] == 1000 and not own[2], own[2][:5]
