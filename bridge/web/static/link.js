// The news from the bridge: server-sent events, and while none come, /status every few seconds.
// It calls `tell(status)` at each news; how long ago that was is `silenceSeconds()`. It never gives up.

const POLL_MS = 2000;
const PATIENCE_SECONDS = 5; // events come every second: after this they are asked for
const REOPEN_SECONDS = 15; // a stream that gives nothing for so long is opened anew

let heardAt = performance.now();
let openedAt = -Infinity;
let source = null;

export const silenceSeconds = () => (performance.now() - heardAt) / 1000;

export function follow(tell) {
  const hear = (status) => {
    heardAt = performance.now();
    tell(status);
  };
  open(hear);
  setInterval(() => {
    if (silenceSeconds() > PATIENCE_SECONDS || source.readyState === EventSource.CLOSED) poll(hear);
    const streamIsMute = source.readyState === EventSource.CLOSED || silenceSeconds() > REOPEN_SECONDS;
    if (streamIsMute && performance.now() - openedAt > REOPEN_SECONDS * 1000) open(hear);
  }, POLL_MS);
}

// EventSource connects again by itself when a stream breaks, but not after an answer such as 503 (too many readers)
function open(hear) {
  source?.close();
  openedAt = performance.now();
  source = new EventSource("/events");
  source.onmessage = (event) => hear(JSON.parse(event.data));
}

async function poll(hear) {
  try {
    const answer = await fetch("/status", { signal: AbortSignal.timeout(POLL_MS) });
    if (answer.ok) hear(await answer.json());
  } catch {
    return; // the silence says it
  }
}
