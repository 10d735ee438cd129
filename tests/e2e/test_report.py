"""The report in a real browser: on a phone, on a desk, light and dark, and printed."""

import base64
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from server.record import RunFolder
from server.rows import RoundRow
from server.summary import summary_of
from simulations.curves import read_run
from simulations.export import card
from simulations.report import write_report

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
WIDTHS = {"phone": 390, "desk": 1280}


def _run(path: Path, tiny, *, name="run", rounds=6, **sections) -> RunFolder:
    """A run as its files tell it: two clients, one failure, awkward texts."""
    folder = RunFolder(path / name)
    folder.create(
        tiny(**sections), {"seed": 0, "versions": {"torch": "2"}}, [[40, 1, 5], [3, 30, 9]]
    )
    client = {"partition": 0, "examples": 46, "loss_before": 2.0, "loss_after": 1.0, "seconds": 0.5}
    row = RoundRow(
        round=1, clients=2, failures=0, train_loss=2.0, test_loss=1.5, test_accuracy=0.3,
        payload_bytes_up=1000, payload_bytes_down=2000, seconds=1.0,
        contributions=[client, {**client, "partition": 1, "examples": 42}],
    )  # fmt: skip
    for number in range(1, rounds + 1):
        failed = {"client <1>": "raised <script>alert(1)</script> & " + "x" * 200}
        folder.append(
            replace(
                row,
                round=number,
                test_accuracy=0.3 + 0.1 * number if number % 2 else None,
                test_loss=1.5 / number if number % 2 else None,
                failures=int(number == 2),
                failed=failed if number == 2 else {},
            )
        )
    folder.write_summary(summary_of(folder.rows(), "completed", (5000, 4000)))
    return folder


@pytest.fixture
def page(tmp_path, tiny):
    folder = _run(tmp_path, tiny)
    out = folder.path / "report.html"
    write_report([folder], out)
    return out


def test_the_page_stands_alone_and_says_everything(page):
    text = page.read_text()
    assert not re.findall(
        r'(?:src|href)="(?!#)[^"]*"', re.sub(r"<svg.*?</svg>", "", text, flags=re.S)
    )
    assert "<script>alert" not in text
    for needed in ("80.00 %", "0.02", "client &lt;1&gt;", "width = 0.25", '"torch": "2"',
                   "52.27 %", "times it."):  # fmt: skip
        assert (needed in text) or (needed.replace('"', "&#34;") in text), needed


def test_several_runs_share_a_page(tmp_path, tiny):
    folders = [_run(tmp_path, tiny, name=name, rounds=n) for name, n in (("a", 1), ("b", 3))]
    out = tmp_path / "both.html"
    write_report(folders, out)
    assert "2 runs" in out.read_text()
    assert out.read_text().count("configuration</h2>") == 2


def test_wire_bytes_are_shown_with_their_interfaces(tmp_path, tiny):
    folder = _run(tmp_path, tiny, rounds=1)
    client = folder.rows()[0].contributions[0]
    bytes_ = {"payload_bytes_up": 500, "payload_bytes_down": 1000, "interface": "eth0"}
    first, second = (
        {
            **client,
            **bytes_,
            "interface_shared": False,
            "wire_bytes_up": up,
            "wire_bytes_down": down,
        }
        for up, down in ((None, None), (900_000, 600_000))
    )
    row = replace(folder.rows()[0], interface="eth9", interface_shared=True)
    wire = {"wire_bytes_up": 4_000_000, "wire_bytes_down": 5_000_000}
    folder.append(replace(row, round=2, contributions=[first], **wire))
    folder.append(replace(row, round=3, contributions=[second], **wire))
    write_report([folder], tmp_path / "page.html")
    text = re.sub(r"\s*<[^>]*>\s*", "|", (tmp_path / "page.html").read_text())
    assert "server||eth9 (shared)||2||8.000||10.000||299900.00 %" in text
    assert "client 0||eth0 (own)||1||0.900||0.600||99900.00 %" in text
    assert "not measured" not in text


