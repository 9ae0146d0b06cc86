"""The README and the pages of docs/: short where it matters, and every link leads somewhere."""

import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if not link.startswith("http"):
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.is_file(), link
            assert not anchor or anchor in anchors(target), link


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    readme = PAGES[0].read_text()
    assert len(readme.splitlines()) <= 180
    assert all(f"](docs/{page.name})" in readme for page in PAGES[1:])


def test_every_markdown_file_that_a_comment_names_is_in_the_repository() -> None:
    here = {path.name for path in (*PAGES, *ROOT.glob("*.md"))} | {"claims.md"}  # is written
    for path in (*ROOT.glob("lovasz_repro/**/*.py"), *ROOT.glob("tests/**/*.py")):
        with path.open("rb") as file:
            for token in tokenize.tokenize(file.readline):
                if token.type == tokenize.COMMENT or token.string.startswith('"""'):
                    assert set(re.findall(r"\b\w+\.md\b", token.string)) <= here, path
    for path in ROOT.glob("experiments/*.yaml"):
        assert not re.findall(r"\b\w+\.md\b", path.read_text()), path
