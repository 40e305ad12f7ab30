"""Write the JSON Schema of the record to its committed file, or to a path given."""

import sys
from pathlib import Path

from .json_schema import COMMITTED, schema_text

if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else COMMITTED
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(schema_text(), encoding="utf-8")
    print(target)
