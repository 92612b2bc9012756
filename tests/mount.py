"""Mounts the checkout as `uml` for what runs as `python -m tests...`: import it before ours."""

import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if "uml" not in sys.modules:
    _uml = types.ModuleType("uml")
    _uml.__path__ = [str(ROOT)]
    sys.modules["uml"] = _uml
