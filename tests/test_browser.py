"""Pages as a reader sees them, in a headless Chromium. `make test-pages` runs all of this file.

Needs `apt-get install chromium`, or its like, and `pip install -e '.[browser]'`.
"""

from __future__ import annotations

import shutil
from contextlib import contextmanager

import pytest

from tests.pages import HOSTILE, hostile_run, make_run, trace
from tinyzero_astar.report.page import run_page, solve_page
from tinyzero_astar.report.page_data import RunRecords

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")

PHONE, DESK = {"width": 390, "height": 800}, {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def browser():
    """One browser for all tests of the file."""
    api = pytest.importorskip("playwright.sync_api", reason="no playwright here: pip install -e '.[browser]'")
    with api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Files of pages by name."""
    folder = tmp_path_factory.mktemp("pages")
    run, other = make_run(folder / "run one"), make_run(folder / "other", 10)
    alone = trace(1, problems=1) | {"mode": "best_first"}
    alone["problems"] = [alone["problems"][0] | {"problem": f"{'long ' * 40}question"}]
    told = {
        "run": run_page([RunRecords(run)]),
        "two": run_page([RunRecords(run), RunRecords(other)]),
        "hostile": run_page([RunRecords(hostile_run(folder))]),
        "large": run_page([RunRecords(make_run(folder / "large", traces=[trace(1, branches=52, depth=48)]))]),
        "solve": solve_page(alone, [("Question", "0*7"), ("Answer", HOSTILE)], has_value=False, inverse_beta=3.0),
    }
    for name, page in told.items():
        (folder / f"{name}.html").write_text(page, encoding="utf-8")
    return {name: f"file://{folder}/{name}.html" for name in told}


@pytest.fixture
def see(browser, pages):
    """Opens a page of some name; the browser must not complain, and nothing may be asked of the network."""

    @contextmanager
    def opened(name, size=DESK, scheme="light"):
        context = browser.new_context(viewport=size, color_scheme=scheme)
        page, said = context.new_page(), []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.append(request.url))
        page.goto(pages[name])
        yield page
        assert [x for x in said if x != pages[name] and not x.startswith("data:")] == []
        context.close()

    return opened


def shown(page, selector=".cell"):
    """How many of the elements can be seen."""
    return page.evaluate(
        "s => [...document.querySelectorAll(s)].filter(e => getComputedStyle(e).visibility !== 'hidden').length",
        selector,
    )


def to_step(page, step):
    page.locator("#step").evaluate("(e, v) => { e.value = v; e.dispatchEvent(new Event('input')) }", step)


def drawn_charts(page):
    """How many charts have a line on them, which is not grey."""
    return page.evaluate("""() => [...document.querySelectorAll('.plot canvas')].filter(c => {
        const x = c.getContext('2d').getImageData(0, 0, c.width, c.height).data
        for (let i = 0; i < x.length; i += 4) if (x[i + 3] && Math.abs(x[i] - x[i + 2]) > 60) return true
        return false }).length""")


# ------------------------------------------------------------------------------------------------------- a run


def test_curves_and_tree_are_there(see):
    with see("run") as page:
        assert page.locator("h1").inner_text() == "run one"
        num_charts = page.locator(".plot").count()
        assert num_charts > 20 and drawn_charts(page) == num_charts
        assert page.locator(".plot").first.get_attribute("aria-label").startswith("Accuracy. held out, greedy: from 0")
        assert page.locator(".reliability circle").count() == 2
        opened = trace(1)  # the earlier of the two, half way
        assert page.locator(".told").inner_text().startswith("step 2 of 4: 6 open")
        assert shown(page) == sum(step <= 2 for step in opened["nodes"]["step"])
        to_step(page, 4)
        assert shown(page) == opened["num_nodes"]
        ends = page.locator(".tree .end").all_text_contents()
        assert ends.count("left out") == 2 and sum("✓ ŵ 0.7 · π " in x for x in ends) == 2
        assert "κ = -0.5" in page.locator("#explorer").inner_text()


@pytest.mark.slow
def test_curves_can_be_drawn_over_tokens_and_seconds(see):
    with see("run") as page:
        legend = page.locator(".u-legend").first
        for name, words in (("iterations", "iterations"), ("tokens", "decoded tokens"), ("seconds", "seconds of")):
            page.get_by_role("radio", name=words).check()
            assert legend.inner_text().startswith(name)
            assert drawn_charts(page) == page.locator(".plot").count()


@pytest.mark.slow
def test_several_runs_lie_over_each_other(see):
    with see("two") as page:
        assert page.locator("h1").all_inner_texts() == ["run one", "other"]
        legend = page.locator(".u-legend").first.inner_text()
        assert "run one, held out" in legend and "other, held out" in legend
        searches = page.get_by_label("Search of").locator("option").all_inner_texts()
        assert searches == [f"{name}, iteration {i}" for name in ("run one", "other") for i in (1, 10)]


# --------------------------------------------------------------------------------------------- the search explorer


def test_the_slider_moves_the_tree_and_the_open_list(see):
    record = trace(10)
    nodes = record["nodes"]
    with see("run") as page:
        page.get_by_label("Search of").select_option(index=1)
        for step in (0, 2, 4, 1):
            to_step(page, step)
            assert shown(page) == sum(s <= step for s in nodes["step"])
            rows = zip(nodes["step"], nodes["end"], nodes["status"], strict=True)
            num_open = sum(s <= step and (end < 0 or end > step) and status != "leaf" for s, end, status in rows)
            assert page.locator(".open-list button").count() == num_open
            assert page.locator(".told").inner_text().startswith(f"step {step} of 4: {num_open} open")
        to_step(page, 2)
        values = [float(x) for x in page.locator(".open-list .value").all_inner_texts()]
        assert values == sorted(values, reverse=True)
        to_step(page, 0)
        assert shown(page, ".link") == 2 < page.locator(".link").count()


@pytest.mark.slow
def test_play_goes_through_all_steps(see):
    with see("run") as page:
        page.locator("#play").click()
        assert "Pause" in page.locator("#play").inner_text()
        page.locator(".told", has_text="step 4 of 4").wait_for()
        page.locator("#play", has_text="Play").wait_for()


@pytest.mark.slow
def test_one_problem_and_without_what_was_left_out(see):
    record = trace(10)
    with see("run") as page:
        page.get_by_label("Search of").select_option(index=1)
        to_step(page, 4)
        page.get_by_label("Problem", exact=True).select_option(index=2)
        assert "2 completions of this problem, 1 right" in page.locator("#explorer .count").first.inner_text()
        assert shown(page) == sum(problem == 1 for problem in record["nodes"]["problem"])
        page.get_by_label("what was left out").uncheck()
        assert shown(page) == sum(problem == 1 for problem in record["nodes"]["problem"]) - 2
        assert "left out" not in page.locator(".tree .end").all_text_contents()
        page.get_by_label("Search of").select_option(index=0)
        to_step(page, 4)
        assert shown(page) == trace(1)["num_nodes"]


@pytest.mark.slow
def test_pointing_at_a_prefix_tells_its_scores_and_its_text(see):
    record = trace(10)
    node = record["leaves"][0]["node"]
    with see("run") as page:
        page.get_by_label("Search of").select_option(index=1)
        to_step(page, 4)
        page.locator(f'.cell[data-n="{node}"]').hover()
        detail = page.locator("#detail").inner_text()
        g, h = record["nodes"]["g"][node], record["nodes"]["h"][node]
        for name, value in (("g", g), ("h", h), ("f", g + h)):
            assert f"{name}\n{float(f'{value:.3g}'):g}" in detail
        assert "reward\n1.1" in detail and "weight\n0.7" in detail and "0*7=?aaaa" in detail


@pytest.mark.slow
def test_colours_follow_success_or_f(see):
    with see("run") as page:
        bar = page.locator(".cell .bar").nth(3)
        by_success = bar.evaluate("e => getComputedStyle(e).fill")
        page.get_by_label("Colour", exact=True).select_option(index=1)
        assert bar.evaluate("e => getComputedStyle(e).fill") != by_success
        assert page.locator(".scale").inner_text().startswith("f ")


@pytest.mark.slow
def test_five_thousand_prefixes_stay_fluid(see):
    with see("large") as page:
        count = trace(1, branches=52, depth=48)["num_nodes"]
        assert 4_800 < count < 5_000 and page.locator(".cell").count() == count
        chromium = page.context.new_cdp_session(page)
        chromium.send("Performance.enable", {"timeDomain": "threadTicks"})  # the time of its thread, whatever else runs

        def seconds():
            return {m["name"]: m["value"] for m in chromium.send("Performance.getMetrics")["metrics"]}["TaskDuration"]

        began = seconds()
        for step in range(0, 40, 2):
            to_step(page, step)
            page.evaluate("new Promise(requestAnimationFrame)")
        assert (seconds() - began) / 20 < 0.15


@pytest.mark.slow
def test_the_page_of_one_question_has_its_search_alone(see):
    with see("solve") as page:
        assert page.locator("h1").inner_text() == "0*7"
        assert page.locator(".question").text_content() == "long long long long long…ng question"
        assert page.locator(".plot").count() == 0 and shown(page) == trace(1, problems=1)["num_nodes"]
        to_step(page, 1)
        assert page.locator(".open-list button").count() == 3
        assert page.locator(".cell.chosen").get_attribute("data-n") == "0"  # the prompt is extended in this step
        assert page.locator("#explorer h3").last.inner_text() == "Open list, largest f first"
        assert page.locator(".scale").inner_text().startswith("f ")  # not by success, of which it knows nothing
        assert "The value model was never trained" in page.locator("#explorer").inner_text()


# ------------------------------------------------------------------------------------------------ the completions


@pytest.mark.slow
def test_completions_are_filtered_by_verdict_iteration_and_text(see):
    with see("run") as page:
        cards, count = page.locator(".sample"), page.locator("#found")
        assert (cards.count(), count.inner_text()) == (9, "12 completions, 6 right")  # three of each iteration
        assert page.locator("#sample-list h3").all_inner_texts() == [
            f"Iteration {i}: 2 of 4 right. By their weights the policy is right in {p} %"
            for i, p in ((1, "1.4"), (10, 14), (20, 29))
        ]
        page.get_by_role("button", name="Show more").click()
        assert cards.count() == 12 and not page.get_by_role("button", name="Show more").is_visible()
        page.get_by_label("Show", exact=True).select_option("right")
        assert cards.count() == 6 and set(page.locator(".verdict").all_inner_texts()) == {"✓ right answer"}
        assert page.locator("#sample-list h3").first.inner_text() == "Iteration 1: 2 of 2 right"  # not of the policy
        page.get_by_label("Show", exact=True).select_option("wrong")
        assert cards.count() == 6 and set(page.locator(".verdict").all_inner_texts()) == {"✗ wrong"}
        page.get_by_label("Iteration", exact=True).select_option("10")
        assert cards.count() == 2 and page.locator("#sample-list h3").inner_text().startswith("Iteration 10: ")
        page.get_by_label("Containing").fill("3*7")
        assert cards.count() == 1
        page.get_by_label("Containing").fill("nowhere")
        assert cards.count() == 0 and count.inner_text() == "0 completions, 0 right"
        assert "No completion matches" in page.locator("#sample-list").inner_text()


@pytest.mark.slow
def test_a_phone_sees_the_verdict_at_the_left_and_that_the_tree_goes_on(see):
    with see("run", PHONE) as page:
        to_step(page, 4)
        marks = page.locator(".tree .mark")
        assert sorted(marks.all_text_contents()) == ["✓", "✓", "✗", "✗"]
        box = page.locator(".scroller").bounding_box()
        assert marks.first.bounding_box()["x"] < box["x"] + box["width"] / 2
        assert page.locator(".wide-tree").is_visible() == page.locator(".scroller").evaluate(
            "e => e.scrollWidth > e.clientWidth + 1"
        )


@pytest.mark.slow
def test_the_letters_are_explained_and_h_has_its_scale(see):
    with see("run") as page:
        page.locator(".letters summary").click()
        assert "h = log(1 + success · (e^(1/β)" in page.locator(".letters").inner_text()
        page.locator(".cell").nth(1).hover()
        assert "from 0 (sure failure) to 3 (sure success)" in page.locator("#detail").inner_text()  # of success 0


@pytest.mark.slow
def test_the_tree_that_has_the_focus_is_outlined(see):
    with see("run") as page:
        page.locator("#step").focus()
        page.keyboard.press("Tab")
        assert page.locator(".scroller").evaluate("e => getComputedStyle(e).outlineWidth") == "3px"


def test_hostile_data_is_shown_as_text(see):
    with see("hostile") as page:
        assert page.title().startswith("<img src=x onerror=alert(1)>")
        assert page.locator("img, iframe, b b").count() == 0 and page.evaluate("document.scripts.length") == 2
        shown_text = page.locator(".sample pre").first.text_content()
        assert shown_text.startswith("</script><script>document.title = 'hacked'</script><img src=x")
        assert "⟨0⟩⟨7⟩⟨1b⟩[31m⟨2028⟩⟨202e⟩⟨d83d⟩\n'\"`" in shown_text
        tree = page.locator(".tree").text_content()
        assert "</script><script>document.title" in tree and "⟨202e⟩" in tree
        page.get_by_label("Problem", exact=True).select_option(index=1)
        page.locator(".cell").nth(2).hover()
        assert "<img src=x onerror=" in page.locator("#detail").text_content()
        assert "hacked" not in page.title()
    assert "</script>" in HOSTILE


# -------------------------------------------------------------------------------------------- light, small, by hand


def lightness(page, selector, name):
    """Of a colour, 0 to 255."""
    rgb = page.locator(selector).first.evaluate("(e, name) => getComputedStyle(e)[name]", name)
    return sum(map(int, rgb[rgb.index("(") + 1 : -1].split(",")[:3])) / 3


@pytest.mark.slow
def test_it_is_dark_where_the_reader_wants_that_and_charts_follow(see):
    with see("run") as page:
        assert lightness(page, "html", "backgroundColor") > 240 > 60 > lightness(page, "html", "color")
        before = page.locator(".plot canvas").first.evaluate("c => c.toDataURL()")
        page.emulate_media(color_scheme="dark")
        assert lightness(page, "html", "backgroundColor") < 40 and lightness(page, "html", "color") > 200
        assert page.locator(".plot canvas").first.evaluate("c => c.toDataURL()") != before
        assert drawn_charts(page) == page.locator(".plot").count()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["run", "two", "hostile", "large", "solve"])
def test_a_phone_shows_it_without_scrolling_sideways(name, see):
    with see(name, PHONE) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        assert page.locator(".scroller").bounding_box()["width"] <= PHONE["width"]
        assert page.locator("#step").bounding_box()["width"] > 150


@pytest.mark.slow
def test_all_of_it_can_be_used_with_the_keyboard(see):
    record = trace(10)
    children = [n for n, parent in enumerate(record["nodes"]["parent"]) if parent == 0]
    with see("run") as page:
        page.get_by_label("Search of").select_option(index=1)
        to_step(page, 4)
        page.get_by_role("radio", name="iterations").focus()
        page.keyboard.press("ArrowRight")
        assert page.get_by_label("decoded tokens").is_checked()
        page.locator("#step").focus()
        page.keyboard.press("ArrowLeft")
        assert page.locator(".told").inner_text().startswith("step 3 of 4")
        page.keyboard.press("End")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.classList.contains('tree')")
        chosen = page.locator(".cell.chosen")
        assert chosen.get_attribute("data-n") == "0"
        page.keyboard.press("ArrowRight")
        assert int(chosen.get_attribute("data-n")) in children
        page.keyboard.press("ArrowDown")
        assert record["nodes"]["step"][int(chosen.get_attribute("data-n"))] == 1
        page.keyboard.press("ArrowLeft")
        assert chosen.get_attribute("data-n") == "0" and "g\n0" in page.locator("#detail").inner_text()