def test_images_of_a_deployment_are_as_told_by_its_clients(tmp_path, tiny):
    folder = _run(tmp_path, tiny, run={"engine": "flower", "superlink": "127.0.0.1:8000"})
    write_report([folder], tmp_path / "page.html")
    assert "class, as the recipe shares them out, run" in (tmp_path / "page.html").read_text()
    run = read_run(folder.path)
    text = card(run, folder.checkpoints / "best.safetensors", run.rows[-1])
    assert "digits or pictures of the clients' own, 88 training images" in text


@pytest.mark.parametrize(("kept", "stayed"), [("local", "Norms"), ("local_statistics", "Running")])
def test_a_card_says_what_stayed_with_the_clients(tmp_path, tiny, kept, stayed):
    folder = _run(tmp_path, tiny, train={"batch_norm": kept}, data={"holdout": 0.25})
    run = read_run(folder.path)
    text = card(run, folder.checkpoints / "best.safetensors", run.rows[-1])
    assert f"- **{stayed}" in text
    assert "- **Accuracy on clients' held-out images" in text
    assert f"{round(0.75 * sum(map(sum, run.environment['spread'])))} training images" in text


@pytest.fixture(scope="module")
def browser():
    if BROWSER is None or DRIVER is None:
        pytest.skip("chromium and chromedriver are not installed; .ci/run installs them")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-background-networking",
                 "disable-component-update", "disable-sync", "no-first-run"):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def _show(browser, page, width, scheme):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.get(page.as_uri())


def _screenshot(browser, path):
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
    path.write_bytes(base64.b64decode(shot["data"]))
    from PIL import Image

    return Image.open(path).convert("RGB")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_it_is_readable_on_a_phone_and_a_desk_light_and_dark(
    browser, page, tmp_path, width, scheme
):
    _show(browser, page, width, scheme)
    run = browser.execute_script
    assert run("return document.documentElement.scrollWidth") <= width
    shown = run(
        "return [...document.querySelectorAll('figure svg')]"
        ".filter(e => e.getBoundingClientRect().height > 100).length"
    )
    assert shown == 5
    widths = run(
        "return [...document.querySelectorAll('figure svg')]"
        ".map(e => e.getBoundingClientRect().width).filter(w => w > 0)"
    )
    tallest = run(
        "return Math.max(...[...document.querySelectorAll('td:not(.text)')]"
        ".filter(e => !e.parentElement.querySelector('.text'))"
        ".map(e => e.getBoundingClientRect().height))"
    )
    assert tallest < 40, "numbers stay on one line"
    assert _ink(browser) == run("return getComputedStyle(document.body).color")
    assert min(widths) > 300, "pictures shrink until their writing is too small"
    picture = _screenshot(browser, tmp_path / f"{scheme}-{width}.png")
    corner = sum(picture.getpixel((2, 2)))
    assert (corner > 600) == (scheme == "light")
    assert len(picture.getcolors(maxcolors=1 << 24)) > 50
    assert not browser.get_log("browser")


@pytest.mark.slow
def test_it_prints_in_ink_on_white_even_from_a_dark_screen(browser, page):
    _show(browser, page, WIDTHS["desk"], "dark")
    pdf = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {})["data"])
    assert pdf.startswith(b"%PDF")
    feature = {"name": "prefers-color-scheme", "value": "dark"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": [feature]})
    ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (ground, _ink(browser)) == ("rgb(255, 255, 255)", "rgb(0, 0, 0)")


def _ink(browser):
    """Of what is written in pictures."""
    (ink,) = browser.execute_script(
        "return [...new Set([...document.querySelectorAll('figure svg g[id^=text_] > g')]"
        ".map(e => getComputedStyle(e).fill))]"
    )
    return ink
