// The sealed form: a new PIN is typed twice, and sealed here for the one bridge that may
// read it. The page has, with all texts in its own language:
//
//   <script defer src=".../seal.js"></script>      in its head, also if htmx brings the form later
//   <form method="post" action="..." data-seal
//         data-seal-public-key="<hex>" data-seal-info="..." data-seal-associated-data="..." data-seal-length="65"
//         data-text-rules="The PIN does not meet these rules:" data-text-differ="The two PINs differ. ..."
//         data-text-insecure="..." data-text-outdated="..." data-text-failed="..."
//         data-text-met="met" data-text-open="not yet">
//     <noscript>...JavaScript is needed for this step...</noscript>
//     <div data-seal-message role="alert" hidden></div>                 what is wrong, at the top
//     <label for="new">...</label>   <input id="new" type="password" data-pin="new" autocomplete="off">
//     <label for="again">...</label> <input id="again" type="password" data-pin="again" autocomplete="off">
//     <ul><li data-rule="minLength" data-value="6">At least 6 characters</li> ... </ul>
//     <p data-seal-live aria-live="polite"></p>                         hidden from sight, not from screen readers
//     <input type="hidden" name="sealed">
//     <button disabled>...</button>
//   </form>
//
// The four data-seal-... are those of the API's next.seal. The rules are minLength,
// maxLength, alphabet, class and maxRun, each with a data-value as in the policy;
// sequential, repeated, constantDelta; and same. A rule that is met gets data-met="yes",
// and a <span class="state"> in it says so in words. The inputs have no name, so that no
// PIN is ever sent, whatever becomes of this script. What is sent in "sealed" is
// relay.SealedPIN in JSON; the form is sent as it is, without the button and past htmx, so
// one that cancels has a form of its own.
import { rules } from "./rules.js";
import { lacking, padded, seal } from "./sealing.js";

const pins = (form) => ["new", "again"].map((which) => form.querySelector(`[data-pin=${which}]`));
const button = (form) => form.querySelector("button:not([type]), [type=submit]");

function empty(form) {
  for (const input of pins(form)) input.value = "";
  form.elements.sealed.value = "";
}

const keeps = (form, { dataset: { rule, value } }) => {
  const [pin, again] = pins(form).map((input) => input.value);
  return pin !== "" && (rule === "same" ? pin === again : rules[rule](pin, value));
};

// tick shows which rules are met, and says which of them have changed.
function tick(form) {
  const changed = [];
  for (const item of form.querySelectorAll("[data-rule]")) {
    const met = keeps(form, item) ? "yes" : "no";
    if (item.dataset.met === met) continue;
    const said = met === "yes" ? form.dataset.textMet : form.dataset.textOpen;
    if (item.dataset.met) changed.push(`${item.dataset.label}: ${said}`);
    else {
      item.dataset.label = item.textContent.trim();
      item.append(" ", Object.assign(document.createElement("span"), { className: "state" }));
    }
    item.dataset.met = met;
    item.lastElementChild.textContent = said;
  }
  if (changed.length) form.querySelector("[data-seal-live]").textContent = changed.join(". ");
}

// say shows what is wrong at the top of the form: a text, and a list below it.
function say(form, text, list = []) {
  const message = form.querySelector("[data-seal-message]");
  const make = (name, ...content) => {
    const element = document.createElement(name);
    element.append(...content);
    return element;
  };
  message.replaceChildren(make("p", text));
  if (list.length) message.append(make("ul", ...list.map((entry) => make("li", entry))));
  message.hidden = false;
}

function refuse(form, text, list) {
  say(form, text, list);
  for (const input of pins(form)) input.setAttribute("aria-invalid", "true");
  pins(form)[0].focus();
}

async function submit(form) {
  const { sealPublicKey, sealInfo, sealAssociatedData, sealLength, textRules, textDiffer, textFailed } = form.dataset;
  const [pin, again] = pins(form);
  const unmet = [...form.querySelectorAll("[data-rule]:not([data-rule=same])")].filter((item) => !keeps(form, item));
  const plain = unmet.length ? null : padded(pin.value, Number(sealLength));
  if (!plain) return refuse(form, textRules, unmet.map((item) => item.dataset.label));
  const same = pin.value === again.value;
  empty(form);
  tick(form);
  if (!same) {
    plain.fill(0);
    return refuse(form, textDiffer);
  }
  button(form).disabled = true;
  try {
    const to = { publicKey: sealPublicKey, info: sealInfo, associatedData: sealAssociatedData };
    form.elements.sealed.value = JSON.stringify(await seal(plain, to));
  } catch (error) {
    console.error("the PIN could not be sealed:", error.name);
    button(form).disabled = false;
    return refuse(form, textFailed);
  } finally {
    plain.fill(0);
  }
  HTMLFormElement.prototype.submit.call(form);
}

// prepare makes forms ready that are not: those of the page, and those that htmx brings.
async function prepare() {
  const why = await lacking();
  for (const form of document.querySelectorAll("form[data-seal]:not([data-ready])")) {
    form.dataset.ready = "";
    tick(form);
    if (why) say(form, form.dataset[why === "insecure" ? "textInsecure" : "textOutdated"]);
    else button(form).disabled = false;
  }
}

// forget leaves nothing typed in a page that the browser keeps for the back button.
function forget() {
  for (const form of document.querySelectorAll("form[data-seal]")) {
    empty(form);
    delete form.dataset.ready;
  }
}

function sealedForm(event) {
  return event.target.closest?.("form[data-seal]");
}

if (!document.sealing) {
  document.sealing = true; // once, though the script may be loaded again
  document.addEventListener("input", (event) => {
    const form = sealedForm(event);
    if (!form) return;
    for (const input of pins(form)) input.removeAttribute("aria-invalid");
    tick(form);
  });
  document.addEventListener("submit", (event) => {
    const form = sealedForm(event);
    if (!form) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    submit(form);
  }, true); // before htmx
  document.addEventListener("htmx:load", prepare);
  addEventListener("pagehide", forget);
  addEventListener("pageshow", prepare); // also when it comes back
  prepare();
}
