"""The doctor: looks at everything a bridge stands on, once, and says of each thing how it is and what to do.

Beside the way of a message, as a guest: it has a client id of its own and no session, joins no share group of the
bridge's, takes the queue's lock only where nobody holds it and writes nothing into the queue, and what it posts holds
no row. `line` is what it says, `judge` the judgement (values → Line, pure), `probes` the small looks that block, each
in a thread that nobody waits for, `checks` which look leads to which judgement, side by side and each with its time
limit, and `bundle` the archive for support, in which no secret and no payload stands (I8).
"""

from __future__ import annotations

from bridge.doctor.bundle import as_json, collect, pack, secrets_of
from bridge.doctor.checks import configuration, examine
from bridge.doctor.line import Grade, Line, count

__all__ = ["Grade", "Line", "as_json", "collect", "configuration", "count", "examine", "pack", "secrets_of"]
