"""The kinds of networks that postbacks are sent to, each in a module of its own.

Every module of this package is imported here, so that each adapter registers itself: a new one is a new file.
"""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
