"""The page in a browser: Debian's Chromium, driven by Playwright; skipped where either is missing.

What the page shows is compared with what Python computes from the same runs by other ways.
"""

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from lovasz_repro.losses import lovasz_hinge
from lovasz_repro.report.claims import evaluate_claims
from lovasz_repro.report.figures import FIGURES
from lovasz_repro.report.model import Missing
from lovasz_repro.report.page.write import write_page
from lovasz_repro.report.tables import TABLES
from lovasz_repro.synthetic.bias_search import Circles, draw_circles
from tests.report.conftest import FakeStore, add_camvid

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

playwright = pytest.importorskip("playwright.sync_api")

ROOT = Path(__file__).resolve().parents[2]
SEARCH = ROOT / "results" / "reference" / "runs" / "synthetic" / "bias-search-100-seeds-79f35b68"
HOSTILE = "<img src=x onerror=\"document.title='taken'\">"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM)
        yield found
        found.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> FakeStore:
    """CamVid at two scales, one of its runs with a stranger's words, and the stored search."""
    store = FakeStore(tmp_path_factory.mktemp("artifacts"))
    for seed in (0, 1):
        for variant, score in {"weighted-cross-entropy": 0.48, "lovasz-softmax": 0.527}.items():
            add_camvid(store, variant, seed, score + 0.01 * seed)
    add_camvid(store, "lovasz-softmax", 0, 0.3, scale="demo", device=HOSTILE)
    shutil.copytree(SEARCH / "artifacts", store.folder / "id005")
    excess = {"lovasz_hinge": 0.009, "hinge": 0.1, "cross_entropy": 0.12, "soft_iou": 0.03}
    history = {
        f"excess/{name}": [(seed, value + 1e-4 * seed) for seed in range(3)]
        for name, value in excess.items()
    }
    store.add("synthetic", "bias-search", "0-2", batch=None, scale="paper", history=history)
    return store


@pytest.fixture(scope="module")
def file(runs: FakeStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("figure-1", "figure-2"):  # take seconds to draw, and depend on no run
            patch.setitem(FIGURES, name, lambda store: Missing("left out", "a test"))
        return write_page(runs, tmp_path_factory.mktemp("page"))


class Seen:
    """A page, and what it logged and asked for."""

    def __init__(self, browser: "Browser", file: Path, **options: Any) -> None:
        self.page: Page = browser.new_page(**options)
        self.logged: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.logged.append(message.text))
        self.page.on("pageerror", lambda error: self.logged.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(file.as_uri())

    @property
    def outside(self) -> list[str]:
        return [url for url in self.requests[1:] if not url.startswith("data:")]


@pytest.fixture
def seen(browser: "Browser", file: Path) -> Iterator[Seen]:
    found = Seen(browser, file, viewport={"width": 1400, "height": 900})
    yield found
    assert found.logged == []
    assert found.outside == []
    found.page.close()


def set_to(seen: Seen, bias: float) -> None:
    seen.page.locator("#bias").evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }",
        bias,
    )


# -- what leaves the page ----------------------------------------------------------------------


def test_the_page_may_not_ask_for_anything(browser: "Browser", file: Path) -> None:
    """Its policy refuses what a script in it would load, and a script that is not its own."""
    seen = Seen(browser, file)
    image = "url => { document.body.append(Object.assign(new Image(), {src: url})); }"
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(0.5)
        url = f"http://127.0.0.1:{other.getsockname()[1]}/a.png"
        seen.page.evaluate("url => { fetch(url).catch(() => {}); }", url)
        seen.page.evaluate(image, url)
        seen.page.evaluate(
            "document.body.append(Object.assign(document.createElement('script'),"
            "{textContent: 'document.title = 1'}))"
        )
        with pytest.raises(TimeoutError):
            other.accept()
        assert seen.page.title() != "1"
        assert len(seen.logged) >= 3  # the browser says what it refused
        seen.page.goto("about:blank")
        seen.page.evaluate(image, url)
        other.settimeout(30)
        other.accept()[0].close()  # it would have been heard
    seen.page.close()


def test_a_strangers_words_are_shown(seen: Seen) -> None:
    seen.page.locator("tbody[data-scale=demo] button.source").first.click()
    assert HOSTILE in seen.page.locator("#provenance").inner_text()
    assert HOSTILE in seen.page.locator("tbody[data-scale=demo] .heading").first.inner_text()
    assert seen.page.locator("img").count() == 0
    assert seen.page.title() != "taken"


