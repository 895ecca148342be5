// The live feed: queries as they come, with the gallery photos that answered them.

import { details } from "./details.js";
import { element, empty, heading, match, tile } from "./page.js";
import { ask } from "./server.js";
import { clock, count, duration, share, similarity } from "./text.js";

// Queries on the page; more are a matter for a log.
const SHOWN_MAX = 100;
const KEPT_MAX = 500;
const MATCHES_SHOWN = 5;
const DOUBTFUL_BELOW = 0.5;

// What is filtered for outlives a look at another view.
const filter = { device: "", label: "", below: "", outcome: "" };

export function queries(content, { feed, wanted, signal }) {
  if (wanted.has("device")) Object.assign(filter, { device: wanted.get("device"), label: "", below: "", outcome: "" });
  const vitals = tiles();
  const list = element("ol", { class: "feed", "aria-label": "Queries, newest first" });
  const nothing = element("div");
  const fresh = element("button", { class: "primary fresh", type: "button", hidden: true });
  const pause = element("button", { type: "button", "aria-pressed": "false" }, "Pause");
  const missed = element("p", { role: "status" }, "\u00a0");
  const kept = [];
  const waiting = [];
  let paused = false;

  const low = (found) => found.similarity < (Number(filter.below) || DOUBTFUL_BELOW);
  const row = (query) => card(query, low, (number) => details(query.number, number));
  const visible = () => kept.filter(fits).slice(0, SHOWN_MAX);

  function draw() {
    const rows = visible();
    list.replaceChildren(...rows.map(row));
    say(rows.length);
  }

  function say(rows) {
    if (rows > 0) return nothing.replaceChildren();
    const filtered = kept.length > 0;
    nothing.replaceChildren(filtered
      ? empty("No query fits the filter", `${count(kept.length)} queries are remembered, and none of them fits.`)
      : empty("No queries yet", "They appear here as soon as a device asks."));
  }

  function add(query) {
    kept.unshift(query);
    kept.length = Math.min(kept.length, KEPT_MAX);
  }

  function arrive(query) {
    // Who reads further down, or has paused, is not pushed about.
    if (paused || scrollY > 120 || document.querySelector("dialog[open]")) {
      waiting.push(query);
      fresh.hidden = false;
      fresh.textContent = `Show ${count(waiting.length)} new`;
      if (waiting.length > KEPT_MAX) waiting.shift();
      return;
    }
    add(query);
    if (!fits(query)) return say(list.childElementCount);
    const node = row(query);
    node.classList.add("new");
    list.prepend(node);
    while (list.childElementCount > SHOWN_MAX) list.lastElementChild.remove();
    say(list.childElementCount);
  }

  function flush() {
    waiting.splice(0).forEach(add);
    fresh.hidden = true;
    draw();
  }

  fresh.addEventListener("click", () => { flush(); scrollTo({ top: 0 }); });
  pause.addEventListener("click", () => {
    paused = !paused;
    pause.setAttribute("aria-pressed", String(paused));
    pause.textContent = paused ? "Go on" : "Pause";
    if (!paused) flush();
  });

  const filters = filterForm(() => draw(), kept);
  content.append(
    heading("Queries", missed),
    vitals.node,
    filters.node,
    element("div", { class: "tools" }, filters.doubtful, pause, fresh),
    list,
    nothing,
  );

  async function load() {
    try {
      const answer = await ask("/api/queries?limit=500", { signal });
      kept.splice(0, kept.length, ...answer.queries);
      waiting.length = 0;
      fresh.hidden = true;
      filters.devices(kept);
      draw();
    } catch (error) {
      if (error.name !== "AbortError" && kept.length === 0) nothing.replaceChildren(empty("No queries to show", error.message));
    }
  }
  nothing.replaceChildren(empty("Loading", "asking the server"));
  load();
  feed.addEventListener("query", ({ detail }) => { arrive(detail); filters.devices([detail]); }, { signal });
  // What came while the server was away is asked for.
  feed.addEventListener("state", ({ detail }) => { if (detail.before === "lost") load(); }, { signal });
  feed.addEventListener("pulse", ({ detail }) => {
    vitals.set(detail);
    missed.textContent = detail.missed > 0 ? `and ${count(detail.missed)} more in the last second` : "\u00a0";
  }, { signal });
  if (feed.pulse) vitals.set(feed.pulse);
}

function fits(query) {
  const text = filter.label.toLowerCase();
  const best = query.matches[0]?.similarity;
  return (!filter.device || query.device === filter.device)
    && (!filter.outcome || query.outcome === filter.outcome)
    && (!text || query.matches.some((found) => `${found.label} ${found.image}`.toLowerCase().includes(text)))
    && (!filter.below || (best !== undefined && best < Number(filter.below)));
}

