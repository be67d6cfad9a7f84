"""The zoo: `models/<name>.py` of the repository, imported as `bnn_pyro.zoo.<name>`.

A wheel carries those files in this folder. In a checkout, and in an editable install of one, they stand in `models/`
beside the package, and that folder joins the search path here. Nothing is ever imported as `models`.
"""

import tomllib
from pathlib import Path


def _models_of_checkout() -> Path | None:
    """The checkout's `models/`, or None where this package was installed from a wheel."""
    root = Path(__file__).resolve().parents[2]
    models, project = root / "models", root / "pyproject.toml"
    if not (models.is_dir() and project.is_file()):
        return None
    with project.open("rb") as file:
        name = tomllib.load(file).get("project", {}).get("name")
    return models if name == "bnn-pyro" else None


if (_models := _models_of_checkout()) is not None:
    __path__.append(str(_models))
