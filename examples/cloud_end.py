"""A cloud end in sixty lines: takes CloudEvents batches and answers so that nothing is lost and nothing stays stuck.

The rules (docs/UPLOAD.md): store first, answer then; the same `id` again is no error; say row by row what is bad
(207), for a row that an answer does not name counts as not delivered; a body that is no batch at all is 400.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
from typing import Any

from aiohttp import web

routes = web.RouteTableDef()
DATABASE: web.AppKey[sqlite3.Connection] = web.AppKey("database", sqlite3.Connection)


def take(database: sqlite3.Connection, event: Any) -> dict[str, Any]:
    """Store one event, or say what is wrong with it."""
    if not isinstance(event, dict) or not isinstance(event.get("id"), str):
        return {"id": None, "status": 422, "error": "not a CloudEvent with an id"}
    if "data" not in event and "data_base64" not in event:
        return {"id": event["id"], "status": 422, "error": "no data"}
    stored = database.execute("INSERT OR IGNORE INTO events VALUES (?, ?)", (event["id"], json.dumps(event)))
    return {"id": event["id"], "status": 201 if stored.rowcount else 200}


@routes.post("/events")
async def receive(request: web.Request) -> web.Response:
    """Take a batch; aiohttp has decompressed gzip already."""
    try:
        events = await request.json()
    except ValueError:
        return web.json_response({"error": "not JSON"}, status=400)
    if not isinstance(events, list):
        return web.json_response({"error": "not a batch of CloudEvents"}, status=400)
    database = request.app[DATABASE]
    with database:  # one transaction: committed before the answer
        results = [take(database, event) for event in events]
    bad = any(result["status"] >= 400 for result in results)  # noqa: PLR2004
    return web.json_response({"results": results}, status=207 if bad else 200)


@routes.get("/count")
async def count(request: web.Request) -> web.Response:
    """Tell how many different events there are."""
    return web.json_response(request.app[DATABASE].execute("SELECT COUNT(*) FROM events").fetchone()[0])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8088)
    parser.add_argument("--database", default="events.db")
    arguments = parser.parse_args()
    app = web.Application(client_max_size=16 << 20)
    app[DATABASE] = sqlite3.connect(arguments.database)
    app[DATABASE].execute("CREATE TABLE IF NOT EXISTS events (id TEXT PRIMARY KEY, event TEXT NOT NULL)")
    app.add_routes(routes)
    web.run_app(app, host="127.0.0.1", port=arguments.port)
