// The kiosk: a keypad on the screen, and forgetting.
//
//   <div role="group" aria-label="..."> <button type="button" data-key="1">1</button> ...
//     <button type="button" data-key="back" aria-label="...">⌫</button>
//     <button type="button" data-key="next">...</button> </div>
//
// The keys type into the input with data-pin or data-code that was used last, or else into
// the first; give those inputmode="none", so that no other keyboard comes up. next goes to
// the next such input of the form, and from the last presses the form's button.
//
//   <body data-idle="60" data-idle-to="/console/...">
//
// After so many seconds without a touch or a key all inputs are emptied and the page is
// replaced by that one.
const fields = "input[data-pin], input[data-code]";
let used = null;

function field() {
  if (!used?.isConnected) used = document.querySelector(fields);
  return used;
}

function replace(input, text, from, to) {
  input.setRangeText(text, from, to, "end");
  input.dispatchEvent(new InputEvent("input", { bubbles: true }));
}

function press(input, key) {
  const { selectionStart: from, selectionEnd: to, value, maxLength } = input;
  if (key === "next") {
    const all = [...input.form.querySelectorAll(fields)];
    const next = all[all.indexOf(input) + 1];
    if (next) next.focus();
    else input.form.querySelector("button:not([type]), [type=submit]").click();
  } else if (key === "back") replace(input, "", from === to ? Math.max(0, from - 1) : from, to);
  else if (maxLength < 0 || value.length - (to - from) < maxLength) replace(input, key, from, to);
}

let timer;

function wait() {
  clearTimeout(timer);
  const { idle, idleTo } = document.body.dataset;
  if (idle) timer = setTimeout(forget, Number(idle) * 1000, idleTo);
}

function forget(to) {
  for (const input of document.querySelectorAll("input:not([type=hidden]), textarea")) input.value = "";
  location.replace(to);
}

if (!document.keypad) {
  document.keypad = true; // once, though the script may be loaded again
  document.addEventListener("focusin", ({ target }) => {
    if (target.matches(fields)) used = target;
  });
  document.addEventListener("pointerdown", (event) => {
    if (event.target.closest("[data-key]")) event.preventDefault(); // the input keeps the focus
  });
  document.addEventListener("mousedown", (event) => {
    if (event.target.closest("[data-key]")) event.preventDefault();
  });
  document.addEventListener("click", (event) => {
    const key = event.target.closest("[data-key]")?.dataset.key;
    if (key && field()) press(field(), key);
  });
  for (const sign of ["pointerdown", "keydown"]) document.addEventListener(sign, wait, true);
  document.addEventListener("htmx:load", () => timer ?? wait());
  wait();
}
