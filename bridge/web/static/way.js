// The way from broker to disk to cloud: how each of the three is, and how fast it flows between them.
import { ago, bytes, count, duration, element, exact, plural, rate, say } from "/words.js";

const WINDOW_SECONDS = 10; // what "a second" is averaged over
const CLOUD_MOODS = { online: "fine", throttled: "warn", offline: "warn", paused: "bad" };

let readings = []; // {at, received, delivered}: the counters of the last seconds

// Notes the counters of one status; `at` in seconds on the browser's steady clock.
export function read(status, at) {
  const { received, delivered } = status.messages;
  if (readings.length && received < readings.at(-1).received) readings = []; // another process began to count
  readings.push({ at, received, delivered });
  while (readings.length > 2 && at - readings[1].at >= WINDOW_SECONDS) readings.shift();
}

function perSecond(status, name) {
  const [first, last] = [readings[0], readings.at(-1)];
  return last.at - first.at < 0.9 ? status.load[name]["1min"] : (last[name] - first[name]) / (last.at - first.at);
}

// `past(at)`: seconds since a time that the status names.
export function drawWay(status, past) {
  stop("broker", ...broker(status));
  stop("disk", ...disk(status));
  stop("cloud", ...cloud(status, past));
  hop("intake", perSecond(status, "received"), status.broker.connected);
  hop("upload", perSecond(status, "delivered"), status.cloud.state === "online" || status.cloud.state === "throttled");
  drawLevel(status.queue);
}

function broker({ broker: { connected, reconnects } }) {
  const more = reconnects ? plural(reconnects, "reconnect", "reconnects") : "";
  return connected ? ["fine", "connected", more] : ["bad", "not connected", more];
}

function disk({ queue, reason }) {
  const waiting = queue.ready + queue.taken;
  const trouble = /(?:^|; )disk (\w+):/.exec(reason ?? "")?.[1];
  const mood = trouble ? "bad" : /(?:^|; )queue \d+ % full/.test(reason) ? "warn" : "fine";
  const limit = queue.limit_bytes ? ` of ${bytes(queue.limit_bytes)}` : "";
  const more = `${bytes(queue.bytes)}${limit}\n${bytes(queue.disk_free_bytes)} free`;
  return [mood, trouble ?? (waiting ? `${count(waiting)} waiting` : "nothing waits"), more];
}

function cloud({ cloud: { state, last_success_at: at, next_attempt_at: next, latency_ms: latency } }, past) {
  const more = [at ? `last delivery ${ago(past(at))}` : "no delivery yet"];
  if (next && past(next) < 0) more.push(past(next) > -1 ? "next try now" : `next try in ${duration(-past(next))}`);
  else if (state === "online" && latency.p50 !== null) more.push(`answers in ${count(latency.p50)} ms`);
  return [CLOUD_MOODS[state], state, more.join("\n"), at ? exact(at) : ""];
}

function stop(id, mood, word, more, title = "") {
  const box = element(id);
  box.dataset.mood = mood;
  say(box.querySelector(".word"), word);
  say(box.querySelector(".more"), more);
  box.querySelector(".more").title = title;
}

function hop(id, messagesPerSecond, isOpen) {
  const box = element(id);
  box.dataset.pace = !isOpen ? "cut" : Math.min(4, Math.ceil(Math.log10(1 + messagesPerSecond)));
  say(box.querySelector(".rate"), rate(messagesPerSecond));
}

function drawLevel(queue) {
  const share = queue.limit_bytes ? Math.min(1, queue.bytes / queue.limit_bytes) : 0;
  element("level").setAttribute("height", 33 * share);
  element("level").setAttribute("y", 44 - 33 * share);
}
