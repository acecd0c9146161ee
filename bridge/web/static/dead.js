// The dead rows by reason, and the dialog that sends some again. The token lives in this page only, and only while
// it is open: no cookie, no storage.
import { count, element, make, plural, say } from "/words.js";

const REASONS = {
  refused: "refused by the cloud",
  max_attempts: "tried as often as upload.max_attempts allows",
  too_large: "too large for the cloud even alone",
  crc: "damaged on disk: the checksum is wrong",
  undecodable: "not readable as a message",
};

let asked = null; // the ids that the open dialog is about

export async function refreshDead(dead) {
  if (!dead) return show({ groups: [], refusal: null }, 0);
  const answer = await fetch("/dead");
  if (answer.ok) show(await answer.json(), dead);
}

function show({ groups, refusal }, counted) {
  const shown = groups.reduce((sum, group) => sum + group.ids.length, 0);
  const dead = Math.max(counted, shown); // the status may be some seconds older than the rows
  const newest = shown && shown < dead ? `, of which the newest ${count(shown)} are below` : "";
  say(element("dead-summary"), dead
    ? `${plural(dead, "message is", "messages are")} kept on disk, and sent again only when told to${newest}.`
    : "None: the cloud has refused nothing for good.");
  say(element("dead-refusal"), dead && refusal ? refusal : "");
  element("dead").replaceChildren(...groups.map((group) => item(group, refusal)));
}

function item({ reason, status_code: code, attempts, ids }, refusal) {
  const why = [code === null ? "" : `HTTP ${code}`, attempts ? `after ${plural(attempts, "attempt", "attempts")}` : "",
    ids.length > 1 ? `rows ${ids.at(0)} to ${ids.at(-1)}` : `row ${ids[0]}`];
  const text = make("div", {},
    make("strong", { textContent: `${count(ids.length)} × ${REASONS[reason] ?? reason}` }),
    make("span", { className: "soft", textContent: why.filter(Boolean).join(" · ") }));
  if (refusal) return make("li", {}, text);
  const button = make("button", { type: "button", textContent: `Send ${plural(ids.length, "row", "rows")} again` });
  button.onclick = () => ask(ids, reason);
  return make("li", {}, text, button);
}

function ask(ids, reason) {
  asked = ids;
  say(element("requeue-question"), `${plural(ids.length, "row is", "rows are")} dead: ${REASONS[reason] ?? reason}. They are sent again unchanged, which helps only if the cloud takes now what it did not take then.`);
  complain("");
  element("requeue").showModal();
  element("token").focus();
}

function complain(error) {
  say(element("requeue-error"), error);
  element("token").setAttribute("aria-invalid", Boolean(error));
  if (error) element("token").select();
}

async function requeue(event) {
  event.preventDefault();
  element("requeue-go").disabled = true;
  try {
    const answer = await fetch("/dead/requeue", {
      method: "POST",
      headers: { "Authorization": `Bearer ${element("token").value}`, "Content-Type": "application/json" },
      body: JSON.stringify({ ids: asked }),
    });
    const told = await answer.json();
    if (answer.ok) element("requeue").close();
    else complain(told.error);
  } catch {
    complain("The bridge does not answer.");
  } finally {
    element("requeue-go").disabled = false;
  }
}

element("requeue").querySelector("form").onsubmit = requeue;
element("requeue-cancel").onclick = () => element("requeue").close();
