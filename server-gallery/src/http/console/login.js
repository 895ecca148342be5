// The page that asks for the password.

import { ask } from "./server.js";

const form = document.getElementById("login");
const said = document.getElementById("said");
const button = form.querySelector("button");

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  button.disabled = true;
  said.textContent = "";
  try {
    await ask("/api/session", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ password: form.password.value }),
    });
    location.replace("/");
  } catch (error) {
    said.textContent = error.message;
    button.disabled = false;
    form.password.select();
    form.password.focus();
  }
});
