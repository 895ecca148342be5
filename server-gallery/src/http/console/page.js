// Elements, made without markup: what comes from a gallery or a device is only ever text.

const SVG = "http://www.w3.org/2000/svg";

export function element(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

export function drawn(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export function photo(image, alt, side = 320) {
  const source = `/photo?image=${encodeURIComponent(image)}${side === 320 ? "" : `&side=${side}`}`;
  return element("img", { class: "photo", src: source, alt, loading: side === 320 ? "lazy" : "eager", decoding: "async" });
}

// A gallery image with its similarity, to be looked at.
export function match(found, low, chosen, attributes = {}) {
  const bar = element("b");
  bar.style.width = `${Math.max(0, Math.min(1, found.similarity)) * 100}%`;
  return element(
    "button",
    { class: low ? "match low" : "match", type: "button", title: found.image, onclick: chosen, ...attributes },
    photo(found.image, ""),
    element("span", { class: "label" }, found.label || found.image),
    element("span", { class: "meter" }, element("i", { "aria-hidden": "true" }, bar), element("span", {}, found.similarity.toFixed(2))),
  );
}

export function heading(title, ...more) {
  return element("div", { class: "head" }, element("h1", { tabindex: "-1" }, title), ...more);
}

export function empty(title, text) {
  return element("div", { class: "card empty" }, element("div", {}, element("strong", {}, title), element("p", {}, text)));
}

// `less`: not on a phone.
export function tile(name, unit = "", less = false) {
  const value = element("span", {}, "-");
  const more = element("dd", { class: "small" }, "\u00a0");
  const node = element("div", { class: less ? "card tile less" : "card tile" }, element("dt", {}, name), element("dd", {}, value, unit ? element("small", {}, ` ${unit}`) : null), more);
  return { node, set(text, note = "") { value.textContent = text; more.textContent = note || "\u00a0"; } };
}

export function pairs(entries) {
  return element("dl", { class: "pairs" }, entries.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
}

export function stateOf(device) {
  if (device.online === true) return element("span", { class: "state online" }, "online");
  if (device.online === false) return element("span", { class: "state offline" }, "offline");
  return element("span", { class: "state" }, "unknown");
}
