"""The README and the pages of docs/: short where it matters, and every link leads somewhere."""

import re
import shlex
import tokenize
from pathlib import Path

import pytest
import typer

from lovasz_repro.cli import app

ROOT = Path(__file__).resolve().parent.parent
LEAVING = {"--help", "--version", "--install-completion"}
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


def commands(page: Path) -> list[str]:
    """Those in blocks of commands and between backticks, without comments and redirections."""
    text = page.read_text().replace("\\\n", " ")
    lines = [
        line for block in re.findall(r"```sh\n(.*?)```", text, re.S) for line in block.split("\n")
    ]
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
    every = [part.strip() for line in lines + inline for part in re.split(r"&&|;|\||>|#", line)]
    return sorted({one for one in every if one.startswith("lovasz-repro ")})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_such_as_the_command_line_takes(page: Path) -> None:
    """Names of commands, options and what has a list to choose from; nothing is run."""
    experiments = {path.stem for path in (ROOT / "experiments").glob("*.yaml")}
    for line in commands(page):
        command, words = typer.main.get_command(app), shlex.split(line)[1:]
        while hasattr(command, "commands") and words and words[0] in command.commands:
            command, words = command.commands[words[0]], words[1:]
        given = [word for word in words if word != "..."]
        try:
            context = command.make_context(
                line, given, resilient_parsing=not given or LEAVING & {*given}
            )
        except typer.exceptions.TyperException as error:
            raise AssertionError(f"{line}: {error}") from None
        if context.params.get("experiment") and "run" in line.split()[:2]:
            assert context.params["experiment"] in experiments | {"EXPERIMENT"}, line


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
