"""The unit tests share `formulas`."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
