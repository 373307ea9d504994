"""Allow-list of the changes and events that a page may send over its websocket, with bounds.

Bokeh lets a browser set any property of any model, push a new document and name objects to create. The portal's page
needs none of this: events outside this list are dropped before Bokeh reads them.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from bokeh.models import Plot
from bokeh.models.widgets import AbstractButton

from nenya.errors import InputFileError

MOST_BYTES = 2**20
"""Bytes of a message with all its parts."""
MOST_PARTS = 3 + 2 * 8  # header, metadata, content, and buffers with their headers
_MOST_EVENTS = 20  # the page sends up to 4, the sizes of a figure
_MOST_ITEMS = 20_000  # length of a list, such as the corners of a lasso
_MOST_NUMBER = 1e15
_MOST_TEXT = 5100  # characters
_MOST_PIXELS = 20_000
_DEEP = 4
_ARRAYS = {"float32": 4, "float64": 8, "int32": 4, "uint32": 4}  # bytes of a value

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
    return model.name in ("nenya_channel", "nenya_pointer") and isinstance(value, str) and len(value) <= _MOST_TEXT


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
    "BoxAnnotation": {"left": _is_end, "right": _is_end},
    "TextInput": {"value": _is_channel},
    "CustomSelect": {"value": _is_option},
    "Select": {"value": _is_option},
    "Checkbox": {"active": _is_bool},
    "RangeSlider": {"value": _is_span, "value_throttled": _is_span},
}
"""Properties that a browser may set, by class of model, with checks of their values."""


@dataclass(frozen=True)
class Report:
    """The form of an event that a browser may report.

    Attributes:
        model: class of its model; None if it has none.
        keys: its fields.
        check: of the fields.
    """

    model: type | None
    keys: frozenset[str] = frozenset()
    check: Callable[[Mapping[str, Any]], bool] = lambda _: True


def _is_point(said: Mapping[str, Any]) -> bool:
    return is_number(said.get("x")) and is_number(said.get("y"))


def _is_drawn(said: Mapping[str, Any]) -> bool:
    geometry: Any = said.get("geometry")
    if not _is_map(geometry) or type(said.get("final")) is not bool:
        return False
    return isinstance(dict(geometry.get("entries", [])).get("type"), str)


EVENTS: dict[str, Report] = {
    "button_click": Report(AbstractButton),
    "document_ready": Report(None),
    "rangesupdate": Report(Plot, frozenset(("x0", "x1", "y0", "y1"))),  # its information is in the ranges too
    "selectiongeometry": Report(Plot, frozenset(("geometry", "final")), _is_drawn),
    "tap": Report(Plot, frozenset(("sx", "sy", "x", "y", "modifiers")), _is_point),
}
"""Events that a browser may report, by name."""


def allowed(
    content: Any, model_of: Callable[[str], Any], buffers: Mapping[Any, int] = MappingProxyType({})
) -> list[dict[str, Any]]:
    """Return the events of a patch that are allowed, in order, the last of several of one kind; others are dropped.

    Args:
        content: of the message, decoded from JSON.
        model_of: returns the page's model of an id, or None.
        buffers: sizes in bytes of the arrays that came beside the message, by id.

    Raises:
        Foreign: It is not a patch, or has far more events than a page sends.
    """
    events = content.get("events") if isinstance(content, dict) else None
    if not isinstance(events, list) or len(events) > _MOST_EVENTS:
        raise Foreign("a patch without events, or with too many")
    last: dict[tuple[str, ...], dict[str, Any]] = {}
    for event in events:
        aim = _aim(event, model_of, buffers) if isinstance(event, dict) else None
        if aim is not None:
            last.pop(aim, None)
            last[aim] = event
    return list(last.values())


def _aim(event: dict[str, Any], model_of: Callable[[str], Any], buffers: Mapping[Any, int]) -> tuple[str, ...] | None:
    """Return the model of an event, and what it changes or reports there; None if it is not allowed."""
    kind = event.get("kind")
    if kind == "ModelChanged" and set(event) <= {"kind", "model", "attr", "new"}:
        model, attr = _model(event.get("model"), model_of), str(event.get("attr"))
        check = CHANGES.get(type(model).__name__, {}).get(attr)
        return ("change", model.id, attr) if check is not None and check(model, event.get("new")) else None
    if kind == "MessageSent" and set(event) == {"kind", "msg_type", "msg_data"} and event["msg_type"] == "bokeh_event":
        return _aim_of_report(event["msg_data"], model_of, buffers)
    return None


def _aim_of_report(data: Any, model_of: Callable[[str], Any], buffers: Mapping[Any, int]) -> tuple[str, ...] | None:
    if not isinstance(data, dict) or set(data) != {"type", "name", "values"} or data["type"] != "event":
        return None
    values, name = data["values"], data["name"]
    if not isinstance(name, str) or name not in EVENTS or not _is_plain(values, 0, buffers, skip="model"):
        return None
    report, entries = EVENTS[name], values.get("entries", []) if _is_map(values) else None
    if entries is None or len({key for key, _ in entries}) != len(entries):
        return None
    said = dict(entries)
    model = _model(said.pop("model", None), model_of)
    fits = isinstance(model, report.model) if report.model else "model" not in dict(entries)
    if not fits or not report.keys.issuperset(said) or not report.check(said):
        return None
    return ("report", model.id if model is not None else "", name)


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


def _is_plain(value: Any, deep: int, buffers: Mapping[Any, int], skip: str = "") -> bool:
    """Return whether a value consists of bounded numbers and strings, without objects to create or unpack.

    Args:
        value: decoded from JSON.
        deep: its depth.
        buffers: as in `allowed`.
        skip: key of a map; its value is checked elsewhere.
    """
    if value is None or isinstance(value, bool) or is_number(value):
        return True
    if isinstance(value, str):
        return len(value) <= 200
    if deep >= _DEEP:
        return False
    if isinstance(value, list):
        return len(value) <= _MOST_ITEMS and all(_is_plain(item, deep + 1, buffers) for item in value)
    if _is_map(value):
        return all(
            isinstance(entry, list)
            and len(entry) == 2
            and isinstance(entry[0], str)
            and (entry[0] == skip or _is_plain(entry[1], deep + 1, buffers))
            for entry in value.get("entries", [])
        )
    return _is_array(value, buffers)


def _is_array(value: Any, buffers: Mapping[Any, int]) -> bool:
    """Return whether a value is a numeric array with its bytes beside the message; compressed ones may be bombs."""
    if not isinstance(value, dict) or set(value) != {"type", "array", "order", "dtype"}:
        return False
    inner, kind = value["array"], value["dtype"]
    return (
        value["type"] == "typed_array"
        and value["order"] in ("little", "big")
        and isinstance(kind, str)
        and kind in _ARRAYS
        and isinstance(inner, dict)
        and set(inner) == {"type", "data"}
        and inner["type"] == "bytes"
        and isinstance(inner["data"], dict)
        and set(inner["data"]) == {"id"}
        and isinstance(inner["data"]["id"], str)
        and inner["data"]["id"] in buffers
        and buffers[inner["data"]["id"]] % _ARRAYS[kind] == 0
        and buffers[inner["data"]["id"]] <= _MOST_ITEMS * _ARRAYS[kind]
    )
