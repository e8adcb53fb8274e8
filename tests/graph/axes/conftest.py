"""`axis_models`, the small models of this room, importable by every test here."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
