"""The bench: how many messages a second this machine carries from MQTT to the cloud, and what each one costs.

Every mode is measured by `measure.py` on a stage of its own (`stage.py`): a private folder, a real Mosquitto, a sink
in the cloud's place, a generator, and between them a contender (`contenders.py`): this bridge as users run it, or a
null subscriber, which is the ceiling of broker and generator. A new rival is a new contender and nothing else.

Each part is a process of its own, started from `programs.py`; those in Python (`sink`, `generator`,
`null_subscriber`, `poster`) share the line protocol of `dialogue.py`. Time is the machine's monotonic clock, which
all processes read alike. Pure and tested alone: `predictions.py`, `mqtt.py`, `posts.py`, `tally.py`, `results.py`.

Never part of a message's life, and never prints: `bridge.cli.bench` does.
"""
