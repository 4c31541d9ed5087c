"""A model from the hub.

config.json comes first, the rest only if the config can be used, and every download is announced.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from huggingface_hub.errors import HTTPError as HubError  # type: ignore[attr-defined]  # httpx's or httpx2's

from tinyzero_astar.model.model_config import checked_config
from tinyzero_astar.model.model_folder import CONFIG, INDEX, WEIGHTS
from tinyzero_astar.terminal import first_line, readable_bytes

Say = Callable[[str], None]

_PATIENCE_S = 10.0  # for the hub's first answer, tried once, so that a run without a network says so soon
_OTHERS = re.compile(  # of a repository, besides weights and config.json
    r"(tokenizer.*|special_tokens_map|added_tokens|vocab|generation_config)\.json|vocab\.txt|merges\.txt"
    r"|(tokenizer|spiece)\.model|chat_template\.jinja"
)


def download(name: str, max_length: int | None, say: Say) -> Path:
    """Fetch config.json, refuse or announce, fetch the rest."""
    cache, hub = constants.HF_HUB_CACHE, constants.ENDPOINT
    folder, rest = fetch_config(name, say)
    checked_config(name, folder, max_length)
    say(f"downloading {len(rest)} more files of {name} ({_total(rest)}) from {hub} to {cache}")
    try:
        return Path(snapshot_download(name, allow_patterns=sorted([CONFIG, *rest])))
    except (OSError, HubError) as error:
        raise _unreachable(name, error) from error


def fetch_config(name: str, say: Say) -> tuple[Path, dict[str, int | None]]:
    """Fetch config.json, and return its folder, and what else there is to fetch with the sizes."""
    cache, hub = constants.HF_HUB_CACHE, constants.ENDPOINT
    try:
        info = HfApi().model_info(name, files_metadata=True, timeout=_PATIENCE_S)
        size = {s.rfilename: s.size for s in info.siblings or []}
        wanted = _wanted(size)
        if CONFIG in wanted:
            if not isinstance(try_to_load_from_cache(name, CONFIG), str):
                say(f"downloading {CONFIG} of {name} ({_total({CONFIG: size[CONFIG]})}) from {hub} to {cache}")
            folder = Path(hf_hub_download(name, CONFIG)).parent
    except (OSError, HubError) as error:
        raise _unreachable(name, error) from error
    if CONFIG not in wanted or not any(n.endswith(".safetensors") for n in wanted):
        raise ValueError(
            f"model_name {name!r}: {hub}/{name} has no {CONFIG} with weights in safetensors format (pickled ones can"
            " run code and are not read); use another model, or convert it and give its folder: --model.model-name PATH"
        )
    return folder, {n: size[n] for n in wanted if n != CONFIG}


def _wanted(size: Mapping[str, int | None]) -> list[str]:
    """The files of a repository that loading reads.

    A sharded copy of the weights counts only where there is no whole one.
    """
    if WEIGHTS in size:
        weights = [WEIGHTS]
    else:
        weights = [n for n in size if n == INDEX or re.fullmatch(r"model-\d+-of-\d+\.safetensors", n)]
    return sorted({*weights, *(n for n in size if n == CONFIG or _OTHERS.fullmatch(n))})


def _total(size: Mapping[str, int | None]) -> str:
    known = [n for n in size.values() if n is not None]
    return "size not told" if len(known) < len(size) else readable_bytes(sum(known))


def _unreachable(name: str, error: Exception) -> ValueError:
    """Which places were tried, and why the last one gave nothing."""
    hub = constants.ENDPOINT
    if isinstance(error, GatedRepoError):
        why = f"{hub}/{name} asks for its licence to be accepted: do that there, then log in with `hf auth login`"
    elif isinstance(error, RepositoryNotFoundError):
        why = f"{hub} has no public model of that name: correct it, or log in with `hf auth login` for a private one"
    else:
        why = f"the hub {hub} gave nothing ({first_line(error)}): download it elsewhere"
    return ValueError(
        f"model_name {name!r}: no folder of that name here, not complete in the cache {constants.HF_HUB_CACHE}, and"
        f" {why}; a folder is given as --model.model-name PATH"
    )
