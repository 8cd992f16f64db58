"""The OpenAPI document, and the server against it: schemathesis sends what it allows, and what it does not."""

from collections.abc import Iterator

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from test_serve import END, START, service
from tiny import scripted_model
from tiny_server import http_server

from raychat.serve.settings import ServerSettings

OPERATIONS = [
    ("GET", "/health"),
    ("GET", "/ready"),
    ("GET", "/metrics"),
    ("GET", "/tokenizer_info"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{name}"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    model = scripted_model([[START, *b"abc", END]], sequence_len=32)
    with http_server(service(model, max_sequences=64)) as url:
        yield url


def test_every_operation_is_tested(url: str) -> None:
    document = httpx.get(f"{url}/openapi.json").json()
    found = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    assert found == set(OPERATIONS)


def test_document_says_how_errors_look(url: str) -> None:
    document = httpx.get(f"{url}/openapi.json").json()
    for path, item in document["paths"].items():
        for operation in item.values():
            errors = {status: answer for status, answer in operation["responses"].items() if status != "200"}
            assert "422" not in errors
            assert "completions" not in path or {"400", "404", "413", "429", "500", "503"} <= set(errors)
            for answer in errors.values():
                assert answer["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorAnswer")


def test_other_methods_are_405_as_an_error_of_openai(url: str) -> None:
    """A document describes operations, so it cannot say what others get."""
    for method, path in OPERATIONS:
        answer = httpx.put(f"{url}{path}")
        assert (answer.status_code, answer.headers["allow"]) == (405, method)
        assert answer.json()["error"]["message"] == f"PUT {path}: Method Not Allowed"


@pytest.mark.slow
@pytest.mark.parametrize(
    "method, path, mode",
    [(*operation, "POSITIVE") for operation in OPERATIONS]
    + [(*operation, "NEGATIVE") for operation in OPERATIONS if operation[0] == "POST"],
)
def test_server_does_what_the_document_says(url: str, method: str, path: str, mode: str) -> None:
    conforms_to_its_document(url, method, path, mode)


@pytest.mark.slow
@pytest.mark.parametrize("key", ["secret", "wrong"])
def test_server_with_keys_does_what_the_document_says(key: str) -> None:
    model = scripted_model([[START, *b"abc", END]], sequence_len=32)
    with http_server(service(model, max_sequences=64), ServerSettings(api_keys=("secret",))) as guarded:
        for method, path in (("GET", "/v1/models"), ("POST", "/tokenize")):
            conforms_to_its_document(guarded, method, path, "POSITIVE", {"Authorization": f"Bearer {key}"})


def conforms_to_its_document(
    url: str, method: str, path: str, mode: str, headers: dict[str, str] | None = None
) -> None:
    """No server error, no status, content type or body that is not in the document."""
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks

    operation = schemathesis.openapi.from_url(f"{url}/openapi.json")[path][method]
    wanted = (
        not_a_server_error,
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_schema_conformance,
    )

    @given(case=operation.as_strategy(generation_mode=schemathesis.GenerationMode[mode]))
    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True)
    def conforms(case: object) -> None:
        case.call_and_validate(checks=wanted, timeout=60, headers=headers)  # type: ignore[attr-defined]

    conforms()
