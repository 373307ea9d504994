"""Allow-list of the changes and events that a page may send over its websocket, with bounds.

Bokeh lets a browser set any property of any model, push a new document and name objects to create. The portal's page
needs none of this: events outside this list are dropped before Bokeh reads them.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from nenya.errors import InputFileError

MOST_BYTES = 2**20
"""Bytes of a message with all its parts."""
MOST_PARTS = 3 + 2 * 8  # header, metadata, content, and buffers with their headers
_MOST_EVENTS = 500
_MOST_ITEMS = 20_000  # length of a list, such as the corners of a lasso
_MOST_NUMBER = 1e15
_MOST_TEXT = 5100  # characters
_MOST_PIXELS = 20_000
_DEEP = 4
_ARRAYS = ("float32", "float64", "int32", "uint32")

Check = Callable[[Any, Any], bool]


class Foreign(InputFileError):
    """A message that pages of the portal never send."""


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number within bounds."""
    return type(value) in (int, float) and -_MOST_NUMBER <= value <= _MOST_NUMBER and math.isfinite(value)


def _is_size(_model: Any, value: Any) -> bool:
    return is_number(value) and 0 <= value <= _MOST_PIXELS


def _is_end(_model: Any, value: Any) -> bool:
    return is_number(value)


def _is_bool(_model: Any, value: Any) -> bool:
    return type(value) is bool


def _is_channel(model: Any, value: Any) -> bool:
    return model.name == "nenya_channel" and isinstance(value, str) and len(value) <= _MOST_TEXT


def _is_option(model: Any, value: Any) -> bool:
    known = [option[0] if isinstance(option, tuple | list) else option for option in model.options]
    return isinstance(value, str) and value in known


def _is_span(_model: Any, value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(is_number, value))


_SIZES = dict.fromkeys(("inner_width", "inner_height", "outer_width", "outer_height"), _is_size)
CHANGES: dict[str, Mapping[str, Check]] = {
    "figure": _SIZES,
    "Range1d": {"start": _is_end, "end": _is_end},
    "DataRange1d": {"start": _is_end, "end": _is_end},
    "TextInput": {"value": _is_channel},
    "CustomSelect": {"value": _is_option},
    "Select": {"value": _is_option},
    "Checkbox": {"active": _is_bool},
    "RangeSlider": {"value": _is_span, "value_throttled": _is_span},
}
"""Properties that a browser may set, by class of model, with checks of their values."""

EVENTS: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    "button_click": lambda values: True,
    "document_ready": lambda values: True,
    "rangesupdate": lambda values: True,  # its information is in the ranges too
    "selectiongeometry": lambda values: _is_map(values.get("geometry")) and type(values.get("final")) is bool,
    "tap": lambda values: is_number(values.get("x")) and is_number(values.get("y")),
}
"""Events that a browser may report, with their required fields."""


def allowed(content: Any, model_of: Callable[[str], Any]) -> list[dict[str, Any]]:
    """Return the events of a patch that are allowed, in order; others are dropped.

    Args:
        content: of the message, decoded from JSON.
        model_of: returns the page's model of an id, or None.

    Raises:
        Foreign: It is not a patch, or has far more events than a page sends.
    """
    events = content.get("events") if isinstance(content, dict) else None
    if not isinstance(events, list) or len(events) > _MOST_EVENTS:
        raise Foreign("a patch without events, or with too many")
    return [event for event in events if isinstance(event, dict) and _is_allowed(event, model_of)]


def _is_allowed(event: dict[str, Any], model_of: Callable[[str], Any]) -> bool:
    kind = event.get("kind")
    if kind == "ModelChanged" and set(event) <= {"kind", "model", "attr", "new"}:
        model = _model(event.get("model"), model_of)
        check = CHANGES.get(type(model).__name__, {}).get(str(event.get("attr")))
        return check is not None and check(model, event.get("new"))
    if kind == "MessageSent" and set(event) == {"kind", "msg_type", "msg_data"} and event["msg_type"] == "bokeh_event":
        return _is_event(event["msg_data"], model_of)
    return False


def _is_event(data: Any, model_of: Callable[[str], Any]) -> bool:
    if not isinstance(data, dict) or set(data) != {"type", "name", "values"} or data["type"] != "event":
        return False
    values = data["values"]
    if not isinstance(data["name"], str) or data["name"] not in EVENTS or not _is_map(values):
        return False
    entries = values.get("entries", [])
    if not all(isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str) for entry in entries):
        return False
    said = {key: value for key, value in entries}
    model = _model(said.pop("model", None), model_of)
    if model is None and data["name"] != "document_ready":
        return False
    return all(_is_plain(value, 0) for value in said.values()) and EVENTS[data["name"]](said)


def _model(reference: Any, model_of: Callable[[str], Any]) -> Any:
    if not isinstance(reference, dict) or set(reference) != {"id"} or not isinstance(reference["id"], str):
        return None
    return model_of(reference["id"])


def _is_map(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and set(value) <= {"type", "entries"}
        and value.get("type") == "map"
        and isinstance(value.get("entries", []), list)
        and len(value.get("entries", [])) <= 20
    )


def _is_plain(value: Any, deep: int) -> bool:
    """Return whether a value consists of bounded numbers and strings, without objects to create or unpack."""
    if value is None or isinstance(value, bool) or is_number(value):
        return True
    if isinstance(value, str):
        return len(value) <= 200
    if deep >= _DEEP:
        return False
    if isinstance(value, list):
        return len(value) <= _MOST_ITEMS and all(_is_plain(item, deep + 1) for item in value)
    if _is_map(value):
        return all(
            isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str) and _is_plain(entry[1], deep + 1)
            for entry in value.get("entries", [])
        )
    return _is_array(value)


def _is_array(value: Any) -> bool:
    """Return whether a value is a numeric array with its bytes beside the message; compressed ones may be bombs."""
    if not isinstance(value, dict) or set(value) != {"type", "array", "order", "dtype"}:
        return False
    inner = value["array"]
    return (
        value["type"] == "typed_array"
        and value["order"] in ("little", "big")
        and value["dtype"] in _ARRAYS
        and isinstance(inner, dict)
        and set(inner) == {"type", "data"}
        and inner["type"] == "bytes"
        and isinstance(inner["data"], dict)
        and set(inner["data"]) == {"id"}
    )
