"""The bundled receiver as a child process: the real `python -m bridge receiver`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.harness import REPOSITORY, wait_until

START_SECONDS = 15
STOP_SECONDS = 10
ANSWER_SECONDS = 10


class ReceiverProcess:
    """Stores in `folder`/data; may be started again, then on the same port. Faults are allowed."""

    def __init__(
        self, folder: Path, *, token: str | None = None, arguments: Sequence[str] = ("--allow-faults",)
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.url = ""
        self._folder = folder
        self._token = token
        self._arguments = [*arguments, *(["--token", token] if token is not None else [])]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2] or 0)

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "not started"
        return self._process

    @property
    def stdout(self) -> str:
        return (self._folder / "receiver.out").read_text()

    @property
    def stderr(self) -> str:
        return (self._folder / "receiver.err").read_text()

    def start(self) -> Self:
        """Start it and wait for the line that says where it listens."""
        command = [sys.executable, "-m", "bridge", "receiver", "--port", str(self.port)]
        with (self._folder / "receiver.out").open("wb") as stdout, (self._folder / "receiver.err").open("ab") as stderr:
            self._process = subprocess.Popen(
                [*command, "--data", str(self._folder / "data"), *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                cwd=self._folder,
                env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            )
        self.url = wait_until(self._announced, START_SECONDS, "the receiver's address").split()[-1]
        return self

    def stop(self) -> int:
        """SIGTERM; return the exit status."""
        self.process.terminate()
        return self.process.wait(STOP_SECONDS)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(STOP_SECONDS)

    def stats(self) -> dict[str, int]:
        return dict(self.ask("GET", "/stats"))

    def events(self) -> Iterator[dict[str, Any]]:
        """Page through everything it holds."""
        after = 0
        while (page := self.ask("GET", f"/events?after={after}"))["events"]:
            yield from page["events"]
            after = page["next"]

    def ids(self) -> list[str]:
        return [event["id"] for event in self.events()]

    def faults(self, **faults: object) -> None:
        """Do this wrong from now on; nothing clears it."""
        self.ask("PUT", "/faults", json.dumps(faults).encode())

    def ask(self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> Any:
        """Return the JSON of an answer; HTTPError unless it is 2xx."""
        authorization = {"Authorization": f"Bearer {self._token}"} if self._token is not None else {}
        request = urllib.request.Request(  # noqa: S310 - the address is our child's
            self.url + path, body, {**authorization, **(headers or {})}, method=method
        )
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:  # noqa: S310
            return json.load(answer)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.kill()

    def _announced(self) -> str:
        assert self.process.poll() is None, f"the receiver ended with {self.process.returncode}:\n{self.stderr}"
        return self.stdout if self.stdout.endswith("\n") else ""
