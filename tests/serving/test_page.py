"""The web page: what its form becomes, what it shows; and in a real browser, where one is there."""

import asyncio
import io
import shutil
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from irg.critics import Verdict
from irg.engine.events import ImageDone, TextDelta, TextDone, WaitDone
from irg.reasoning.pipeline import IRGPipeline
from irg.reasoning.protocols.base import find
from irg.reasoning.settings import Settings
from irg.results.trajectory import Trajectory, Turn
from irg.serving.auth import ApiKeys
from irg.serving.capabilities import Capabilities
from irg.serving.errors import ApiError
from irg.serving.options import ServerOptions
from irg.serving.service import Service
from irg.serving.ui.results import changes_of, command, zipped
from irg.serving.ui.running import Form, Progress, run, sentence
from serving import Running, serving

SMALL = {
    "seed": 3,
    "num_timesteps": 3,
    "improve_num_timesteps": 3,
    "mode": "irg",
    "critic": "self",
    "stop_when_done": False,
}


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """irg-mini, without HTTP."""
    made = Service(lambda: IRGPipeline.from_pretrained("mini", device="cpu"), ServerOptions(), ApiKeys())
    made.load_now()
    yield made
    made.loaded().engine.close()


def carried_out(service: Service, form: Form) -> tuple[Progress, list[str]]:
    """A form carried out, and the statuses on the way."""

    async def all_() -> tuple[Progress, list[str]]:
        seen, progress = [], Progress()
        async for progress in run(service, form):
            seen.append(progress.status)
        return progress, list(dict.fromkeys(seen))

    return asyncio.run(all_())


@pytest.fixture(scope="module")
def drawn(service: Service) -> tuple[Progress, list[str]]:
    return carried_out(service, Form("a red apple", settings=SMALL, count=2))


def test_what_happens_is_shown_in_order(drawn: tuple[Progress, list[str]], service: Service) -> None:
    progress, statuses = drawn
    assert statuses[0] == "Waiting ..."
    order = ["Thinking ...", "Drawing ...", "Image 1 is drawn.", "Looking at the image, reflecting ..."]
    assert [one for one in statuses if one in order] == order
    found = progress.finished[0]
    assert [progress.text(turn) for turn in (0, 1)] == [found.thinking, found.reflection]
    assert [progress.rounds[turn] for turn in (0, 1)] == found.images
    assert [progress.finished[number].seed for number in (0, 1)] == [3, 4]
    (same,) = service.loaded().pipe(["a red apple"], **SMALL)
    assert same.trajectory.thinking == found.thinking


def test_texts_grow_and_others_are_not_shown() -> None:
    progress, image = Progress(), Image.new("RGB", (8, 8))
    for event in (TextDelta(0, 0, "a "), TextDelta(1, 0, "of another"), TextDelta(0, 0, "b")):
        progress.take(event)
    assert progress.text(0) == "a b"
    progress.take(TextDone(0, 0, "a b.", 3, 0.1))
    progress.take(ImageDone(1, 0, image, 0.1, None))
    assert (progress.texts, progress.rounds, progress.status) == ({0: ["a b."]}, {}, "Drawing ...")
    progress.take(TextDelta(0, 0, "c"))  # a second text of the same turn
    assert progress.text(0) == "a b.\n\nc"
    for event in (TextDone(0, 0, "c.", 1, 0.1), TextDone(0, 1, "d", 1, 0.1)):  # the last one was not streamed
        progress.take(event)
    assert progress.texts == {0: ["a b.", "c."], 1: ["d"]}
    for verdict in (Verdict("it is blue", "paint it red", False, 0.2), Verdict("", "", True, 1.0), "no verdict"):
        progress.take(WaitDone(0, 2, verdict))
    said = ["The critic on image 2: it is blue", "The critic on image 2: nothing is wrong"]
    assert progress.texts[2] == said
    progress.take(TextDelta(0, 2, "so"))
    assert progress.texts[2] == [*said, "so"]


def png(size: tuple[int, int]) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (200, 30, 30)).save(out, "PNG")
    return out.getvalue()


