"""Pages of the site whose Markdown lies outside `docs/`, and links to them."""

import os
import re
from pathlib import Path

# Files of the repository, and the pages that they become.
PAGES = {
    "CHANGELOG.md": "docs/generated/changelog.md",
    "CONTRIBUTING.md": "docs/generated/contributing.md",
    "benchmarks/RESULTS.md": "docs/generated/results.md",
    "docker/README.md": "docs/generated/containers.md",
}
_LINK = re.compile(r"(\]\()(?!\w+:|#|/)([^)#\s]+)")


def moved(text: str, origin: str, target: str) -> str:
    """Markdown with its relative links as they are from another folder, and links to files of `PAGES` as to the pages.

    Args:
      text: Markdown.
      origin: the folder that links start from, as a path from the repository's root.
      target: the folder that they are to start from.

    Returns:
      The text with other links.
    """

    def link(match: re.Match[str]) -> str:
        path = os.path.normpath(os.path.join(origin, match[2]))
        return match[1] + os.path.relpath(PAGES.get(path, path), target)

    return _LINK.sub(link, text)


def write(root: Path) -> None:
    """Write `PAGES` of the repository with this root."""
    for source, page in PAGES.items():
        text = (root / source).read_text(encoding="utf-8")
        (root / page).parent.mkdir(exist_ok=True)
        (root / page).write_text(moved(text, os.path.dirname(source), os.path.dirname(page)), encoding="utf-8")
