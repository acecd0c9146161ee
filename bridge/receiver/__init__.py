"""The reference cloud end: where a message's life ends, in the demo and in tests, and a model for a cloud team.

A POST walks through these modules in this order:

- `app`     the only one that knows aiohttp: routes, token, sizes, Idempotency-Key in progress, answers
- `faults`  what it does wrong on purpose (only where allowed)
- `body`    Content-Encoding off, within a bound (pure)
- `entries` the events of the body, each as the very bytes that came, good or bad (pure)
- `answers` what to say about them (pure)
- `store`   the only one that knows sqlite3: each event once, on disk before the answer leaves

It never talks to the bridge's own modules: a cloud team can copy this folder as it is.
"""
