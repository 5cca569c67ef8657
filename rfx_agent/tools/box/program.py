"""Runs one program and writes its answer, as text, to file descriptor 3.

What it writes is the program's own word: the program shares this interpreter. It is an answer to be judged, and no
verdict.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import json
import os
import random
import sys
import types
from typing import Any

from rfx_agent.tools.box.limits import described, settle, source_line

__all__: list[str] = []

_FILE = "<program>"


def _run(settings: dict[str, Any]) -> dict[str, Any]:
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    names = vars(module)
    for name in settings["modules"]:
        names[name] = importlib.import_module(name)
    random.seed(0)
    spare = bytearray(1024 * 1024)  # to tell of it, when memory is spent
    try:
        tree = ast.parse(settings["code"], _FILE)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, _FILE, "exec"), names)  # noqa: S102  # what this process is for
        value = None
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), _FILE, "eval"), names)  # noqa: S307  # as above
        found = names.get(settings["name"])
        function = isinstance(found, types.FunctionType | types.BuiltinFunctionType)
        if found is None or function:
            found = value
        return {"unset": found is None, "function": function, "text": str(found)[: settings["output"] + 3]}
    except BaseException as error:  # noqa: BLE001  # a failing program is data
        del spare
        if isinstance(error, SystemExit | KeyboardInterrupt):
            return {"error": f"{type(error).__name__}: the program ended itself", "line": source_line(error, _FILE)}
        return {"error": described(error), "line": source_line(error, _FILE)}


def _main() -> None:
    settings = settle()
    os.write(3, b"ready\n")
    reply = _run(settings)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BaseException):  # the program may have put anything there
            stream.flush()
    os.write(3, json.dumps(reply).encode() + b"\n")
    os._exit(0)  # threads that the program left behind do not hold it


if __name__ == "__main__":
    _main()
