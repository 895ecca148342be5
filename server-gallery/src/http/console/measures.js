// What the server measures: throughput, latency, and the recall of the index on live queries.

import { drawn, element, heading, tile } from "./page.js";
import { ask } from "./server.js";
import { count, duration, share } from "./text.js";

const REFRESH_MS = 2000;
// Seconds of throughput that are shown, and of latency.
const THROUGHPUT_S = 300;
const LATENCY_S = 600;
const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [640, 240, 58, 8, 10, 26];

export function measures(content, { feed, signal }) {
  const vitals = {
    answered: tile("Answered"), refused: tile("Refused"), busy: tile("Busy or expired"),
    p99: tile("Search, 99 % below"), recall: tile("Recall@10, live", "%"),
  };
  const throughput = plot("Throughput", "queries a second, five minutes", [["a1", "answered"], ["a2", "busy, expired"], ["a3", "refused"]]);
  const searching = plot("Search", "ten minutes", [["s1", "half below"], ["s2", "90 % below"], ["s3", "99 % below"]]);
  const waiting = plot("Waiting for the search", "ten minutes", [["s1", "half below"], ["s2", "90 % below"], ["s3", "99 % below"]]);
  const note = element("p", { role: "status" }, "\u00a0");
  content.append(
    heading("Measures", note),
    element("dl", { class: "tiles" }, Object.values(vitals).map((one) => one.node)),
    element("div", { class: "plots" }, throughput.node, searching.node, waiting.node, explained()),
  );

  async function load() {
    try {
      const course = await ask("/api/course", { signal });
      note.textContent = "\u00a0";
      throughput.draw(stacked(course), course.now_s, THROUGHPUT_S);
      searching.draw(lines(course, "searching"), course.now_s, LATENCY_S);
      waiting.draw(lines(course, "waiting"), course.now_s, LATENCY_S);
    } catch (error) {
      if (error.name !== "AbortError") note.textContent = error.message;
    }
  }
  function set({ pulse }) {
    const [answered, repeated, refused, busy, expired] = pulse.counts;
    vitals.answered.set(count(answered), `and ${count(repeated)} repeats`);
    vitals.refused.set(count(refused));
    vitals.busy.set(count(busy + expired), `${count(busy)} busy, ${count(expired)} expired`);
    vitals.p99.set(duration(pulse.searching.p99_us), "of the last minute");
    vitals.recall.set(share(pulse.recall.mean), pulse.recall.samples ? `of ${count(pulse.recall.window)} samples` : "not measured yet");
  }
  load();
  const timer = setInterval(load, REFRESH_MS);
  signal.addEventListener("abort", () => clearInterval(timer));
  feed.addEventListener("pulse", ({ detail }) => set(detail), { signal });
  if (feed.pulse) set(feed.pulse);
}

function explained() {
  return element("section", { class: "card plot" }, element("h2", {}, "Recall, measured live"),
    element("p", { class: "muted" }, "Now and then an answered query is searched for again by comparing it with every image, at the lowest priority. Recall@10 is the share of the ten nearest images that the answer had, as a mean of the last thousand samples. Low recall is the index's; a wrong match at high recall is the networks'."));
}

