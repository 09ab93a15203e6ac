"""The guide: the chart renders with the values on its pages."""

from pathlib import Path

import pytest
import yaml

from tests.chart.conftest import CHART, Render
from tests.guide import PAGES, Block, blocks

BASE = {"values": "values-local.yaml", "values: gke": "values-gke.yaml"}
VALUES = [block for page in PAGES for block in blocks(page) if block.comment in BASE]
MANIFESTS = [block for page in PAGES for block in blocks(page) if block.comment == "manifest"]


@pytest.mark.parametrize("block", VALUES, ids=str)
def test_the_chart_takes_the_values(block: Block, render: Render, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(block.text)
    own = render(CHART / BASE[block.comment], tmp_path / "own.yaml")
    assert own != render(CHART / BASE[block.comment]), "these values change nothing"


@pytest.mark.parametrize("block", MANIFESTS, ids=str)
def test_manifests_are_objects(block: Block) -> None:
    for document in yaml.safe_load_all(block.text):
        assert {"apiVersion", "kind", "metadata"} <= document.keys()
