// Keyboard shortcuts of the desk: each clicks an element of the page, and every page works without this file. If the
// user switched single-key shortcuts off, only Escape works.
"use strict";

const typing = (element) => element.closest("input, textarea, select, [contenteditable]") !== null;

document.addEventListener("keydown", (event) => {
  // a held key repeats on the next page, too: it must not approve rows that nobody has read
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
  // now, not in the toggle event: the next letter is part of the note, and must not approve the row
  const details = target.closest("details.reject");
  if (details && details.open) details.querySelector("[data-focus]").focus();
});

for (const details of document.querySelectorAll("details.reject")) {
  details.addEventListener("toggle", () => {
    if (details.open) details.querySelector("[data-focus]").focus();
  });
}

// submit a form only once
for (const form of document.querySelectorAll("form")) {
  form.addEventListener("submit", (event) => {
    if (form.dataset.submitted) event.preventDefault();
    form.dataset.submitted = "yes";
  });
}
window.addEventListener("pageshow", () => {
  for (const form of document.querySelectorAll("form")) delete form.dataset.submitted;
});

// screen readers announce a live region when it changes, not when the page loads with it
for (const message of document.querySelectorAll("[data-announce] > span")) {
  const text = message.textContent;
  message.textContent = "";
  setTimeout(() => { message.textContent = text; }, 60);
}

const first = document.querySelector("[aria-invalid]") || document.querySelector("form.edit [data-first]");
if (first) first.focus();

// on a phone the guidance is long: closed at first
if (window.matchMedia("(max-width: 52rem)").matches) {
  for (const guide of document.querySelectorAll("details.guide")) guide.open = false;
}
