"""Finding the service that `MODULE:SERVICE` names, or saying in one line why it cannot be had."""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path
from types import ModuleType

from meshrpc.errors import MeshError, SettingsError
from meshrpc.server.service import Service


def load_service(reference: str, folder: Path) -> Service:
    """Import the module that `reference` names, from `folder` first, and return its service.

    Raises:
        SettingsError: there is none; says what is wrong and what would be right.
    """
    module_name, _, attribute = reference.partition(":")
    if not attribute.isidentifier() or not all(map(str.isidentifier, module_name.split("."))):
        raise SettingsError(
            f"{reference!r}: a service is named MODULE:SERVICE, such as services.payment.app:service"
        )
    if not folder.is_dir():
        raise SettingsError(f"no such folder: {folder} (--app-dir)")
    sys.path.insert(0, str(folder))
    return _service(_module(module_name, folder), attribute)


def _module(name: str, folder: Path) -> ModuleType:
    try:
        return importlib.import_module(name)
    except MeshError:
        raise  # it says already which setting is wrong
    except ModuleNotFoundError as error:
        # Only a missing part of `name` itself is a wrong name; others the module asked for.
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise SettingsError(
                f"no module named {error.name!r} (looked in {folder}; --app-dir sets the folder)"
            ) from error
        raise _broken(name, folder, error) from error
    except (Exception, SystemExit) as error:
        raise _broken(name, folder, error) from error


def _broken(name: str, folder: Path, error: BaseException) -> SettingsError:
    said = traceback.format_exception_only(error)[-1].strip()
    return SettingsError(f"cannot import {name!r}: {_place(folder, error)}: {said}")


def _place(folder: Path, error: BaseException) -> str:
    """Return file:line of the error, in the user's own code where any of it is involved."""
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{error.filename}:{error.lineno}"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<frozen ") and frame.filename != __file__
    ]
    own = [
        frame
        for frame in frames
        if Path(frame.filename).is_relative_to(folder) and "site-packages" not in frame.filename
    ]
    last = (own or [frame for frame in frames if frame.filename != importlib.__file__])[-1:]
    return f"{last[0].filename}:{last[0].lineno}" if last else "in its own code"


def _service(module: ModuleType, attribute: str) -> Service:
    found = getattr(module, attribute, None)
    if isinstance(found, Service):
        return found
    names = [name for name, value in vars(module).items() if isinstance(value, Service)]
    if names:
        remedy = f"it has a Service named: {', '.join(names)}"
    else:
        remedy = "it has no Service at all: service = meshrpc.Service(NAME)"
    if hasattr(module, attribute):
        kind = type(found).__name__
        raise SettingsError(
            f"{attribute!r} of {module.__name__!r} is of type {kind}, not a Service; {remedy}"
        )
    raise SettingsError(f"{module.__name__!r} has no attribute {attribute!r}; {remedy}")
