// The gallery: its images page by page, by text, or by a photo that is dropped here.

import { image as look } from "./details.js";
import { element, empty, heading, match, photo } from "./page.js";
import { ask } from "./server.js";
import { count } from "./text.js";

const PAGE = 48;
const PHOTO_BYTES_MAX = 24 * 1024 * 1024;

export function gallery(content, { feed, wanted, signal }) {
  const summary = element("p", { role: "status" }, "\u00a0");
  const text = element("input", { id: "g-text", type: "search", autocomplete: "off", placeholder: "apple", value: wanted.get("text") ?? "" });
  const place = element("div", {}, empty("Loading", "asking the server"));
  const previous = element("button", { type: "button" }, "Previous");
  const next = element("button", { type: "button" }, "Next");
  const pager = element("nav", { class: "pager", "aria-label": "Pages" }, previous, next);
  // What each page came after, up to the one that is shown.
  let pages = [null];
  let following = null;
  let turn = 0;

  async function load() {
    const mine = ++turn;
    const query = new URLSearchParams({ text: text.value.trim(), limit: String(PAGE) });
    if (pages.at(-1) !== null) query.set("after", pages.at(-1));
    try {
      const page = await ask(`/api/images?${query}`, { signal });
      if (mine !== turn) return;
      following = page.next;
      const size = feed.pulse?.size;
      summary.textContent = text.value.trim() ? `images with "${text.value.trim()}"` : size ? `${count(size)} images` : "\u00a0";
      place.replaceChildren(page.images.length > 0
        ? element("ul", { class: "grid" }, page.images.map((found) => element("li", {}, plain(found))))
        : empty("No image fits", text.value.trim() ? "No id and no label contains this text." : "The gallery is empty: add photos with glimpse-gallery ingest."));
      previous.disabled = pages.length === 1;
      next.disabled = following === null;
      pager.hidden = previous.disabled && next.disabled;
    } catch (error) {
      if (error.name === "AbortError" || mine !== turn) return;
      place.replaceChildren(empty(error.code === "loading" ? "The gallery is being loaded" : "There is nothing to show", error.message));
      pager.hidden = true;
      if (error.code === "loading") setTimeout(() => signal.aborted || load(), 1000);
    }
  }

  previous.addEventListener("click", () => { pages.pop(); load().then(() => scrollTo(0, 0)); });
  next.addEventListener("click", () => { pages.push(following); load().then(() => scrollTo(0, 0)); });
  let typed = 0;
  text.addEventListener("input", () => {
    clearTimeout(typed);
    typed = setTimeout(() => { pages = [null]; drop.clear(); load(); }, 250);
  });

  const drop = dropZone(async (file) => {
    const mine = ++turn;
    pager.hidden = true;
    summary.textContent = "searching";
    try {
      const { matches, took_ms } = await ask("/api/search", { method: "POST", headers: { "content-type": file.type || "application/octet-stream" }, body: file, signal });
      if (mine !== turn) return;
      summary.textContent = `${count(matches.length)} images nearest to the photo, in ${Math.round(took_ms)} ms`;
      place.replaceChildren(matches.length > 0
        ? element("ul", { class: "grid", "aria-label": "Images nearest to the photo" }, matches.map((found) => element("li", {}, match(found, false, () => look(found)))))
        : empty("No match", "Nothing in the gallery is near enough to this photo."));
    } catch (error) {
      if (error.name === "AbortError" || mine !== turn) return;
      summary.textContent = "the search failed";
      place.replaceChildren(empty("This photo cannot be searched for", error.message));
    }
  }, () => { pages = [null]; load(); }, signal);

  content.append(
    heading("Gallery", summary),
    element("div", { class: "find" },
      element("form", { class: "card field", role: "search", onsubmit: (event) => event.preventDefault() },
        element("label", { for: "g-text" }, "Text in id or label"), text),
      drop.node),
    place,
    pager,
  );
  pager.hidden = true;
  load();
}

function plain(found) {
  return element(
    "button",
    { class: "match", type: "button", onclick: () => look(found), "aria-label": `Look at ${found.label || found.image}` },
    photo(found.image, ""),
    element("span", { class: "label" }, found.label || "no label"),
    element("span", { class: "id" }, found.image),
  );
}

function dropZone(chosen, cleared, signal) {
  const input = element("input", { id: "g-photo", class: "unseen", type: "file", accept: "image/jpeg,image/png" });
  const preview = element("img", { alt: "", hidden: true });
  const clear = element("button", { type: "button", hidden: true }, "Clear");
  const said = element("p", { class: "small muted" }, "or drop a photo here. It is searched for and not kept.");
  const node = element("div", { class: "card drop" }, preview,
    element("div", {},
      element("div", { class: "row" }, element("label", { class: "button", for: "g-photo" }, "Search by photo", input), clear),
      said));
  let shown = null;

  function forget() {
    if (shown !== null) URL.revokeObjectURL(shown);
    shown = null;
    preview.hidden = clear.hidden = true;
    preview.removeAttribute("src");
    input.value = "";
  }
  function take(file) {
    if (!file) return;
    if (file.size > PHOTO_BYTES_MAX) {
      said.textContent = "This file is too large: at most 24 MiB are searched for.";
      return;
    }
    said.textContent = file.name;
    if (shown !== null) URL.revokeObjectURL(shown);
    shown = URL.createObjectURL(file);
    preview.src = shown;
    preview.hidden = clear.hidden = false;
    chosen(file);
  }
  input.addEventListener("change", () => take(input.files[0]));
  clear.addEventListener("click", () => { forget(); said.textContent = "or drop a photo here. It is searched for and not kept."; cleared(); });
  // Anywhere on the page: a photo that misses the field should not replace the page.
  addEventListener("dragover", (event) => { event.preventDefault(); node.classList.add("over"); }, { signal });
  addEventListener("dragleave", (event) => { if (event.relatedTarget === null) node.classList.remove("over"); }, { signal });
  addEventListener("drop", (event) => { event.preventDefault(); node.classList.remove("over"); take(event.dataTransfer.files[0]); }, { signal });
  signal.addEventListener("abort", forget);
  return { node, clear: forget };
}
