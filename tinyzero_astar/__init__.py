"""TinyZero A*PO from Python, see docs/python.md. Heavy modules are imported when they are first used."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinyzero_astar.api import Leaf, Model, Tree, astar_generate, load, multiplication_reward

__version__ = "0.1.0"
__all__ = ["Leaf", "Model", "Tree", "__version__", "astar_generate", "load", "multiplication_reward"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import tinyzero_astar.api as api

    return getattr(api, name)


def __dir__() -> list[str]:
    return __all__
