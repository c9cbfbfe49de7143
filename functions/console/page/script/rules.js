// The rules of shared/pin that can be told while somebody types: rules[name](pin, value)
// tells whether a PIN keeps one. What is refused because it is common, on the tenant's own
// list or about the person, only the bridge knows.

const classOf = (c) =>
  c >= "0" && c <= "9" ? "digit"
  : c >= "a" && c <= "z" ? "lower"
  : c >= "A" && c <= "Z" ? "upper"
  : c > " " && c <= "~" ? "special"
  : "";

const alphabets = {
  digits: ["digit"],
  alphanumeric: ["digit", "lower", "upper"],
  printable: ["digit", "lower", "upper", "special"],
};

const length = (pin) => [...pin].length;

// step tells how b follows a: 0 the same, 1 or -1 the neighbour within its class (0 and 9
// are), or null.
function step(a, b) {
  if (a === b) return 0;
  if (classOf(a) !== classOf(b) || classOf(a) === "special") return null;
  const by = b.charCodeAt(0) - a.charCodeAt(0);
  if (by === 1 || (a === "9" && b === "0")) return 1;
  if (by === -1 || (a === "0" && b === "9")) return -1;
  return null;
}

const steps = (pin) => Array.from(pin.slice(1), (c, i) => step(pin[i], c));

function longestRun(pin) {
  let longest = 1, run = 1, last = null;
  for (const next of steps(pin)) {
    run = next === null ? 1 : next === last ? run + 1 : 2;
    last = next;
    longest = Math.max(longest, run);
  }
  return longest;
}

export const rules = {
  minLength: (pin, n) => length(pin) >= Number(n),
  maxLength: (pin, n) => length(pin) <= Number(n),
  alphabet: (pin, name) => [...pin].every((c) => alphabets[name].includes(classOf(c))),
  class: (pin, name) => [...pin].some((c) => classOf(c) === name),
  sequential(pin) {
    const all = new Set(steps(pin));
    return !(all.size === 1 && (all.has(1) || all.has(-1)));
  },
  repeated(pin) {
    for (let block = 1; block <= pin.length / 2; block++)
      if (pin.length % block === 0 && pin.startsWith(pin.slice(block))) return false;
    return true;
  },
  maxRun: (pin, n) => longestRun(pin) <= Number(n),
  constantDelta(pin) {
    if (pin.length < 2 || ![...pin].every((c) => classOf(c) === "digit")) return true;
    return new Set(Array.from(pin.slice(1), (c, i) => (Number(c) - Number(pin[i]) + 10) % 10)).size > 1;
  },
};
