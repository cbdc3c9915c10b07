"""The report of a small, made-up results.json: two seeds, three tasks, one method that the paper has not."""

import copy
import io
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from toys import table_cells

from ftn_jax.cli import ftn
from ftn_jax.core import metrics
from ftn_jax.core.errors import InputError
from ftn_jax.report import figures, paper, tables, write_report

TASKS = ["upper", "reverse_words", "pirate"]


pytestmark = pytest.mark.usefixtures("pictures_where_figures_are_named")


def _stat(mean, std):
    return {"mean": mean, "std": std}


def _block(start):
    """Every number differs, so that a cell in the wrong place shows."""
    matrix = start + np.arange(18.0).reshape(2, 3, 3) / 16
    return {
        "matrix": matrix.tolist(),
        "final": _stat(start + 0.111, 0.011),
        "fm": _stat(start + 0.222, 0.022),
        "fm_rise": _stat(start + 0.333, 0.033),
        "bwt": _stat(-start - 0.444, 0.044),
        "exact_match": {"matrix": matrix.tolist(), "final": _stat(0.5, 0.055)},
    }


def _results():
    masks = [[[0, 1], [1, 2], [7, 8]], [[0, 1], [4, 5], [7, 8]]]
    ftn = {
        "stored": _block(1.0),
        "reconfig": _block(2.0),
        "masks": masks,
        "overlap": metrics.overlap(masks).tolist(),
        "k": 2,
        "size": 9,
        "grid": 3,
        "samples": [
            {"task": "upper", "prompt": "a | b\n", "target": "*st_rr*", "output": "<eos> [bold]c\nd"},
        ],
        "seconds": {"compile": 1.5, "run": 10.25},
    }
    stored = _block(3.0)
    for matrix in stored["matrix"]:
        matrix[0][1] = matrix[0][2] = matrix[1][2] = None
    return {
        "experiment": "lora",
        "base_model": {"name": "packaged", "hash": "abc123"},
        "config": {"stream": {"steps": 50}},
        "environment": {"device": "cpu", "versions": {"jax": "0.10.2"}},
        "task_names": TASKS,
        "metric": "cross_entropy",
        "seeds": [0, 1],
        "methods": {"lora_ftn": ftn, "mine": {"stored": stored, "reconfig": _block(4.0)}},
    }


