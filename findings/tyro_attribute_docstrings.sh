#!/usr/bin/env bash
# tyro 1.0.17: the line breaks of an indented attribute docstring stay in the help text.
#
# Guess: lines of a docstring below a dataclass field are joined and wrapped anew, as those of the class's docstring are.
# Seen: tyro joins lines before it removes their indentation, and joins none that begins with a space; a second line
# that is indented like the first, as PEP 257 has it, begins a new line in the help. At 80 columns, a text written in
# lines of 60 characters has a short line after each long one. A line without indentation is joined.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet tyro==1.0.17
cat > "$place/page.py" << 'EOF'
import contextlib
import io
from dataclasses import dataclass
from importlib.metadata import version

import tyro


@dataclass
class Options:
    """The class's docstring,
    whose lines are joined."""

    indented: int = 0
    """Its first line
    and its second."""
    flush: int = 0
    """Its first line
and its second."""


found = io.StringIO()
with contextlib.redirect_stdout(found), contextlib.suppress(SystemExit):
    tyro.cli(Options, args=["--help"])
text = found.getvalue()
print("tyro", version("tyro"))
print(text)
assert "The class's docstring, whose lines are joined." in text
assert text.count("Its first line and its second.") == 1, "the indented docstring is joined, or the other is not"
EOF
COLUMNS=100 "$place/venv/bin/python" "$place/page.py"
