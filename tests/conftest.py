"""Mounts the checkout as `uml` and fails a test that leaks."""
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if "uml" not in sys.modules:
    _uml = types.ModuleType("uml")
    _uml.__path__ = [str(ROOT)]
    sys.modules["uml"] = _uml