# -- filters -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scales", "verdicts"),
    [
        ({"paper"}, {"holds"}),
        ({"reduced", "demo"}, {"holds", "undecided"}),
        ({"paper", "reduced", "demo"}, {"no rule", "does not hold"}),
        (set(), {"holds"}),
    ],
)
def test_filters_show_what_has_such_a_verdict_at_such_a_scale(
    seen: Seen, runs: FakeStore, scales: set[str], verdicts: set[str]
) -> None:
    for box in seen.page.locator("#filters input").all():
        value = (box.get_attribute("value") or "").replace("-", " ")
        box.set_checked(value in scales | verdicts)
    wanted = []
    for item in evaluate_claims(runs):
        said = [("paper", item.verdict)]
        said += [(one.scale, one.outcome.verdict) for one in item.evidence]
        if any(scale in scales and verdict in verdicts for scale, verdict in said):
            wanted.append(item.claim.id)
    shown = seen.page.locator(".claim:visible").evaluate_all("them => them.map(one => one.id)")
    assert sorted(shown) == sorted(wanted)
    assert str(len(wanted)) in seen.page.locator("#filtered").inner_text()
    assert seen.page.locator("tbody[data-scale=demo]:visible").count() == 2 * ("demo" in scales)
    seen.page.locator("#filters button[type=reset]").click()
    total = seen.page.locator(".claim").count()
    playwright.expect(seen.page.locator(".claim:not([hidden])")).to_have_count(total)


# -- tables ------------------------------------------------------------------------------------


def test_sorting_within_blocks_and_back(seen: Seen, runs: FakeStore) -> None:
    table = TABLES["camvid-enet"](runs)
    at = [column.key for column in table.columns].index("test")
    asked = "table => [...table.tBodies].map(b => [...b.rows].filter(r => !r.matches('.heading'))"
    asked += ".map(r => r.cells[0].textContent))"
    shown = seen.page.locator("#camvid-enet-numbers table")
    head = shown.locator("thead th").nth(at + 1)
    before = [[row.label for row in block.rows] for block in table.blocks]
    assert shown.evaluate(asked) == before

    def in_order(sign: int) -> list[list[str]]:
        def key(row: Any) -> tuple[bool, float]:
            value = row.cells[at].value
            return value is None, 0.0 if value is None else sign * value

        return [[row.label for row in sorted(block.rows, key=key)] for block in table.blocks]

    for sign, state in ((1, "ascending"), (-1, "descending")):
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == state
        assert shown.evaluate(asked) == in_order(sign)
    assert in_order(1) != before
    head.locator("button").click()
    assert head.get_attribute("aria-sort") is None
    assert shown.evaluate(asked) == before


def test_a_number_opens_to_its_runs_by_keyboard(seen: Seen, runs: FakeStore) -> None:
    page = seen.page
    numbers = page.locator("#camvid-enet-numbers button.source")
    stops = numbers.evaluate_all("them => them.filter(one => one.tabIndex === 0).length")
    assert stops == 1
    first = numbers.first
    first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    focused = page.evaluate("document.activeElement.dataset.about")
    assert focused == "weighted cross-entropy, test dataset-mIoU (%)"
    page.keyboard.press("Enter")
    told = page.locator("#provenance")
    page.evaluate("window.dispatchEvent(new Event('scroll'))")  # late, of the focus
    assert told.is_visible()
    of_variant = [r for r in runs.stored if r.tags["variant"] == "weighted-cross-entropy"]
    text = told.inner_text()
    for run in of_variant:
        assert run.run_id in text
        assert run.tags["config_hash"] in text
    assert "c0ffee" in text
    assert "d4ta5e7f1234" in text
    page.keyboard.press("Escape")
    assert not told.is_visible()
    assert page.evaluate("document.activeElement.dataset.about") == focused


def test_what_is_not_yet_run_says_what_runs_it(seen: Seen) -> None:
    seen.page.locator("#table-1-numbers button.none").first.click()
    assert "lovasz-repro run voc-binary" in seen.page.locator("#provenance code").inner_text()


# -- Sec. 4.1 ----------------------------------------------------------------------------------


def losses_at(circles: Circles, bias: float) -> dict[str, float]:
    """Each loss of the images of one draw from its definition; the Lovász hinge as trained with."""
    scores, labels = circles.features + bias, circles.labels
    signs = np.where(labels, 1, -1)
    inside, p = scores > 0, 1 / (1 + np.exp(-scores))

    def per_image(pixels: np.ndarray) -> np.ndarray:
        return pixels.reshape(len(labels), -1).sum(axis=1)

    intersection, union = per_image(inside & labels), per_image(inside | labels)
    soft = per_image(p * labels) / per_image(p + labels - p * labels)
    logits, target = torch.from_numpy(scores), torch.from_numpy(labels).long()
    return {
        "jaccard": float(np.mean(1 - intersection / union)),
        "lovasz_hinge": lovasz_hinge(logits, target, per_image=True).item(),
        "hinge": float(np.mean(np.maximum(0, 1 - signs * scores))),
        "cross_entropy": float(np.mean(np.log1p(np.exp(-signs * scores)))),
        "soft_iou": float(np.mean(1 - soft)),
    }


