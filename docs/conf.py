"""Sphinx configuration of the site. scripts/docs.py puts this folder and the executed notebooks together and runs Sphinx on them."""
import configparser
import os
from pathlib import Path

from docutils.nodes import SkipNode, image
from docutils.utils.math import latex2mathml
from PIL import Image
from pygments.formatters import HtmlFormatter
from sphinx.highlighting import PygmentsBridge

ROOT = Path(os.environ["R3NB_ROOT"])
meta = configparser.ConfigParser(interpolation=None)
meta.read(ROOT/"settings.ini", encoding="utf-8")
REPOSITORY = os.environ["R3NB_REPOSITORY"]

project, author, release = "r3nb", meta["DEFAULT"]["author"], meta["DEFAULT"]["version"]
copyright = f"2026, {author}; Apache-2.0"
extensions = ["myst_nb", "sphinx_copybutton", "sphinx.ext.extlinks"]
extlinks = {"repo": (f"{REPOSITORY}/blob/main/%s", "%s")}
extlinks_detect_hardcoded_links = False
exclude_patterns = ["README.md", "CHANGELOG.md", "DEVLOG.md", "CONTRIBUTING.md"]

# Notebooks arrive executed.
nb_execution_mode = "off"
nb_ipywidgets_js = {}
nb_code_prompt_show, nb_code_prompt_hide = "Source", "Source"
nb_render_markdown_format = "myst"
nb_mime_priority_overrides = [("html", "image/svg+xml", 0)]
myst_enable_extensions = ["dollarmath", "colon_fence", "attrs_inline", "attrs_block", "deflist"]
myst_heading_anchors = 3
suppress_warnings = ["mystnb.unknown_mime_type"]

html_theme = "furo"
html_title = "r3nb"
html_static_path, html_css_files, templates_path = ["_static"], ["site.css"], []
html_copy_source, html_show_sourcelink = False, False
html_favicon = "_static/icon.svg"
html_theme_options = {"navigation_with_keys": True}
pygments_style, pygments_dark_style = "a11y-high-contrast-light", "a11y-high-contrast-dark"
add_module_names = False
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"
modindex_common_prefix = ["r3nb."]
copybutton_exclude = ".linenos, .gp, .go"


def mathml(self, node, display):
    "Formulas as MathML, which browsers draw themselves: no script is needed"
    self.body.append(latex2mathml.tex2mathml(node.astext(), as_block=display))


def inline(self, node):
    mathml(self, node, False)
    raise SkipNode


def block(self, node):
    self.body.append('<div class="math-block">')
    mathml(self, node, True)
    self.body.append("</div>")
    raise SkipNode


class Lines(HtmlFormatter):
    "Each line of code in an element of its own, so that a long command can be wrapped with its rest set in"
    def _format_lines(self, tokens):
        for is_line, html in super()._format_lines(tokens): yield is_line, f'<span class="line">{html}</span>' if is_line else html


def sized(app, doctree, page):
    "Pictures at the size that they were drawn for, at most as wide as the page; wide ones scroll on a phone, and a click shows each of them whole"
    for node in doctree.findall(image):
        path = Path(app.srcdir, node["uri"])
        if path.suffix != ".png" or not path.is_file(): continue
        with Image.open(path) as im: (w, h), dpi = im.size, im.info.get("dpi")
        if dpi and "width" not in node: node["width"] = f"{round(115*w/dpi[0])}px"
        if dpi and w > 1.9*h and w/dpi[0] > 5: node["classes"].append("wide")


def setup(app):
    PygmentsBridge.html_formatter = Lines
    app.connect("doctree-resolved", sized)
    app.add_html_math_renderer("mathml", (inline, None), (block, None))


html_math_renderer = "mathml"