// A figure whose drawing is replaced, and whose size never changes.
function plot(title, unit, series) {
  const picture = drawn("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${title}: no data yet`, preserveAspectRatio: "none" });
  const legend = element("ul", { class: "legend" }, series.map(([name, word]) => element("li", {}, element("i", { class: name, "aria-hidden": "true" }), word)));
  const node = element("figure", { class: "card plot" }, element("figcaption", {}, element("h2", {}, title), element("p", { class: "small muted" }, unit)), picture, legend);
  return {
    node,
    draw(data, now, span) {
      // As many units as pixels, so that text keeps its shape.
      const width = Math.max(280, Math.round(picture.clientWidth));
      picture.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
      const x = (second) => LEFT + (1 - (now - second) / span) * (width - LEFT - RIGHT);
      const y = data.scale((share) => TOP + (1 - share) * (HEIGHT - TOP - BOTTOM));
      picture.setAttribute("aria-label", `${title}: ${data.summary}`);
      picture.replaceChildren(...rules(data, y, width), ...times(span, width), ...data.draw(x, y, now, span));
    },
  };
}

function rules(data, y, width) {
  return data.ticks.flatMap((tick) => [
    drawn("line", { class: "rule", x1: LEFT, x2: width - RIGHT, y1: y(tick), y2: y(tick) }),
    drawn("text", { x: LEFT - 8, y: y(tick) + 4, "text-anchor": "end" }, data.word(tick)),
  ]);
}

function times(span, width) {
  const marks = [0, 0.5, 1];
  const anchor = ["end", "middle", "start"];
  return marks.map((mark, number) => drawn("text", { x: LEFT + (1 - mark) * (width - LEFT - RIGHT), y: HEIGHT - 6, "text-anchor": anchor[number] },
    mark === 0 ? "now" : `${Math.round((mark * span) / 60 * 10) / 10} min ago`));
}

function stacked({ seconds, now_s: now }) {
  const shown = seconds.filter(({ second }) => second >= now - THROUGHPUT_S && second < now);
  const rows = shown.map(({ second, counts: [answered, repeated, refused, busy, expired] }) => ({ second, parts: [answered + repeated, busy + expired, refused] }));
  const top = nice(Math.max(4, ...rows.map(({ parts }) => parts.reduce((a, b) => a + b, 0))));
  const total = rows.reduce((sum, { parts }) => sum + parts.reduce((a, b) => a + b, 0), 0);
  return {
    ticks: [0, top / 2, top],
    word: count,
    summary: `${count(total)} queries in five minutes`,
    scale: (place) => (value) => place(value / top),
    draw: (x, y) => ["a1", "a2", "a3"].map((name, part) => {
      const path = rows.filter(({ parts }) => parts[part] > 0).map(({ second, parts }) => {
        const below = parts.slice(0, part).reduce((a, b) => a + b, 0);
        const [left, right] = [x(second), x(second + 1)];
        return `M${left.toFixed(1)} ${y(below).toFixed(1)}V${y(below + parts[part]).toFixed(1)}H${Math.max(right, left + 1).toFixed(1)}V${y(below).toFixed(1)}Z`;
      });
      return drawn("path", { class: `area ${name}`, d: path.join("") });
    }),
  };
}

// Latency over powers of ten: a slow query and a fast one are both seen.
function lines({ latency, slot_s: slot, now_s: now }, kind) {
  const rows = latency.filter(({ second }) => second >= now - LATENCY_S).map((row) => ({ second: row.second + slot / 2, ...row[kind] }));
  const all = rows.flatMap(({ p50_us: a, p90_us: b, p99_us: c }) => [a, b, c]).filter((us) => us !== null).map((us) => Math.max(1, us));
  const low = Math.floor(Math.log10(Math.min(100, ...all)));
  const high = Math.max(low + 2, Math.ceil(Math.log10(Math.max(10_000, ...all))));
  const last = rows.at(-1);
  return {
    ticks: Array.from({ length: high - low + 1 }, (_, step) => 10 ** (low + step)),
    word: (us) => duration(us).replace(".0", ""),
    summary: last ? `half below ${duration(last.p50_us)}, 99 % below ${duration(last.p99_us)} in the last ten seconds with queries` : "no queries in ten minutes",
    scale: (place) => (us) => place((Math.log10(Math.max(1, us)) - low) / (high - low)),
    draw: (x, y) => ["p99_us", "p90_us", "p50_us"].map((field, number) => {
      let before = null;
      const path = rows.map((row) => {
        // A slot without queries is a gap, not a line across it.
        const move = before === null || row.second - before > slot ? "M" : "L";
        before = row.second;
        const point = `${x(row.second).toFixed(1)} ${y(row[field]).toFixed(1)}`;
        return move === "M" ? `M${point}h0.01` : `L${point}`;
      });
      return drawn("path", { class: `line s${3 - number}`, d: path.join("") });
    }),
  };
}

// The next of 1, 2, 5, 10, 20, ..: even numbers of ticks are whole.
function nice(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  const step = [2, 4, 10].find((one) => value <= one * power) ?? 10;
  return step * power;
}
