"""Which implementation plays which role in a job: chosen, looked for, and loaded.

Models are found or refused before work starts. Two profiles choose an implementation for every role
(implementations.py): `offline` uses only weights that come with packages, `paper` those that Stable Video Diffusion
names. A job mixes them role by role.

For the pipeline:

    choices = choose("offline", {"flow": {"implementation": "raft_large", "weights": "/models/raft.pth"}})
    for report in check(choices): ...           # preflight: report.problem is None, or one line with the way out
    scorer = load(choices["flow"], device="cuda")   # an object with .name and the role's method (see each module)

A role that a profile has no model for is absent from `choices`, and `NO_MODEL` says why.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from curation.implementations import IMPLEMENTATIONS, PROFILES, ROLES, Implementation, Weights
from curation.weights import PackagedWeights, WeightsUnavailable
from curation.weights_remote import HubWeights, LocalWeights


@dataclass(frozen=True)
class Choice:
    """An implementation with the weights that this job uses, and the batch where the job gives one."""

    implementation: Implementation
    weights: tuple[Weights, ...]
    batch: int | None = None

    @property
    def role(self) -> str:
        """The role it plays."""
        return self.implementation.role


@dataclass(frozen=True)
class Report:
    """What `check` found for one role: `problem` is None when every file is there and is the right one."""

    role: str
    implementation: str
    weights: tuple[Weights, ...]
    found: tuple[Path | None, ...]
    problem: str | None


_KEYS = ("implementation", "weights", "revision", "batch")


def choose(profile: str, overrides: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, Choice]:
    """The choice for every role that the profile, or an override, has a model for.

    Args:
        profile: `offline` or `paper`; `off` has no models but those of the overrides.
        overrides: per role: `implementation` (a name from IMPLEMENTATIONS, or `off`), `weights` (a path that replaces
            the published ones), `revision` (of a hub repository), `batch` (items per call of the network).

    Raises:
        ValueError: an unknown profile, role, implementation or key; the message lists the known ones.
    """
    if profile not in PROFILES and profile != "off":
        raise ValueError(f"no profile is called {profile!r}; known: {', '.join(PROFILES)}")
    asked: dict[str, dict[str, Any]] = {
        role: {"implementation": name} for role, name in PROFILES.get(profile, {}).items()
    }
    for role, wanted in (overrides or {}).items():
        if role not in ROLES:
            raise ValueError(f"no role is called {role!r}; known: {', '.join(ROLES)}")
        for key in wanted:
            if key not in _KEYS:
                raise ValueError(f"{role}: unknown key {key!r}; known: {', '.join(_KEYS)}")
        asked[role] = {**asked.get(role, {}), **wanted}
        if "implementation" not in asked[role]:
            raise ValueError(
                f"{role}: profile {profile} has no model for it; name an implementation: "
                f"{', '.join(IMPLEMENTATIONS[role])}"
            )
    return {role: _choice(role, wanted) for role, wanted in asked.items() if wanted["implementation"] != "off"}


def _choice(role: str, wanted: Mapping[str, Any]) -> Choice:
    name = wanted["implementation"]
    if name not in IMPLEMENTATIONS[role]:
        raise ValueError(
            f"{role}: no implementation is called {name!r}; known: {', '.join(IMPLEMENTATIONS[role])}, off"
        )
    implementation = IMPLEMENTATIONS[role][name]
    chosen = implementation.weights
    if "weights" in wanted:
        chosen = (LocalWeights(wanted["weights"], implementation.local_files),)
    elif "revision" in wanted:
        if not any(isinstance(each, HubWeights) for each in chosen):
            raise ValueError(f"{role}: {name} does not come from the hub, so it has no revision")
        chosen = tuple(
            replace(each, revision=wanted["revision"]) if isinstance(each, HubWeights) else each for each in chosen
        )
    batch = wanted.get("batch")
    if batch is not None and not implementation.batched:
        raise ValueError(f"{role}: {name} has no batch")
    return Choice(implementation, chosen, batch)


def check(choices: Mapping[str, Choice]) -> list[Report]:
    """Look for every file of every choice, and compare checksums. Nothing is loaded or downloaded."""
    reports = []
    similarity = choices["similarity"].implementation.name if "similarity" in choices else "off"
    for role, choice in choices.items():
        found: list[Path | None] = []
        problems = []
        works_on = choice.implementation.works_on
        if works_on and similarity not in works_on:
            name, wanted = choice.implementation.name, " or ".join(works_on)
            problems.append(f"{role}: {name} reads the embeddings of {wanted}; models.roles.similarity is {similarity}")
        for each in choice.weights:
            try:
                found.append(each.path())
            except WeightsUnavailable as error:
                found.append(None)
                problems.append(f"{role}: {choice.implementation.name}: {error}{_way_out(choice, each)}")
        problem = "; ".join(problems) or None
        reports.append(Report(role, choice.implementation.name, choice.weights, tuple(found), problem))
    return reports


def _way_out(choice: Choice, each: Weights) -> str:
    if isinstance(each, PackagedWeights):
        return ""  # the message has its install command already
    if isinstance(each, LocalWeights):
        return f"; correct models.roles.{choice.role}"
    revision = f" --revision {each.revision}" if isinstance(each, HubWeights) and each.revision != "main" else ""
    return (
        f"; run: clipmill models pull --role {choice.role} --implementation {choice.implementation.name}{revision}, "
        f"or name a path (models.roles.{choice.role}.weights), or turn the role off"
    )


def load(choice: Choice, *, device: str = "cpu", **options: Any) -> Any:
    """Build the object that plays the role. See the class for its methods.

    Its `name`, which is recorded with every score, says which weights these are: packaged ones are known by the name of
    the implementation, all others add the commit on the hub, or the beginning of the file's SHA-256.

    Raises:
        WeightsUnavailable: a file is missing or is not the expected one.
    """
    implementation = choice.implementation
    module, name = implementation.loads.split(":")
    paths = [each.path() for each in choice.weights]
    make = getattr(importlib.import_module(module), name)
    arguments: dict[str, Any] = {**implementation.options, **options}
    if choice.batch is not None:
        arguments["batch"] = choice.batch
    versions = [
        each.version(path)
        for each, path in zip(choice.weights, paths, strict=True)
        if not isinstance(each, PackagedWeights)
    ]
    if versions:
        arguments["name"] = f"{implementation.name}@{versions[0]}"
    return make(weights=paths, device=device if implementation.gpu else "cpu", **arguments)
