// What lives in any page:
//
//   <time data-countdown="2026-11-22T10:03:00Z" data-now="2026-11-22T10:00:00Z">3:00</time>
//
// counts down to the first, in minutes and seconds, from where it is when the page was
// made: this machine's clock may be wrong. At the end it sends the event "over", for htmx.
//
//   <button type="button" data-copy="#answer" data-copied="Copied." data-uncopied="Copy it by hand: ...">Copy</button>
//   <span role="status"></span>
//
// copies the text of what it names, and says so in the element after the button. Where the
// browser does not let it, the text is selected and data-uncopied said.
//
//   <div data-forget>...</div>
//
// is emptied when the page is left, so that the back button does not bring back what was
// shown once; what is over empties it too, if the countdown is in it.
const ends = new WeakMap();

function countDown() {
  for (const time of document.querySelectorAll("[data-countdown]")) {
    const { countdown, now } = time.dataset;
    const key = countdown + now;
    if (ends.get(time)?.key !== key)
      ends.set(time, { key, at: performance.now() + Date.parse(countdown) - (Date.parse(now) || Date.now()) });
    const end = ends.get(time);
    const left = Math.max(0, Math.ceil((end.at - performance.now()) / 1000));
    const text = `${Math.floor(left / 60)}:${String(left % 60).padStart(2, "0")}`;
    if (time.textContent !== text) time.textContent = text;
    if (left === 0 && !end.over) {
      end.over = true;
      time.dispatchEvent(new Event("over", { bubbles: true }));
      time.closest("[data-forget]")?.replaceChildren();
    }
  }
}

async function copy(button) {
  const { copy: from, copied, uncopied } = button.dataset;
  const source = document.querySelector(from);
  const said = button.nextElementSibling;
  try {
    await navigator.clipboard.writeText(source.textContent.trim());
    said.textContent = copied;
  } catch {
    getSelection().selectAllChildren(source);
    said.textContent = uncopied;
  }
}

if (!document.living) {
  document.living = true; // once, though the script may be loaded again
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-copy]");
    if (button) copy(button);
  });
  addEventListener("pagehide", () => {
    for (const shown of document.querySelectorAll("[data-forget]")) shown.replaceChildren();
  });
  countDown();
  setInterval(countDown, 1000);
}
