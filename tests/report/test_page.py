"""The page of a run's report: what stands in it, read with an HTML parser; in Chromium, that it sorts and tells."""

import base64
import copy
import hashlib
import html.parser
import json
import re
import webbrowser

import pytest
from browser import Browser
from test_report import _results

from ftn_jax.cli import ftn
from ftn_jax.report import charts, page, tables, write_report

VOID = {"meta", "link", "br", "img", "input", "hr"}
LOADING = {"src", "srcset", "href", "action", "formaction", "poster", "data", "background", "xlink:href", "style"}
WICKED = ['<script>alert("1")</script>', "$x$", "\"><img src=x onerror=alert(1)> & 'a'"]


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    """Which take most of the time that a report takes."""
    monkeypatch.setattr("ftn_jax.report._png", lambda figure: b"")


class Page(html.parser.HTMLParser):
    """A page that was read: `tables` by title, `tips`, `texts`, and `loaded`: attributes that could load a thing."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.tips, self.loaded, self.texts = [], [], [], [], [], []
        self.tables, self.contents = {}, {}
        self.feed(text)
        self.close()
        assert self.open == [] and len({*self.ids}) == len(self.ids)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        assert len(found) == len(attributes), (tag, attributes)
        self.tags.append(tag)
        self.ids += [found["id"]] if "id" in found else []
        self.tips += [found["data-tip"]] if "data-tip" in found else []
        self.loaded += [(tag, name, value) for name, value in attributes if name in LOADING or name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.tables.setdefault(self.title, []).append([])
        if tag in ("th", "td"):
            self.tables[self.title][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.contents.setdefault(self.open[-1], []).append(data)
        self.texts.append(data)
        if "h2" in self.open:
            self.title = data
        elif {"td", "th"} & {*self.open}:
            self.tables[self.title][-1][-1] += data


def composed():
    """Results with reuse in one of two seeds, and the losses of a run."""
    results = copy.deepcopy(_results())
    entry = results["methods"]["lora_ftn"]
    entry["reuses"] = [[[], [0], [0, 1]], [[], [], [0]]]
    entry["answering"] = [[[0, 1], [0, 1, 2], [0, 1, 2, 7, 8]], [[0, 1], [4, 5], [0, 1, 7, 8]]]
    losses = {("mine", "upper"): {step: [3.0 / step, 1.0 / step] for step in range(1, 21)}}
    return results, losses


def rendered(results, losses=None, *more):
    return page.render(results, [*tables.all_tables(results), *more], losses or {}, said=["Said."], command="again")


def write(folder, results):
    (folder / "results.json").write_text(json.dumps(results))
    lines = [f"lora_ftn,0,{task},{step},{3 / step}" for task in ("upper", "pirate") for step in range(1, 21)]
    (folder / "metrics.csv").write_text("\n".join(["method,seed,task,step,loss", *lines]) + "\n")
    write_report(folder)
    return folder / "report.html"


def test_the_tables_are_those_of_the_terminal(tmp_path):
    results, losses = composed()
    read = Page(rendered(results, losses))
    built = [table for table in tables.all_tables(results) if not table.title.startswith("Sample")]
    assert len(built) > 3 and [*read.tables] == [table.title for table in built]
    for table in built:
        assert read.tables[table.title] == [list(table.columns), *map(list, table.rows)]
        assert table.note in read.texts or not table.note
    assert write(tmp_path, results).read_text().count('<table class="sortable">') == len(built) + 2  # transfer, reuse


def test_cells_of_matrices_tell_their_numbers():
    """Last rows 2 + (6, 7, 8) / 16 and 2 + (15, 16, 17) / 16: means from 2 + 10.5 / 16, std 9 / 16 / sqrt(2)."""
    results, _ = composed()
    read = Page(rendered(results))
    assert "LoRA-FTN, reconfig\nCE 2.656 ± 0.398\non upper, after training pirate" in read.tips
    untrained = "mine, reconfig\nCE 4.406 ± 0.398\non pirate, after training upper\n(pirate is not trained yet)"
    assert untrained in read.tips
    # Of two methods with two protocols one was not scored before training.
    assert sum(tip.count("\nCE ") for tip in read.tips) == 3 * 9 + 6
    assert "2.66" in read.texts


def test_matrices_share_one_scale_of_colours():
    figure = charts.matrices(_results())
    fills = [
        [shape.attributes["fill"] for shape in chart.shapes if shape.attributes["class"] == "cell"]
        for chart in figure.charts
    ]
    assert [len(found) for found in fills] == [6] * 4
    # The least loss is the first method's first cell, the greatest the last one's last: cividis from its light end.
    assert fills[0][0] == "#fee838" and fills[3][-1] == "#00224e"
    assert len({*fills[0], *fills[1], *fills[2], *fills[3]}) > 15


def test_cells_of_masks_tell_their_tasks():
    (first, second) = charts.masks(_results()).charts
    told = [shape.tip for shape in first.shapes if shape.tip]
    title = "LoRA-FTN, seed 0"
    assert told[0] == f"{title}\n4 of 9 components are in no mask" and len(told) == 6
    assert told[2] == f"{title}\ncomponent 1 (row 0, column 1)\nupper, reverse_words"
    assert told[-1] == f"{title}\ncomponent 8 (row 2, column 2)\npirate"
    stripes = [shape for shape in first.shapes if shape.attributes["class"] == "stripe"]
    assert [stripe.attributes["fill"] for stripe in stripes] == ["#56B4E9"]  # the second task's, over the first's
    assert not any(shape.attributes["class"] == "stripe" for shape in second.shapes)
    assert charts.masks(_results()).rows == [[first, second]]


def test_the_reuse_graph():
    results, _ = composed()
    (chart,) = charts.reuse(results).charts
    arcs = [shape.tip for shape in chart.shapes if shape.attributes["class"] == "hit"]
    assert sorted(arcs) == [
        "pirate builds on reverse_words\nin 1 of 2 seeds",
        "pirate builds on upper\nin 2 of 2 seeds",
        "reverse_words builds on upper\nin 1 of 2 seeds",
    ]
    nodes = [shape.tip for shape in chart.shapes if shape.attributes["class"] == "node"]
    # Of its five and four components in the two seeds two are its own.
    assert nodes[2] == "pirate\n2.000 ± 0.000 components of its own\n2.500 ± 0.707 reused"
    assert charts.reuse(_results()).charts == ()


def test_learning_curves():
    results, losses = composed()
    figure = charts.learning(results, losses)
    assert figure.legend == (("mine", "#E69F00"),)
    told = [shape.tip for shape in figure.charts[0].shapes if shape.tip]
    assert len(told) == 20 and told[3] == "upper, step 4\nmine 0.5"  # the mean of 3 / 4 and 1 / 4
    assert charts.learning(results, {}).charts == ()


def test_lines_along_the_stream_tell_mean_and_std():
    results, _ = composed()
    means, falls = charts.stream(results).charts
    told = [shape.tip for shape in means.shapes if shape.tip]
    # After the first task 2 and 2 + 9 / 16; after the last the mean of 2 + (6, 7, 8) / 16 and of as much and 9 / 16.
    assert told[0] == "LoRA-FTN\n2.281 ± 0.398\nafter training upper"
    assert told[2] == "LoRA-FTN\n2.719 ± 0.398\nafter training pirate"
    # Of upper 3 / 16, in both seeds; then of upper 6 / 16 and of reverse_words 3 / 16.
    told = [shape.tip for shape in falls.shapes if shape.tip]
    falls = {"0.188 ± 0.000": "reverse_words", "0.281 ± 0.000": "pirate"}
    assert told[:2] == [f"LoRA-FTN\n{fall}\nafter training {task}" for fall, task in falls.items()]
    own = [shape.tip for shape in charts.forgetting(results).charts[0].shapes if shape.tip]
    assert len(own) == 3 + 2 + 1 and own[-1] == "pirate\n2.781 ± 0.398\nafter training pirate"


def test_differences_are_marked_on_both_sides():
    target, output = page.differences("A quiet  fox.", "A quiet dog. Too")
    assert target == [("A quiet", False), ("  fox", True), (".", False)]
    assert output == [("A quiet", False), (" dog", True), (".", False), (" Too", True)]
    assert page.differences("same", "same") == ([("same", False)], [("same", False)])
    assert page.differences("", "") == ([], [])


def test_samples_stand_beside_their_target():
    results = _results()
    results["methods"]["mine"]["samples"] = [
        {"task": "upper", "prompt": "a | b\n", "target": "*st_rr*", "output": "*st_rr*\n"}
    ]
    (sample,) = page.compared_samples(results)
    assert (sample.task, sample.prompt) == ("upper", "a | b")
    assert [(pair.method, pair.same) for pair in sample.pairs] == [("LoRA-FTN", False), ("mine", True)]
    read = Page(rendered(results))
    assert read.contents["span"].count("equal") == 1
    assert "".join(read.contents["mark"]).endswith("*st_rr*<eos> [bold]c\nd")


def wicked():
    """Results and losses of a run in which everything that a user names is markup."""
    results, losses = composed()
    text = json.dumps(results)
    for task, name in zip(results["task_names"], WICKED, strict=True):
        text = text.replace(json.dumps(task), json.dumps(name))
    results = json.loads(text) | {"experiment": WICKED[0], "base_model": {"name": WICKED[2], "hash": "</pre>"}}
    results |= {"config": {"</script>": f"</pre>{WICKED[2]}"}, "environment": {"<b>": "</details><script>"}}
    results["methods"][WICKED[2]] = results["methods"].pop("mine")
    results["methods"]["lora_ftn"]["samples"][0] |= {"prompt": WICKED[2], "output": WICKED[0], "target": "</pre><b>"}
    return results, {(WICKED[2], WICKED[0]): losses["mine", "upper"]}


def test_what_comes_from_users_is_escaped():
    results, losses = wicked()
    read = Page(rendered(results, losses))
    assert {"img", "b"} & {*read.tags} == set() and read.tags.count("script") == 1
    for name in WICKED:
        assert name in read.tables["Final CE by task, reconfig"][0]
        assert any(f"\non {name}, after training {name}" in tip for tip in read.tips)
        assert f"{name}\n2.000 ± 0.000 components of its own" in "\n".join(read.tips)
    assert json.loads(read.contents["pre"][-2]) == results["config"]
    assert read.contents["pre"][-1] == "<b>: </details><script>"
    assert WICKED[2] in read.contents["pre"]
    assert f"</pre><b>output{WICKED[0]}" in "".join(text.strip("\n") for text in read.texts)


def test_nothing_is_loaded_from_elsewhere():
    text = rendered(*composed())
    read = Page(text)
    inside = [value for tag, name, value in read.loaded if (tag, name) == ("a", "href")]
    assert [entry for entry in read.loaded if entry[0] != "a"] == [("link", "href", "data:,")]
    assert len(inside) > 8 and {*inside} <= {f"#{name}" for name in read.ids}
    assert not re.search(r"https?:|@import|url\(|//[a-z]", text.replace("// ", ""))
    policy = re.search('Content-Security-Policy" content="(.+?)"', text)
    allowed = {
        f"{kind}-src": base64.b64encode(hashlib.sha256("".join(read.contents[tag]).encode()).digest()).decode()
        for kind, tag in (("style", "style"), ("script", "script"))
    }
    assert policy
    assert html.unescape(policy[1]) == (
        "default-src 'none'; img-src data:; "
        f"style-src 'sha256-{allowed['style-src']}'; script-src 'sha256-{allowed['script-src']}'"
    )


def test_one_task_without_scores_or_masks():
    nothing = {key: {"mean": None, "std": None} for key in ("final", "fm", "fm_rise", "bwt")}
    nothing["matrix"] = [[[None]], [[None]]]
    results = _results() | {"task_names": ["upper"], "methods": {"mine": {"reconfig": nothing}}}
    assert [figure.name for figure in charts.all_figures(results, {})] == ["matrices"]
    read = Page(rendered(results))
    assert read.tips == [] and read.tables["Final CE by task, reconfig"][1] == ["mine", "-"]


@pytest.mark.parametrize("opens", (True, False))
def test_the_command_opens_it(tmp_path, monkeypatch, capsys, opens):
    path, asked = write(tmp_path, _results()), []
    monkeypatch.setattr(webbrowser, "open", lambda address: asked.append(address) or opens)
    ended = None
    try:
        ftn.run("report", ["report", f"--workdir={tmp_path}", "--open"])
    except SystemExit as error:
        ended = error.code
    assert asked == [path.as_uri()]
    assert (ended or 0) == (0 if opens else 1)
    said = capsys.readouterr().err
    assert said == ("" if opens else f"ftn_jax: no web browser can be started here: open {path} in one\n")


NUMBERS = tables.Table(
    "Numbers",
    ("name", "value"),
    (("x10", "-"), ("x9", "0.25 ± 9.0"), ("x2", ""), ("-", "≤ 1,234.5"), ("x1", "9e-05"), ("b", "-1.5")),
    left=("name",),
)


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """A browser, and the page of a run in which everything that a user names is markup."""
    folder = tmp_path_factory.mktemp("shown")
    path = folder / "report.html"
    path.write_text(rendered(*wicked(), NUMBERS))
    with Browser(folder / "profile") as browser:
        yield browser, path


@pytest.mark.slow
def test_the_browser_notices_requests_and_messages(shown, tmp_path):
    """Or the next test proves nothing."""
    browser, _ = shown
    other = tmp_path / "other.html"
    other.write_text("<img src='missing.png'><script>console.log('said'); missing()</script>")
    browser.open(other)
    assert browser.requests == [other.as_uri(), (tmp_path / "missing.png").as_uri()]
    assert "said" in str(browser.messages) and "missing is not defined" in str(browser.messages)


@pytest.mark.slow
def test_it_opens_without_a_request_or_a_message(shown):
    browser, path = shown
    browser.open(path)
    assert browser.run("document.querySelectorAll('.chart').length") > 8
    for selector in (".cell", ".mask", ".point", ".strip", ".node", "th button"):
        browser.point(selector, click=True)
    assert [url for url in browser.requests if not url.startswith("data:")] == [path.as_uri()]
    assert browser.messages == []


@pytest.mark.slow
def test_a_click_on_a_header_sorts(shown):
    """Up, down, and as it was; cells with nothing to sort by are last either way."""
    browser, path = shown
    browser.open(path)

    def clicked(column):
        browser.point(f"#table-numbers th:nth-child({column}) button", click=True)
        state = browser.run(f"document.querySelector('#table-numbers th:nth-child({column})').ariaSort")
        rows = "[...document.querySelectorAll('#table-numbers tbody tr')]"
        return state, browser.run(f"{rows}.map((row) => row.cells[{column - 1}].textContent)")

    assert clicked(2) == ("ascending", ["-1.5", "9e-05", "0.25 ± 9.0", "≤ 1,234.5", "-", ""])
    assert clicked(2) == ("descending", ["≤ 1,234.5", "0.25 ± 9.0", "9e-05", "-1.5", "-", ""])
    assert clicked(2) == (None, [value for _, value in NUMBERS.rows])
    assert clicked(1) == ("ascending", ["b", "x1", "x2", "x9", "x10", "-"])
    assert browser.run("document.querySelectorAll('#table-numbers [aria-sort]').length") == 1


TIP = "document.getElementById('tip').hidden ? null : document.getElementById('tip').textContent"


@pytest.mark.slow
def test_a_cell_tells_its_number(shown):
    browser, path = shown
    browser.open(path)
    assert browser.run(TIP) is None
    browser.point(".chart .cell")
    first = f"LoRA-FTN, stored\nCE 1.281 ± 0.398\non {WICKED[0]}, after training {WICKED[0]}"
    assert browser.run(TIP) == first
    browser.point("h1")
    assert browser.run(TIP) is None

    browser.run("document.querySelector('.chart .cell').focus()")
    assert browser.run(TIP) == first
    browser.press("ArrowDown")
    assert browser.run(TIP) == f"LoRA-FTN, stored\nCE 1.469 ± 0.398\non {WICKED[0]}, after training {WICKED[1]}"
    browser.press("ArrowRight")
    assert browser.run(TIP) == f"LoRA-FTN, stored\nCE 1.531 ± 0.398\non {WICKED[1]}, after training {WICKED[1]}"
    browser.press("Escape")
    assert browser.run(TIP) is None


@pytest.mark.slow
def test_it_fits_a_phone_and_follows_the_system_s_colours(shown):
    browser, path = shown
    grounds = []
    for scheme in ("light", "dark"):
        browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        browser.call("Emulation.setDeviceMetricsOverride", width=375, height=720, deviceScaleFactor=1, mobile=True)
        browser.call("Emulation.setTouchEmulationEnabled", enabled=True)
        browser.open(path)
        assert browser.run("document.documentElement.scrollWidth") == 375
        ground = browser.run("getComputedStyle(document.body).backgroundColor")
        grounds.append(sum(map(int, re.findall(r"\d+", ground))) / 3)
    assert grounds[0] > 240 and grounds[1] < 40

    browser.run("document.querySelector('.chart .mask').scrollIntoView({block: 'center'})")
    browser.run("new Promise((done) => setTimeout(done, 100))")
    x, y = browser.run("(({x, y}) => [x + 5, y + 5])(document.querySelector('.chart .mask').getBoundingClientRect())")
    browser.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
    browser.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    browser.run("new Promise((done) => setTimeout(done, 100))")
    assert browser.run(TIP) == f"LoRA-FTN, seed 0\ncomponent 0 (row 0, column 0)\n{WICKED[0]}"
    tip = browser.run("(({left, right}) => [left, right])(document.getElementById('tip').getBoundingClientRect())")
    assert 0 <= tip[0] < tip[1] <= 375