def test_an_image_of_ones_own(service: Service) -> None:
    progress, _ = carried_out(
        service, Form("a red apple", "improve", png((128, 128)), settings={"seed": 1, "rounds": 1})
    )
    assert len(progress.finished[0].images) >= 1
    asked, _ = carried_out(service, Form("what is it?", "ask", png((128, 128)), settings={"seed": 1}))
    assert asked.finished[0].answer


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (Form("  "), "Write what to draw first."),
        (Form("x", "edit"), "Choose an image of yours first."),
        (Form("x", "edit", b"no image"), "The image "),
        (Form("x", size="17x"), "Size must be WIDTHxHEIGHT"),
        (Form("x", settings={"rounds": 99}), "Rounds 99 is beyond this server's limit of 8."),
        (Form("x", settings={"colour": 1}), "Unknown field 'colour'"),
        (Form("x" * 40_000), "The prompt has more than 32000 bytes."),
    ],
)
def test_mistakes_are_sentences(service: Service, form: Form, message: str) -> None:
    with pytest.raises(ApiError) as caught:
        carried_out(service, form)
    assert message in sentence(caught.value)
    assert service.loaded().engine.sizes == (0, 0)


def test_a_fault_inside_is_not_told() -> None:
    assert sentence(RuntimeError("/secret/path")) == "Something went wrong; the server's log says what."


def test_leaving_drops_the_request(service: Service) -> None:
    async def leave() -> None:
        steps = run(service, Form("a red apple", settings=SMALL | {"num_timesteps": 200}))
        async for progress in steps:
            if progress.texts:
                break
        await steps.aclose()

    asyncio.run(leave())
    assert service.loaded().engine.sizes == (0, 0)


def test_the_zip_holds_each_results_folder(drawn: tuple[Progress, list[str]], tmp_path: Path) -> None:
    found = [drawn[0].finished[number] for number in (0, 1)]
    with zipfile.ZipFile(zipped(found, tmp_path)) as archive:
        names = archive.namelist()
        assert {name.split("/")[0] for name in names} == {"1-seed-3", "2-seed-4"}
        assert {"1-seed-3/trajectory.json", "1-seed-3/report.html"} <= set(names)
        archive.extractall(tmp_path / "out")
    assert Trajectory.load(tmp_path / "out" / "1-seed-3").thinking == found[0].thinking
    assert [one.suffix for one in tmp_path.iterdir() if one.name != "out"] == [".zip"]


def test_words_about_a_result(drawn: tuple[Progress, list[str]]) -> None:
    line = command("it's red", "mini", 3, {"mode": "irg", "num_timesteps": 3})
    assert line == """irg generate 'it'"'"'s red' --model mini --seed 3 --mode irg --num-timesteps 3"""
    found = drawn[0].finished[0]
    turns = [
        found.turns[0],
        replace(found.turns[1], thinking="Analysis: dim. Improvements: light. Steps: a. Final prompt: b"),
    ]
    assert changes_of(replace(found, turns=turns)) == "**Looked:** dim.\n\n**Changed:** light."
    anew = [turns[0], replace(turns[1], reflection=turns[1].thinking, thinking="a new plan")]
    assert changes_of(replace(found, turns=anew)) == "**Looked:** dim."
    assert changes_of(replace(found, turns=turns[:1])) == ""
    assert changes_of(replace(found, turns=turns[:1], notes=["a note"])) == "a note"


def test_no_page_without_gradio_or_with_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    def page(keys: ApiKeys, **options: Any) -> bool:
        return Service(lambda: None, ServerOptions(**options), keys).page  # type: ignore[arg-type, return-value]

    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert page(ApiKeys())
    assert not page(ApiKeys(), page=False)
    assert not page(ApiKeys({"a": "0" * 64}))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not page(ApiKeys())


