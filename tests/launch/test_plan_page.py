"""The page of `toolkit plan --html` in a real browser: all of it is drawn, where it can be seen, from one file."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_plan import MEDIUM, RECIPE
from toolkit.cli.verbs import main

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
WIDTH = 1000

# What the browser has made of the page: written into its title, which --dump-dom prints.
PROBE = """
<script>
addEventListener("load", () => {
  const pictures = [...document.querySelectorAll("svg")].map(svg => {
    const seen = svg.getBoundingClientRect(), box = svg.viewBox.baseVal;
    const outside = [...svg.querySelectorAll("rect, text, line, polyline")].filter(shape => {
      const place = shape.getBBox();
      return place.x < -1 || place.x + place.width > box.width + 1 || place.y < -1 || place.y + place.height > box.height + 1;
    });
    return {what: svg.getAttribute("aria-label"), wide: seen.width, high: seen.height,
      boxes: [...svg.querySelectorAll("rect")].filter(rect => rect.getBoundingClientRect().width > 0).length,
      outside: outside.map(shape => shape.textContent || shape.tagName)};
  });
  document.title = JSON.stringify({pictures, wide: document.documentElement.scrollWidth, errors,
    requests: performance.getEntriesByType("resource").map(entry => entry.name),
    plan: JSON.parse(document.getElementById("plan").textContent).strategy});
});
</script>
"""
ERRORS = '<script>const errors = []; addEventListener("error", event => errors.push(event.message));</script>'


def drawn(page: Path, folder: Path) -> dict[str, Any]:
    """What the probe finds when a browser of `WIDTH` pixels has opened `page`."""
    text = page.read_text().replace("<head>", f"<head>{ERRORS}").replace("</body>", f"{PROBE}</body>")
    probed = folder / "probed.html"
    probed.write_text(text)
    command = [
        str(BROWSER),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        f"--user-data-dir={folder / 'profile'}",
        f"--window-size={WIDTH},3000",
        "--virtual-time-budget=2000",
        "--dump-dom",
        probed.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    title = re.search(r"<title>(\{.*?\})</title>", done.stdout, re.DOTALL)
    assert title is not None, done.stdout[:500] + done.stderr[-500:]
    found: dict[str, Any] = json.loads(html.unescape(title[1]))
    return found


@pytest.mark.skipif(BROWSER is None, reason="no browser here; to run it: apt-get install chromium")
@pytest.mark.parametrize("devices", ["2", "32"])
def test_everything_is_drawn_and_nothing_is_cut_off(devices: str, tmp_path: Path) -> None:
    """Two devices as the recipe says; among 32 it cannot run so, and strategies with several degrees take its place."""
    recipe, page = tmp_path / "small.py", tmp_path / "plan.html"
    recipe.write_text(RECIPE.replace("{config}", repr(MEDIUM)))
    assert main(["plan", str(recipe), "--device", "L4", "--devices", devices, "--html", str(page)]) == 0
    found = drawn(page, tmp_path)
    assert found["errors"] == [] and found["requests"] == []
    assert found["wide"] <= WIDTH
    names = [picture["what"].partition(",")[0] for picture in found["pictures"]]
    assert names == ["memory by component and strategy", "time of a step by strategy", "learning rate by step"]
    for picture in found["pictures"]:
        assert picture["wide"] > 0.8 * WIDTH and picture["high"] > 40, picture["what"]
        assert picture["outside"] == [], picture["what"]
    assert found["pictures"][0]["boxes"] > 8
    assert found["plan"]
