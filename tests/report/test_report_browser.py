"""The page in a real browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess

import pytest
import sample_runs

from longrope.report.all_figures import figures
from longrope.report.html import page
from longrope.report.load import read_runs

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# in a frame, since a window is 500 pixels wide at least
MEASURE = """<!doctype html><meta charset="utf-8">
<iframe width="%d" height="2000" style="border: 0" srcdoc="%s"></iframe>
<pre></pre><script>
addEventListener("load", () => {
  const inner = document.querySelector("iframe").contentDocument, view = inner.defaultView;
  const boxes = (name) => [...inner.querySelectorAll(name)].map((one) => one.getBoundingClientRect());
  const sizes = (name) => boxes(name).map((box) => [box.width, box.height]);
  const style = view.getComputedStyle(inner.body);
  document.querySelector("pre").textContent = JSON.stringify({
    figures: sizes("figure"), pictures: sizes("figure > svg"), marks: sizes("svg :has(> title)").length,
    scroll: inner.documentElement.scrollWidth, width: view.innerWidth,
    ink: style.color, ground: style.backgroundColor, axis: view.getComputedStyle(inner.querySelector("svg text")).fill,
  });
});
</script>"""


@pytest.mark.real
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_everything_is_seen(tmp_path, width, scheme):
    record = sample_runs.results((*sample_runs.HARD, sample_runs.EVIL))
    read = read_runs([sample_runs.write_run(tmp_path / "run", record)])
    shown = figures(read)
    text = MEASURE % (width, html.escape(page(read, shown)))
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    done = subprocess.run(
        [
            *(str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"),
            f"--user-data-dir={tmp_path / 'profile'}",
            "--window-size=1400,2000",
            f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}",
            *("--dump-dom", (tmp_path / "page.html").as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in done.stderr
    found = re.search(r"<pre>(.*)</pre>", done.stdout)
    assert found is not None
    seen = json.loads(html.unescape(found[1]))
    assert seen["scroll"] <= seen["width"] == width
    assert len(seen["figures"]) == len(shown)
    assert len(seen["pictures"]) == sum(figure.chart is not None for figure in shown)
    assert all(width >= wide > 200 and high > 60 for wide, high in seen["figures"])
    assert all(width >= wide > 200 and high > 100 for wide, high in seen["pictures"])
    assert seen["marks"] > 500
    dark, light = ("rgb(236, 236, 236)", "rgb(23, 24, 26)"), ("rgb(28, 28, 28)", "rgb(255, 255, 255)")
    assert (seen["ink"], seen["ground"]) == (dark if scheme == "dark" else light)
    assert seen["axis"] == seen["ink"]
