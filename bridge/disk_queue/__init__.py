"""The disk queue: persist-queue's `SQLiteAckQueue`, made to take many rows in one transaction and to survive.

This is the one place that knows persist-queue and sqlite3. It is synchronous and belongs to one thread (the disk
thread). It never encodes, uploads, confirms or waits, and it never unpickles.

The format, whole
-----------------
`data.db` in the queue's folder, SQLite in WAL mode. persist-queue's table holds one row a message:

    ack_queue_default   _id        INTEGER PRIMARY KEY AUTOINCREMENT   order of arrival
                        data       BLOB     the message, a CloudEvent in JSON, byte for byte what is uploaded
                        timestamp  FLOAT    when it was received, seconds since 1970
                        status     INTEGER  0, 1 ready · 2 taken (only by the stock library) · 5 delivered · 9 dead
      added by us:      crc        INTEGER  CRC-32 of data; NULL = written by the stock library
                        packet_id  INTEGER  MQTT packet id it came with; tells a redelivery from a new message
                        event_id   TEXT     the producer's own id, if it has one; finds duplicates
                        settled_at FLOAT    when it became delivered or dead
                        expires_at FLOAT    when it is of no use any more, if its producer said so (MQTT 5)

    edge_state          one row: how many are waiting, delivered, dead. Written in the transaction that changes
                        them, so they are right after any crash and nothing is counted at start.
    edge_batch          (first_id, last_id) of the batches in flight, so that after a restart the same rows leave
                        together again, under the same idempotency key. Written with the next change that is
                        written anyway: until then nothing else was written, and taking again gives the same rows.
    edge_delivered      (first_id, last_id, settled_at): rows that are delivered although their status says ready. Large
                        batches are noted so, in the transaction that acks them, and marked within seconds if they
                        are still there, at the latest by the stop; under load they are deleted before
    edge_dead           why a row is dead: reason, HTTP status, attempts, time, excerpt of the answer
    edge_loss           the loss ledger: what was refused, dropped or died, in the transaction that gave it up;
                        bounded: the oldest entries go
    edge_loss_total     for each reason how many messages were ever lost (what was trimmed stays counted),
                        and of how many the cloud was told
    edge_receipt        who wants to hear how a row ends: response topic, correlation data, the message's id
    edge_note           what a later start must know (key, value); `clock_unset_from_row`: from there on rows may have
                        come before the clock was set, and wait for their right time

    ready index         the rows with status < 2: taking costs the same behind a million delivered rows
    settled index       the delivered and dead rows: what housekeeping deletes, and counts at start
    stray index         the rows the stock library touched (no crc, or settled without a time); normally empty, so
                        one look tells at start whether somebody else used the file, and only then it is counted

Beside it in the folder: `bridge.lock`, `reserve`, room for a full disk (`bridge.disk_queue.reserve`), and:

    data.db-mark        the highest row id given out and the number of rows waiting, after each commit, never synced:
                        how a start sees that confirmed rows are gone although SQLite finds nothing wrong
    data.db.damaged-…   damaged files, set aside with -wal and -mark, and …-report.json once they are salvaged

"Taken" lives in memory: a taken row has status 0 on disk, so after any crash it is ready again by itself.

Holds I3 (a row is in exactly one of ready, taken, delivered, dead), I4 (after a restart every taken row is ready),
I9 (the ledger is written before, that is with, the loss) and the disk's half of I1: when `transaction()` is left
without an exception, the rows are on the medium (durability `power`: synchronous=FULL; `crash`: NORMAL).
"""

from __future__ import annotations

from bridge.disk_queue.aside import Report, asides, delete_surplus, pending, write_report
from bridge.disk_queue.commands import Page, Request, answer, requeue_dead
from bridge.disk_queue.file import FILE_NAME, Durability
from bridge.disk_queue.ledger import Entry, Untold
from bridge.disk_queue.lock import SOCKET_NAME, FolderLock, holder_of
from bridge.disk_queue.queue import DiskQueue
from bridge.disk_queue.receipts import Receipt, ReceiptState
from bridge.disk_queue.repair import Verification, open_queue, repair, verify
from bridge.disk_queue.reserve import Reserve
from bridge.disk_queue.rows import Counts, NewRow, to_store
from bridge.disk_queue.salvage import Salvager
from bridge.disk_queue.selection import STATES, Selection
from bridge.disk_queue.serializer import serializer
from bridge.disk_queue.wear import written_bytes

__all__ = [
    "FILE_NAME",
    "SOCKET_NAME",
    "STATES",
    "Counts",
    "DiskQueue",
    "Durability",
    "Entry",
    "FolderLock",
    "NewRow",
    "Page",
    "Receipt",
    "ReceiptState",
    "Report",
    "Request",
    "Reserve",
    "Salvager",
    "Selection",
    "Untold",
    "Verification",
    "answer",
    "asides",
    "delete_surplus",
    "holder_of",
    "open_queue",
    "pending",
    "repair",
    "requeue_dead",
    "serializer",
    "to_store",
    "verify",
    "write_report",
    "written_bytes",
]