@pytest.mark.parametrize(
    ("name", "critics", "wanted"),
    [
        ("irg", ("gate",), (("generate", "improve", "edit", "ask"), ("direct", "think", "irg"), ("self", "gate"), 8)),
        ("rvr", (), (("generate", "improve", "edit", "ask"), ("direct", "irg"), ("self",), 1)),
        ("bagel", (), (("generate", "edit", "ask"), ("direct", "think"), (), 8)),
        ("bagel", ("gate",), (("generate", "improve", "edit", "ask"), ("direct", "think", "irg"), ("gate",), 8)),
        ("thinkmorph", ("gate",), (("generate", "edit", "ask"), ("direct", "think", "irg"), ("self",), 8)),
    ],
)
def test_what_a_protocol_can_behind_a_server(name: str, critics: tuple[str, ...], wanted: tuple[Any, ...]) -> None:
    found = Capabilities.of(find(name), "self", ServerOptions(critics=critics))
    assert (found.tasks, found.modes, found.critics, found.max_rounds) == wanted


def test_the_form_offers_what_the_protocol_has() -> None:
    pytest.importorskip("gradio", reason="needs the extra ui")
    from irg.serving.ui.page import Page

    made = Service(lambda: None, ServerOptions(critics=("gate",)), ApiKeys())  # type: ignore[arg-type, return-value]
    form = Page(made)

    async def told() -> list[dict[Any, Any]]:
        found = []
        async for changes in form._offer():
            found.append(changes)
            pipe = SimpleNamespace(protocol=find("rvr"), defaults=Settings(rounds=3))
            made.model = SimpleNamespace(pipe=pipe)  # type: ignore[assignment]
        return found

    loading, ready = asyncio.run(told())
    assert loading == {form.status: "The model is being loaded ..."}
    assert ready[form.mode]["choices"] == [("Draw, look, draw better", "irg"), ("Draw at once", "direct")]
    assert (ready[form.rounds]["maximum"], ready[form.rounds]["value"]) == (1, 1)
    assert ready[form.critic]["choices"] == [("The model itself", "self"), ("gate", "gate")]
    shown = {key.elem_id: change["visible"] for key, change in form._use("generate", "direct").items()}
    assert (shown["given"], shown["mode"], shown["rounds"], shown["critic"]) == (False, True, False, False)
    shown = {key.elem_id: change["visible"] for key, change in form._use("improve", "direct").items()}
    assert (shown["given"], shown["mode"], shown["rounds"], shown["critic"]) == (True, False, True, True)
    assert (shown["revise"], shown["tries"]) == (False, False)  # RvR has one way
    made.model = SimpleNamespace(pipe=SimpleNamespace(protocol=find("irg"), defaults=Settings()))  # type: ignore[assignment]
    shown = {key.elem_id: change["visible"] for key, change in form._use("generate", "irg").items()}
    assert (shown["revise"], shown["tries"]) == (True, True)
    shown = {key.elem_id: change["visible"] for key, change in form._use("generate", "think").items()}
    assert (shown["revise"], shown["tries"]) == (False, False)


def test_each_task_shows_what_it_has() -> None:
    """Nobody thinks before a given image is looked at; an answer takes no steps, and is no image of the session."""
    pytest.importorskip("gradio", reason="needs the extra ui")
    from irg.serving.ui.page import Page

    service = Service(lambda: None, ServerOptions(), ApiKeys())  # type: ignore[arg-type, return-value]
    service.model = SimpleNamespace(pipe=SimpleNamespace(name="mini", protocol=find("irg"), defaults=Settings()))  # type: ignore[assignment]
    page = Page(service)
    shown = {name: page._use(name, "irg")[page.effort]["visible"] for name in ("generate", "edit", "ask")}
    assert shown == {"generate": True, "edit": True, "ask": False}
    thinks = {
        task: page._cleared(Form("x", task, settings=settings), None)[page.thinking]["visible"]
        for task, settings in (("generate", {"mode": "irg"}), ("improve", {}), ("ask", {}))
    }
    assert thinks == {"generate": True, "improve": False, "ask": False}
    edited = page._texts(Progress(texts={1: ["paint it green"]}), Form("x", "edit"))[page.thinking]
    assert (edited["value"], edited["visible"]) == ("paint it green", True)
    given, answer = Turn(None, Image.new("RGB", (8, 8)), given=True), Turn("two", None, seconds={"thinking": 1.5})
    asked = Trajectory("how many?", "ask", 7, "mini", {}, [given, answer])
    ended = page._ended([asked], Form("how many?", "ask", settings={"seed": 7}), [], Path("all.zip"))
    assert ended[page.status] == "Answered in 1.5 s." and ended[page.answer] == "two"
    assert ended[page.history_state] == []


