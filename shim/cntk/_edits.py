"""Lines of CNTK's Python files that later Pythons and NumPys do not run, and what stands in their place.

The files stay as they are on disk: a module is edited as it is imported, and refused unless it contains each old text
exactly once. No line moves, so that tracebacks stay right.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import TYPE_CHECKING

from shim.cntk._slots import UnexpectedContent

EDITS = {
    # appends to PATH and LD_LIBRARY_PATH, which helps no process that is running already; then looks by `ldconfig` in
    # a dozen shells for libraries, only to warn
    "cntk": [
        ("os.environ[\"PATH\"] += os.pathsep + os.path.join(os.path.dirname(__file__), 'libs')\n", "\n"),
        (
            "if os.environ.get('LD_LIBRARY_PATH'):\n    os.environ['LD_LIBRARY_PATH'] += cntk_library_path\n"
            "else:\n    os.environ['LD_LIBRARY_PATH'] = cntk_library_path\n",
            "\n\n\n\n",
        ),
        (
            "from . import cntk_py_init\ncntk_py_init.cntk_check_distro_info()\ncntk_py_init.cntk_check_libs()\n",
            "\n\n\n",
        ),
    ],
    "cntk.variables": [  # Python 3.7: the class of List[int] and its like
        ("from typing import GenericMeta\n", "from typing import _GenericAlias as GenericMeta\n"),
    ],
    "cntk.internal.sanitize": [  # Python 3.10
        ("import collections\n", "import collections.abc\n"),
        ("collections.Iterable", "collections.abc.Iterable"),
    ],
    "cntk.default_options": [  # Python 3.11
        ("import getargspec\n", "import getfullargspec as getargspec\n"),
        (
            "args, _, _, _ = getargspec(function_or_class) if isfunction(function_or_class) "
            "else getargspec(function_or_class.__init__)\n",
            "args = getargspec(function_or_class if isfunction(function_or_class) "
            "else function_or_class.__init__).args\n",
        ),
    ],
    "cntk.layers.higher_order_layers": [  # Python 3.11
        ("import getargspec\n", "import getfullargspec as getargspec\n"),
    ],
    "cntk.internal": [  # Python 3.13: exec() no longer sets a local variable
        (
            '            exec("from {} import {}".format(module, cls))\n'
            "            eval_str = \"{0}.{1} if hasattr({0}, '{1}') else None\"\n"
            "            factory = eval(eval_str.format(cls, deserialize_method))\n",
            "            from importlib import import_module\n"
            "            user_class = getattr(import_module(module), cls)\n"
            "            factory = getattr(user_class, deserialize_method, None)\n",
        ),
    ],
    "cntk.io": [  # NumPy 1.24
        (".astype(np.str)", ".astype(str)"),
    ],
    "cntk.sample_installer": [  # pip is not in every environment; it is needed to install samples only
        ("import pip\n", "\n"),
        ("            pip.main(", "            __import__('pip').main("),
    ],
    "cntk.contrib.deeprl.agent.policy_gradient": [  # NumPy 1.23
        ("np.asscalar(", "np.ndarray.item("),
    ],
}


if TYPE_CHECKING:  # Python 3.8 has no subscripts at run time
    Edits = Sequence[tuple[str, str]]  # old text, new text


def edited(edits: Edits, text: str, path: str, product: str = "CNTK 2.7") -> str:
    """Return the text of a module with its edits; raise :class:`UnexpectedContent` if it is another text."""
    for old, new in edits:
        if text.count(old) != 1:
            raise UnexpectedContent(f"{path} is not the file of {product}: {old.strip()!r} does not occur once")
        text = text.replace(old, new)
    return text


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, name: str, path: str, edits: Edits, product: str) -> None:
        super().__init__(name, path)
        self._edits, self._product = edits, product

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        text = edited(self._edits, importlib.util.decode_source(self.get_data(path)), path, self._product)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # escapes that are no escapes
            code: CodeType = compile(text, path, "exec", dont_inherit=True)
        return code


class Finder:
    """Finds the modules to edit in ``site``, whatever ``sys.path`` says; Python finds the others."""

    def __init__(self, site: Path, edits: Mapping[str, Edits] = EDITS, product: str = "CNTK 2.7") -> None:
        self._site, self._edits, self._product = site, edits, product

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in self._edits:
            return None
        folder = self._site.joinpath(*name.split("."))
        package = folder / "__init__.py"
        is_package = package.is_file()
        file = str(package if is_package else folder.with_suffix(".py"))
        loader = _Loader(name, file, self._edits[name], self._product)
        return importlib.util.spec_from_file_location(
            name, file, loader=loader, submodule_search_locations=[str(folder)] if is_package else None
        )
