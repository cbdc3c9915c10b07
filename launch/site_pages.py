"""A hook of MkDocs (mkdocs.yml): the pages that the site has besides docs/.

* The README is its first page.
* Each file of the repository that a page links to, such as ../configs/lora.py, is a page with the file's text. So
  links work both in the repository and on the site, which needs no other address.
* The notebooks in examples/ are tutorials.
* The API reference: the public names, and all modules of each room except programs, from their docstrings.
"""

import ast
import json
import os
import pathlib
import posixpath
import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = pathlib.Path(__file__).parents[1]
LINK = re.compile(r"(?<=\]\()([^)#\s:]+)(?=[)#])")  # the path of a relative link
LANGUAGES = {".cff": "yaml", ".jsonl": "json", ".py": "python", ".sh": "bash", ".yaml": "yaml"}
NOTEBOOKS = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("examples/*.ipynb"))
REFERENCE, SOURCE = "reference/", "source/"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds the notebooks to the tutorials."""
    for section in config.nav or ():
        section.get("Tutorials", []).extend(map(_uri, NOTEBOOKS))
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages."""
    texts = {f"docs/{page.src_uri}": page.content_string for page in files.documentation_pages()}
    texts["README.md"] = (ROOT / "README.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "index.md", content=texts["README.md"]))
    left, made = [*NOTEBOOKS, *(path for own, text in texts.items() for path in _linked(own, text))], set(texts)
    while left:
        path = left.pop()
        if path in made or path.startswith("docs/"):
            continue
        made.add(path)
        content = _source(path)
        files.append(File.generated(config, _uri(path), content=content, inclusion=InclusionLevel.NOT_IN_NAV))
        if path.endswith((".ipynb", ".md")):
            left += _linked(path, content)
    for name, content in _reference().items():
        files.append(File.generated(config, f"{REFERENCE}{name}.md", content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Points links within the repository to the site's pages."""
    uri = page.file.src_uri
    if uri.startswith(REFERENCE):
        return markdown
    own = "README.md" if uri == "index.md" else f"docs/{uri}"
    if uri.startswith(SOURCE):
        own = uri.removeprefix(SOURCE).removesuffix(".md")

    def on_the_site(match: re.Match[str]) -> str:
        path = _path(own, match[0])
        return posixpath.relpath(_uri(path), posixpath.dirname(uri)) if (ROOT / path).is_file() else match[0]

    return LINK.sub(on_the_site, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Makes the names of this package in docstrings into links, where the reference has them."""
    if not page.file.src_uri.startswith(REFERENCE):
        return html
    return re.sub(
        r"<code>(ftn_jax\.[\w.]+)</code>", r'<autoref optional identifier="\1"><code>\1</code></autoref>', html
    )


def _path(own: str, link: str) -> str:
    """The path in the repository that a link in the file ``own`` names."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(own), link))


def _linked(own: str, markdown: str) -> list[str]:
    """The files of the repository that a file's links name."""
    return [path for link in LINK.findall(markdown) if (ROOT / (path := _path(own, link))).is_file()]


def _uri(path: str) -> str:
    """Where the site has a file of the repository."""
    if path == "README.md":
        return "index.md"
    return path.removeprefix("docs/") if path.startswith("docs/") else f"{SOURCE}{path}.md"


def _source(path: str) -> str:
    """A page with a file's text."""
    text, suffix = (ROOT / path).read_text(encoding="utf-8"), os.path.splitext(path)[1]
    hidden = "---\nsearch:\n  exclude: true\n---\n\n"
    if suffix == ".md":
        return hidden + text
    if suffix == ".ipynb":
        cells = [("".join(cell["source"]), cell["cell_type"] == "code") for cell in json.loads(text)["cells"]]
        return "\n\n".join(f"````python\n{source}\n````" if code else source for source, code in cells) + "\n"
    return f"{hidden}# {path}\n\n````{LANGUAGES.get(suffix, 'text')}\n{text}````\n"


def _reference() -> dict[str, str]:
    """The pages of the API reference: name -> Markdown."""
    package = ROOT / "ftn_jax"
    tree = ast.parse((package / "__init__.py").read_text(encoding="utf-8"))
    (public,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"
    )
    pages = {"ftn_jax": ["# ftn_jax", "The public names.", *(f"::: ftn_jax.{name}" for name in public)]}
    for room in sorted(path.parent.name for path in package.glob("*/__init__.py")):
        if room == "cli":  # docs/commands.md
            continue
        modules = sorted(path.relative_to(ROOT).with_suffix("") for path in (package / room).rglob("*.py"))
        names = [".".join(path.parts).removesuffix(".__init__") for path in modules if path.stem != "__main__"]
        pages[room] = [f"# ftn_jax.{room}"]
        for name in names:
            pages[room].append(f"::: {name}\n    options:\n      show_root_full_path: true")
    return {name: "\n\n".join(parts) + "\n" for name, parts in pages.items()}
