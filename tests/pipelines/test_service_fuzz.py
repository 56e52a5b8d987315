"""schemathesis sends what the interface's own description allows, and what it forbids, to every operation."""

import os
from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from curation.input_policy import InputPolicy
from pipelines.service import auth
from pipelines.service.app import create_app
from pipelines.service.jobs import Jobs
from pipelines.service.tokens import TokenStore
from tests.pipelines.fake_ray import FakeRay

EXAMPLES = int(os.environ.get("CLIPMILL_FUZZ", "10"))


@pytest.fixture(scope="module")
def interface(tmp_path_factory: pytest.TempPathFactory) -> Iterator[schemathesis.BaseSchema]:
    folder = tmp_path_factory.mktemp("fuzz")
    jobs = Jobs(str(folder / "data"), FakeRay(fate="SUCCEEDED"), InputPolicy.of([str(folder)]))
    for name in ("0", "a"):
        jobs.submit({"input": {"uris": [str(folder)]}, "output": name, "scores": {"text": "off"}}, "local")
    tokens = TokenStore(folder / "tokens.json")
    headers = {"Authorization": f"Bearer {tokens.make('fuzz', 'admin')}"}
    auth._FAILURES, kept = 10**9, auth._FAILURES  # wrong tokens are part of what is sent
    app = create_app(jobs, tokens, dashboard=False)
    found = schemathesis.openapi.from_asgi("/api/openapi.json", app, headers=headers)
    found.config.update(headers=headers)
    yield found
    auth._FAILURES = kept


OPERATIONS = [
    ("GET", "/api/health"), ("GET", "/api/spec/schema"), ("GET", "/api/jobs"), ("POST", "/api/jobs"),
    ("GET", "/api/jobs/{job}"), ("DELETE", "/api/jobs/{job}"), ("GET", "/api/jobs/{job}/progress"),
    ("GET", "/api/jobs/{job}/logs"), ("POST", "/api/jobs/{job}/cancel"), ("POST", "/api/jobs/{job}/resume"),
]  # fmt: skip


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_the_interface_keeps_to_its_description(
    interface: schemathesis.BaseSchema, method: str, path: str, mode: GenerationMode
) -> None:
    operation = interface[path][method]

    # schemathesis' own pytest plugin does not run under pytest 9.
    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    def fuzz(case: schemathesis.Case) -> None:
        # A spec may be of the right form and still name what is not there or not allowed: 403 and 422 are right then.
        case.call_and_validate(excluded_checks=[positive_data_acceptance])

    try:
        fuzz()
    except Unsatisfiable:
        assert mode is GenerationMode.NEGATIVE, "nothing can be wrong with a request that has no parameters"


def test_the_description_has_every_operation(interface: schemathesis.BaseSchema) -> None:
    found = {(operation.ok().method.upper(), operation.ok().path) for operation in interface.get_all_operations()}
    assert found == set(OPERATIONS)