@pytest.mark.parametrize("bias", [-2.5, -0.41, 0.0, 1.37])
def test_the_slider_shows_the_losses_and_the_mask(seen: Seen, bias: float) -> None:
    set_to(seen, bias)
    page, circles = seen.page, draw_circles(0)
    expected = losses_at(circles, bias)
    assert page.locator(".bias-table tbody tr").count() == len(expected)
    for name, value in expected.items():
        row = page.locator(f".bias-table tr[data-loss={name}]")
        assert float(row.locator(".value").inner_text()) == pytest.approx(value, abs=6e-5)
        dot = page.locator(f"circle[data-loss={name}]")
        place = float(dot.get_attribute("cx") or "nan")
        assert (place - 40) / (590 - 40) * 6 - 3 == pytest.approx(bias, abs=1e-6)
    mask = circles.features[0].astype(np.float32) > np.float32(-bias)
    label = circles.labels[0]
    told = page.locator("#bias-image").inner_text()
    assert f"{(mask & label).sum()} pixels found" in told
    assert f"{(~mask & label).sum()} missed" in told
    assert f"{(mask & ~label).sum()} false alarms" in told
    pixels = page.locator("#bias-mask").evaluate(
        "c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
    )
    red = np.reshape(pixels, (*label.shape, 4))[..., 0]
    assert np.array_equal(red > 100, mask)  # found is white, a false alarm red, missed is blue
    shown = page.locator("#bias-value").inner_text()
    assert float(shown.replace("−", "-")) == bias


def test_dots_lie_between_minimum_and_maximum(seen: Seen) -> None:
    """At the bias of a loss's minimum its dot is on the axis, and nowhere below it."""
    for row in seen.page.locator(".bias-table tbody tr").all():
        row.locator("button").click()
        assert float(row.locator(".above").inner_text()) == 0
        dot = seen.page.locator(f"circle[data-loss={row.get_attribute('data-loss')}]")
        assert float(dot.get_attribute("cy") or "nan") == 222
    circles = draw_circles(0)
    signs, grid = np.where(circles.labels, 1, -1), np.linspace(-3, 3, 601)
    hinge = [np.maximum(0, 1 - signs * (circles.features + b)).mean() for b in grid]
    lowest = grid[np.argmin(hinge)]
    told = seen.page.locator(".bias-table tr[data-loss=hinge] button").inner_text()
    assert float(told.replace("−", "-")) == pytest.approx(lowest)


def test_the_slider_moves_by_keyboard(seen: Seen) -> None:
    set_to(seen, 0.5)
    seen.page.locator("#bias").focus()
    seen.page.keyboard.press("ArrowLeft")
    assert seen.page.locator("#bias-value").inner_text() == "0.49"


# -- looks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_no_serious_fault_for_readers(browser: "Browser", file: Path, scheme: str) -> None:
    """What axe-core finds, with all that can be opened open; in the dark, of the colours alone."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    seen = Seen(browser, file, color_scheme=scheme, viewport={"width": 400, "height": 800})
    seen.page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    seen.page.locator("#camvid-enet-numbers button.source").first.click()
    rules = {"runOnly": ["color-contrast"]} if scheme == "dark" else {}
    found = axe.run(seen.page, options={"resultTypes": ["violations"], **rules})

    serious = [
        (fault["id"], fault["nodes"][0]["html"][:200])
        for fault in found.response["violations"]
        if fault["impact"] in ("serious", "critical")
    ]
    assert serious == []
    seen.page.close()


@pytest.mark.parametrize("width", [400, 900, 1400])
def test_nothing_is_wider_than_the_window(browser: "Browser", file: Path, width: int) -> None:
    seen = Seen(browser, file, viewport={"width": width, "height": 800})
    assert seen.page.evaluate("document.documentElement.scrollWidth") == width
    menu = seen.page.locator("#menu")
    assert (menu.get_attribute("open") is None) == (width < 1120)
    if width < 1120:
        menu.locator("summary").first.click()
    seen.page.locator(".toc a", has_text="Synthetic experiment").click()
    heading = seen.page.locator("#section-4-1")
    top = heading.evaluate("one => one.getBoundingClientRect().top")
    assert 0 <= top < 400
    assert seen.page.locator(".contents").bounding_box()["y"] == 0  # stays  # type: ignore[index]
    seen.page.close()


def test_paper_has_what_was_folded_and_no_controls(seen: Seen) -> None:
    folded = "document.querySelectorAll('main details:not([open])').length"
    before = seen.page.evaluate(folded)
    assert before
    seen.page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    seen.page.emulate_media(media="print", color_scheme="dark")
    assert seen.page.evaluate(folded) == 0
    assert not seen.page.locator("#filters").is_visible()
    assert not seen.page.locator("#bias").is_visible()
    background = "getComputedStyle(document.body).backgroundColor"
    assert seen.page.evaluate(background) == "rgb(255, 255, 255)"
    seen.page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert seen.page.evaluate(folded) == before
