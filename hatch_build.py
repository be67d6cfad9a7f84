"""Build hook: puts `models/*.py` into the wheel as `bnn_pyro/zoo/*.py`.

A `force-include` table in pyproject.toml would do the same, but hatchling applies that to editable installs as well.
There the copies would go stale, and their folder, having no `__init__.py`, would be imported as a namespace package in
the place of the checkout.
"""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ModelsHook(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        models = sorted(Path(self.root, "models").glob("*.py"))
        taken = {path.name for path in Path(self.root, "bnn_pyro", "zoo").glob("*.py")} & {path.name for path in models}
        if not models or taken:
            raise ValueError(
                f"models/: expected files with names not in bnn_pyro/zoo/, got {sorted(taken) or 'no file'}"
            )
        build_data["force_include"].update({str(path): f"bnn_pyro/zoo/{path.name}" for path in models})
