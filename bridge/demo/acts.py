"""The acts of the demo, in order: a title each, and what happens in it in plain words. Pure."""

from __future__ import annotations

from enum import Enum


class Act(Enum):
    """`title` fits in a column, `words` in two lines of a terminal."""

    START = (
        "Start broker, bridge and cloud",
        "A private Mosquitto, the bridge and the receiver, each a process of its own. "
        "A classifier learns to read digits meanwhile.",
    )
    FLOW = (
        "Steady flow",
        "Cameras publish what the classifier says. The bridge confirms to the broker what is on disk, "
        "and sends it to the cloud.",
    )
    OUTAGE = (
        "The cloud goes away",
        "It stores one more batch, but its answer gets lost; then nothing answers. "
        "The cameras notice nothing: the disk takes it all.",
    )
    RECOVERY = (
        "The cloud comes back",
        "Nobody tells the bridge. Its next attempt finds out, and the backlog drains in order while new messages come.",
    )
    KILL = (
        "kill -9 the bridge",
        "In mid-run, without a warning. Its last will tells everybody, and the broker keeps what the cameras go on "
        "to publish.",
    )
    RESTART = (
        "Start it again",
        "The disk says what was sent and what was not. The broker hands over what it kept.",
    )
    DRAIN = (
        "Drain, then stop in order",
        "The cameras are done. When nothing waits any more, the bridge gets a SIGTERM and must end with exit status 0.",
    )
    COUNT = (
        "Count, id by id",
        "What the broker confirmed, what the queue's file has, what the cloud has.",
    )

    @property
    def title(self) -> str:
        """A few words."""
        return self.value[0]

    @property
    def words(self) -> str:
        """A sentence or two."""
        return self.value[1]
