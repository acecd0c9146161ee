// Asks /status every two seconds and shows all of it: a card for each part, a line for each leaf.
"use strict";

const INTERVAL_MS = 2000;
const element = (id) => document.getElementById(id);
let lastAnswer = null;

function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (count >= 1024 && unit < units.length - 1) { count /= 1024; unit += 1; }
  return `${count.toLocaleString("en", { maximumFractionDigits: unit ? 1 : 0 })} ${units[unit]}`;
}

function duration(seconds) {
  const parts = [[86400, "d"], [3600, "h"], [60, "min"]];
  for (const [size, unit] of parts) {
    if (seconds >= size) return `${(seconds / size).toLocaleString("en", { maximumFractionDigits: 1 })} ${unit}`;
  }
  return `${Math.round(seconds)} s`;
}

function show(name, value, part) {
  if (value === null) return "–";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (name === "limit_bytes" && value === 0) return "none";
  if (name.endsWith("bytes")) return bytes(value);
  if (name.endsWith("_seconds")) return duration(value);
  if (name.endsWith("_at")) return new Date(value).toLocaleString();
  if (part === "load") return `${value.toLocaleString("en")} /s`;
  if (name.startsWith("latency_ms")) return `${value.toLocaleString("en")} ms`;
  return typeof value === "number" ? value.toLocaleString("en") : value;
}

function leaves(branch, prefix = "") {
  return Object.entries(branch).flatMap(([name, value]) =>
    value !== null && typeof value === "object" ? leaves(value, `${prefix}${name} `) : [[prefix + name, value]]);
}

function label(name) {
  return name.replace(/_(seconds|bytes|at|ms)\b/g, "").replaceAll("_", " ");
}

function card(part, branch) {
  const section = document.createElement("section");
  const list = document.createElement("dl");
  section.append(Object.assign(document.createElement("h2"), { textContent: part }), list);
  for (const [name, value] of leaves(branch)) {
    list.append(
      Object.assign(document.createElement("dt"), { textContent: label(name) }),
      Object.assign(document.createElement("dd"), { textContent: show(name, value, part) }));
  }
  return section;
}

function render(status) {
  element("bridge_id").textContent = status.bridge_id;
  element("version").textContent = `version ${status.version}, up ${duration(status.uptime_seconds)}`;
  element("verdict").dataset.state = status.state;
  element("state").textContent = status.state;
  element("reason").textContent = status.reason ?? "";
  const parts = Object.entries(status).filter(([, value]) => value !== null && typeof value === "object");
  element("cards").replaceChildren(...parts.map(([part, branch]) => card(part, branch)));
  document.title = `${status.state} · ${status.bridge_id}`;
}

async function refresh() {
  try {
    const answer = await fetch("/status", { signal: AbortSignal.timeout(INTERVAL_MS) });
    if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
    render(await answer.json());
    lastAnswer = Date.now();
    element("age").textContent = "live";
  } catch {
    element("verdict").dataset.state = "unknown";
    element("age").textContent = lastAnswer === null
      ? "the bridge does not answer"
      : `the bridge does not answer: this is ${duration((Date.now() - lastAnswer) / 1000)} old`;
  }
  setTimeout(refresh, INTERVAL_MS);
}

refresh();