@pytest.fixture
def workdir(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(_results()))
    lines = ["method,seed,task,step,loss"]
    for method in ("lora_ftn", "mine"):
        for seed in range(2):
            for task in TASKS:
                lines += [f"{method},{seed},{task},{step},{3.0 / (step + 1)}" for step in range(20)]
    (tmp_path / "metrics.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_table_3_holds_the_numbers_of_the_dict_and_of_the_paper(workdir):
    write_report(workdir)
    rows = table_cells((workdir / "report.md").read_text(), "Table 3")
    header = ["method", "protocol", "CE ↓", "paper", "FM ↓", "paper", "fm\\_rise ↓", "BWT ↑", "exact match ↑"]
    assert rows[0] == header
    # Paper: Table 3, LoRA-FTN 1.71 and 1.51; a method that it does not have gets dashes.
    ours = ["1.111 ± 0.011", "1.222 ± 0.022", "1.333 ± 0.033", "-1.444 ± 0.044", "0.500 ± 0.055"]
    assert rows[2] == ["LoRA-FTN", "stored", ours[0], "1.71 ± 0.16", ours[1], "0.34 ± 0.11", *ours[2:]]
    ours = ["2.111 ± 0.011", "2.222 ± 0.022", "2.333 ± 0.033", "-2.444 ± 0.044", "0.500 ± 0.055"]
    assert rows[3] == ["LoRA-FTN", "reconfig", ours[0], "1.51 ± 0.08", ours[1], "0.07 ± 0.03", *ours[2:]]
    assert rows[4][:6] == ["mine", "stored", "3.111 ± 0.011", "-", "3.222 ± 0.022", "-"]
    assert rows[5][:2] == ["mine", "reconfig"]
    assert len(rows) == 6


def test_per_task_overlap_and_time_tables(workdir):
    write_report(workdir)
    report = (workdir / "report.md").read_text()
    # Last rows 2 + (6, 7, 8) / 16 and 2 + (15, 16, 17) / 16: means from 2 + 10.5 / 16, std 9 / 16 / sqrt(2).
    finals = ["2.656 ± 0.398", "2.719 ± 0.398", "2.781 ± 0.398"]
    assert table_cells(report, "Final CE by task")[2] == ["LoRA-FTN", *finals]
    # Upper and reverse_words share component 1 of two in the first seed only: mean of 0.5 and 0.
    rows = table_cells(report, "Table 5")
    assert rows[0] == ["tasks", "LoRA-FTN", "paper"]
    assert rows[2:] == [
        ["upper / reverse\\_words", "0.250 ± 0.354", "0.00"],
        ["upper / pirate", "0.000 ± 0.000", "0.00"],
        ["reverse\\_words / pirate", "0.000 ± 0.000", "0.00"],
    ]
    assert table_cells(report, "Seconds")[2:] == [["LoRA-FTN", "1.5", "10.2", "11.8"]]


def test_a_task_may_have_any_name_in_figures_too(workdir):
    text = (workdir / "results.json").read_text().replace("pirate", "$\\\\frac$ <b> [red]")
    (workdir / "results.json").write_text(text)
    (workdir / "metrics.csv").unlink()
    console = Console(record=True, width=160, file=io.StringIO())
    write_report(workdir, console)
    assert "$\\frac$ <b> [red]" in console.export_text()
    with Image.open(workdir / "figures" / "matrices.png") as image:
        assert image.width > 500


def test_generated_text_is_escaped_and_on_one_line(workdir):
    write_report(workdir)
    rows = table_cells((workdir / "report.md").read_text(), "Sample generations, LoRA-FTN")
    assert rows[2] == ["upper", "a \\| b", "\\*st\\_rr\\*", "\\<eos\\> \\[bold\\]c ⏎ d"]


def test_table_5_pairs_are_found_in_either_order():
    results = _results()
    results["task_names"] = ["pirate", "lower", "mine"]
    rows = tables.overlap_table(results).rows
    assert [row[2] for row in rows] == ["0.06", "-", "-"]


def test_base_is_named_and_told_from_the_papers(workdir):
    write_report(workdir)
    report = (workdir / "report.md").read_text()
    assert "Base model: packaged (hash abc123). The paper's numbers were measured on distilgpt2, another base" in report
    assert "base packaged" in report.split("## Table 3")[1].splitlines()[0]

    results = _results()
    results["base_model"]["name"] = "distilgpt2"
    (workdir / "results.json").write_text(json.dumps(results))
    write_report(workdir)
    assert "another base" not in (workdir / "report.md").read_text()


def test_environment_figures_and_command_are_in_the_report(workdir):
    write_report(workdir)
    report = (workdir / "report.md").read_text()
    assert "device: cpu\nversions.jax: 0.10.2" in report
    assert f"python -m ftn_jax.report --workdir={workdir}" in report
    for name in ("matrices", "forgetting", "stream", "masks", "learning"):
        assert f"(figures/{name}.png)" in report


def test_figures_are_pictures(workdir):
    write_report(workdir)
    for name in ("matrices", "forgetting", "stream", "masks", "learning"):
        with Image.open(workdir / "figures" / f"{name}.png") as image:
            assert image.format == "PNG"
            pixels = np.asarray(image.convert("RGB"))
        assert min(pixels.shape[:2]) > 200
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20


def test_mask_tiles_sum_and_clip_the_colours():
    tile = figures.masks(_results()).axes[0].images[0].get_array()
    upper, reverse = np.array([0xE6, 0x9F, 0x00]) / 255, np.array([0x56, 0xB4, 0xE9]) / 255  # Okabe and Ito
    np.testing.assert_allclose(tile[0, 0], upper)
    np.testing.assert_allclose(tile[0, 1], np.minimum(upper + reverse, 1.0))
    np.testing.assert_allclose(tile[0, 2], reverse)
    np.testing.assert_allclose(tile[1], np.zeros((3, 3)))


def test_matrices_share_one_scale_over_trainedtable_cells():
    figure = figures.matrices(_results())
    first, second = (axis.images[0] for axis in figure.axes[:2])
    # Means over the two seeds: start + cell / 16 + 9 / 32, cells 0 to 8, the methods' starts 2 and 4.
    assert first.norm is second.norm
    assert (first.norm.vmin, first.norm.vmax) == (2 + 9 / 32, 4 + 8 / 16 + 9 / 32)
    assert figure.axes[0].texts[0].get_text() == "2.28"


def test_a_stream_is_told_by_its_means_and_by_what_was_forgotten():
    means, falls = figures.stream(_results()).axes
    # As above; after n tasks row n - 1 counts, and of it the tasks so far.
    np.testing.assert_allclose(means.lines[0].get_ydata(), 2 + 9 / 32 + np.array([0, 3.5, 7]) / 16)
    np.testing.assert_allclose(falls.lines[0].get_ydata(), np.array([3, (6 + 3) / 2]) / 16)
    assert means.lines[0].get_xdata().tolist() == [1, 2, 3] and falls.lines[0].get_xdata().tolist() == [2, 3]
    assert len(means.lines) == len(falls.lines) == 2


def test_one_seed_has_no_std():
    results = _results()
    for method in results["methods"].values():
        for protocol in tables.PROTOCOLS:
            method[protocol] = metrics.summarise(method[protocol]["matrix"][:1], "cross_entropy")
        if "masks" in method:
            method["masks"], method["overlap"] = method["masks"][:1], method["overlap"][:1]
    results["seeds"] = [0]
    table = tables.main_table(results)
    assert table.rows[1][2] == "2.438"  # 2 + (6 + 7 + 8) / 3 / 16
    assert "mean over 1 seed." in table.note
    assert "exact match ↑" not in table.columns
    assert figures.forgetting(results) is not None


def test_numbers():
    assert tables.number(_stat(0.0, 0.0)) == "0.000 ± 0.000"
    assert tables.number(_stat(-0.0, None)) == "0.000"
    assert tables.number(_stat(0.00002, 0.1)) == "2e-05 ± 0.100"
    assert tables.number(_stat(None, None)) == "-"


def test_one_task_and_missing_parts(tmp_path):
    results = {
        "experiment": "jsonl",
        "base_model": {"name": "distilgpt2", "hash": "00"},
        "task_names": ["only"],
        "metric": "cross_entropy",
        "seeds": [0],
        "methods": {"lora_ftn": {"reconfig": metrics.summarise([[[1.5]]], "cross_entropy")}},
    }
    (tmp_path / "results.json").write_text(json.dumps(results))
    write_report(tmp_path)
    rows = table_cells((tmp_path / "report.md").read_text(), "The jsonl stream")
    assert rows[0] == [
        "method",
        "protocol",
        "CE ↓",
        "FM ↓",
        "fm\\_rise ↓",
        "BWT ↑",
    ]  # no paper to stand beside
    assert rows[2:] == [["LoRA-FTN", "reconfig", "1.500", "-", "-", "-"]]
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == [
        "forgetting.png",
        "matrices.png",
    ]


@pytest.mark.parametrize(
    "experiment, metric, heading, paper_cells",
    [
        ("classification", "accuracy", "ACC ↑", ["0.896 ± 0.025", "0.014 ± 0.025"]),
        ("regression", "mse", "MSE ↓", ["0.167 ± 0.075", "0.003 ± 0.007"]),
    ],
)
def test_tables_1_and_2_come_from_the_same_function(experiment, metric, heading, paper_cells):
    results = _results()
    results |= {"experiment": experiment, "metric": metric, "base_model": None}
    results["methods"] = {"ftn_slow": {"stored": _block(0.0), "reconfig": _block(0.0)}}
    table = tables.main_table(results)
    assert table.columns[2:6] == (heading, "paper", "FM ↓", "paper")
    assert [row[3] for row in table.rows] == ["-", paper_cells[0]]  # the paper has reconfig only
    assert [row[5] for row in table.rows] == ["-", paper_cells[1]]


def test_the_papers_numbers_agree_with_what_its_text_says():
    # NoMask is near chance on two tasks of three; section 3: forgetting falls about a hundredfold.
    assert paper.MAIN["classification"]["methods"]["nomask"]["reconfig"]["final"][0] == 0.666
    lora = paper.MAIN["lora"]["methods"]
    assert lora["lora_naive"]["reconfig"]["fm"][0] / lora["lora_ftn"]["reconfig"]["fm"][0] == pytest.approx(105, abs=1)
    for block in paper.DECOMPOSITION.values():
        assert set(block) == {"fixedmask_final", "nomask", "ewc", "kwta", "ftn_fast", "ftn_slow"}


def test_terminal_prints_the_main_table_last(workdir):
    console = Console(record=True, width=160, file=io.StringIO())
    write_report(workdir, console)
    text = console.export_text()
    assert "[bold]c ⏎ d" in text  # generated text is not markup
    assert text.index("Seconds") < text.index("Table 5") < text.index("Table 3. The lora stream")
    assert "2.111 ± 0.011" in text.split("Table 3.")[1]


@pytest.mark.parametrize(
    "break_it, message",
    [
        (lambda results: results.pop("seeds"), "has no key seeds"),
        (lambda results: results.update(metric="loss"), "metric is 'loss'"),
        (lambda results: results.update(methods={}), "has no finished method yet: start"),
        (lambda results: results.update(methods=[1]), "methods is \\[1\\], expected"),
        (lambda results: results.update(task_names="upper"), "task_names is 'upper'"),
        (lambda results: results["methods"]["mine"]["stored"].pop("fm"), "methods.mine.stored has no key fm"),
        (lambda results: results["seeds"].append(2), r"expected numbers of shape \(3, 3, 3\)"),
        (
            lambda results: results["methods"]["mine"]["stored"].update(matrix=[[1], [1, 2]]),
            r"is \[\[1\], \[1, 2\]\], expected numbers",
        ),
        (lambda results: results["methods"]["mine"]["stored"]["fm"].update(mean=float("nan")), "NaN"),
    ],
)
def test_malformed_results(workdir, break_it, message):
    results = copy.deepcopy(_results())
    break_it(results)
    (workdir / "results.json").write_text(json.dumps(results))
    with pytest.raises(InputError, match=message) as error:
        write_report(workdir)
    assert "\n" not in str(error.value)
    assert str(workdir / "results.json") in str(error.value)
    assert not (workdir / "report.md").exists()


def test_no_learning_curves_without_losses(workdir):
    (workdir / "metrics.csv").write_text("method,seed,task,step,loss\n")
    write_report(workdir)
    assert not (workdir / "figures" / "learning.png").exists()


@pytest.mark.parametrize("line", ["lora_ftn,0,unknown,1,2.0", "lora_ftn,0,upper,1,", "lora_ftn,0,upper"])
def test_malformed_metrics(workdir, line):
    (workdir / "metrics.csv").write_text(f"method,seed,task,step,loss\n{line}\n")
    with pytest.raises(InputError, match=r"metrics.csv line 2 is malformed"):
        write_report(workdir)


@pytest.mark.parametrize("renderer", ["figures.forgetting", "tables.time_table", "tables.markdown", "page.render"])
def test_nothing_changes_where_a_renderer_raises(workdir, monkeypatch, renderer):
    write_report(workdir)
    (workdir / "report.md").write_text("earlier")
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}

    def fail(*_, **__):
        raise RuntimeError("renderer")

    monkeypatch.setattr(f"ftn_jax.report.{renderer}", fail)
    with pytest.raises(RuntimeError, match="renderer"):
        write_report(workdir)
    assert {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()} == before


def test_no_temporary_file_stays(workdir, monkeypatch):
    write_report(workdir)
    before = sorted(workdir.rglob("*"))
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(InputError, match="disk"):
        write_report(workdir)
    assert sorted(workdir.rglob("*")) == before


def _command(workdir):
    command = [sys.executable, "-m", "ftn_jax.report", f"--workdir={workdir}"]
    return subprocess.run(command, capture_output=True, text=True)


def test_command_line(workdir):
    done = _command(workdir)
    assert done.returncode == 0, done.stderr
    assert "Table 3. The lora stream, 3 tasks, base packaged" in done.stdout
    assert (workdir / "report.md").exists()


@pytest.mark.parametrize(
    "content, message", [(None, "does not exist"), ("{", "can't be read"), ("[]", "the file is []")]
)
def test_command_line_without_usable_results(tmp_path, content, message, capsys):
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(SystemExit) as ended:
        ftn.run("report", ["report", f"--workdir={tmp_path}"])
    printed, said = capsys.readouterr()
    assert (ended.value.code, printed) == (1, "")
    assert len(said.strip().splitlines()) == 1
    assert message in said
