"""The numbers that the tests of losses are held against."""

import json
from pathlib import Path

GOLDEN = json.loads((Path(__file__).parent.parent / "golden/losses.json").read_text())
