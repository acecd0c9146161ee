"""The configuration: what may be set, what is wrong with it, and where each value came from.

`settings` has every key once, as frozen models; `rules` what a value may be and which values go together; `problems`
the sentences for people; `load` the layers, and the only access to file and environment.
"""

from __future__ import annotations

from bridge.config.load import (
    Examined,
    Loaded,
    Supervision,
    examine,
    examine_environment,
    load,
    load_from_environment,
    reread_secrets,
    supervision_from_environment,
    wants_traceback,
)
from bridge.config.problems import KEYS, SECTIONS
from bridge.config.rules import Problem
from bridge.config.settings import (
    IntakeSettings,
    LogSettings,
    MqttSettings,
    MqttTlsSettings,
    QueueSettings,
    Settings,
    StatusSettings,
    TlsSettings,
    UploadSettings,
    WebSettings,
)

__all__ = [
    "KEYS",
    "SECTIONS",
    "Examined",
    "IntakeSettings",
    "Loaded",
    "LogSettings",
    "MqttSettings",
    "MqttTlsSettings",
    "Problem",
    "QueueSettings",
    "Settings",
    "StatusSettings",
    "Supervision",
    "TlsSettings",
    "UploadSettings",
    "WebSettings",
    "examine",
    "examine_environment",
    "load",
    "load_from_environment",
    "reread_secrets",
    "supervision_from_environment",
    "wants_traceback",
]
