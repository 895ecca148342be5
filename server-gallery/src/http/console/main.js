// The frame of the console: which view is shown, and whether the server is there.

import { about } from "./about.js";
import { devices } from "./devices.js";
import { gallery } from "./gallery.js";
import { measures } from "./measures.js";
import { queries } from "./queries.js";
import { Feed } from "./server.js";

const VIEWS = { queries, devices, gallery, measures, about };
const STATES = { connecting: "connecting", live: "live", loading: "loading the gallery", apart: "no broker", lost: "disconnected" };

const content = document.getElementById("content");
const link = document.getElementById("link");
const feed = new Feed();
let leave = () => {};
let shown = null;

// `#/queries?device=cam-1`: a view and what it shows, so that a link leads there.
function show() {
  const [name, text = ""] = location.hash.replace(/^#\//, "").split("?");
  const view = Object.hasOwn(VIEWS, name) ? name : "queries";
  leave();
  const first = shown === null;
  shown = view;
  for (const anchor of document.querySelectorAll(".bar nav a")) {
    const current = anchor.getAttribute("href") === `#/${view}`;
    if (current) anchor.setAttribute("aria-current", "page");
    else anchor.removeAttribute("aria-current");
  }
  const ending = new AbortController();
  leave = () => ending.abort();
  content.replaceChildren();
  VIEWS[view](content, { feed, wanted: new URLSearchParams(text), signal: ending.signal });
  const title = content.querySelector("h1");
  document.title = `${title?.textContent ?? "Console"} - Glimpse`;
  if (!first) {
    scrollTo(0, 0);
    title?.focus({ preventScroll: true });
  }
}

feed.addEventListener("state", ({ detail: { state } }) => {
  link.dataset.state = state;
  link.lastElementChild.textContent = STATES[state];
});

for (const anchor of document.querySelectorAll(".bar nav a")) anchor.dataset.word = anchor.textContent;
// "Skip to the content" is no view.
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  content.focus();
});
addEventListener("hashchange", show);
show();
feed.open();
