// Numbers in words, and the one way in which text gets into the page.

export const element = (id) => document.getElementById(id);

// Only what changed: a screen reader must not hear the same again, nor a selection be lost.
export function say(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

export function make(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

// A list of names and values: rows are kept and only their texts change.
export function fill(list, rows) {
  while (list.children.length > rows.length) list.lastElementChild.remove();
  for (const [index, [name, value, className = ""]] of rows.entries()) {
    const row = list.children[index] ?? list.appendChild(make("div", {}, make("dt"), make("dd")));
    row.className = className;
    say(row.firstElementChild, name);
    say(row.lastElementChild, value);
  }
}

const number = (value, digits = 0) => value.toLocaleString("en", { maximumFractionDigits: digits });
export const count = (value) => number(value);
export const plural = (value, one, many) => `${count(value)} ${value === 1 ? one : many}`;
export const rate = (perSecond) => number(perSecond, perSecond < 10 ? 1 : 0);

export function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) { value /= 1024; unit += 1; }
  return `${number(value, unit ? 1 : 0)} ${units[unit]}`;
}

export function duration(seconds) {
  if (seconds < 60) return `${Math.max(0, Math.round(seconds))} s`;
  if (seconds < 3600) return `${Math.round(seconds / 60)} min`;
  if (seconds < 86400) return `${number(seconds / 3600, 1)} h`;
  const days = number(seconds / 86400, seconds < 10 * 86400 ? 1 : 0);
  return `${days} ${days === "1" ? "day" : "days"}`;
}

export const ago = (seconds) => (seconds < 1 ? "just now" : `${duration(seconds)} ago`);

// Holds "5 s ago", with the exact time, as the device's clock has it, to hover over
export const moment = (at) => make("time", { dateTime: at, title: exact(at) });

export const exact = (at) => `${at.slice(0, 19).replace("T", " ")} UTC`;
