"""Errors of Hydra and OmegaConf in one line."""

import re


def first_cause(error: BaseException) -> str:
    """Return the message of a Hydra error in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    key = next((line.removeprefix("full_key: ") for line in lines if line.startswith("full_key: ")), "")
    if found := re.match(r"Value '(.*)' of type '\w+' could not be converted to (\w+)", lines[0]):
        kinds = {"Integer": "an integer", "Float": "a number", "Boolean": "true or false"}
        return f"{key}={found[1]}: expected {kinds.get(found[2], found[2])}"
    if (found := re.match(r"Cannot convert '(list|dict)' to string: '(.*)'$", lines[0])) and key:
        kind = "a list" if found[1] == "list" else "a mapping"
        return f"{key}={found[2].replace(chr(39), '').replace(', ', ',')}: expected one value, got {kind}"
    if found := re.match(r"Value '(.*)' is not a valid bool", lines[0]):
        return f"{key}={found[1]}: expected true or false"
    return f"{key}: {lines[0]}" if key else lines[0]