function card(query, low, chosen) {
  const who = element(
    "div",
    { class: "who" },
    element("strong", {}, query.device),
    element("time", { class: "muted small", datetime: new Date(query.at_ms).toISOString() }, clock(query.at_ms)),
    element("span", { class: "muted small" }, `${duration(query.took_us)}${query.waited_us >= 1000 ? `, waited ${duration(query.waited_us)}` : ""}`),
    query.outcome === "answered" ? null : element("span", {}, element("span", { class: query.outcome === "repeated" ? "tag" : "tag bad" }, query.outcome)),
  );
  const answer = query.matches.length > 0
    ? element("div", { class: "matches" }, query.matches.slice(0, MATCHES_SHOWN).map((found, number) =>
      match(found, low(found), () => chosen(number), { "aria-label": `${found.label || found.image}, similarity ${similarity(found.similarity)}, for ${query.device}: look at it` })))
    : element("p", { class: "reason" }, reason(query), " ", element("button", { type: "button", onclick: () => chosen(0) }, "Details"));
  return element("li", { class: "card query", "data-number": query.number }, who, answer);
}

function reason(query) {
  if (query.error) return query.error[1];
  return query.outcome === "expired" ? "its time was over before its turn came" : "nothing in the gallery is near enough";
}

function tiles() {
  const [rate, search, waiting, recall, size] =
    [tile("Queries", "a second"), tile("Search, median"), tile("Waiting, median", "", true), tile("Recall@10, live", "%"), tile("Gallery", "images")];
  const node = element("dl", { class: "tiles" }, [rate, search, waiting, recall, size].map((one) => one.node));
  return {
    node,
    set({ pulse, size: images, generation }) {
      rate.set(count(pulse.last_second.reduce((a, b) => a + b, 0)), `${count(pulse.counts.reduce((a, b) => a + b, 0))} since the start`);
      search.set(duration(pulse.searching.p50_us), pulse.searching.p99_us === null ? "none for a minute" : `99 % below ${duration(pulse.searching.p99_us)}`);
      waiting.set(duration(pulse.waiting.p50_us), pulse.waiting.p99_us === null ? "none for a minute" : `99 % below ${duration(pulse.waiting.p99_us)}`);
      recall.set(share(pulse.recall.mean), pulse.recall.samples ? `of ${count(pulse.recall.window)} samples` : "not measured yet");
      size.set(count(images), generation === null ? "" : `generation ${count(generation)}`);
    },
  };
}

function filterForm(changed) {
  const known = new Set();
  const device = element("select", { id: "f-device" }, element("option", { value: "" }, "every device"));
  const label = element("input", { id: "f-label", type: "search", autocomplete: "off", placeholder: "part of a label or id", value: filter.label });
  const outcome = element("select", { id: "f-outcome" }, ["", "answered", "repeated", "refused", "busy", "expired"].map((name) => element("option", { value: name }, name || "every outcome")));
  const below = element("input", { id: "f-below", type: "number", min: "-1", max: "1", step: "0.05", placeholder: "any", value: filter.below });
  const doubtful = element("button", { type: "button", "aria-pressed": "false" }, "Doubtful");
  const show = () => doubtful.setAttribute("aria-pressed", String(filter.below !== ""));
  const set = (name, value) => { filter[name] = value; show(); changed(); };
  function devices(queries) {
    for (const name of [filter.device, ...queries.map((query) => query.device)]) {
      if (!name || known.has(name) || known.size >= 500) continue;
      known.add(name);
      device.append(element("option", { value: name }, name));
    }
    device.value = filter.device;
  }
  device.addEventListener("change", () => set("device", device.value));
  label.addEventListener("input", () => set("label", label.value.trim()));
  outcome.addEventListener("change", () => set("outcome", outcome.value));
  below.addEventListener("input", () => set("below", below.value));
  doubtful.addEventListener("click", () => {
    below.value = filter.below === "" ? String(DOUBTFUL_BELOW) : "";
    set("below", below.value);
  });
  outcome.value = filter.outcome;
  devices([]);
  show();
  const field = (name, control) => element("div", {}, element("label", { for: control.id }, name), control);
  const form = element("form", { class: "filters", "aria-label": "Filter", onsubmit: (event) => event.preventDefault() },
    field("Device", device), field("Label", label), field("Outcome", outcome), field("Best similarity below", below));
  // On a phone the queries come first.
  const node = element("details", { class: "card", open: matchMedia("(min-width: 44rem)").matches }, element("summary", {}, "Filter"), form);
  return { node, doubtful, devices };
}
