"""The API's description: load it, check documents against it, and write the JSON that the daemon serves.

Run as a program after a change of docs/openapi.yaml: `.venv/bin/python -m tests.support.openapi`.
"""

import json
from functools import cache
from typing import Any

import yaml
from jsonschema import Draft202012Validator

from tests.support.parts import PROJECT

SOURCE = PROJECT / "docs" / "openapi.yaml"
SERVED = PROJECT / "pluginsvc" / "api" / "openapi.json"


@cache
def document() -> dict[str, Any]:
    """Return docs/openapi.yaml."""
    found = yaml.safe_load(SOURCE.read_text())
    assert isinstance(found, dict)
    return found


def as_json() -> str:
    """Return what `SERVED` must hold."""
    return json.dumps(document(), separators=(",", ":"), ensure_ascii=False) + "\n"


def check(schema: str, value: object) -> None:
    """Raise when `value` does not fit the schema of that name."""
    validator = Draft202012Validator({"$ref": f"#/components/schemas/{schema}"} | document())
    validator.validate(value)


if __name__ == "__main__":
    SERVED.write_text(as_json())
