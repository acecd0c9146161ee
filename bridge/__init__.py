"""edge-bridge: predictions from a local MQTT broker to the cloud, none lost on the way.

The life of a message: the `broker` reads bytes, `wire` takes the publishes out of them, `message` turns each into the
CloudEvent that it stays from then on; `intake` gathers a group, `admission` tells what is new of it and makes room,
the `disk_thread` stores it in the `disk_queue`, and once that is synced intake lets the broker have its
confirmations. The `forwarder` takes rows, packs a `batch`, has the `uploader` post it, lets `verdict` judge the
answer and settles what the `agenda` makes of that: delivered, later, halved or dead (`backoff` says how long to
wait). What is given up on the way is a `loss` in the queue's ledger, and the `loss_teller` lets the cloud know; who
asked how far a message came hears it from the `receipt_giver`. Every part tells what happened as `events`; `status`
adds them up, the `announcer` publishes that on MQTT, `web` shows it. `service` builds all of it and ends it in order;
`cli` is where people come in.
"""

__version__ = "0.1.0"
