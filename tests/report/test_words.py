"""The captions file: sound, each sentence once and used."""

import re
from pathlib import Path

import pytest
import yaml

import lovasz_repro.report
from lovasz_repro.config.schema import experiments_folder
from lovasz_repro.report.tables import TABLES
from lovasz_repro.report.words import captions, sentence, table_caption

CODE = "".join(path.read_text() for path in Path(lovasz_repro.report.__file__).parent.rglob("*.py"))


def texts():
    known = captions()
    tables = {f"table {name}": words.caption for name, words in known.tables.items()}
    return known.sentences | known.figures | tables


def test_every_table_has_its_words():
    printed = yaml.safe_load((experiments_folder() / "published.yaml").read_text())["tables"]
    assert {*captions().tables} == {*TABLES} - {*printed}


def test_every_sentence_is_used():
    named = {name for text in texts().values() for name in re.findall(r"{([\w-]+)}", text)}
    for name in captions().sentences:
        # one for each kind of mask; of own data, for each thing that the rule may say
        built = name.startswith(("predicted-", "own-"))
        assert name in named or f'"{name}"' in CODE or built, name


def test_every_name_in_a_sentence_is_a_field_or_a_sentence():
    for name, text in texts().items():
        for part in re.findall(r"{([\w-]+)}", text):
            assert part in captions().sentences or f"{part}=" in CODE, f"{name}: {{{part}}}"


def test_a_sentence_stands_in_another_with_the_same_fields():
    told = table_caption("camvid-enet", experiment="camvid-enet", command="do it")
    assert sentence("seeds") in told
    assert told.endswith("Filled by `do it` (`--profile demo` on a laptop).")


def test_names_from_a_store_are_no_fields():
    assert sentence("papers-runs", about="here", heading="{lacking}", others="") == (
        "Paper-scale runs here: {lacking}."
    )
    with pytest.raises(KeyError):
        sentence("papers-runs")
