"""`edge-bridge run`: the bridge itself, until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bridge.config import Settings


def add_arguments(_parser: argparse.ArgumentParser) -> None:
    """`run` has no options but `--config`, which every command that reads the configuration has."""


_SWITCH_SECONDS = 0.001  # event loop and disk thread wait for each other's Python that long, not Python's 5 ms


def execute(args: argparse.Namespace) -> int:
    """Run the bridge; 0 after an orderly stop."""
    # Until the service has handlers of its own a reload has nothing to reload, and a stop nothing to stop.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    from bridge import log
    from bridge.config import load_from_environment, supervision_from_environment
    from bridge.service import Service

    loaded = load_from_environment(args.config)
    os.umask(0o077)  # whatever is written belongs to this user alone
    log.setup(loaded.settings.log.level, loaded.settings.log.format)
    gc.freeze()  # what is loaded by now stays; the collector need not walk it again and again
    sys.setswitchinterval(_SWITCH_SECONDS)

    async def serve() -> None:
        def reload() -> Settings:
            return load_from_environment(args.config).settings

        await Service(loaded.settings, reload, supervision_from_environment()).run()

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(serve())
    return 0


def _loop_factory() -> type[asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # not there on every platform
    except ImportError:
        return None
    return uvloop.Loop
