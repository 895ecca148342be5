// What this server is, whether it is well, and the way out.

import { element, empty, heading, pairs } from "./page.js";
import { ask } from "./server.js";
import { count, moment, stretch } from "./text.js";

export function about(content, { feed, signal }) {
  const note = element("p", { role: "status" }, "\u00a0");
  const place = element("div", { class: "columns" }, empty("Loading", "asking the server"));
  content.append(heading("About", note), place);

  async function load() {
    try {
      place.replaceChildren(...sections(await ask("/api/state", { signal })));
      note.textContent = "\u00a0";
    } catch (error) {
      if (error.name !== "AbortError") note.textContent = error.message;
    }
  }
  load();
  feed.addEventListener("state", load, { signal });
}

function sections(state) {
  const { gallery, pulse } = state;
  const yes = (holds, good, bad) => element("span", { class: holds ? "state online" : "state offline" }, holds ? good : bad);
  const section = (title, ...more) => element("section", { class: "card" }, element("h2", {}, title), ...more);
  return [
    section("Health", pairs([
      ["Gallery", yes(gallery !== null, "loaded", "being loaded")],
      ["Changes", gallery?.trouble ? yes(false, "", gallery.trouble) : yes(true, "read as they come", "")],
      ["Broker", yes(pulse.subscribed, "connected, queries arrive", "not connected")],
      ["Running", `${stretch(pulse.uptime_s)}, since ${moment(state.started_at_ms)}`],
      ["Version", state.version],
    ]), element("p", { class: "muted small" }, "Programs ask ", element("code", {}, "/healthz"), ", ", element("code", {}, "/readyz"), " and ", element("code", {}, "/metrics"), ".")),
    gallery === null ? section("Gallery", element("p", { class: "muted" }, "It is being loaded.")) : section("Gallery", pairs([
      ["Name", gallery.name],
      ["Images", count(gallery.size)],
      ["Generation", count(gallery.generation)],
      ["Search", gallery.index],
      ["Index", indexed(gallery)],
      ["Embeddings", `${count(gallery.dimension)} dimensions`],
      ["Space", element("code", {}, gallery.space)],
    ])),
    section("Access", state.protected ? session() : unprotected(state.local)),
  ];
}

function indexed({ changes, indexing }) {
  const since = changes === 0 ? "up to date" : `${count(changes)} changed images since`;
  return indexing ? `${since}; a new one is being made` : since;
}

function session() {
  const leave = async () => {
    await ask("/api/session", { method: "DELETE" }).catch(() => null);
    location.assign("/login");
  };
  return element("div", {}, element("p", { class: "muted" }, "You are logged in. A session ends after eight hours without a request, and after a week."),
    element("div", { class: "actions" }, element("button", { type: "button", onclick: leave }, "Log out")));
}

function unprotected(local) {
  return element("p", { class: "muted" }, local ? "Only this machine can reach this page, and no password is set. " : "No password is set. ",
    "Set one with ", element("code", {}, "glimpse-gallery console-password"), "; it counts at once.");
}
