"""The acts of the demo, in order: a title each, and what happens in it in plain words. Pure."""

from __future__ import annotations

from enum import Enum


class Act(Enum):
    """`title` fits in a column, `words` in two lines of a terminal."""

    START = "Start broker, bridge and cloud"
    FLOW = "Steady flow"
    OUTAGE = "The cloud goes away"
    RECOVERY = "The cloud comes back"
    KILL = "kill -9 the bridge"
    RESTART = "Start it again"
    DRAIN = "Drain, then stop in order"
    COUNT = "Count, id by id"

    @property
    def title(self) -> str:
        """A few words."""
        return self.value

    @property
    def words(self) -> str:
        """A sentence or two."""
        return _WORDS[self]


_WORDS = {
    Act.START: "A private Mosquitto, the bridge and the receiver, each a process of its own. "
    "Meanwhile a classifier learns to read digits.",
    Act.FLOW: "Cameras publish what the classifier says. The bridge confirms to the broker what is on disk, "
    "and sends it on.",
    Act.OUTAGE: "It stores one more batch, but its answer gets lost; then nothing answers. "
    "The cameras notice nothing: the disk takes it all.",
    Act.RECOVERY: "Nobody tells the bridge. Its next attempt finds out, and the backlog drains in order "
    "while new messages come.",
    Act.KILL: "In mid-run, without a warning. Its last will tells everybody, and the broker keeps "
    "what the cameras go on to publish.",
    Act.RESTART: "The disk says what was delivered and what was not. The broker hands over what it kept.",
    Act.DRAIN: "The cameras are done. When nothing waits any more, the bridge gets a SIGTERM "
    "and must end with exit status 0.",
    Act.COUNT: "What the broker confirmed, what the queue's file has, what the cloud has.",
}
