// One query, looked at: its matches, how long it took, and the device that sent it.

import { element, empty, match, pairs, photo, stateOf } from "./page.js";
import { ask } from "./server.js";
import { ago, count, duration, moment, similarity } from "./text.js";

const dialog = document.getElementById("details");
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });

function open(title, ...content) {
  const close = element("button", { type: "button", onclick: () => dialog.close() }, "Close");
  dialog.replaceChildren(
    element("div", { class: "details-head" }, element("h2", { id: "details-title" }, title), close),
    element("div", { class: "details" }, content),
  );
  if (!dialog.open) dialog.showModal();
}

// Query `number` of the server, with its match at `place` shown large.
export async function details(number, place) {
  open("Query", empty("Loading", "asking the server"));
  try {
    const { query, device } = await ask(`/api/queries/${number}`);
    open(`Query from ${query.device}`, answer(query, place), element("div", { class: "facts" }, about(query, device), facts(query)));
  } catch (error) {
    open("Query", empty("There is nothing to show", error.message));
  }
}

// An image of the gallery by itself.
export function image(found) {
  const facts = pairs([["Label", found.label || "none"], ["Id", element("code", {}, found.image)], ...(found.similarity === undefined ? [] : [["Similarity", similarity(found.similarity)]])]);
  open(found.label || found.image, element("div", {}, large(found)), element("div", { class: "facts" }, element("section", {}, element("h3", {}, "Image"), facts)));
}

function large(found) {
  const node = photo(found.image, `Gallery photo of ${found.label || found.image}`, 960);
  node.className = "chosen";
  return node;
}

function answer(query, place) {
  if (query.matches.length === 0) return empty("No match", query.error ? query.error[1] : "nothing in the gallery is near enough");
  const shown = element("div");
  const buttons = query.matches.map((found, number) =>
    match(found, false, () => choose(number), { "aria-label": `Match ${number + 1}: ${found.label || found.image}, similarity ${similarity(found.similarity)}` }));
  function choose(number) {
    const found = query.matches[number];
    buttons.forEach((button, other) => button.setAttribute("aria-pressed", String(other === number)));
    shown.replaceChildren(
      large(found),
      element("p", { class: "chosen-line" },
        element("span", {}, element("strong", {}, found.label || "no label"), " ", element("code", { class: "muted" }, found.image)),
        element("span", {}, `match ${number + 1} of ${query.matches.length}, similarity ${found.similarity.toFixed(3)}`)),
    );
  }
  choose(Math.min(place, query.matches.length - 1));
  return element("div", {}, shown, element("div", { class: "matches" }, buttons));
}

function about(query, device) {
  const name = element("strong", { class: "device" }, query.device);
  const rows = device === null ? [["Device", name]] : [
    ["Device", name],
    ["State", stateOf(device)],
    ["Last seen", ago(device.seen_at_ms)],
    ["Program", device.version ?? "not told"],
    ["Outbox", device.outbox === null ? "not told" : count(device.outbox)],
    ["Queries", `${count(device.queries)}, ${count(device.refused)} refused`],
  ];
  if (device?.space_fits === false) rows.push(["Space", element("span", { class: "tag bad" }, "not the gallery's")]);
  if (device?.last_error) rows.push(["Last error", `${device.last_error.code}, ${ago(device.last_error.at_ms)}`]);
  const link = element("a", { class: "button", href: `#/queries?device=${encodeURIComponent(query.device)}`, onclick: () => dialog.close() }, "All its queries");
  return element("section", {}, element("h3", {}, "Sent by"), pairs(rows), element("div", { class: "actions" }, link));
}

function facts(query) {
  return element("section", {}, element("h3", {}, "Query"), pairs([
    ["Answered", moment(query.at_ms)],
    ["Outcome", query.error ? `${query.outcome}: ${query.error[0]}` : query.outcome],
    ["Search", duration(query.took_us)],
    ["Waited", duration(query.waited_us)],
    ["Generation", query.generation === null ? "-" : count(query.generation)],
    ["Id", element("code", {}, query.query ?? "not read")],
  ]), element("p", { class: "muted small" }, "The photo itself stays on the device."));
}
