"""The report: whole, safe, and fit for a small screen; looked at by a real browser where there is one."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from rfx_agent import ConfigError
from rfx_agent.lab.audit import audit
from rfx_agent.lab.profiles import Profile
from rfx_agent.lab.report import report, write_report

pytest.importorskip("polars")
pytest.importorskip("sklearn")

EVIL = "\"><script>fetch('http://evil.example')</script><img src=x onerror=alert(1)>\u202e"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
REMEDIES = ("retry", "local_temp", "sparse_steer", "sparse_steer_random", "dense_steer")


def made(n: int = 60) -> Profile:
    rng = np.random.default_rng(0)
    model = ["sft1", f"grpo{EVIL}"] * (n // 2)
    task = ["a_task_with_quite_a_long_name_that_does_not_break_anywhere"] * n
    return Profile(
        cell=[f"{m}|{t}" for m, t in zip(model, task, strict=True)],
        model=model,
        task=task,
        problem_id=[f"p{i}" for i in range(n)],
        n_failed=rng.integers(1, 11, n),
        features={name: rng.normal(size=n) for name in ("spread", "concentration", "logit_dispersion")},
        rates={name: rng.integers(0, 11, n) / 10 for name in REMEDIES},
        bad_rows=((3, EVIL),),
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    profile = made()
    found = audit(profile, folds=2, repeats=1, bootstraps=2)
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(report(profile, title=EVIL, orders=2, found=found), encoding="utf-8")
    return path


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_asks_for_nothing(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    names = {tag for tag, _ in tags.seen}
    assert not names & {"script", "img", "link", "iframe", "object", "form", "a", "base"}
    for _, attributes in tags.seen:
        assert not [a for a in attributes if a.startswith("on") or a in ("src", "href", "style", "xlink:href")]
    assert "url(" not in text
    assert "@import" not in text
    policy = next(a["content"] for tag, a in tags.seen if tag == "meta" and "http-equiv" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "\u202e" not in text


def test_every_picture_has_a_name_a_description_and_a_table(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    sections = text.split("<section>")[1:]
    assert re.findall(r"<h2>(.*?)</h2>", text) == [
        "Regimes",
        "Feature plane",
        "What the features tell",
        "Rescue against attempts",
        "Budget use",
        "Predicted against actual",
    ]
    assert text.count('class="picture"') == 5
    for section in sections:
        assert "<table>" in section
        assert "<caption>" in section
        if 'class="picture"' in section:
            assert 'role="img" aria-label="' in section
            assert re.search(r"<title>[^<]+</title><desc>[^<]+</desc>", section)


def test_a_report_says_what_it_cannot_show() -> None:
    profile = replace(made(), rates={})
    with pytest.raises(ConfigError, match="orders is 0"):
        report(profile, orders=0)
    text = report(profile, orders=1, found=audit(profile, folds=2, repeats=1, bootstraps=2))
    assert "Not known: they need the rates" in text
    assert "Not replayed" in text
    assert "Nothing was predicted" in text


def test_a_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "r.html"
    monkeypatch.setattr("rfx_agent.lab.report.report", lambda *_, **__: "<p>new</p>")
    write_report(made(), target)
    assert target.read_text() == "<p>new</p>"
    monkeypatch.setattr("rfx_agent.lab.report.report", lambda *_, **__: "\udcff")  # cannot be encoded
    with pytest.raises(UnicodeEncodeError):
        write_report(made(), target)
    assert target.read_text() == "<p>new</p>"
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]


PROBE = """<!doctype html><body><iframe src="report.html" width="{width}" height="900"></iframe><pre id="out"></pre>
<script>
addEventListener("load", () => {{
  const d = document.querySelector("iframe").contentDocument, w = d.documentElement.clientWidth;
  const loose = [...d.querySelectorAll("body *")].filter(e => !e.closest(".wide > *") && !e.closest("svg > *")
    && e.getBoundingClientRect().right > w + 0.5).map(e => e.tagName + "." + e.className);
  const small = [...d.querySelectorAll(".picture text")].map(
    e => e.ownerSVGElement.getBoundingClientRect().width / 420 * parseFloat(getComputedStyle(e).fontSize));
  document.getElementById("out").textContent = JSON.stringify({{
    width: w, scroll: d.documentElement.scrollWidth, loose, smallest: Math.min(...small),
    scripts: d.scripts.length, images: d.images.length, pictures: d.querySelectorAll("svg.picture").length,
    heading: d.querySelector("h1").textContent, styled: getComputedStyle(d.querySelector(".legend")).display,
  }});
}});
</script>"""


@browser
@pytest.mark.parametrize("width", [360, 1100])
def test_a_browser_shows_it_without_sideways_scrolling(page: Path, tmp_path: Path, width: int) -> None:
    import json
    from html import unescape

    shutil.copy(page, tmp_path / "report.html")
    (tmp_path / "probe.html").write_text(PROBE.format(width=width + 4))  # two units of border on both sides
    flags = "--headless --no-sandbox --disable-gpu --disable-background-networking --disable-component-update"
    flags += " --disable-sync --no-first-run --allow-file-access-from-files --virtual-time-budget=5000"
    command = [str(CHROMIUM), *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    address = (tmp_path / "probe.html").as_uri()
    done = subprocess.run([*command, address], capture_output=True, text=True, timeout=60, check=False)
    match = re.search(r'<pre id="out">(.+?)</pre>', done.stdout, re.DOTALL)
    assert match, done.stderr[-500:]
    found = json.loads(unescape(match[1]))
    assert found["scroll"] <= found["width"]
    assert found["loose"] == []
    assert found["smallest"] >= 8  # units on screen of the smallest letter in a picture
    assert (found["scripts"], found["images"], found["pictures"]) == (0, 0, 5)
    assert "<script>" in found["heading"]  # shown as the text it is
    assert found["styled"] == "flex"  # its own policy lets its styles through
