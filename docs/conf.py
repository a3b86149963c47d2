"""The documentation's settings: `nox -s docs` builds it."""

from __future__ import annotations

import re

from sphinx.application import Sphinx

import background
import background.observers
import background.queues
import background.queues.abc
import background.queues.memory
import background.queues.nats
import background.queues.redis
import background.queues.sqlite

PUBLIC_MODULES = [
    background,
    background.observers,
    background.queues,
    background.queues.memory,
    background.queues.sqlite,
    background.queues.redis,
    background.queues.nats,
]

project = "background"
author = "the authors of background"
copyright = f"2026, {author}"
release = background.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "background"
nitpicky = True  # a reference without a target is a warning, and warnings are errors

myst_heading_anchors = 3

default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False

nitpick_ignore_regex = [
    ("py:.*", r"(?!background\b).*"),  # types of other libraries
    ("py:.*", r"background\..*\.([A-Z]|FnT)"),  # type variables
    ("py:.*", r"background\.queues\._enqueue\..*"),  # aliases made before use_public_names()
]


def convert_fences(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Turn Markdown's fences, which editors show, into directives."""
    converted, fence = [], ""
    for line in lines:
        text = line.strip()
        if text.startswith("```"):
            margin = line[: len(line) - len(line.lstrip())]
            fence = "" if fence else text
            converted += [f"{margin}.. code-block:: {fence[3:]}", ""] if fence else [""]
        else:
            converted.append(f"    {line}" if fence else line)
    lines[:] = converted


def hide_internal_constructors(
    app: Sphinx,
    what: str,
    name: str,
    obj: object,
    options: object,
    signature: str | None,
    returns: str | None,
) -> tuple[str, str | None] | None:
    """Leave out the arguments of classes that only the package makes."""
    if what == "class" and re.search(r"\._[a-z]", (signature or "")):
        return "()", returns
    return None


def use_public_names() -> None:
    """Let objects say that they are where users import them from."""
    for module in PUBLIC_MODULES:
        for name in module.__all__:
            member = getattr(module, name)
            if callable(member):
                member.__module__ = module.__name__


def setup(app: Sphinx) -> None:
    use_public_names()
    app.connect("autodoc-process-signature", hide_internal_constructors)
    app.connect("autodoc-process-docstring", convert_fences, priority=100)  # before napoleon
