"""The table of docs/exactness.md, from the report of the tests that compare every architecture with timm.

python -m pytest tests/test_timm_parity.py -n 2 --junitxml=parity.xml
python benchmarks/parity_table.py parity.xml
"""

import re
import sys
from collections import defaultdict
from xml.etree import ElementTree

COLUMNS = (
    ("test_evaluation_equals_timm", "logits", "logits, evaluation"),
    ("test_evaluation_equals_timm", "features", "feature maps"),
    ("test_training_equals_timm", "logits", "logits, training"),
    ("test_training_equals_timm", "gradients", "gradients"),
    ("test_training_equals_timm", "statistics", "running statistics"),
)


def main(path: str) -> None:
    """Print the table in Markdown."""
    rows: dict[str, dict[tuple[str, str], float]] = defaultdict(dict)
    for case in ElementTree.parse(path).iter("testcase"):
        match = re.fullmatch(r"(\w+)\[(\w+)\]", case.get("name", ""))
        for entry in case.iter("property"):
            if match:
                rows[match[2]][match[1], entry.get("name", "")] = float(entry.get("value", "nan"))
    print("| model | " + " | ".join(title for _, _, title in COLUMNS) + " |")
    print("|---" * (len(COLUMNS) + 1) + "|")
    for name, errors in sorted(rows.items()):
        cells = [f"{errors[test, key]:.0e}" if (test, key) in errors else "" for test, key, _ in COLUMNS]
        print(f"| `{name}` | " + " | ".join(cells) + " |")
    worst = [max(errors.get((test, key), 0) for errors in rows.values()) for test, key, _ in COLUMNS]
    print(f"| **largest of {len(rows)}** | " + " | ".join(f"**{error:.0e}**" for error in worst) + " |")


if __name__ == "__main__":
    main(sys.argv[1])
