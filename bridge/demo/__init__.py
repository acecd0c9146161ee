"""The whole way of a message on one machine, with an outage and a kill, and the count at the end.

    classifier   a real model's predictions (scikit-learn, digits)
    cameras      publishes them at QoS 1 and keeps the ledger: what was tried, what the broker confirmed
    stage        broker, bridge and cloud as child processes, in a folder of their own
    cloud        asks the receiver what it has
    watch        what can be seen of bridge and cloud from outside
    acts, story  what happens, in order
    tally        the ledgers compared, id by id: the only source of "lost 0" (pure)

It stands outside the bridge: whatever it knows, it knows as any other program would, by MQTT, HTTP and the stopped
queue's file. It reads nothing of the user's configuration or environment, and prints nothing: `bridge.cli.demo` does.
"""
