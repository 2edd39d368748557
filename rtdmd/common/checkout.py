"""What only a checkout of the repository has: `tools/`, which makes or measures the project and is in no wheel."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

from rtdmd.common.errors import UserError

ROOT = Path(__file__).parents[2]


def tool(name: str, command: str) -> ModuleType:
    """Module `tools.<name>` of the checkout that this package lies in, for `rtdmd <command>`. UserError where the
    package was installed without it."""
    if not (ROOT / "tools" / "__init__.py").is_file():
        raise UserError(
            f"`rtdmd {command}` needs a checkout of the repository (an installed package has no tools/); in the"
            f" checkout's root folder: `python -m rtdmd {command}`"
        )
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    return import_module(f"tools.{name}")
