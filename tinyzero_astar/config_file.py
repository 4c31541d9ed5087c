"""A configuration in a TOML file, `--config FILE.toml`.

Each section of the configuration is a table, and `preset` before the first table names what the others change.

    preset = "local"

    [search]
    beam_width = 12
    weight_cap = "None"

TOML has no null, so the text "None" stands for it, as on the command line.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from tinyzero_astar.config import Config
from tinyzero_astar.config_json import from_dict
from tinyzero_astar.files import read_text
from tinyzero_astar.presets import PRESETS
from tinyzero_astar.terminal import shortened

SUFFIX = ".toml"


def named_config(name: str) -> Config:
    """The configuration that `--config` names, which is a preset or a file.

    Raises:
        ValueError: there is no such preset or file, or the file cannot be used.
    """
    if not isinstance(name, str):
        raise ValueError(f"config is {shortened(name)}, which is neither a name nor a configuration")
    if name in PRESETS:
        return PRESETS[name]
    if name.endswith(SUFFIX):
        return read_config_file(Path(name))
    presets = ", ".join(f"'{preset}'" for preset in PRESETS)
    raise ValueError(f"--config {name!r} is no preset ({presets}), nor does it name a file that ends in {SUFFIX}")


def stem_of(name: str) -> str:
    """What the folders of runs are named after, which is the preset, or the file without its folder and suffix."""
    return Path(name).stem if name.endswith(SUFFIX) else name


def read_config_file(path: Path) -> Config:
    """The preset that a file names, "tiny" if none, with the file's values.

    Raises:
        ValueError: the file is missing or no TOML, or a section or field is unknown, of the wrong type or out of range.
    """
    data = _read(path)
    preset = data.pop("preset", "tiny")
    if not isinstance(preset, str) or preset not in PRESETS:
        raise ValueError(f"{path}: preset is {shortened(preset)}, which is not one of {', '.join(PRESETS)}")
    sections = dataclasses.asdict(PRESETS[preset])
    for section, values in data.items():
        _check_known(path, section, ["preset", *sections])
        if not isinstance(values, dict):
            raise ValueError(f"{path}: {section} is {shortened(values)}; write it as a table, [{section}], with fields")
        for key in values:
            _check_known(path, f"{section}.{key}", [f"{section}.{known}" for known in sections[section]])
        sections[section] |= {key: None if value == "None" else value for key, value in values.items()}
    return from_dict(sections, str(path))


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(read_text(path))
    except FileNotFoundError:
        raise ValueError(f"--config {path} does not exist; name a preset ({', '.join(PRESETS)}) or a file") from None
    except OSError as error:
        raise ValueError(f"--config {path} cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:  # no TOML, no UTF-8, or nested too deeply
        raise ValueError(f"--config {path} is not valid TOML ({error}); correct it") from None


def _check_known(path: Path, name: str, known: Iterable[str]) -> None:
    known = list(known)
    if name in known:
        return
    close = get_close_matches(name, known, n=1)
    remedy = f"the nearest is {close[0]}" if close else f"known are {', '.join(known)}"
    raise ValueError(f"{path}: {name} is unknown; {remedy}")
