// Puts the page together: each news goes to its part, and once a second the times are told anew.
import { add, drawChart, remember } from "/chart.js";
import { refreshDead } from "/dead.js";
import { follow, silenceSeconds } from "/link.js";
import { drawWay, read } from "/way.js";
import { ago, bytes, count, duration, element, exact, fill, make, moment, plural, rate, say } from "/words.js";

const LOST_SECONDS = 5; // without news for so long, what is shown is old
const HISTORY_SECONDS = 60; // how often the bridge's own memory is asked for, if nothing happens
const MOODS = { online: "fine", degraded: "warn", offline: "bad" };
const ALARMING = ["conflict", "dead", "dropped", "refused"];

let status = null;
let history = { troubles: [], heardAt: 0 };
let historyAskedAt = -Infinity;
let troublesSeen = "";
let deadSeen = null;
let lost = false;

const seconds = () => performance.now() / 1000;
// The device's clock may be wrong, and the browser's as well: a time counts from the status that names it.
const past = (at) => (Date.parse(status.at) - Date.parse(at)) / 1000 + silenceSeconds();

function hear(news) {
  const restarted = status && news.uptime_seconds < status.uptime_seconds;
  const first = status === null || restarted || lost;
  status = news;
  lost = false;
  read(status, seconds());
  add(status, seconds());
  const troubles = [status.state, status.cloud.last_error, (status.reason ?? "").replace(/\d+/g, "")].join();
  if (first || troubles !== troublesSeen || seconds() - historyAskedAt > HISTORY_SECONDS) refreshHistory();
  troublesSeen = troubles;
  if (first || status.queue.dead !== deadSeen) refreshDead(status.queue.dead).catch(() => { deadSeen = null; });
  deadSeen = status.queue.dead;
  draw();
}

async function refreshHistory() {
  historyAskedAt = seconds();
  try {
    const answer = await fetch("/history");
    const told = await answer.json();
    remember(told.samples, seconds());
    add(status, seconds());
    history = { troubles: told.troubles, heardAt: seconds() };
    listTroubles(history.troubles);
    draw();
  } catch {
    historyAskedAt = -Infinity; // with the next news
  }
}

function draw() {
  lost ||= silenceSeconds() > LOST_SECONDS;
  document.body.dataset.contact = lost ? "lost" : status === null ? "none" : "live";
  say(element("contact"), lost ? `no news for ${duration(silenceSeconds())}` : status === null ? "connecting …" : "live");
  if (lost) drawLost();
  else if (status !== null) drawVerdict();
  if (status === null) return;
  drawWay(status, past);
  drawChart(seconds());
  drawTroubles();
  drawCounters();
  drawValues();
}

function drawVerdict() {
  document.title = `${status.state} · ${status.bridge_id}`;
  say(element("bridge_id"), status.bridge_id);
  say(element("version"), status.version);
  element("verdict").dataset.mood = MOODS[status.state];
  say(element("state"), status.state);
  const { dead } = status.queue;
  const refused = dead ? `; ${plural(dead, "is", "are")} refused by the cloud, and kept` : "";
  say(element("reason"), inWords(status.reason) ?? `Messages are stored, and delivered${refused}.`);
  say(element("outlook"), outlook(status.queue));
}

// Without the count at its end, which the next line tells.
const inWords = (reason) => reason && `${reason[0].toUpperCase()}${reason.slice(1).replace(/; \d+ waiting$/, "")}.`;

function outlook({ ready, taken, oldest_age_seconds: oldest, full_in_seconds: full, empty_in_seconds: empty }) {
  const words = [];
  if (!(ready + taken)) words.push("Nothing waits.");
  else words.push(`${plural(ready + taken, "message waits", "messages wait")} on disk${
    oldest === null ? "" : `, the oldest for ${duration(oldest + silenceSeconds())}`}.`);
  if (empty !== null) words.push(`At this pace empty in ${duration(empty)}.`);
  if (full !== null) words.push(`At this pace full in ${duration(full)}.`);
  return words.join(" ");
}

function drawLost() {
  document.title = "no news · edge-bridge";
  element("verdict").dataset.mood = "none";
  say(element("state"), "no news");
  say(element("reason"), `The bridge has not answered for ${duration(silenceSeconds())}.`);
  say(element("outlook"), status === null ? "" : "Below is what it said last. This page asks again by itself.");
}

// The list is built when the bridge told it; in between only its times go on.
function listTroubles(troubles) {
  element("no-troubles").hidden = troubles.length > 0;
  element("troubles").replaceChildren(...troubles.map(({ text, times, present, last_at: at }) =>
    make("li", { className: present ? "present" : "" },
      make("span", { textContent: text }),
      make("span", { className: "soft" }, moment(at), times > 1 ? ` · ${count(times)} times` : ""))));
}

function drawTroubles() {
  for (const [index, { present, last_age_seconds: age }] of history.troubles.entries()) {
    const time = element("troubles").children[index].querySelector("time");
    say(time, present ? "now" : ago(age + seconds() - history.heardAt));
  }
}

function drawCounters() {
  say(element("since"), `since the start, ${ago(status.uptime_seconds)}`);
  fill(element("counters"), Object.entries(status.messages).map(([name, value]) =>
    [name, count(value), value && ALARMING.includes(name) ? "alarming" : ""]));
}

function drawValues() {
  if (!element("values").parentElement.open) return;
  for (const [part, branch] of Object.entries(status)) {
    if (branch === null || typeof branch !== "object") continue;
    const list = element(`values-${part}`) ?? addValues(part);
    fill(list, leaves(branch).map(([name, value]) =>
      [name.replace(/_(seconds|bytes|at|ms)\b/g, "").replaceAll("_", " "), show(name, value, part)]));
  }
}

function addValues(part) {
  const list = make("dl", { id: `values-${part}` });
  element("values").append(make("section", {}, make("h3", { textContent: part }), list));
  return list;
}

function leaves(branch, prefix = "") {
  return Object.entries(branch).flatMap(([name, value]) =>
    value !== null && typeof value === "object" ? leaves(value, `${prefix}${name} `) : [[prefix + name, value]]);
}

function show(name, value, part) {
  if (value === null) return "–";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (name === "limit_bytes" && value === 0) return "none";
  if (name.endsWith("bytes")) return bytes(value);
  if (name.endsWith("_seconds")) return duration(value);
  if (name.endsWith("_at")) return exact(value);
  if (part === "load") return `${rate(value)} /s`;
  if (name.startsWith("latency_ms")) return `${count(value)} ms`;
  return typeof value === "number" ? count(value) : value;
}

element("values").parentElement.ontoggle = draw;
follow(hear);
setInterval(draw, 1000);
