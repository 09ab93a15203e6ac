"""jobs/tune_sweep.py: the best trial is the right one, and it was drawn."""

import json
import re
from pathlib import Path

from matplotlib.image import imread

from tests.gallery.conftest import Job


def test_the_sweep_finds_the_best_degree_and_draws_it(submit: Job, folder: Path) -> None:
    done = submit("tune_sweep")
    assert done.returncode == 0, done.stderr
    said = {
        int(found[1]): found.groups()[1:]
        for found in re.finditer(r"degree +(\d+): error (\S+) after (\d+)", done.stdout)
    }
    assert done.stdout.endswith("all well: the best degree is 5, that of the curve\n")

    kept = {}
    for path in folder.glob("outputs/fit_*/fit_*/result.json"):
        reports = [json.loads(line) for line in path.read_text().splitlines()]
        kept[reports[0]["config"]["degree"]] = {report["points"]: report["error"] for report in reports}
    assert said == {degree: (f"{list(errors.values())[-1]:.4f}", f"{max(errors)}") for degree, errors in kept.items()}
    assert sorted(kept) == list(range(1, 13))
    complete = [degree for degree, errors in kept.items() if max(errors) == 512]
    assert min(complete, key=lambda degree: kept[degree][512]) == 5
    stopped = set(kept) - set(complete)
    assert stopped and all(kept[degree][32] > kept[5][32] for degree in stopped)

    picture = folder / "outputs" / "tune_sweep.png"
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    pixels = (imread(picture)[..., :3] * 255).round().astype(int)
    assert pixels.shape == (500, 800, 3)
    red = (pixels == (0xD6, 0x27, 0x28)).all(axis=2)
    assert red.any(axis=0).sum() > 600, "the line of the best trial goes from left to right"
