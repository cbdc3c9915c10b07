"""docs/commands.md is what the commands themselves say, and the commands in README.md and docs/ are ones that exist."""

import importlib
import re
import shlex

import pytest
from absl import flags
from kills import ROOT

from ftn_jax.cli import command, ftn, train
from ftn_jax.runs.build import check

KINDS = {"bool": "a switch", "float": "a number", "int": "a whole number", "string": "a text"}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def module_of(name):
    return importlib.import_module(f"ftn_jax.cli.{name}")


def flags_of(name):
    own = flags.FlagValues()
    module_of(name)._define(own)
    return own


def plain(text):
    """Text for Markdown, in which <...> would be a tag."""
    return text.replace("<", "&lt;")


def row(flag):
    kind = flag.flag_type().removeprefix("multi ")
    expected = f"one of {', '.join(flag.parser.enum_values)}" if kind == "string enum" else KINDS[kind]
    least = getattr(flag.parser, "lower_bound", None)
    expected += "" if least is None else f", at least {least:g}"
    expected += ", may be repeated" if flag.flag_type().startswith("multi ") else ""
    needed = any(not validator.checker(None) for validator in flag.validators)
    value = f"{flag.default:g}" if isinstance(flag.default, float) else str(flag.default)
    default = "needed" if needed else "" if value in ("None", "[]", "False") else f"`{value}`"
    # Absl puts the values of an enum before its help, and a remark after that of a flag that may be repeated.
    meaning = re.sub(r"^<[\w|]+>: |;\n    repeat this option .*", "", flag.help)
    return f"| `--{flag.name}` | {plain(meaning)} | {expected} | {default} |"


def written():
    """The part of the page below its introduction."""
    lines = ["| command | what it does |", "|---|---|"]
    for name, entry in ftn.COMMANDS.items():
        lines.append(f"| [`ftn {name}`](#ftn-{name}) | {entry.does} |")
    for name in ftn.COMMANDS:
        said = (module_of(name).__doc__ or "").strip().splitlines()
        text = [line if line.startswith("    ") else plain(line) for line in said]
        lines += ["", f"## ftn {name}", "", *text, "", "| flag | meaning | expected | default |", "|---|---|---|---|"]
        own = flags_of(name)
        lines += [row(own[flag]) for flag in own]
    return "\n".join(lines) + "\n"


def test_the_page_is_what_the_commands_say(tmp_path):
    page = (ROOT / "docs" / "commands.md").read_text()
    right = page.partition("| command |")[0] + written()
    (tmp_path / "commands.md").write_text(right)
    assert page == right, f"cp {tmp_path / 'commands.md'} docs/commands.md"
    assert right.count("\n## ftn ") == len(ftn.COMMANDS) and "| `--config` |" in right and "| needed |" in right


def commands(page):
    """(program, arguments) of each of our commands in a page's blocks for a shell."""
    for block in re.findall(r"^```(?:bash|sh)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
        block = block.replace("\\\n", " ").replace("$i", "0")
        for match in re.finditer(r"(?:^| )(python -m ftn_jax\.(\w+)|ftn (\w+)|bash launch/local\.sh)(?= )", block):
            lines, rest = "", block[match.end() :].splitlines()
            while True:  # a text in quotes may have several lines
                lines += rest.pop(0) + "\n"
                try:
                    words = shlex.split(lines, comments=True)
                    break
                except ValueError:
                    assert rest, lines
            ends = [i for i, word in enumerate(words) if word in ("&", "|", ">", "&&", ";")]
            module = match[2] or match[3] or "main"
            yield "train" if module == "main" else module, words[: min(ends, default=None)]


@pytest.mark.parametrize("page", [page for page in PAGES if any(commands(page))], ids=lambda page: page.name)
def test_every_command_in_a_page_is_one_that_is_taken(page, monkeypatch):
    """With flags and settings that exist and values that they may have; nothing is run."""
    monkeypatch.chdir(ROOT)
    for name, words in commands(page):
        argv = [f"ftn {name}", *words]
        if "--config=mine.py" in words:  # test_docs.py runs it
            continue
        if name == "train" and "--help" not in words:
            check(train.parse(argv).config)
        elif name != "train":
            settings = name in ("plan", "pretrain")
            told = command.parse(argv, "", module_of(name)._define, rest=settings)
            if settings:
                command.configure(*told, getattr(module_of(name), "fill_in", lambda config, methods: None))


def test_every_program_in_a_page_exists():
    text = "\n".join(page.read_text() for page in PAGES)
    named = set(re.findall(r"\b(?:python|bash|sbatch) ((?:benchmarks|examples|launch)/\S+?\.(?:py|sh|sbatch))", text))
    assert len(named) > 5 and {name for name in named if not (ROOT / name).is_file()} == set()