# ----------------------------------------------------------------------------------------------------------- a browser


@pytest.fixture(scope="module")
def running(service: Service) -> Iterator[Running]:
    """A server with the page."""
    pytest.importorskip("gradio", reason="needs the extra ui")
    with serving(service.loaded().pipe, ServerOptions(port=0)) as made:
        yield made


@pytest.fixture(scope="module")
def page(running: Running) -> Iterator[Any]:
    """The page in a real Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with playwright.sync_playwright() as browsers:
        names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
        found = next(filter(None, map(shutil.which, names)), browsers.chromium.executable_path)
        if not Path(found).is_file():
            pytest.skip("needs Chromium or Chrome on the PATH, or Playwright's own (playwright install chromium)")
        flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
        browser = browsers.chromium.launch(executable_path=found, args=flags)
        made = browser.new_page(viewport={"width": 1280, "height": 1000})
        made.set_default_timeout(120_000)
        made.goto(running.url)
        made.wait_for_selector("#prompt textarea")
        yield made
        browser.close()


def test_in_a_browser(page: Any, running: Running, tmp_path: Path) -> None:
    asked: set[str] = set()
    page.on("request", lambda request: asked.add(request.url.split("/")[2]))
    page.fill("#prompt textarea", "a photo of a red apple")
    page.uncheck("#random input")
    page.fill("#seed input", "3")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#first img")
    assert page.input_value("#thinking textarea").startswith("Scene:")
    assert page.is_visible("#rounds") and page.input_value("#critic input") == "mini-compare"  # as the model has it
    page.wait_for_selector("#download", state="visible")
    assert "Seed 3" in page.inner_text("#status")
    assert "Analysis:" in page.input_value("#reflection textarea")
    assert "--seed 3" in page.input_value("#copy textarea, #copy input")
    with page.expect_download() as download:
        page.click("#download")
    saved = tmp_path / "result.zip"
    download.value.save_as(saved)
    assert any(name.endswith("trajectory.json") for name in zipfile.ZipFile(saved).namelist())
    # a narrow window: nothing sticks out
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.set_viewport_size({"width": 1280, "height": 1000})
    # one's own image: two images to compare
    (tmp_path / "own.png").write_bytes(png((128, 128)))
    page.click("#task label:has-text('Improve')")
    page.set_input_files("#given input[type=file]", str(tmp_path / "own.png"))
    page.wait_for_selector("#given img")
    page.fill("#prompt textarea", "a photo of a red apple")
    page.click("#generate")
    page.wait_for_selector("#slider img")
    page.wait_for_selector("#history img")
    assert not page.is_visible("#thinking")  # nobody thinks before a given image is looked at
    # mistakes are sentences
    page.fill("#prompt textarea", " ")
    page.click("#generate")
    page.wait_for_function("document.querySelector('#status').innerText.includes('Write what to draw first.')")
    # stop, and begin anew after a reload
    page.click("#task label:has-text('Draw')")
    page.click("label:has-text('Best')")
    page.fill("#prompt textarea", "a photo of two dogs")
    page.click("#generate")
    page.wait_for_function("document.querySelector('#status').innerText.includes('...')")
    page.click("#stop")
    page.wait_for_function("document.querySelector('#status').innerText.includes('Stopped.')")
    cancelled = 'irg_stops_total{reason="cancelled"}'
    end = time.monotonic() + 20
    while not running.metric(cancelled) and time.monotonic() < end:
        time.sleep(0.05)
    assert running.metric(cancelled) == 1  # it is dropped, not only hidden
    page.reload()
    page.wait_for_selector("#prompt textarea")
    assert page.input_value("#prompt textarea") == ""
    assert asked == {page.url.split("/")[2]}  # nothing is fetched from elsewhere
