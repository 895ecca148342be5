// The devices: who is there, what they run, and what they wait for.

import { element, empty, heading, stateOf } from "./page.js";
import { ask } from "./server.js";
import { ago, count, moment } from "./text.js";

const REFRESH_MS = 5000;
const COLUMNS = ["Device", "State", "Last seen", "Program", "Space", "Network", "Outbox", "Queries", "Refused", "Last error"];
const NUMBERS = new Set(["Outbox", "Queries", "Refused"]);

export function devices(content, { feed, signal }) {
  const summary = element("p", { role: "status" }, "\u00a0");
  const place = element("div", {}, empty("Loading", "asking the server"));
  const rolling = element("div");
  content.append(heading("Devices", summary), rolling, place);
  let late = 0;

  async function load() {
    try {
      const { devices, rollouts } = await ask("/api/devices", { signal });
      const online = devices.filter((device) => device.online === true).length;
      summary.textContent = `${count(devices.length)} known, ${count(online)} online`;
      rolling.replaceChildren(...(rollouts.length > 0 ? [rolledOut(rollouts)] : []));
      place.replaceChildren(devices.length > 0 ? table(devices) : empty("No device was heard of", "A device is listed when it says something of itself, or asks."));
    } catch (error) {
      if (error.name !== "AbortError") summary.textContent = error.message;
    }
  }
  load();
  // Many statuses at once are one reason to look again.
  const soon = () => { clearTimeout(late); late = setTimeout(load, 300); };
  feed.addEventListener("device", soon, { signal });
  feed.addEventListener("gone", soon, { signal });
  const timer = setInterval(load, REFRESH_MS);
  signal.addEventListener("abort", () => { clearInterval(timer); clearTimeout(late); });
}

// Roll-outs of networks, the newest first: how far each has come.
function rolledOut(rollouts) {
  const stages = ["done", "trial", "receiving", "waiting", "failed", "unable"];
  const meaning = {
    done: "run it", trial: "run it on trial", receiving: "receive it", waiting: "wait for it, or are offline",
    failed: "could not use it", unable: "take no networks, or took a later one",
  };
  const line = (rollout) => {
    const counts = rollout.devices;
    const all = stages.reduce((sum, stage) => sum + counts[stage], 0);
    const state = rollout.stopped ? element("span", { class: "tag" }, "stopped")
      : rollout.halted ? element("span", { class: "tag bad" }, "halted: it fails on most devices")
      : counts.done > 0 && counts.done + counts.unable === all ? element("span", { class: "tag" }, "complete")
      : element("span", { class: "tag" }, "going on");
    const bar = element("progress", { max: Math.max(all, 1), value: counts.done, "aria-label": `${rollout.name}: ${counts.done} of ${all} devices` });
    const told = stages.filter((stage) => counts[stage] > 0).map((stage) => `${count(counts[stage])} ${meaning[stage]}`).join(", ");
    return element(
      "li",
      {},
      element("p", {}, element("strong", {}, rollout.name), " ", element("code", { title: rollout.model }, rollout.model.slice(0, 8)), ` to ${rollout.to}, ${ago(Date.parse(rollout.created))} `, state),
      bar,
      element("p", { class: "small" }, told || "no device that it is for was heard of"),
    );
  };
  return element("section", { class: "card rollouts", "aria-labelledby": "rollouts" }, element("h2", { id: "rollouts" }, "Roll-outs of networks"), element("ul", {}, [...rollouts].reverse().map(line)));
}

// What a device runs, and what it says of the network that it was offered last.
function network(device) {
  if (device.model === null) return "not told";
  const id = element("code", { title: device.model }, device.model.slice(0, 8));
  const update = device.update;
  if (update === null || update.state === "settled") return id;
  if (update.state === "failed") return [id, " ", element("span", { class: "tag bad" }, "failed"), element("span", { class: "small reason" }, update.reason)];
  const text = update.state === "receiving" ? `receiving, ${update.percent} %` : update.state === "trial" ? "on trial" : update.state;
  return [id, " ", element("span", { class: "tag" }, text)];
}

function table(devices) {
  const name = (column) => element("th", { scope: "col", class: NUMBERS.has(column) ? "number" : null }, column);
  return element("div", { class: "card" }, element(
    "table",
    {},
    element("caption", { class: "unseen" }, "Devices by name"),
    element("thead", {}, element("tr", {}, COLUMNS.map(name))),
    element("tbody", {}, devices.map(row)),
  ));
}

function row(device) {
  const cell = (column, ...content) => element("td", { "data-name": column, class: NUMBERS.has(column) ? "number" : null }, element("span", {}, content.flat()));
  const space = device.space === null ? "not told"
    : device.space_fits === false ? element("span", { class: "tag bad", title: device.space }, "not the gallery's")
    : element("code", { title: device.space }, device.space.slice(0, 8));
  const error = device.last_error ? element("span", { title: moment(device.last_error.at_ms) }, `${device.last_error.code}, ${ago(device.last_error.at_ms)}`) : "none";
  return element(
    "tr",
    {},
    element("th", { scope: "row" }, element("a", { href: `#/queries?device=${encodeURIComponent(device.id)}` }, device.id)),
    cell("State", stateOf(device)),
    cell("Last seen", device.seen_at_ms === null ? "not since the start" : element("span", { title: moment(device.seen_at_ms) }, ago(device.seen_at_ms))),
    cell("Program", device.version ?? "not told"),
    cell("Space", space),
    cell("Network", network(device)),
    cell("Outbox", device.outbox === null ? "-" : count(device.outbox)),
    cell("Queries", count(device.queries)),
    cell("Refused", count(device.refused)),
    cell("Last error", error),
  );
}
