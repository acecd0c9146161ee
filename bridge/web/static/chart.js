// How many messages waited over the last hour, and when broker or cloud were away.
import { count, duration, element, plural, say } from "/words.js";

const SPAN_SECONDS = 3600;
const STEP_SECONDS = 5;
const SVG = "http://www.w3.org/2000/svg";

let points = []; // {at, waiting, broker, cloud}, oldest first; `at` in seconds on the browser's steady clock

// What the bridge remembers, instead of what was drawn so far.
export function remember(samples, now) {
  points = samples.map(([age, waiting, broker, cloud]) => ({ at: now - age, waiting, broker, cloud }));
}

// One more point; closer together than a step, the newer one takes the older one's place.
export function add(status, now) {
  const { queue, broker, cloud } = status;
  const point = { at: now, waiting: queue.ready + queue.taken, broker: broker.connected, cloud: cloud.state };
  if (points.length > 1 && now - points.at(-2).at < STEP_SECONDS) points.pop();
  points.push(point);
  while (now - points[0].at > SPAN_SECONDS) points.shift();
}

export function drawChart(now) {
  if (!points.length) return;
  const x = (point) => (SPAN_SECONDS - (now - point.at)).toFixed(1);
  const most = Math.max(...points.map((point) => point.waiting));
  const ceiling = roundUp(most);
  const line = points.map((point) => `${x(point)} ${(100 - (100 * point.waiting) / ceiling).toFixed(2)}`).join("L");
  element("curve").setAttribute("d", `M${line}`);
  element("area").setAttribute("d", `M${x(points[0])} 100L${line}L${x(points.at(-1))} 100Z`);
  say(element("ceiling"), count(ceiling));
  drawTrack("broker-track", x, (point) => !point.broker && "bad");
  drawTrack("cloud-track", x, (point) => point.cloud !== "online" && (point.cloud === "paused" ? "bad" : "warn"));
  element("backlog").setAttribute("aria-label", inWords(most));
}

// 1, 2 or 5 and zeros
function roundUp(value) {
  const unit = 10 ** Math.floor(Math.log10(Math.max(1, value)));
  return [1, 2, 5, 10].map((factor) => factor * unit).find((round) => round >= value && round >= 10) ?? 10;
}

function drawTrack(id, x, mood) {
  const marks = [];
  for (const [index, point] of points.slice(0, -1).entries()) {
    const name = mood(point);
    const [from, to] = [x(point), x(points[index + 1])];
    if (name && marks.at(-1)?.to === from && marks.at(-1).name === name) marks.at(-1).to = to;
    else if (name) marks.push({ name, from, to });
  }
  const drawn = marks.map(({ name, from, to }) => {
    const mark = document.createElementNS(SVG, "rect");
    const sides = { x: from, y: 0, width: to - from, height: 1, class: name };
    for (const [side, value] of Object.entries(sides)) mark.setAttribute(side, value);
    return mark;
  });
  element(id).querySelector("svg").replaceChildren(...drawn);
}

function inWords(most) {
  const away = (isAway) =>
    points.slice(0, -1).reduce((sum, point, index) => sum + (isAway(point) ? points[index + 1].at - point.at : 0), 0);
  const [broker, cloud] = [away((point) => !point.broker), away((point) => point.cloud !== "online")];
  const words = [`${plural(points.at(-1).waiting, "message waits", "messages wait")} now, at most ${count(most)} did`];
  if (broker) words.push(`the broker was away for ${duration(broker)}`);
  if (cloud) words.push(`the cloud was away for ${duration(cloud)}`);
  return `${words.join("; ")}.`;
}
