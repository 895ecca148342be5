// The server: requests, and the live feed with its reconnects.

export class Failed extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

export async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { credentials: "same-origin", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failed("unreachable", "the server cannot be reached");
  }
  const body = response.status === 204 ? null : await response.json().catch(() => null);
  if (response.ok) return body;
  const { code = "failed", message = `the server answered ${response.status}` } = body?.error ?? {};
  if (code === "log_in") location.assign("/login");
  throw new Failed(code, message);
}

const PAUSE_MS_MAX = 15_000;

// Events: `query`, `device`, `gone`, `pulse` as the server sends them, and `state` with "live", "loading", "apart" (the server
// has no broker) or "lost".
export class Feed extends EventTarget {
  #pause = 1000;
  #source = null;
  state = "connecting";
  pulse = null;

  async open() {
    try {
      const known = await ask("/api/state");
      this.dispatchEvent(new CustomEvent("known", { detail: known }));
    } catch (error) {
      if (error.code !== "log_in") this.#lost();
      return;
    }
    const source = new EventSource("/api/events");
    this.#source = source;
    for (const name of ["query", "device", "gone"]) {
      source.addEventListener(name, (event) => this.dispatchEvent(new CustomEvent(name, { detail: JSON.parse(event.data) })));
    }
    source.addEventListener("pulse", (event) => {
      this.#pause = 1000;
      this.pulse = JSON.parse(event.data);
      this.#set(this.pulse.size === null ? "loading" : this.pulse.ready ? "live" : "apart");
      this.dispatchEvent(new CustomEvent("pulse", { detail: this.pulse }));
    });
    source.addEventListener("error", () => {
      source.close();
      if (this.#source === source) this.#lost();
    });
  }

  #lost() {
    this.#set("lost");
    setTimeout(() => this.open(), this.#pause);
    this.#pause = Math.min(2 * this.#pause, PAUSE_MS_MAX);
  }

  #set(state) {
    if (state === this.state) return;
    const before = this.state;
    this.state = state;
    this.dispatchEvent(new CustomEvent("state", { detail: { state, before } }));
  }
}
