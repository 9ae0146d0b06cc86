"""What MLflow's own pages show of experiments and runs beside their numbers.

Descriptions say what is to be seen, where it stands in the paper, and how it was run; the list of
runs has the command and the data in columns. None of it travels with an export: each store makes
its own of what a run says of itself.
"""

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from lovasz_repro.config.read import read_yaml
from lovasz_repro.config.schema import experiment_file, experiment_names

PAPER = "https://arxiv.org/abs/1705.08790"
DESCRIPTION = "mlflow.note.content"
OPENS_ON_RUNS = {"mlflow.experimentKind": "custom_model_development"}
"""Tag of an experiment; where MLflow has a switch for it ("Model training"), that decides."""
LONGEST_DIGEST = 36  # characters that MLflow takes


@cache
def _about(experiment: str) -> Mapping[str, Any]:
    """What an experiment that comes with the tool says of itself."""
    known = experiment in experiment_names()
    return read_yaml(experiment_file(experiment)) if known else {}


def experiment_tags(experiment: str) -> dict[str, str]:
    """Tags of an experiment: its description, and that it is of training runs."""
    about = _about(experiment)
    if not about:
        return dict(OPENS_ON_RUNS)
    note = [
        f"**{about['title']}** ({about['section']}; [the paper]({PAPER}))",
        str(about["claim"]).strip(),
        f"What it takes: {str(about['cost']).strip()}",
        f"`lovasz-repro run {experiment} --dry-run` says what runs and what it needs; "
        "`lovasz-repro report` makes tables, figures and claims of these runs.",
    ]
    return OPENS_ON_RUNS | {DESCRIPTION: "\n\n".join(note)}


def title_in_list(name: str, tags: Mapping[str, str]) -> str:
    """The name of a run among those of all profiles."""
    return f"{name} {tags.get('profile', '')}".strip()


def run_tags(experiment: str, tags: Mapping[str, str]) -> dict[str, str]:
    """MLflow's tags of a run: its description, command and commit."""
    about, profile = _about(experiment), tags.get("profile", "")
    size = (about.get("profiles") or {}).get(profile, {}).get("about", "")
    how = {"profile": f"{profile} ({size})" if size else profile}
    how |= {key: tags.get(key, "") for key in ("variant", "seed", "scale", "device")}
    note = [", ".join(f"{key} {value}" for key, value in how.items() if value)]
    if about:
        title = f"**{about['title']}** ({about['section']}; [the paper]({PAPER}))"
        note = [title, *note, str(about["claim"]).strip()]
    note.append("`lovasz-repro runs show` with the id of this run says how to repeat it.")
    command = f"lovasz-repro run {experiment}" + (f" --profile {profile}" if profile else "")
    return {
        DESCRIPTION: "\n\n".join(filter(None, note)),
        "mlflow.source.name": command,
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": tags.get("git_commit", "unknown"),
    }


def dataset_of(
    experiment: str, params: Mapping[str, str], tags: Mapping[str, str]
) -> dict[str, str] | None:
    """The data of a run as MLflow describes them; None where their fingerprint is not known."""
    digest = tags.get("data_fingerprint", "")
    if not digest:
        return None
    about = {key: value for key, value in params.items() if key.startswith(("data.", "circles."))}
    return {
        "name": params.get("data.name", experiment)[:500],
        "digest": digest[:LONGEST_DIGEST],
        "source_type": "lovasz-repro",
        "source": json.dumps({"folder": params.get("data.folder", "None")}),
        "profile": json.dumps(about),
    }
