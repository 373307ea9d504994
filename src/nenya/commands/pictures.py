"""Files and style of the figures of a command, from its options."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nenya.errors import OptionError
from nenya.options.figures import FORMATS, PictureOptions
from nenya.storage.paths import local_path

if TYPE_CHECKING:
    from nenya.plotting.style import Style

SUFFIXES = tuple(f".{name}" for name in FORMATS)


def style_of(options: PictureOptions) -> "Style":
    """Return the style of figures.

    Raises:
        OptionError: A value is not possible.
    """
    from nenya.plotting.style import Style  # with matplotlib

    drawn: Any = {name: getattr(options, name, None) for name in ("cmap", "limits", "log", "projection")}
    drawn = {name: value for name, value in drawn.items() if value is not None}
    if "limits" in drawn:
        drawn["limits"] = tuple(float(value) for value in drawn["limits"])
    size = options.size if options.size is None or isinstance(options.size, str) else tuple(options.size)
    central = float(getattr(options, "central_longitude", 0.0))
    return Style(size, options.font, options.font_size, options.dpi, central_longitude=central, **drawn)


def formats_of(options: PictureOptions) -> list[str]:
    """Return the suffixes of the options, with their dots, each once; none if none is given."""
    given = options.format if isinstance(options.format, list | tuple) else [options.format] if options.format else []
    return list(dict.fromkeys(f".{name.lstrip('.').lower()}" for name in given))


def in_formats(path: Path, options: PictureOptions) -> list[Path]:
    """Return a picture's path, and those of the same name in the further formats of the options."""
    return list(dict.fromkeys([path, *(path.with_suffix(suffix) for suffix in formats_of(options))]))


def picture_paths(out: Any, options: PictureOptions, name: str, folder: str) -> list[Path]:
    """Return the files of one picture.

    Args:
        out: a picture, a list of pictures, a folder, or None.
        options: with the formats.
        name: of the picture in a folder, without suffix.
        folder: where it goes by default.

    Raises:
        OptionError: A file is no picture.
    """
    if isinstance(out, Sequence) and not isinstance(out, str):
        if options.format:
            raise OptionError(f"format={options.format}: has no effect with a list in out=; give one of them")
        if not out:
            raise OptionError("out=[]: expected at least one picture")
        return list(dict.fromkeys(_picture(local_path(str(one))) for one in out))
    path = local_path(str(out or folder))
    if path.suffix.lower() in SUFFIXES:
        return in_formats(path, options)
    if path.suffix and not path.is_dir():
        _picture(path)
    return [path / f"{name}{suffix}" for suffix in formats_of(options) or SUFFIXES[:1]]


def _picture(path: Path) -> Path:
    if path.suffix.lower() not in SUFFIXES:
        raise OptionError(f"out={path}: expected a folder or a picture ({', '.join(SUFFIXES)})")
    return path
