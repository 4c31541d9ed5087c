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
import json
import tomllib
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from tinyzero_astar.config import Config
from tinyzero_astar.config_json import differences, from_dict
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
    return config_of(read_toml(path, "--config"), str(path))


def config_of(data: Mapping[str, Any], source: str) -> Config:
    """The preset that `data` names, "tiny" if none, with the values of its tables. `source` names where it came from.

    Raises:
        ValueError: a section or field is unknown, of the wrong type or out of range.
    """
    preset = data.get("preset", "tiny")
    if not isinstance(preset, str) or preset not in PRESETS:
        raise ValueError(f"{source}: preset is {shortened(preset)}, which is not one of {', '.join(PRESETS)}")
    sections = dataclasses.asdict(PRESETS[preset])
    for name, value in fields_of({key: x for key, x in data.items() if key != "preset"}, source).items():
        section, field = name.split(".")
        sections[section][field] = value
    return from_dict(sections, source)


def fields_of(tables: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The values of tables by the names of their fields, such as search.mode.

    Raises:
        ValueError: a section or field is unknown.
    """
    sections, found = dataclasses.asdict(Config()), {}
    for section, values in tables.items():
        check_known(source, section, ["preset", *sections])
        if not isinstance(values, dict):
            raise ValueError(
                f"{source}: {section} is {shortened(values)}; write it as a table, [{section}], with fields"
            )
        for key, value in values.items():
            check_known(source, f"{section}.{key}", [f"{section}.{known}" for known in sections[section]])
            found[f"{section}.{key}"] = None if value == "None" else value
    return found


def to_toml(config: Config, preset: str) -> str:
    """A file that `read_config_file` reads as this configuration, with the fields that differ from a preset's."""
    lines, section = [f"preset = {json.dumps(preset)}"], ""
    values = dataclasses.asdict(config)
    for name in differences(PRESETS[preset], config):
        own, key = name.split(".")
        if own != section:
            lines += ["", f"[{own}]"]
            section = own
        value = values[own][key]
        lines.append(
            f"{key} = {json.dumps('None' if value is None else value, ensure_ascii=False)}"
        )  # as TOML writes them too
    return "\n".join(lines) + "\n"


def read_toml(path: Path, option: str) -> dict[str, Any]:
    """What a file holds that an option names.

    Raises:
        ValueError: it is missing, or no TOML.
    """
    try:
        return tomllib.loads(read_text(path))
    except FileNotFoundError:
        presets = f"a preset ({', '.join(PRESETS)}) or " if option == "--config" else ""
        raise ValueError(f"{option} {path} does not exist; name {presets}a file") from None
    except OSError as error:
        raise ValueError(f"{option} {path} cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:  # no TOML, no UTF-8, or nested too deeply
        raise ValueError(f"{option} {path} is not valid TOML ({error}); correct it") from None


def check_known(source: str, name: str, known: Iterable[str]) -> None:
    """Refuse an unknown name, and tell the nearest that is known.

    Raises:
        ValueError: it is unknown.
    """
    known = list(known)
    if name in known:
        return
    close = get_close_matches(name, known, n=1)
    remedy = f"the nearest is {close[0]}" if close else f"known are {', '.join(known)}"
    raise ValueError(f"{source}: {name} is unknown; {remedy}")
