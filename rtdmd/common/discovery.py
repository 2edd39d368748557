"""What people add is a file: a reward, a backbone, a method, a source of prompts. Each kind has a folder, and every
file in it assigns what it is to one variable. The package lists the folder, so no table has to name the file.

The files of such a folder are imported by the configuration, so they import nothing heavy (torch, transformers) at
their top: only inside their functions.
"""

from __future__ import annotations

import ast
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, TypeVar

from rtdmd.common.errors import UserError

Registration = TypeVar("Registration")


def discover(package: str, variable: str, kind: type[Registration]) -> dict[str, Registration]:
    """The ``variable`` of every module in ``package``, by module name and in the order of the names.

    A module whose name begins with an underscore is a part of others and is left out. Raises UserError that names the
    file which does not assign a ``kind`` to the variable.
    """
    found = {}
    for module in sorted(iter_modules(import_module(package).__path__), key=lambda module: module.name):
        if module.name.startswith("_"):
            continue
        value = vars(import_module(f"{package}.{module.name}")).get(variable)
        if not isinstance(value, kind):
            file = f"{package.replace('.', '/')}/{module.name}.py"
            raise UserError(f"{file}: {variable} = {kind.__name__}(...) is missing; see docs/extending.md")
        found[module.name] = value
    return found


def literals(package: str, variable: str) -> dict[str, Any]:
    """The ``variable`` of every file in ``package`` that assigns one, by the file's name and in the order of the names,
    read without running the files: what they import may be heavy. Raises UserError where it is no literal."""
    spec = find_spec(package)
    assert spec is not None and spec.submodule_search_locations is not None
    found = {}
    for path in sorted(path for place in spec.submodule_search_locations for path in Path(place).glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and any(getattr(name, "id", "") == variable for name in node.targets):
                try:
                    found[path.stem] = ast.literal_eval(node.value)
                except ValueError as error:
                    file = f"{package.replace('.', '/')}/{path.name}"
                    raise UserError(f"{file}: {variable} is read without running the file; write it out") from error
    return found
