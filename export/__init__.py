"""Host side: from a trained network to a bundle. `gft_edge.export` itself can be called as a function."""

import sys
from types import ModuleType
from typing import Any

from gft_edge.errors import MissingDependencyError


class _Callable(ModuleType):
    """A package that is called as its function of the same name: `from gft_edge import export`.

    Importing any of its modules binds the package to that name in gft_edge, whatever was there.
    """

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        try:
            from gft_edge.export.pipeline import export
        except ImportError as error:
            raise MissingDependencyError(error.name or "torch", "export") from error
        return export(*arguments, **options)


sys.modules[__name__].__class__ = _Callable
