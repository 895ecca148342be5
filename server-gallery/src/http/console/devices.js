// The devices: who is there, what they run, and what they wait for.

import { element, empty, heading, stateOf } from "./page.js";
import { ask } from "./server.js";
import { ago, count, moment } from "./text.js";

const REFRESH_MS = 5000;
const COLUMNS = ["Device", "State", "Last seen", "Program", "Space", "Outbox", "Queries", "Refused", "Last error"];
const NUMBERS = new Set(["Outbox", "Queries", "Refused"]);

export function devices(content, { feed, signal }) {
  const summary = element("p", { role: "status" }, "\u00a0");
  const place = element("div", {}, empty("Loading", "asking the server"));
  content.append(heading("Devices", summary), place);
  let late = 0;

  async function load() {
    try {
      const { devices } = await ask("/api/devices", { signal });
      const online = devices.filter((device) => device.online === true).length;
      summary.textContent = `${count(devices.length)} known, ${count(online)} online`;
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
  const cell = (column, ...content) => element("td", { "data-name": column, class: NUMBERS.has(column) ? "number" : null }, element("span", {}, content));
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
    cell("Outbox", device.outbox === null ? "-" : count(device.outbox)),
    cell("Queries", count(device.queries)),
    cell("Refused", count(device.refused)),
    cell("Last error", error),
  );
}
