// Keyboard for the desk. Every page works without this file: it only presses what is there. Who switched the single-key
// shortcuts off has Escape alone.
"use strict";

const typing = (element) => element.closest("input, textarea, select, [contenteditable]") !== null;

document.addEventListener("keydown", (event) => {
  // a held key repeats on the next page too: it must not approve rows nobody looked at
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  if (event.key === "Escape") {
    const open = document.querySelector("details.reject[open]");
    if (open) {
      open.open = false;
      open.querySelector("summary").focus();
      return;
    }
  } else if (typing(event.target) || document.body.dataset.shortcuts === "off") return;
  const target = document.querySelector(`[data-key="${CSS.escape(event.key.toLowerCase())}"]`);
  if (!target) return;
  event.preventDefault();
  target.click();
  // at once, not with the toggle event: the next letter belongs to the note, and must not approve the row
  const details = target.closest("details.reject");
  if (details && details.open) details.querySelector("[data-focus]").focus();
});

for (const details of document.querySelectorAll("details.reject")) {
  details.addEventListener("toggle", () => {
    if (details.open) details.querySelector("[data-focus]").focus();
  });
}

// one press, one verdict
for (const form of document.querySelectorAll("form")) {
  form.addEventListener("submit", (event) => {
    if (form.dataset.sent) event.preventDefault();
    form.dataset.sent = "yes";
  });
}
window.addEventListener("pageshow", () => {
  for (const form of document.querySelectorAll("form")) delete form.dataset.sent;
});

// screen readers read a live region when it changes, not when the page arrives with it
for (const message of document.querySelectorAll("[data-say] > span")) {
  const text = message.textContent;
  message.textContent = "";
  setTimeout(() => { message.textContent = text; }, 60);
}

const wrong = document.querySelector("[aria-invalid]") || document.querySelector("form.edit [data-first]");
if (wrong) wrong.focus();

// the guidance is long on a phone: closed there, one press away
if (window.matchMedia("(max-width: 52rem)").matches) {
  for (const guide of document.querySelectorAll("details.guide")) guide.open = false;
}
