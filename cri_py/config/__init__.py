"""TOML, drop-ins and flags become one frozen Config; an error names the file, the key and the line.

The dataclasses are the whole truth: names, types, defaults, what each key means and which values it takes. The loader,
``cri-py config default`` and the flags are derived from them.

A Config is merged from the main file, its drop-ins (``config.toml`` has them in ``config.d/*.toml``, in the order of
their names) and the flags; of two that set a key the later wins, tables are merged, arrays are replaced.
"""

from cri_py.config.lines import line_of, spell
from cri_py.config.loading import DEFAULT_FILE, Flag, Loaded, files_of, load
from cri_py.config.rules import Path
from cri_py.config.tables import (
    BlockIoClass,
    CgroupConfig,
    CniHandlerConfig,
    Config,
    ImagesConfig,
    LogConfig,
    MetricsConfig,
    NetworkConfig,
    RegistryConfig,
    RuntimeConfig,
    ServerConfig,
    StreamingConfig,
)
from cri_py.config.text import default_text, effective_text, toml

__all__ = [
    "DEFAULT_FILE",
    "BlockIoClass",
    "CgroupConfig",
    "CniHandlerConfig",
    "Config",
    "Flag",
    "ImagesConfig",
    "Loaded",
    "LogConfig",
    "MetricsConfig",
    "NetworkConfig",
    "Path",
    "RegistryConfig",
    "RuntimeConfig",
    "ServerConfig",
    "StreamingConfig",
    "default_text",
    "effective_text",
    "files_of",
    "line_of",
    "load",
    "spell",
    "toml",
]
